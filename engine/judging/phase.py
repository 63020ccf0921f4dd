"""A judge that has a phase of its own, between sampling and training: it is asked while the policy engine sleeps, or has become the judge.

    sample, questions held back → judge awake → questions and verdicts → judge asleep → train

Nothing is hidden behind other work: `genrm/overlap` comes out as 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager

from soundrl.engine.ranks import Ranks
from soundrl.engine.telemetry.timeline import TIMELINE
from soundrl.fapo.pending import PendingGroups

Timed = Callable[[str], AbstractContextManager]
"""`timed(name)` is entered around waking and falling asleep"""


class Phase(ABC):
    """Calls are collectives, as every method is."""

    always = True
    """Whether the judge wakes in every step, for what is asked of it beside a step's questions (a probe)"""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def __call__(self, pending: PendingGroups, also: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Every verdict of a step, and what comes of `also`, which may need the judge as well."""
        if not (self.always or self.needed(pending)):
            return also()
        with self.awake(TIMELINE):
            with TIMELINE("judge_wait"):
                self.ask(pending).groups()
            return also()

    def needed(self, pending: PendingGroups) -> bool:
        """Whether any rank has a question; waits for the outcomes. Where none has, nothing is held back any more: what is no question (a
        wrong answer) gets its verdict, none, without a judge."""
        if self.ranks.sum([float(pending.questions)])[0] > 0:
            return True
        pending.ask()
        return False

    def ask(self, pending: PendingGroups) -> PendingGroups:
        """Puts the questions that were held back."""
        return pending.ask()

    @abstractmethod
    def awake(self, timed: Timed) -> AbstractContextManager[None]:
        """The judge is awake within; the policy engine must sleep."""
