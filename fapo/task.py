"""The reasoning task: yields prompts, and turns finished rollouts into groups with outcomes, verdicts and advantages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Protocol

from soundrl.fapo.judging import Judge
from soundrl.fapo.measures import Oracle, UnknownWatch, count, rates
from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Verdict
from soundrl.fapo.rewards import RewardSettings, assign_advantages


class Task(Protocol):
    """What the engine trains on: turns finished rollouts into groups with rewards, and says what to count. `ReasoningTask` here,
    `soundrl.genrm.task.CriticTask` for the GenRM."""

    def collect(self, prompts: Sequence[Prompt], rollouts: Iterable[Rollout], measuring: bool = False) -> PendingGroups:
        """Consume `rollouts` in whatever order they finish; `measuring`, not training: an oracle judges where there is one."""
        ...

    def assign(self, groups: Sequence[Group]) -> None:
        """Fill `kept`, `rewards` and `advantages` of every group, in place."""
        ...

    def count(self, groups: Sequence[Group]) -> dict[str, float]:
        """Sums that add up over ranks, always the same names in the same order; of groups without rewards too."""
        ...

    def rates(self, sums: dict[str, float]) -> dict[str, float]:
        """Metrics of a step from those sums."""
        ...

    def evaluation(self, sums: dict[str, float]) -> dict[str, float]:
        """Measures of an evaluation set from those sums."""
        ...

    def watch(self, step: int, metrics: dict[str, float]) -> None:
        """Raise where the run should not go on."""
        ...

    def judge_metrics(self, step: int) -> dict[str, float]:
        """What the judge says of itself, and a probe of it where one is due."""
        ...

    def close(self) -> None: ...


def done(value: Any) -> Future[Any]:
    """A future that is finished already."""
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Ids made unique where a batch reaches into the next epoch and holds a problem twice: `a, b, a` → `a, b, a#2`.

    Seeds are derived from ids, so the second group is sampled anew.
    """
    seen: dict[str, int] = {}
    out = []
    for prompt in prompts:
        seen[prompt.id] = seen.get(prompt.id, 0) + 1
        out.append(prompt if seen[prompt.id] == 1 else replace(prompt, id=f"{prompt.id}#{seen[prompt.id]}"))
    return out


class OracleJudge:
    """A judge that knows: verdicts come from a function, at once."""

    def __init__(self, oracle: Callable[[Prompt, Rollout], Verdict]) -> None:
        self.oracle = oracle

    def submit(self, prompt: Prompt, rollout: Rollout) -> Future[Verdict]:
        return done(self.oracle(prompt, rollout))

    def check(self) -> None:
        """Always ready."""

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        """Holds nothing."""


