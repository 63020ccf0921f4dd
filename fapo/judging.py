"""The judge, as every stage sees it: a rollout goes in, a three-valued verdict comes out."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from soundrl.fapo.records import Prompt, Rollout, Verdict


class Judge(Protocol):
    """Says whether a correct rollout reasons soundly (arXiv 2510.22543, section 4). `fapo/` uses it and `genrm/` implements it.

    >>> judge.check()                              # before training: a useless judge stops the run here
    >>> future = judge.submit(prompt, rollout)     # as soon as the rollout has finished
    >>> future.result()                            # Verdict.sound() | Verdict.flawed(2) | Verdict.unknown("timeout")
    """

    def submit(self, prompt: Prompt, rollout: Rollout, priority: int = 0) -> Future[Verdict]:
        """Queue one rollout and return at once. The future always ends in a `Verdict`: network and model faults end in `unknown`. Of the
        questions that wait for a place the smallest `priority` goes first; it changes no verdict."""
        ...

    def check(self) -> None:
        """Prove that the judge can be used. Raises `ValueError`, one line that names the setting and its cure."""

    def metrics(self) -> dict[str, float]:
        """`genrm/…` metrics of this judge since they were last asked for (seconds, counts); empty where there is nothing to tell."""
        return {}

    @property
    def gone(self) -> bool:
        """Whether nobody is left to ask."""
        return False

    def close(self) -> None:
        """Stop working; futures still open end in `unknown("closed")`. May be called twice."""
