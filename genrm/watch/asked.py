"""Answers of a judge that a run waits for beside its verdicts: a watch over hangs sees that they come, and that the wait has an end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait

from soundrl.fapo.pending import LOOK
from soundrl.fapo.records import Verdict
from soundrl.fapo.waiting import GIVEN_UP, announce
from soundrl.genrm.verdict import CLOSED


class Asked:
    """`futures` end by themselves within `seconds`, the judge's own deadline. `what` names them: `a probe of the judge`."""

    def __init__(self, what: str, futures: Sequence[Future[Verdict]], seconds: float) -> None:
        self.what, self.futures, self.until = what, futures, time.monotonic() + seconds
        announce(self)

    @property
    def answered(self) -> int:
        return sum(future.done() for future in self.futures)

    def waits(self) -> list[str]:
        if not (missing := len(self.futures) - self.answered):
            return []
        left = max(0.0, self.until - time.monotonic())
        return [f"{self.what}, {missing} of {len(self.futures)} answers, {GIVEN_UP} in {left:.0f} s"]

    def verdicts(self, leaving: Callable[[], bool]) -> list[Verdict]:
        """All of them. Where the run is left meanwhile, what has not come is unknown(closed)."""
        while wait(self.futures, LOOK).not_done and not leaving():
            pass
        return [future.result() if future.done() else Verdict.unknown(CLOSED) for future in self.futures]
