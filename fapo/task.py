"""The reasoning task: yields prompts, and turns finished rollouts into groups with outcomes, verdicts and advantages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from soundrl.fapo.corrected import Errors
from soundrl.fapo.figures import figures
from soundrl.fapo.judging import Judge
from soundrl.fapo.measures import Split, Truth, UnknownWatch, count, flawed_shares, rates, turn_rates, verified
from soundrl.fapo.pending import Call, PendingGroups, done
from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Said, Verdict
from soundrl.fapo.rewards import RewardSettings, assign_advantages
from soundrl.fapo.samples import Samples

Beside = Callable[[Prompt, Rollout, Future[Verdict], int], None]
"""Told of a question to the judge: the prompt, the rollout, its verdict to come, its priority (a second opinion)"""


class Task(Protocol):
    """What the engine trains on: turns finished rollouts into groups with rewards, and says what to count. `ReasoningTask` here,
    `soundrl.genrm.task.CriticTask` for the GenRM."""

    def collect(
        self, prompts: Sequence[Prompt], rollouts: Iterable[Rollout], beside: Beside | None = None, into: PendingGroups | None = None
    ) -> PendingGroups:
        """Consume `rollouts` in whatever order they finish, `into` the groups of the same step where there are some. Nothing waits for
        `beside`."""
        ...

    def assign(self, groups: Sequence[Group]) -> None:
        """Fill `kept`, `rewards` and `advantages` of every group, in place."""

    def count(self, groups: Sequence[Group]) -> dict[str, float]:
        """Sums that add up over ranks, always the same names in the same order; of groups without rewards too."""
        ...

    def rates(self, sums: dict[str, float], errors: Errors | None = None) -> dict[str, float]:
        """Metrics of a step from those sums; `errors` of the judge, where they are known."""
        ...

    def evaluation(self, sums: dict[str, float], samples: Samples, errors: Errors | None = None) -> dict[str, float]:
        """Measures of an evaluation set from those sums, and from its rollouts of all ranks."""
        ...

    def watch(self, step: int, metrics: dict[str, float]) -> None:
        """Raise where the run should not go on."""

    def state(self) -> dict[str, Any]:
        """What it remembers from step to step; plain JSON."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with what `state` has said."""


class OracleJudge(Judge):
    """A judge that knows: verdicts come from a function, at once."""

    def __init__(self, oracle: Callable[[Prompt, Rollout], Verdict]) -> None:
        self.oracle = oracle

    def submit(self, prompt: Prompt, rollout: Rollout, priority: int = 0) -> Future[Verdict]:
        return done(self.oracle(prompt, rollout))


