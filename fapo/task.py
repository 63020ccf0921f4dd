"""The reasoning task: yields prompts, and turns finished rollouts into groups with outcomes, verdicts and advantages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from soundrl.fapo.judging import Judge
from soundrl.fapo.measures import Oracle, UnknownWatch, count, rates, verified
from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Verdict
from soundrl.fapo.rewards import RewardSettings, assign_advantages


class Task(Protocol):
    """What the engine trains on: turns finished rollouts into groups with rewards, and says what to count. `ReasoningTask` here,
    `soundrl.genrm.task.CriticTask` for the GenRM."""

    def ready(self) -> None:
        """Wait until everything that `collect` asks is there; a collective. ValueError where it does not come."""
        ...

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

    def submit(self, prompt: Prompt, rollout: Rollout, priority: int = 0) -> Future[Verdict]:
        return done(self.oracle(prompt, rollout))

    def check(self) -> None:
        """Always ready."""

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        """Holds nothing."""


class ReasoningTask:
    """Verifies every rollout as it finishes and sends the correct ones to the judge at once, earlier prompts first where they queue.

    `verify(prompt, rollout)` returns a future outcome; `judge` None leaves every verdict None (plain GRPO). `deadline`: seconds from the
    end of sampling after which a batch waits for no verdict any more, whatever the judge does; None = as long as the judge takes.
    `judge_sleeps`: nothing is asked before `PendingGroups.ask`.
    """

    def __init__(
        self,
        verify: Callable[[Prompt, Rollout], Future[Outcome]],
        judge: Judge | None,
        settings: RewardSettings,
        max_unknown: float = 1.0,
        truth: Oracle | None = None,
        probe: Callable[[int], dict[str, float]] = lambda step: {},
        ready: Callable[[], None] = lambda: None,
        close: Callable[[], None] = lambda: None,
        deadline: float | None = None,
        judge_sleeps: bool = False,
    ) -> None:
        self.deadline, self.judge_sleeps = deadline, judge_sleeps
        self.verify, self.judge, self.settings, self.ready, self._close = verify, judge, settings, ready, close
        self._watch = UnknownWatch(max_unknown, verdicts=settings.lam > 0)
        self.truth, self.probe = truth, probe

    def assign(self, groups: Sequence[Group]) -> None:
        assign_advantages(groups, self.settings)

    def count(self, groups: Sequence[Group]) -> dict[str, float]:
        return count(groups, self.settings.lam, self.truth)

    def rates(self, sums: dict[str, float]) -> dict[str, float]:
        return rates(sums, self.truth is not None)

    def evaluation(self, sums: dict[str, float]) -> dict[str, float]:
        """`accuracy` (avg@k), `tokens`, with a judge `flawed_ratio` (of those with a verdict) and `sound` (right and judged so, of all)."""
        out = {"accuracy": sums["correct"] / verified(sums), "tokens": sums["tokens"] / sums["rollouts"]}
        if self.judge is not None:
            out["flawed_ratio"] = sums["flawed"] / max(sums["correct"] - sums["unknown"], 1.0)
            out["sound"] = (sums["correct"] - sums["flawed"] - sums["unknown"]) / verified(sums)
        return out

    def watch(self, step: int, metrics: dict[str, float]) -> None:
        self._watch(step, metrics)

    def judge_metrics(self, step: int) -> dict[str, float]:
        """The judge's own metrics, and those of a probe where one is due."""
        return {} if self.judge is None else self.judge.metrics() | self.probe(step)

    def close(self) -> None:
        """End the verifier's processes and the judge's connections."""
        self._close()
        if self.judge is not None:
            self.judge.close()

    def collect(self, prompts: Sequence[Prompt], rollouts: Iterable[Rollout], measuring: bool = False) -> PendingGroups:
        """Consume `rollouts` in whatever order they finish; each is verified and judged while the next are sampled."""
        judge = OracleJudge(self.truth) if measuring and self.truth is not None and self.judge is not None else self.judge
        decisive = self.judge is not None and self.settings.lam > 0
        pending = PendingGroups(prompts, self.assign, decisive, self.deadline)
        # Mini-batches train in this order: verdicts that are needed first are asked for first.
        places = {prompt.id: place for place, prompt in enumerate(prompts)}
        holds_back = self.judge_sleeps and judge is self.judge
        for rollout in rollouts:
            prompt = pending.by_prompt[rollout.prompt_id].prompt
            outcome = self.verify(prompt, rollout)
            verdict: Future[Verdict | None] = Future()
            ask = partial(self._judge, judge, prompt, rollout, places[prompt.id], verdict, pending.asked)
            if holds_back:
                pending.held.append((outcome, ask))
            else:
                outcome.add_done_callback(ask)
            pending.by_prompt[rollout.prompt_id].add(rollout, outcome, verdict)
        return pending.sampled()

    @staticmethod
    def _judge(
        judge: Judge | None,
        prompt: Prompt,
        rollout: Rollout,
        place: int,
        verdict: Future[Verdict | None],
        asked: dict[str, Call],
        outcome: Future[Outcome],
    ) -> None:
        """Runs when the outcome is there, on whichever thread brought it; a failure must reach the waiting thread."""
        try:
            if judge is None or outcome.result() is not Outcome.CORRECT:
                verdict.set_result(None)
                return
            call = Call(time.perf_counter())
            answer = judge.submit(prompt, rollout, place)
            if not answer.done():
                asked[f"{rollout.prompt_id} {rollout.sample}"] = call

            def deliver(v: Future[Verdict]) -> None:
                call.end = time.perf_counter()
                verdict.set_exception(e) if (e := v.exception()) else verdict.set_result(v.result())

            answer.add_done_callback(deliver)
        except Exception as error:  # noqa: BLE001 — re-raised in PendingGroup.group; a callback's exception would vanish
            verdict.set_exception(error)


