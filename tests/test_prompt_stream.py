"""The prompt stream: each prompt once per epoch, the same sequence for every world size, and a resumed run that goes on exactly."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soundrl.fapo.data.mixture import Mixture
from soundrl.fapo.data.prompt_stream import PromptStream, distinct, shuffled
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
    with pytest.raises(ValueError, match="expected cursor, seed, digest, found"):
        stream.load_state_dict({"cursor": 1})
    assert stream.cursor == 4, "a refused state changes nothing"


def test_the_first_epoch_goes_from_easy_to_hard() -> None:
    prompts = [replace(prompt, difficulty=float(number // 3)) for number, prompt in enumerate(listed(9))]
    stream, plain = PromptStream(prompts, 4, ("level", 0)), PromptStream(prompts, 4)
    first, usual = stream.take(9), plain.take(9)
    assert [prompt.difficulty for prompt in first] == [0.0] * 3 + [1.0] * 3 + [2.0] * 3
    for level in (0.0, 1.0, 2.0):  # who is alike comes in the usual order
        assert [p.id for p in first if p.difficulty == level] == [p.id for p in usual if p.difficulty == level]
    assert ids(stream.take(9)) == ids(plain.take(9))  # the second epoch is shuffled as ever
    assert ids(first) == ids(PromptStream(prompts[::-1], 4, ("level", 0)).take(9)) != ids(usual)
    harder = [replace(prompt, difficulty=9.0) for prompt in prompts]
    with pytest.raises(ValueError, match="the data differ"):  # another order
        PromptStream(harder, 4, ("level", 0)).load_state_dict(stream.state_dict())
    with pytest.raises(ValueError, match=r"data.difficulty level: 1 of 9 problems have no number there \(first: set:3\)"):
        PromptStream([replace(p, difficulty=None) if p.id == "set:3" else p for p in prompts], 4, ("level", 0))


def visited(stream: PromptStream, epochs: int, trains: str = "01234") -> Counter[str]:
    """Visits in so many epochs of ten problems, in steps of 4, in which those whose number is one of `trains` train something."""
    found: Counter[str] = Counter()
    while stream.cursor < 10 * epochs:
        batch = distinct(stream.take(4))
        found.update(prompt.id.partition("#")[0] for prompt in batch)
        stream.learn({prompt.id: prompt.answer in trains for prompt in batch})
    return found


def test_who_trains_nothing_is_visited_less_often_until_it_does() -> None:
    stream = PromptStream(listed(10), 0, ("", 2))
    found = visited(stream, 200)
    assert all(198 <= found[f"set:{number}"] <= 202 for number in range(5))
    assert all(30 <= found[f"set:{number}"] <= 70 for number in range(5, 10))  # two, and a quarter of the rest
    assert stream.silent.keys() == {f"set:{number}" for number in range(5, 10)}
    assert all(found[f"set:{number}"] == stream.silent[f"set:{number}"] for number in range(5, 10))
    visited(stream, 230, "0123456789")
    assert not stream.silent  # each has been met again
    assert all(29 <= n <= 31 for n in visited(stream, 260, "0123456789").values())
    # Inverse: without the setting nobody is passed over, whatever is learnt.
    assert set(visited(PromptStream(listed(10), 0), 20).values()) <= {19, 20, 21}


def test_a_visit_that_trains_something_begins_the_count_anew_and_names_of_one_step_are_told_apart() -> None:
    stream = PromptStream(listed(3), 0, ("", 2))
    assert stream.learn({"set:0": False, "set:1": False, "set:1#2": False}) == {"data/passed_over": 0.0, "data/seldom": 1.0}
    stream.learn({"set:0": True, "set:1#2": True, "set:1": False})
    assert stream.silent == {}
    stream.learn({"set:1": False, "set:1#2": False})
    while not stream.passed:
        stream.take(3)
    assert stream.learn({})["data/passed_over"] > 0 and stream.passed == 0


def test_what_has_trained_nothing_goes_with_the_state() -> None:
    straight = PromptStream(listed(10), 5, ("", 1))
    visited(straight, 3)
    straight.take(3)  # in the middle of a step
    state = json.loads(json.dumps(straight.state_dict()))
    resumed = PromptStream(listed(10), 5, ("", 1))
    resumed.load_state_dict(state)
    assert [ids(straight.take(4)) for _ in range(9)] == [ids(resumed.take(4)) for _ in range(9)]
    forgets = PromptStream(listed(10), 5, ("", 1))
    forgets.load_state_dict(state | {"silent": {}})
    assert [ids(forgets.take(4)) for _ in range(9)] != [ids(resumed.take(4)) for _ in range(9)]  # inverse


def test_what_has_no_end_has_no_epochs() -> None:
    for difficulty in (("level", 0), ("", 3)):
        with pytest.raises(ValueError, match=r"data.train has no end: no problem comes twice, .*; set --data.difficulty \"\" 0"):
            PromptStream(Endless(0), 0, difficulty)


def test_arguments_that_are_refused() -> None:
    with pytest.raises(ValueError, match="no prompts"):
        PromptStream([], seed=0)
    with pytest.raises(ValueError, match="two prompts have the id 'set:0'"):
        PromptStream([*listed(2), *listed(1)], seed=0)
    for n in (0, -2):
        with pytest.raises(ValueError, match="take at least one"):
            PromptStream(listed(2), 0).take(n)


# Several sources


def mixture(*weights: str, sizes: tuple[int, ...] = (5, 3, 2)) -> Mixture:
    names = "abc"[: len(sizes)]
    parts = [listed(size, name) for name, size in zip(names, sizes, strict=True)]
    return Mixture(names, parts, [Fraction(weight) for weight in weights] if weights else None)


def test_sources_without_weights_are_one_list() -> None:
    assert ids(PromptStream(mixture(), seed=3).take(25)) == ids(PromptStream(list(mixture()), seed=3).take(25))
    assert PromptStream(mixture(), 3).state_dict() == PromptStream(list(mixture()), 3).state_dict()


def test_each_source_comes_by_its_weight_in_its_own_order() -> None:
    """Shares are near at any place, not at the end alone; within a source every prompt comes once an epoch, in the order it has alone."""
    taken = ids(PromptStream(mixture("0.5", "0.3", "0.2"), seed=1).take(1000))
    sources = [id[0] for id in taken]
    for place in range(1, 1001):
        seen = Counter(sources[:place])
        assert all(abs(seen[name] - share * place) < 2 for name, share in zip("abc", (0.5, 0.3, 0.2), strict=True))
    for name, size in zip("abc", (5, 3, 2), strict=True):
        assert [id for id in taken if id[0] == name] == ids(PromptStream(listed(size, name), seed=1).take(sources.count(name)))
    assert taken != ids(PromptStream(mixture("5", "3", "2"), seed=2).take(1000))
    assert taken == ids(PromptStream(mixture("5", "3", "2"), seed=1).take(1000)), "only the ratio of weights counts"


@settings(max_examples=50, deadline=None)
@given(weights=st.lists(st.integers(1, 50), min_size=3, max_size=3), before=st.integers(1, 60), after=st.integers(1, 60))
def test_a_mixture_resumes_from_its_cursor_and_does_not_depend_on_the_order_of_sources(weights: list[int], before: int, after: int) -> None:
    whole = mixture(*map(str, weights))
    turned = Mixture(whole.names[::-1], whole.parts[::-1], (whole.weights or ())[::-1])
    straight, resumed = PromptStream(whole, seed=4), PromptStream(turned, seed=4)
    straight.take(before)
    resumed.load_state_dict(json.loads(json.dumps(straight.state_dict())))
    assert ids(straight.take(after)) == ids(resumed.take(after))


def test_other_weights_are_other_data() -> None:
    state = PromptStream(mixture("1", "1", "2"), seed=0).state_dict()
    for other in (mixture("1", "2", "1"), mixture()):
        with pytest.raises(ValueError, match="the data differ"):
            PromptStream(other, seed=0).load_state_dict(state)


def test_a_source_of_which_nothing_is_kept_is_left_out() -> None:
    nested = Mixture("ab", [Mixture(["a"], [listed(5, "a")]), Mixture(["b"], [listed(3, "b")])], [Fraction(1), Fraction(3)])
    kept = nested.kept(lambda prompt: replace(prompt, solution="x") if prompt.id in ("b:0", "b:2") else None)
    assert (kept.names, kept.weights, ids(kept)) == (("b",), (Fraction(3),), ["b:0", "b:2"]) and isinstance(kept.parts[0], Mixture)
    assert not nested.kept(lambda prompt: None) and ids(PromptStream(kept, seed=0).take(2)) == ["b:0", "b:2"]
