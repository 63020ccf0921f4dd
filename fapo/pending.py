"""Rollouts whose outcomes and verdicts are still under way, by prompt; what is trained, and when, hangs on them."""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Said, Verdict
from soundrl.fapo.waiting import GIVEN_UP, announce

LOOK = 0.2  # seconds between looks whether the run is left


def done(value: Any) -> Future[Any]:
    """A future that is finished already."""
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def then(future: Future[Any], make: Callable[[Any], Any]) -> Future[Any]:
    """What is made of a result, as soon as it is there: at once where it is there already."""
    made: Future[Any] = Future()
    made.set_running_or_notify_cancel()  # from here on nobody can cancel it

    def pass_on(done: Future[Any]) -> None:
        try:
            made.set_result(make(done.result()))
        except Exception as error:  # noqa: BLE001 — whoever waits for it must see it
            made.set_exception(error)

    future.add_done_callback(pass_on)
    return made


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
        self.entries: list[tuple[Rollout, Future[Said], Future[Verdict | None]]] = []
        """By sample index."""
        self.until: float | None = None
        self.leaving: Callable[[], bool] = lambda: False
        """Whether nobody will train on it any more: who waits for a verdict looks now and then, and goes without"""
        self._group: Group | None = None

    def add(self, rollout: Rollout, outcome: Future[Said], verdict: Future[Verdict | None]) -> None:
        insort(self.entries, (rollout, outcome, verdict), key=lambda entry: entry[0].sample)

    @property
    def rollouts(self) -> list[Rollout]:
        return [rollout for rollout, _, _ in self.entries]

    @property
    def undecided(self) -> bool:
        """Whether its advantages hang on a verdict; from the outcomes alone, whatever has arrived: what is packed follows from it."""
        return self.decisive and any(said.result().outcome is Outcome.CORRECT for _, said, _ in self.entries)

    @property
    def ready(self) -> bool:
        """Whether `advantages` would not wait now."""
        late = any(not verdict.done() for _, _, verdict in self.entries)
        return self._group is not None or not late or not self.undecided or self._left() == 0.0

    def made(self, whole: bool = False) -> Group:
        """The group without rewards: waits for every verdict where advantages hang on one, or where it must be `whole`. A verdict that is
        not there by `until` (`time.monotonic`) is unknown(timeout), and stays so."""
        if self._group is not None:
            return self._group
        waits = whole or self.undecided
        said = [outcome.result() for _, outcome, _ in self.entries]
        group = Group(
            prompt=self.prompt,
            rollouts=self.rollouts,
            outcomes=[each.outcome for each in said],
            scores=[each.reward for each in said],
            extracted=[each.extracted for each in said],
            reasons=[each.reason for each in said],
            # Where nothing hangs on it, who is late is None, and would change nothing.
            verdicts=[self._verdict(verdict) if waits or verdict.done() else None for _, _, verdict in self.entries],
        )
        if waits:
            self._group = group
        return group

    def _left(self) -> float | None:
        return None if self.until is None else max(0.0, self.until - time.monotonic())

    def _verdict(self, verdict: Future[Verdict | None]) -> Verdict | None:
        while not verdict.done():
            left = self._left()
            if left == 0.0 or self.leaving():
                return Verdict.unknown("timeout")
            wait([verdict], LOOK if left is None else min(LOOK, left))
        return verdict.result()  # a judge's own TimeoutError is a fault and must be seen


def scored(pending: Sequence[PendingGroup], whole: bool = False) -> list[Group]:
    """The groups with rewards and advantages, all computed at once; waits as `PendingGroup.made` does."""
    groups = [group.made(whole) for group in pending]
    if new := [group for group in groups if not group.kept]:
        pending[0].assign(new)
    return groups


class PendingGroups:
    """The groups of a batch, in prompt order. `deadline`: seconds until verdicts are given up, from the end of sampling."""

    def __init__(
        self, prompts: Sequence[Prompt], assign: Callable[[Sequence[Group]], None], decisive: bool, deadline: float | None = None
    ) -> None:
        self.by_prompt = {prompt.id: PendingGroup(prompt, assign, decisive) for prompt in prompts}
        self.deadline = deadline
        self.asked: dict[str, Call] = {}
        self.held: list[tuple[Future[Said], Callable[[Future[Said]], None]]] = []
        """Questions for a judge that sleeps; `ask` puts them."""
        if len(self.by_prompt) != len(prompts):
            raise ValueError("two prompts of one batch share an id; ids must be unique within a data set")
        announce(self)

    def __iter__(self) -> Iterator[PendingGroup]:
        return iter(self.by_prompt.values())

    def calls(self) -> list[tuple[str, float, float]]:
        """(prompt id and sample, start, end) of every question that was not answered at once; of one still open the end is now."""
        now = time.perf_counter()
        return [(name, call.start, call.end or now) for name, call in self.asked.items()]

    @property
    def answered(self) -> int:
        """Rollouts; their outcomes and verdicts are counted by verifier and judge."""
        return sum(len(pending.entries) for pending in self)

    def waits(self) -> list[str]:
        """Rollouts without an outcome or a verdict, in the order in which they are waited for."""
        now, out = time.perf_counter(), list[str]()
        for pending in self:
            for rollout, outcome, verdict in list(pending.entries):
                name = f"of {rollout.prompt_id} sample {rollout.sample}"
                if not outcome.done():
                    out.append(f"the outcome {name}")
                elif not verdict.done():
                    call = self.asked.get(f"{rollout.prompt_id} {rollout.sample}")
                    asked = "not asked yet" if call is None else f"asked {now - call.start:.0f} s ago"
                    left = "" if pending.until is None else f", {GIVEN_UP} in {max(0.0, pending.until - time.monotonic()):.0f} s"
                    out.append(f"the verdict {name}, {asked}{left}")
        return out

    def sampled(self) -> PendingGroups:
        """Every rollout has been added: the deadline runs from now."""
        if self.deadline is not None:
            for pending in self:
                pending.until = time.monotonic() + self.deadline
        return self

    @property
    def questions(self) -> int:
        """How many are held back; waits for the outcomes."""
        return sum(said.result().outcome is Outcome.CORRECT for said, _ in self.held)

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

    def groups(self, measuring: bool = False) -> list[Group]:
        """Wait for every verdict, at most until the deadline. `measuring`: no rewards, as in an evaluation, whose groups are parts."""
        assert not self.held, "questions are held back: a sleeping judge gives no verdict"
        return [group.made(whole=True) for group in self] if measuring else scored(list(self), whole=True)