class ReasoningTask:
    """Verifies every rollout as it finishes and sends the correct ones to the judge at once.

    `verify(prompt, rollout)` returns a future outcome; `judge` None leaves every verdict None (plain GRPO).
    """

    def __init__(
        self,
        verify: Callable[[Prompt, Rollout], Future[Outcome]],
        judge: Judge | None,
        settings: RewardSettings,
        max_unknown: float = 1.0,
        truth: Oracle | None = None,
        probe: Callable[[int], dict[str, float]] = lambda step: {},
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.verify, self.judge, self.settings, self._close = verify, judge, settings, close
        self.watch = UnknownWatch(max_unknown)
        self.truth, self.probe = truth, probe
        self._trained_on: PendingGroups | None = None
        self._busy = 0.0

    def assign(self, groups: Sequence[Group]) -> None:
        assign_advantages(groups, self.settings)

    def count(self, groups: Sequence[Group]) -> dict[str, float]:
        return count(groups, self.settings.lam, self.truth)

    def rates(self, sums: dict[str, float]) -> dict[str, float]:
        return rates(sums, self.truth is not None)

    def evaluation(self, sums: dict[str, float]) -> dict[str, float]:
        """`accuracy` (avg@k), `tokens`, and with a judge `flawed_ratio` (flawed ÷ correct) and `sound` (right and judged so, of all)."""
        out = {"accuracy": sums["correct"] / sums["rollouts"], "tokens": sums["tokens"] / sums["rollouts"]}
        if self.judge is not None:
            out["flawed_ratio"] = sums["flawed"] / max(sums["correct"], 1.0)
            out["sound"] = (sums["correct"] - sums["flawed"] - sums["unknown"]) / sums["rollouts"]
        return out

    def judge_metrics(self, step: int) -> dict[str, float]:
        """The judge's own metrics, a probe where one is due, and `genrm/overlap`: the share of the time in which the step's rollouts were
        judged that was not waited for."""
        if self.judge is None:
            return {}
        busy, waited = self._busy_seconds() - self._busy, 0.0 if self._trained_on is None else self._trained_on.waited
        overlap = {"genrm/overlap": max(0.0, 1.0 - waited / busy)} if busy > 0.0 else {}
        return self.judge.metrics() | overlap | self.probe(step)

    def _busy_seconds(self) -> float:
        return 0.0 if self.judge is None else self.judge.metrics().get("genrm/busy", 0.0)

    def close(self) -> None:
        """End the verifier's processes and the judge's connections."""
        self._close()
        if self.judge is not None:
            self.judge.close()

    def collect(self, prompts: Sequence[Prompt], rollouts: Iterable[Rollout], measuring: bool = False) -> PendingGroups:
        """Consume `rollouts` in whatever order they finish; each is verified and judged while the next are sampled."""
        judge = OracleJudge(self.truth) if measuring and self.truth is not None and self.judge is not None else self.judge
        pending = PendingGroups(prompts)
        if not measuring:
            self._trained_on, self._busy = pending, self._busy_seconds()
        by_id = {prompt.id: prompt for prompt in prompts}
        for rollout in rollouts:
            prompt = by_id[rollout.prompt_id]
            outcome = self.verify(prompt, rollout)
            verdict: Future[Verdict | None] = Future()
            outcome.add_done_callback(lambda o, p=prompt, r=rollout, v=verdict: self._judge(judge, o, p, r, v))
            pending.entries[rollout.prompt_id].append((rollout, outcome, verdict))
        return pending

    @staticmethod
    def _judge(judge: Judge | None, outcome: Future[Outcome], prompt: Prompt, rollout: Rollout, verdict: Future[Verdict | None]) -> None:
        """Runs when the outcome is there, on whichever thread brought it; a failure must reach the waiting thread."""
        try:
            if judge is None or outcome.result() is not Outcome.CORRECT:
                verdict.set_result(None)
                return
            judge.submit(prompt, rollout).add_done_callback(
                lambda v: verdict.set_exception(e) if (e := v.exception()) else verdict.set_result(v.result())
            )
        except Exception as error:  # noqa: BLE001 — re-raised in PendingGroups.verdicts; a callback's exception would vanish
            verdict.set_exception(error)


class PendingGroups:
    """Rollouts whose outcomes and verdicts are still under way."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.prompts = prompts
        self.waited = 0.0
        """Seconds that `groups` has waited."""
        self.entries: dict[str, list[tuple[Rollout, Future[Outcome], Future[Verdict | None]]]] = {p.id: [] for p in prompts}
        if len(self.entries) != len(prompts):
            raise ValueError("two prompts of one batch share an id; ids must be unique within a data set")

    def outcomes(self) -> None:
        """Wait until every rollout is verified (the verifier ends each within its own limit)."""
        for entries in self.entries.values():
            for _, outcome, _ in entries:
                outcome.result()

    def groups(self) -> list[Group]:
        """Wait for every verdict (the judge ends each within its own deadline); groups in prompt order, rollouts by sample index."""
        groups, start = [], time.perf_counter()
        for prompt in self.prompts:
            entries = sorted(self.entries[prompt.id], key=lambda entry: entry[0].sample)
            groups.append(
                Group(
                    prompt=prompt,
                    rollouts=[rollout for rollout, _, _ in entries],
                    outcomes=[outcome.result() for _, outcome, _ in entries],
                    verdicts=[verdict.result() for _, _, verdict in entries],
                )
            )
        self.waited += time.perf_counter() - start
        return groups
