"""Overlap of judging and training: the same parameters to the bit whenever verdicts arrive, deadlines, and how windows are cut."""

from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_tiny

from soundrl.engine.exchange import exchange
from soundrl.engine.packing import deal, micro_batches
from soundrl.engine.schedule import MOST_BATCHES, UPDATE, Minibatch, cut, minibatches, number_windows
from soundrl.engine.telemetry.timeline import TIMELINE
from soundrl.fapo.pending import PendingGroups, done, scored
from soundrl.fapo.records import Outcome, Prompt, Rollout, Verdict
from soundrl.fapo.rewards import RewardSettings, assign_advantages
from soundrl.fapo.task import OracleJudge, ReasoningTask


class Alone:
    """One rank's `Ranks`."""

    rank, size, device = 0, 1, torch.device("cpu")

    def gather_array(self, own: np.ndarray) -> list[np.ndarray]:
        return [own]


def planned(pending: PendingGroups, size: int, budget: int) -> list[Minibatch]:
    return minibatches(exchange([group.prompt for group in pending], pending, Alone()), size, budget)  # type: ignore[arg-type]


def test_windows_are_whole_groups_as_full_as_they_must_be():
    assert cut([[5, 4], [6], [3], [2], [1]], 1, 10) == [range(0, 1), range(1, 3), range(3, 5)]
    assert cut([], 1, 10) == [] and cut([[], []], 1, 10) == [] and cut([[], [9], []], 1, 10) == [range(0, 2)]
    long = cut([[6]] * 20, 1, 10)  # never full enough
    assert long == [range(0, MOST_BATCHES), range(MOST_BATCHES, 2 * MOST_BATCHES), range(2 * MOST_BATCHES, 20)]
    # Ranks that wait for each other share windows of four rounds at least, and no rest is dealt alone.
    assert cut([[5, 4], [6], [3], [2], [1]], 2, 10) == [range(0, 5)]
    assert cut([[5, 5]] * 17, 2, 10) == [range(0, 7), range(7, 17)] and cut([[5, 5]] * 17, 1, 10) == [range(i, i + 1) for i in range(17)]


def test_dealt_to_who_holds_least_longest_first():
    assert deal([5, 3, 4, 2], 2) == [[0, 3], [2, 1]] and deal([], 2) == [[], []] and deal([7], 3) == [[0], [], []]
    assert deal([4, 4, 4, 4], 2) == [[0, 2], [1, 3]]  # ties: by index, then by hand
    assert micro_batches([5, 3, 4, 2], 2, 5) == [[[0], [2]], [[1], [3]]]  # the longest side by side
    assert micro_batches([5, 3, 4, 2], 1, 7) == [[[0, 3]], [[2, 1]]]
    assert micro_batches([6], 2, 6) == [[[0], []]]  # an empty one, for the collectives
    assert micro_batches([], 2, 6) == []
    assert micro_batches([6, 6, 6, 4, 4, 4], 1, 10) == [[[0, 3]], [[1, 4]], [[2, 5]]]
    with pytest.raises(ValueError, match=r"a sequence of 12 tokens exceeds optim.microbatch_tokens 10; raise it to model.max_length"):
        micro_batches([3, 12], 2, 10)