@dataclass
class Call:
    """A question to the judge; seconds of `time.perf_counter`."""

    start: float
    end: float | None = None


class PendingGroup:
    """The rollouts of one prompt, whose outcomes and verdicts are still under way.

    `assign` fills a group's rewards and advantages; `decisive`: a verdict of a correct rollout can change them (False for λ = 0, and
    where verdicts are read from the rollouts themselves).
    """

    def __init__(self, prompt: Prompt, assign: Callable[[Sequence[Group]], None], decisive: bool) -> None:
        self.prompt, self.assign, self.decisive = prompt, assign, decisive
        self.entries: list[tuple[Rollout, Future[Outcome], Future[Verdict | None]]] = []
        self.until: float | None = None
        self._group: Group | None = None

    def add(self, rollout: Rollout, outcome: Future[Outcome], verdict: Future[Verdict | None]) -> None:
        self.entries.append((rollout, outcome, verdict))

    @property
    def rollouts(self) -> list[Rollout]:
        """By sample index."""
        return [rollout for rollout, _, _ in self._sorted()]

    @property
    def undecided(self) -> bool:
        """Whether its advantages hang on a verdict; from the outcomes alone, whatever has arrived: what is packed follows from it."""
        return self.decisive and any(outcome.result() is Outcome.CORRECT for _, outcome, _ in self.entries)

    @property
    def ready(self) -> bool:
        """Whether `advantages` would not wait now."""
        late = any(not verdict.done() for _, _, verdict in self.entries)
        return self._group is not None or not late or not self.undecided or self._left() == 0.0

    def advantages(self) -> Sequence[float]:
        """Of each rollout; waits for verdicts where the group is `undecided`."""
        if self.undecided or self._group is not None:
            return self.group().advantages
        # A verdict still under way is None here, and would change nothing.
        return self._make(lambda verdict: verdict.result() if verdict.done() else None).advantages

    def group(self) -> Group:
        """Wait for every verdict, then the group with its advantages. A verdict that is not there by `until` (`time.monotonic`) is
        unknown(timeout), and stays so."""
        if self._group is None:
            self._group = self._make(self._verdict)
        return self._group

    def _sorted(self) -> list[tuple[Rollout, Future[Outcome], Future[Verdict | None]]]:
        return sorted(self.entries, key=lambda entry: entry[0].sample)

    def _left(self) -> float | None:
        return None if self.until is None else max(0.0, self.until - time.monotonic())

    def _make(self, verdict_of: Callable[[Future[Verdict | None]], Verdict | None]) -> Group:
        group = Group(
            prompt=self.prompt,
            rollouts=self.rollouts,
            outcomes=[outcome.result() for _, outcome, _ in self._sorted()],
            verdicts=[verdict_of(verdict) for _, _, verdict in self._sorted()],
        )
        self.assign([group])
        return group

    def _verdict(self, verdict: Future[Verdict | None]) -> Verdict | None:
        try:
            return verdict.result(self._left())
        except TimeoutError:
            # A judge's own TimeoutError is a fault and must be seen; an unfinished future is a late verdict.
            return verdict.result() if verdict.done() else Verdict.unknown("timeout")


class PendingGroups:
    """The groups of a batch, in prompt order. `deadline`: seconds until verdicts are given up, from the end of sampling."""

    def __init__(
        self, prompts: Sequence[Prompt], assign: Callable[[Sequence[Group]], None], decisive: bool, deadline: float | None = None
    ) -> None:
        self.by_prompt = {prompt.id: PendingGroup(prompt, assign, decisive) for prompt in prompts}
        self.deadline = deadline
        self.asked: dict[str, Call] = {}
        self.held: list[tuple[Future[Outcome], Callable[[Future[Outcome]], None]]] = []
        """Questions for a judge that sleeps; `ask` puts them."""
        if len(self.by_prompt) != len(prompts):
            raise ValueError("two prompts of one batch share an id; ids must be unique within a data set")

    def __iter__(self) -> Iterator[PendingGroup]:
        return iter(self.by_prompt.values())

    def calls(self) -> list[tuple[str, float, float]]:
        """(prompt id and sample, start, end) of every question that was not answered at once; of one still open the end is now."""
        now = time.perf_counter()
        return [(name, call.start, call.end or now) for name, call in self.asked.items()]

    def sampled(self) -> PendingGroups:
        """Every rollout has been added: the deadline runs from now."""
        if self.deadline is not None:
            for pending in self:
                pending.until = time.monotonic() + self.deadline
        return self

    @property
    def questions(self) -> int:
        """How many are held back; waits for the outcomes."""
        return sum(outcome.result() is Outcome.CORRECT for outcome, _ in self.held)

    def ask(self) -> PendingGroups:
        """Put the questions that were held back: the judge is awake. The deadline runs from now."""
        held, self.held = self.held, []
        for outcome, ask in held:
            outcome.add_done_callback(ask)
        return self.sampled()

    def outcomes(self) -> None:
        """Wait until every rollout is verified (the verifier ends each within its own limit)."""
        for pending in self:
            for _, outcome, _ in pending.entries:
                outcome.result()

    def groups(self) -> list[Group]:
        """Wait for every verdict, at most until the deadline."""
        assert not self.held, "questions are held back: a sleeping judge gives no verdict"
        return [pending.group() for pending in self]
