"""Overlap of judging and training: the same parameters to the bit whenever verdicts arrive, deadlines, and how windows are cut."""

from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from tiny import write_tiny

from soundrl.engine.packing import Sample, pack
from soundrl.engine.schedule import MOST_BATCHES, cut, schedules
from soundrl.fapo.pending import PendingGroups, done
from soundrl.fapo.records import Outcome, Prompt, Rollout, Verdict
from soundrl.fapo.rewards import RewardSettings, assign_advantages
from soundrl.fapo.task import OracleJudge, ReasoningTask

CPU = torch.device("cpu")


def test_windows_are_whole_groups_as_full_as_they_must_be():
    assert cut([[5, 4], [6], [3], [2], [1]], 10) == [range(0, 1), range(1, 3), range(3, 5)]
    assert cut([], 10) == [] and cut([[], []], 10) == [] and cut([[], [9], []], 10) == [range(0, 2)]
    long = cut([[6]] * 20, 10)  # never full enough
    assert long == [range(0, MOST_BATCHES), range(MOST_BATCHES, 2 * MOST_BATCHES), range(2 * MOST_BATCHES, 20)]


def test_with_advantages_leaves_out_what_has_none():
    samples = [
        Sample(prompt_tokens=[1], tokens=[2, 3], logprobs=[-1.0, -2.0]),
        Sample(prompt_tokens=[4, 5], tokens=[6], logprobs=[-3.0]),
        Sample(prompt_tokens=[7], tokens=[8], logprobs=[-4.0]),
    ]
    batch = pack(samples, CPU).with_advantages([1.5, 0.0, -0.5])
    assert batch.input_ids.tolist() == [1, 2, 3, 7, 8] and batch.cu_seqlens.tolist() == [0, 3, 5]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1]
    assert batch.advantages.tolist() == [0.0, 1.5, 1.5, 0.0, -0.5] and batch.sampler_logprobs.tolist() == [0.0, -1.0, -2.0, 0.0, -4.0]
    whole = pack([Sample(prompt_tokens=s.prompt_tokens, tokens=s.tokens, logprobs=s.logprobs, advantage=2.0) for s in samples], CPU)
    ours = pack(samples, CPU).with_advantages([2.0] * 3)
    assert all(torch.equal(getattr(ours, name), getattr(whole, name)) for name in ("input_ids", "cu_seqlens", "loss_mask", "advantages"))
    empty = pack(samples, CPU).with_advantages([0.0] * 3)
    assert not empty.loss_mask.any() and empty.tokens == pack((), CPU).tokens
    with pytest.raises(ValueError, match="2 advantages for 3 sequences"):
        pack(samples, CPU).with_advantages([1.0, 2.0])


REWARDS = RewardSettings(lam=1.0, normalize_std=True, max_new_tokens=40, overlong_buffer=0, overlong_factor=1.0, drop_unknown=True)


class Waits:
    """Counts how often somebody waited."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def __call__(self):
        self.count += 1
        yield


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
    waits = Waits()
    (minibatch,) = schedules(list(pending), 1, 12, CPU, waits)
    # Prompt and response: a and c have 2, 3, 4, 5 tokens; b can have no advantage and is not packed, but counts.
    assert sum(batch.tokens for batch in minibatch.batches) == 14 + 14
    assert len(minibatch.samples) == 4 + 3 + 4 and all(sample.advantage == 0.0 for sample in minibatch.samples)
    assert waits.count == 0 and not any(future.done() for future in judge.asked.values())
    judge.answer("sf" + "sssu")
    trained = list(minibatch.trained(minibatch.batches))
    assert waits.count == 0  # all verdicts are there
    groups = pending.groups()
    assert groups[2].kept == [True, True, True, False] and groups[2].advantages == [0.0] * 4
    # All of a is trained; c, all sound and one unknown, has left its micro-batches.
    assert sorted(t for batch in trained for t in batch.input_ids[batch.loss_mask].tolist()) == [ord("a")] * (1 + 2 + 3 + 4)
    assert sorted({a for batch in trained for a in batch.advantages.tolist()} - {0.0}) == pytest.approx(sorted(set(groups[0].advantages)))


def test_minibatches_are_whole_groups_in_prompt_order():
    judge, pending = collected({"a": "cw", "b": "ww", "c": "cw", "d": "cw"})
    cut_ = schedules(list(pending), 2, 100, CPU, Waits())
    assert [[sample.tokens[0] for sample in minibatch.samples] for minibatch in cut_] == [[97, 97, 98, 98], [99, 99, 100, 100]]


def test_lambda_zero_waits_for_no_verdict_and_gives_the_advantages_it_will_have():
    judge, pending = collected({"a": "ccw", "b": "cww"}, lam=0.0)
    (minibatch,) = schedules(list(pending), 1, 100, CPU, Waits())
    (trained,) = minibatch.trained(minibatch.batches)
    early = [group.advantages() for group in pending]
    judge.answer("fus")
    assert [group.advantages for group in pending.groups()] == early
    assert len(minibatch.windows) == 1 and trained.tokens == 18
    # Inverse: with λ = 1 the same batch does wait.
    judge, pending = collected({"a": "ccw", "b": "cww"}, deadline=0.05)
    waits = Waits()
    (minibatch,) = schedules(list(pending), 1, 100, CPU, waits)
    list(minibatch.trained(minibatch.batches))
    assert waits.count == 1 and [v and v.reason for v in pending.groups()[0].verdicts] == ["timeout", "timeout", None]


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
        1: torchrun_once("overlap", 1, folder=folder, seeds=20, deadline=2.0),
        2: torchrun_once("overlap", 2, folder=folder, seeds=3, deadline=0),
    }


@pytest.mark.parametrize("ranks", [1, 2])
def test_parameters_are_the_same_to_the_bit_whenever_verdicts_come(computed, ranks):
    said = computed[ranks]
    reference, late = said["off"]
    assert late == 0 and min(said["late"]) > 0  # witness: off waited for all of them, and on began before
    assert set(said["on"]) == {reference}
    assert said["serial"] == [reference, 0]
    assert said["backwards"] != reference  # inverse: the digest does tell another order of the same groups


def test_a_window_waits_for_its_own_verdicts_and_a_step_for_its_deadline(computed):
    """Verdicts of group p8 are given once something has been trained; those of p9 never."""
    released, held = computed[1]["released"], computed[1]["held"]
    assert released["timeouts"] == [0] * 9 + [3]  # p8 was answered, since the windows before it did not wait for it
    assert held["timeouts"] == [0] * 8 + [3, 3]  # inverse: who waits for all first waits for what training would release
    for said in (released, held):
        assert said["updates"] == 1 and 2.0 <= said["seconds"] < 8.0  # nothing hangs; the silent judge would hang for ever
        assert said["kept"] == [True, False, False, False]  # unknown verdicts leave the group