@settings(max_examples=200)
@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 70), st.integers(60, 200))
def test_every_sequence_is_dealt_once_in_as_few_rounds_as_fit(lengths, ranks, budget):
    rounds = micro_batches(lengths, ranks, budget)
    assert sorted(i for each in rounds for own in each for i in own) == list(range(len(lengths)))
    loads = [[sum(lengths[i] for i in own) for own in each] for each in rounds]
    assert all(len(each) == ranks and max(each) <= budget and max(each) > 0 for each in loads)
    assert [load for each in loads for load in each] == sorted((load for each in loads for load in each), reverse=True)
    assert len(rounds) <= -(-2 * sum(lengths) // (ranks * budget)) + 1


REWARDS = RewardSettings(lam=1.0, normalize_std=True, max_new_tokens=40, overlong_buffer=0, overlong_factor=1.0, drop_unknown=True)


class LateJudge(OracleJudge):
    """Answers when told to."""

    def __init__(self) -> None:
        self.asked: dict[tuple[str, int], Future[Verdict]] = {}

    def submit(self, prompt: Prompt, rollout: Rollout, priority: int = 0) -> Future[Verdict]:
        return self.asked.setdefault((prompt.id, rollout.sample), Future())

    def answer(self, said: str) -> None:
        """`f` for flawed, `u` for unknown, else sound, in the order of the questions."""
        for future, letter in zip(self.asked.values(), said, strict=True):
            future.set_result({"f": Verdict.flawed(0), "u": Verdict.unknown("no_box")}.get(letter, Verdict.sound()))


def collected(outcomes: dict[str, str], lam: float = 1.0, deadline: float | None = None) -> tuple[LateJudge, PendingGroups]:
    """Groups by prompt id with a letter per rollout, `c` correct or `w` wrong; the response of rollout i has i + 1 tokens."""
    judge = LateJudge()

    def verify(prompt: Prompt, rollout: Rollout) -> Future[Outcome]:
        return done(Outcome.CORRECT if outcomes[prompt.id][rollout.sample] == "c" else Outcome.WRONG)

    task = ReasoningTask(verify, judge, replace(REWARDS, lam=lam), deadline=deadline)
    prompts = [Prompt(id=name, text="", answer="") for name in outcomes]
    rollouts = [
        Rollout(
            prompt_id=prompt.id,
            sample=i,
            prompt_tokens=(9,),
            tokens=(ord(prompt.id),) * (i + 1),
            logprobs=(-1.0,) * (i + 1),
            text="",
            finish_reason="stop",
            policy_version=0,
        )
        for prompt in prompts
        for i in range(len(outcomes[prompt.id]))
    ]
    return judge, task.collect(prompts, rollouts)


def test_what_is_packed_is_decided_before_verdicts_and_trained_after():
    judge, pending = collected({"a": "ccww", "b": "www", "c": "cccc"})
    TIMELINE.begin(0)
    (minibatch,) = planned(pending, 3, 12)
    # Prompt and response: a and c have 2, 3, 4, 5 tokens; b can have no advantage and is not trained, but counts.
    assert sum(minibatch.batch.samples[i].length for i in minibatch.candidates()) == 14 + 14
    assert len(minibatch.samples) == 4 + 3 + 4 and minibatch.windows == [[0, 2]]
    assert not any(future.done() for future in judge.asked.values())
    judge.answer("sf" + "sssu")
    trained = [sample for window in minibatch.trained() for sample in window]
    assert TIMELINE.waits == []  # all verdicts are there
    groups = pending.groups()
    assert groups[2].kept == [True, True, True, False] and groups[2].advantages == [0.0] * 4
    # All of a is trained; c, all sound and one unknown, is not.
    assert [sample.tokens.tolist() for sample in trained] == [[ord("a")] * n for n in (1, 2, 3, 4)]
    assert [sample.advantage for sample in trained] == groups[0].advantages
    assert [sample.logprobs.tolist() for sample in trained] == [[-1.0] * n for n in (1, 2, 3, 4)] and trained[0].prompt_tokens.tolist() == [
        9
    ]


def test_each_trained_rollout_has_the_number_of_its_window_and_others_have_none():
    judge, pending = collected({"a": "ccw", "b": "www", "c": "cccc", "d": "cww", "e": "cw"})
    parts = planned(pending, 3, 10)
    judge.answer("sf" + "ssss" + "f" + "s")
    assert [minibatch.windows for minibatch in parts] == [[[0], [2]], [[3], [4]]]
    trained = [len(window) for minibatch in parts for window in minibatch.trained()]
    number_windows(parts)
    windows = {group.prompt.id: [rollout.window for rollout in group.rollouts] for group in pending.groups()}
    # All of c is sound, and has no advantage: its window trains nothing. Nor has a's flawed one, whose reward is the group's mean.
    assert windows == {"a": [0, None, 0], "b": [None] * 3, "c": [None] * 4, "d": [UPDATE] * 3, "e": [UPDATE + 1] * 2} and trained == [
        2,
        0,
        3,
        2,
    ]
    assert all(rollout.paragraphs == ("",) for name in "ce" for rollout in pending.by_prompt[name].rollouts[:1])
    assert pending.by_prompt["e"].rollouts[1].paragraphs == ()
    # A step that goes on behind its first optimizer step has settled nothing of that, and numbers alike.
    judge, pending = collected({"a": "ccw", "b": "www", "c": "cccc", "d": "cww", "e": "cw"})
    judge.answer("sf" + "ssss" + "f" + "s")
    number_windows(planned(pending, 3, 10))
    assert windows == {group.prompt.id: [rollout.window for rollout in group.rollouts] for group in pending.groups()}


def test_minibatches_are_whole_groups_in_prompt_order():
    judge, pending = collected({"a": "cw", "b": "ww", "c": "cw", "d": "cw"})
    parts = planned(pending, 2, 100)
    assert [[sample.tokens[0] for sample in minibatch.samples] for minibatch in parts] == [[97, 97, 98, 98], [99, 99, 100, 100]]


def test_lambda_zero_waits_for_no_verdict_and_gives_the_advantages_it_will_have():
    judge, pending = collected({"a": "ccw", "b": "cww"}, lam=0.0)
    (minibatch,) = planned(pending, 2, 100)
    (trained,) = minibatch.trained()
    early = [group.advantages for group in scored(list(pending))]
    judge.answer("fus")
    assert [group.advantages for group in pending.groups()] == early
    assert len(minibatch.windows) == 1 and sum(sample.length for sample in trained) == 18
    # Inverse: with λ = 1 the same batch does wait.
    judge, pending = collected({"a": "ccw", "b": "cww"}, deadline=0.05)
    TIMELINE.begin(0)
    (minibatch,) = planned(pending, 2, 100)
    list(minibatch.trained())
    assert len(TIMELINE.waits) == 1 and [v and v.reason for v in pending.groups()[0].verdicts] == ["timeout", "timeout", None]


def test_groups_one_at_a_time_are_scored_as_all_at_once():
    judge, pending = collected({"a": "ccwc", "b": "wwww", "c": "cccc", "d": "cw"})
    judge.answer("sfu" + "ffsf" + "s")
    alone = [group.advantages for group in pending.groups()]
    together = pending.groups()
    assign_advantages(together, REWARDS)
    assert [group.advantages for group in together] == alone and any(any(own) for own in alone)


def test_a_late_verdict_changes_nothing_and_a_fault_of_the_judge_is_seen():
    judge, pending = collected({"a": "cw"}, deadline=0.01)
    (group,) = pending.groups()
    judge.answer("f")
    assert group.verdicts[0] == Verdict.unknown("timeout") and pending.groups()[0] is group
    judge, pending = collected({"a": "cw"}, deadline=10)
    next(iter(judge.asked.values())).set_exception(TimeoutError("of the judge's own"))
    with pytest.raises(TimeoutError, match="of the judge's own"):
        pending.groups()


@pytest.fixture(scope="module")
def computed(torchrun_once, tmp_path_factory) -> dict[int, dict]:
    folder = str(write_tiny(tmp_path_factory.mktemp("models") / "tiny"))
    return {
        1: torchrun_once("overlap", 1, folder=folder, seeds=4, deadline=2.0),
        3: torchrun_once("overlap", 3, folder=folder, seeds=2, deadline=0),
    }


@pytest.mark.parametrize("ranks", [1, 3])
def test_parameters_are_the_same_to_the_bit_whenever_verdicts_come(computed, ranks):
    said = computed[ranks]
    reference, late = said["off"]
    assert late == 0 and min(said["late"]) > 0  # witness: off waited for all of them, and on began before
    assert set(said["on"]) == {reference}
    assert said["serial"] == [reference, 0]
    assert said["backwards"] != reference  # inverse: the digest does tell another order of the same groups


@pytest.mark.parametrize("ranks", [1, 3])
def test_groups_without_signal_are_replaced_alike_whenever_verdicts_come(computed, ranks):
    """Steps of eight prompts; what is replaced, by whom and for how many tokens is the same on any number of ranks."""
    (digest, sums), overlapping = computed[ranks]["refilled"]
    assert overlapping == [digest, sums]
    assert sums == computed[1]["refilled"][0][1]
    steps = computed[ranks]["steps"]
    assert sums["refill/prompts"] >= sums["refill/groups"] > steps and sums["refill/rounds"] > steps  # witness
    gained = sums["reward/groups_with_signal"] - sums["reward/groups_with_signal_before"]
    assert gained * 8 == pytest.approx(sums["refill/groups"])
    assert 50 * steps < sums["refill/tokens"] < steps * (200 + 4 * 24)  # a budget of 200 a step; a group has at most 4 × 24
    assert digest != computed[ranks]["off"][0]  # inverse: it does train something else


def test_any_number_of_ranks_trains_the_same_mini_batches(computed):
    """Eight prompts a step, in two mini-batches, on three ranks too: the same parameters but for the order of sums."""
    alone, together = (torch.load(computed[n]["parameters"], weights_only=True) for n in (1, 3))
    apart = sum((a - b).double().square().sum() for a, b in zip(alone, together, strict=True)) ** 0.5
    assert apart <= 1e-6 * sum(a.double().square().sum() for a in alone) ** 0.5
    assert computed[1]["moved"] > 1e-3 * float(sum(a.double().square().sum() for a in alone) ** 0.5)  # witness: they have been trained


def test_a_window_waits_for_its_own_verdicts_and_a_step_for_its_deadline(computed):
    """Verdicts of group p8 are given once something has been trained; those of p9 never."""
    released, held = computed[1]["released"], computed[1]["held"]
    assert released["timeouts"] == [0] * 9 + [3]  # p8 was answered, since the windows before it did not wait for it
    assert held["timeouts"] == [0] * 8 + [3, 3]  # inverse: who waits for all first waits for what training would release
    for said in (released, held):
        assert said["updates"] == 1 and 2.0 <= said["seconds"] < 8.0  # nothing hangs; the silent judge would hang for ever
        assert said["kept"] == [True, False, False, False]  # unknown verdicts leave the group
