"""The serial phase: judges that we serve sleep while the policy is sampled and trained, and judge while the policy engine sleeps.

    sample, questions held back → policy engine sleeps → judges wake → questions and verdicts → judges sleep → train

For GPUs that do not hold judge and policy at once. Every step of it is a collective: each node's first rank owns its servers, and no rank
samples or trains before the last of them has given its memory back. Nothing is hidden: `genrm/overlap` comes out as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from soundrl.engine.ranks import Ranks
from soundrl.engine.telemetry.timeline import TIMELINE
from soundrl.fapo.pending import PendingGroups
from soundrl.genrm.pool.judge import EndpointJudge
from soundrl.genrm.serve.servers import JudgeServers


class JudgingPhase:
    """`servers` on the rank that has started them, None elsewhere; they are put to sleep at once. A collective, as every method is."""

    def __init__(self, judge: EndpointJudge, servers: JudgeServers | None, ranks: Ranks) -> None:
        self.judge, self.servers, self.ranks = judge, servers, ranks
        self._sleep()

    def __call__(self, pending: PendingGroups, also: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Every verdict of a step, and what comes of `also`, which needs the judge as well (a probe)."""
        with self.awake(TIMELINE):
            with TIMELINE("judge_wait"):
                self.ask(pending).groups()
            return also()

    def needed(self, pending: PendingGroups) -> bool:
        """Whether any rank has a question."""
        return self.ranks.sum([float(pending.questions)])[0] > 0

    def ask(self, pending: PendingGroups) -> PendingGroups:
        """Puts the questions that were held back."""
        return pending.ask()

    @contextmanager
    def awake(self, timed: Callable[[str], AbstractContextManager]) -> Iterator[None]:
        """The judges are awake within; the policy engine must sleep. `timed(name)` is entered around waking and falling asleep.

        A judge that does not come back is treated as one that has died: the others take its questions, and with none left verdicts are
        unknown(unreachable), which are counted and stop the run by `genrm.unknown`. A run of days does not end by one slow start.
        """
        with timed("judge_wake"):
            if self.ranks.device.type == "cuda":
                torch.cuda.empty_cache()  # of the trainer: the judges take what is not reserved
            self.ranks.barrier()
            if self.servers is not None:
                self.servers.wake()
            self.ranks.barrier()
        yield
        with timed("judge_sleep"):
            self._sleep()

    def _sleep(self) -> None:
        self.judge.rest()
        self.ranks.barrier()  # until no rank asks any more
        if self.servers is not None:
            self.servers.sleep()
        self.ranks.barrier()
