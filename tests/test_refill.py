"""Groups without signal give way to the next prompts: when that is known, who takes whose place, and what it may cost. Runs that refill:
test_schedule.py, test_resume.py."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from test_schedule import REWARDS, LateJudge, collected

from soundrl.engine.config import Config
from soundrl.engine.recipes import arith
from soundrl.engine.refill import learned, refilled
from soundrl.engine.task import build_task
from soundrl.fapo import pending as module
from soundrl.fapo.pending import PendingGroups, scored
from soundrl.fapo.records import Check, Outcome, Prompt, Rollout, Said, Verdict
from soundrl.fapo.task import OracleJudge, ReasoningTask

TOLD = {"f": Verdict.flawed(0), "u": Verdict.unknown("no_box"), "s": Verdict.sound()}


def signals(outcomes: str, said: str, lam: float = 1.0) -> tuple[bool, int]:
    """Whether a group has a signal, and how many of its verdicts it has waited for: they come one by one whenever it waits, `.` never."""
    judge, pending = collected({"a": outcomes}, lam=lam)
    (group,), came = pending, list[Future[Verdict]]()
    coming = [(future, TOLD[letter]) for future, letter in zip(judge.asked.values(), said, strict=True) if letter != "."]

    def wait(*_: object) -> None:
        if len(came) == len(coming):
            group.until = 0.0  # the deadline
            return
        future, verdict = coming[len(came)]
        came.append(future)
        future.set_result(verdict)

    with patch.object(module, "wait", wait):
        signal = group.signal()
        waited = len(came)
        while len(came) < len(coming):
            wait()
        group.until = 0.0
        assert scored([group], whole=True)[0].signal is signal  # what comes later changes nothing
    return signal, waited


def test_a_signal_is_known_with_the_first_verdicts_that_decide_it():
    assert signals("www", "") == (False, 0)
    assert signals("ccw", "fs") == signals("ccw", "sf") == (True, 1)  # either way it is not the wrong one's reward
    assert signals("ccw", "us") == (True, 2) and signals("ccw", "uu") == (False, 2)  # unknown ones leave
    assert signals("cccc", "ssss") == (False, 4) and signals("ccc", "fff") == (False, 3)
    assert signals("cccc", "ssfs") == (True, 3) and signals("cccc", "usfs") == (True, 3)
    assert signals("ccw", "..") == (False, 0) and signals("ccw", ".s") == (True, 1)  # given up: as for training
    # λ = 2: who is right and flawed earns what is wrong does.
    assert signals("ccw", "ff", lam=2.0) == (False, 2) and signals("ccw", "fs", lam=2.0) == (True, 2)
    # λ = 0: outcomes alone, and nobody waits.
    assert signals("ccw", "..", lam=0.0) == (True, 0) and signals("ccc", "...", lam=0.0) == (False, 0)


def letters(prompt: Prompt, rollout: Rollout) -> Said:
    return Outcome.WRONG if prompt.answer[rollout.sample] == "w" else Outcome.CORRECT


class Step:
    """A step on one rank whose prompts are letters; each has the samples `what[letter]`: `w` wrong, `s` right and sound, `f` right and
    flawed, `u` right and unknown. A response has 10 tokens."""

    def __init__(self, what: dict[str, str], budget: int, lam: float = 1.0, check: Callable = letters) -> None:
        self.left = list[list[str]]()
        self.what, self.order, self.sampled = what, iter(what), list[list[str]]()
        judge = OracleJudge(lambda prompt, rollout: TOLD.get(prompt.answer[rollout.sample], Verdict.sound()))
        self.task = ReasoningTask(check, judge, replace(REWARDS, lam=lam))
        self.run: Any = SimpleNamespace(
            config=SimpleNamespace(rollout=SimpleNamespace(refill=budget)),
            stream=SimpleNamespace(take=self.take, visits=1, learn=lambda signals: signals),
            ranks=SimpleNamespace(sum=lambda values: values, gather=lambda value: [value]),
            rollouts=self.rollouts,
            leave=lambda waited=(): self.left.append([group.prompt.id for group in waited]),
            at={"silent": []},
        )

    def take(self, number: int) -> list[Prompt]:
        return [Prompt(id=name, text="", answer=self.what[name]) for name in (next(self.order) for _ in range(number))]

    def rollouts(self, prompts: list[Prompt], step: int, into: PendingGroups | None = None) -> PendingGroups:
        self.sampled.append([prompt.id for prompt in prompts])
        same = {"prompt_tokens": (1,), "tokens": (2,) * 10, "logprobs": (-1.0,) * 10, "text": ""}
        made = [
            Rollout(prompt_id=prompt.id, sample=i, finish_reason="stop", policy_version=0, **same)
            for prompt in prompts
            for i in range(len(prompt.answer))
        ]
        return self.task.collect(prompts, made, into=into)

    def refilled(self, size: int) -> tuple[str, dict[str, float]]:
        """The prompts that train, and what is said of it."""
        prompts = self.take(size)
        self.pending = self.rollouts(prompts, 1)
        out, said = refilled(self.run, prompts, self.pending, 1)
        assert sorted(self.pending.by_prompt) == sorted(prompt.id for prompt in out)
        return "".join(prompt.id for prompt in out), said


WHAT = {"a": "ws", "b": "ww", "c": "sf", "d": "ss", "e": "ww", "f": "fs", "g": "uw", "h": "sw", "i": "sw"}


def test_replacements_take_the_first_places_that_are_missing():
    step = Step(WHAT, budget=1000)
    out, said = step.refilled(4)
    # b and d train nothing, c does: it is all right, and partly flawed. Then e trains nothing, f does; then g nothing; then h.
    assert out == "afch" and step.sampled == [list("abcd"), list("ef"), list("g"), list("h")]
    assert [group.prompt.id for group in step.pending.replaced] == list("begd")
    assert said == {
        "reward/groups_with_signal_before": 0.5,
        "reward/groups_with_signal": 1.0,
        "refill/groups": 2.0,
        "refill/prompts": 4.0,
        "refill/rounds": 3.0,
        "refill/tokens": 80.0,
    }
    # A stop, or a judge that is gone, is seen after each sampling and each wait, the latter by the groups that verdicts have left silent.
    assert step.left == [["d"], [], [], [], ["g"], [], []]
    # Whose visit says what: g has lost a rollout for want of a verdict, and says nothing.
    assert learned(step.run, step.pending) == {"a": True, "c": True, "f": True, "h": True, "b": False, "d": False, "e": False}


@pytest.mark.parametrize(
    ("budget", "out", "sampled"), [(1, "abcd", ["e"]), (20, "abcd", ["e"]), (21, "afcd", ["ef"]), (41, "afcd", ["ef", "g"])]
)
def test_the_budget_bounds_what_is_sampled(budget, out, sampled):
    """A group has 20 tokens, as those before it have shown; what is still missing stays."""
    step = Step(WHAT, budget)
    found, said = step.refilled(4)
    assert (found, ["".join(names) for names in step.sampled[1:]]) == (out, sampled)
    assert said["refill/tokens"] == 20 * sum(map(len, sampled)) < budget + 20
    assert said["reward/groups_with_signal"] == (0.75 if "f" in out else 0.5)


def test_nothing_is_replaced_without_a_budget_or_a_need():
    step = Step(WHAT, budget=0)
    assert step.refilled(4) == ("abcd", {}) and step.run.at["silent"] == []
    step = Step({"a": "ws", "c": "sf"}, budget=1000)
    assert step.refilled(2)[0] == "ac" and len(step.sampled) == 1


def test_lambda_zero_looks_at_outcomes_alone():
    step = Step(WHAT, budget=1000, lam=0.0)
    assert step.refilled(4)[0] == "aghi"  # neither c, all right, nor f; g has its rollouts
    assert [group.prompt.id for group in step.pending.replaced] == list("befcd")


def test_rewards_of_ones_own_decide():
    """Two right ones that earn differently train something; who is left alone does not."""

    def check(prompt: Prompt, rollout: Rollout) -> Said:
        if prompt.answer[rollout.sample] == "u":
            return Outcome.UNSCORED
        return Check(outcome=Outcome.CORRECT, reward=float(prompt.answer[rollout.sample]))

    step = Step({"a": "11", "b": "12", "c": "1u", "d": "33", "e": "45"}, budget=21, lam=0.0, check=check)
    assert step.refilled(3)[0] == "ebc"


def test_a_step_that_goes_on_keeps_what_was_decided():
    """A verdict that was given up may come in a later start; who was replaced for want of it stays so."""
    step = Step(WHAT, budget=1000)
    assert step.refilled(4)[0] == "afch"
    again = Step(WHAT | {"b": "sf", "f": "ss"}, budget=1000)
    again.run.at["silent"] = step.run.at["silent"]
    assert again.refilled(4)[0] == "afch" and again.sampled == step.sampled
    anew = Step(WHAT | {"b": "sf", "f": "ss"}, budget=1000)
    assert anew.refilled(4)[0] == "abch"  # inverse


def test_a_judge_that_sleeps_while_the_policy_is_sampled_decides_nothing():
    config = arith()
    built: Any = SimpleNamespace(phase=object(), judge=LateJudge())
    environment: Any = SimpleNamespace(check=None, truth=None, split=None)

    def made(refill: int, lam: float) -> Config:
        return replace(config, rollout=replace(config.rollout, refill=refill), fapo=replace(config.fapo, lam=lam))

    with pytest.raises(ValueError, match=r"rollout.refill 500 waits for verdicts while the policy is awake, but the judge sleeps then"):
        build_task(made(500, 1.0), environment, built)
    for refill, lam in ((0, 1.0), (500, 0.0)):
        build_task(made(refill, lam), environment, built)