@dataclass
class ReasoningTask(Task):
    """Verifies every rollout as it finishes and sends the correct ones to the judge at once, earlier prompts first where they queue."""

    verify: Callable[[Prompt, Rollout], Said | Future[Said]]
    judge: Judge | None
    """None leaves every verdict None (plain GRPO)."""
    settings: RewardSettings
    max_unknown: float = 1.0
    truth: Truth | None = None
    """Measures the judge."""
    split: Split = lambda text: (text,)
    """Cuts a response into the steps that a judge counts."""
    deadline: float | None = None
    """Seconds from the end of sampling after which a batch waits for no verdict any more, whatever the judge does; None = as long as the
    judge takes."""
    answered: bool = False
    """The environment answers, so that turns are counted."""
    judge_sleeps: bool = False
    """Nothing is asked before `PendingGroups.ask`."""

    def __post_init__(self) -> None:
        self.unknown = UnknownWatch(self.max_unknown, verdicts=self.settings.lam > 0)

    def watch(self, step: int, metrics: dict[str, float]) -> None:
        self.unknown(step, metrics)

    def state(self) -> dict[str, Any]:
        return dict(self.unknown.bad_steps)

    def restore(self, state: dict[str, Any]) -> None:
        self.unknown.bad_steps.update(state)

    def assign(self, groups: Sequence[Group]) -> None:
        assign_advantages(groups, self.settings)

    def count(self, groups: Sequence[Group]) -> dict[str, float]:
        return count(groups, self.settings.lam, self.truth, self.split)

    def rates(self, sums: dict[str, float], errors: Errors | None = None) -> dict[str, float]:
        return rates(sums, self.truth is not None, errors) | (turn_rates(sums) if self.answered else {})

    def evaluation(self, sums: dict[str, float], samples: Samples, errors: Errors | None = None) -> dict[str, float]:
        """`accuracy` (avg@k), `tokens`, with a judge the shares of `soundrl.fapo.measures.flawed_shares` and `sound` (right and judged so,
        of all), and what an oracle says where another one judges, `true_…`; with `_low` and `_high` the 95 % intervals over problems. Of n
        samples a problem, `pass@n`, `maj@n` and `process_pass@n`; not where some problem has fewer that are scored."""
        truth = self.truth is not None and not (isinstance(self.judge, OracleJudge) and self.judge.oracle == self.truth.oracle)
        n, judged = int(samples.scored.max(initial=0)), self.judge is not None
        ks = [n] if n > 1 and n == samples.scored.min() else []
        found = figures(samples, ks, judged=judged) if n else {}
        out = {"accuracy": found["accuracy"].value if n else 0.0, "tokens": sums["tokens"] / sums["rollouts"]}
        if judged:
            out |= flawed_shares(sums, truth, errors)
            out["sound"] = found["sound"].value if n else 0.0
            if truth:
                out["true_sound"] = (sums["correct"] - sums["true_flawed"]) / verified(sums)
        for name in ("accuracy", "sound"):
            if name in found:
                out |= {f"{name}_low": found[name].low, f"{name}_high": found[name].high}
        return out | {name: found[name].value for kind in ("pass", "maj", "process_pass") if (name := f"{kind}@{n}") in found}

    def collect(
        self, prompts: Sequence[Prompt], rollouts: Iterable[Rollout], beside: Beside | None = None, into: PendingGroups | None = None
    ) -> PendingGroups:
        """Each rollout is verified and judged while the next are sampled."""
        judge = self.judge
        decisive = self.judge is not None and self.settings.lam > 0
        pending = PendingGroups((), self.assign, decisive, self.deadline) if into is None else into
        new = pending.more(prompts)
        # Mini-batches train in this order: verdicts that are needed first are asked for first.
        places = {prompt.id: place for place, prompt in enumerate(prompts)}

        def ask(prompt: Prompt, rollout: Rollout, verdict: Future[Verdict | None], outcome: Future[Said]) -> None:
            """Runs when the outcome is there, on whichever thread brought it; a failure must reach the waiting thread."""
            try:
                if judge is None or outcome.result().outcome is not Outcome.CORRECT:
                    verdict.set_result(None)
                    return
                rollout.paragraphs = tuple(self.split(rollout.text))
                call = Call(time.perf_counter())
                answer = judge.submit(prompt, rollout, places[prompt.id])
                if beside is not None:
                    beside(prompt, rollout, answer, places[prompt.id])
                if not answer.done():
                    pending.asked[f"{prompt.id} {rollout.sample}"] = call

                def deliver(v: Future[Verdict]) -> None:
                    call.end = time.perf_counter()
                    verdict.set_exception(e) if (e := v.exception()) else verdict.set_result(v.result())

                answer.add_done_callback(deliver)
            except Exception as error:  # noqa: BLE001 — re-raised in PendingGroup.made; a callback's exception would vanish
                verdict.set_exception(error)

        for rollout in rollouts:
            group = pending.by_prompt[rollout.prompt_id]
            said, verdict = self.verify(group.prompt, rollout), Future()
            outcome = said if isinstance(said, Future) else done(said)
            outcome.add_done_callback(partial(verified_now, rollout))
            group.add(rollout, outcome, verdict)
            if self.judge_sleeps:
                pending.held.append((outcome, partial(ask, group.prompt, rollout, verdict)))
            else:
                outcome.add_done_callback(partial(ask, group.prompt, rollout, verdict))
        return pending.sampled(new)


def verified_now(rollout: Rollout, outcome: Future[Said]) -> None:
    """Its outcome is here."""
    rollout.verified = time.time()
