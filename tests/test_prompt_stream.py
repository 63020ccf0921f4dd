"""The prompt stream: each prompt once per epoch, the same sequence for every world size, and a resumed run that goes on exactly."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soundrl.fapo.data.prompt_stream import PromptStream, shuffled
from soundrl.fapo.records import Prompt


def listed(count: int, name: str = "set") -> list[Prompt]:
    return [Prompt(id=f"{name}:{index}", text=f"problem {index}", answer=str(index)) for index in range(count)]


@dataclass
class Endless:
    seed: int

    def prompt(self, index: int) -> Prompt:
        return Prompt(id=f"endless-{self.seed}:{index}", text=str(index), answer=str(index + self.seed))


def ids(prompts: list[Prompt]) -> list[str]:
    return [prompt.id for prompt in prompts]


def test_order_is_pinned() -> None:
    """A change of this order would change every seeded run."""
    assert shuffled(["a", "b", "c", "d"], 0, 0) == [3, 2, 1, 0] and shuffled(["a", "b", "c", "d"], 0, 1) == [0, 3, 1, 2]
    assert ids(PromptStream(listed(5), seed=7).take(10)) == [f"set:{index}" for index in (3, 0, 2, 1, 4, 0, 1, 4, 3, 2)]


def test_order_follows_from_ids_and_not_from_their_place() -> None:
    prompts = listed(20)
    assert ids(PromptStream(prompts, seed=1).take(40)) == ids(PromptStream(prompts[::-1], seed=1).take(40))
    assert ids(PromptStream(prompts, seed=1).take(20)) != ids(PromptStream(prompts, seed=2).take(20))
    assert ids(PromptStream(prompts, seed=1).take(20)) != ids(prompts)


TAKES = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(count=st.integers(1, 20), seed=st.integers(-(2**70), 2**70), takes=TAKES)
def test_every_prompt_once_per_epoch(count: int, seed: int, takes: list[int]) -> None:
    stream = PromptStream(listed(count), seed)
    taken = [id for n in takes for id in ids(stream.take(n))]
    assert stream.cursor == len(taken) == sum(takes)
    for begin in range(0, len(taken), count):
        epoch = taken[begin : begin + count]
        assert max(Counter(epoch).values()) == 1
        if len(epoch) == count:
            assert set(epoch) == set(ids(listed(count)))


@settings(max_examples=100, deadline=None)
@given(count=st.integers(1, 20), seed=st.integers(0, 99), before=TAKES, after=TAKES, endless=st.booleans())
def test_resumed_equals_uninterrupted(count: int, seed: int, before: list[int], after: list[int], endless: bool) -> None:
    source = Endless(seed) if endless else listed(count)
    straight = PromptStream(source, seed)
    for n in before:
        straight.take(n)
    resumed = PromptStream(source, seed)
    resumed.load_state_dict(json.loads(json.dumps(straight.state_dict())))
    for n in after:
        assert ids(straight.take(n)) == ids(resumed.take(n))


def test_endless_source_comes_in_order() -> None:
    stream = PromptStream(Endless(3), seed=0)
    assert ids(stream.take(4)) == [f"endless-3:{i}" for i in range(4)] and ids(stream.take(2)) == ["endless-3:4", "endless-3:5"]
    assert stream.cursor == 6


def test_state_of_other_data_is_refused() -> None:
    stream = PromptStream(listed(6), seed=1)
    stream.take(4)
    state = stream.state_dict()
    edited = [*listed(5), Prompt(id="set:5", text="problem 5", answer="0")]
    for other in (listed(7), listed(6, "other"), edited, Endless(1)):
        with pytest.raises(ValueError, match="the data differ from those of the checkpoint"):
            PromptStream(other, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="made with seed 1, now 2"):
        PromptStream(listed(6), seed=2).load_state_dict(state)
    with pytest.raises(ValueError, match="the data differ"):
        PromptStream(Endless(2), seed=1).load_state_dict(PromptStream(Endless(1), seed=1).state_dict())
    for cursor in (-1, 1.5, True, "4"):
        with pytest.raises(ValueError, match="expected a count of prompts"):
            PromptStream(listed(6), seed=1).load_state_dict({**state, "cursor": cursor})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="expected cursor, seed and digest, found"):
        stream.load_state_dict({"cursor": 1})
    assert stream.cursor == 4, "a refused state changes nothing"


def test_arguments_that_are_refused() -> None:
    with pytest.raises(ValueError, match="no prompts"):
        PromptStream([], seed=0)
    with pytest.raises(ValueError, match="two prompts have the id 'set:0'"):
        PromptStream([*listed(2), *listed(1)], seed=0)
    for n in (0, -2):
        with pytest.raises(ValueError, match="take at least one"):
            PromptStream(listed(2), 0).take(n)
