"""The serial phase: judges that we serve sleep while the policy is sampled and trained, and judge while the policy engine sleeps.

    sample, questions held back → policy engine sleeps → judges wake → questions and verdicts → judges sleep → train

For GPUs that do not hold judge and policy at once. Every step of it is a collective: each node's first rank owns its servers, and no rank
samples or trains before the last of them has given its memory back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from soundrl.engine.judging.phase import Phase, Timed
from soundrl.engine.ranks import Ranks
from soundrl.genrm.pool.judge import EndpointJudge
from soundrl.genrm.serve.servers import JudgeServers


class JudgingPhase(Phase):
    """`servers` on the rank that has started them, None elsewhere; they are put to sleep at once. A collective, as every method is."""

    def __init__(self, judge: EndpointJudge, servers: JudgeServers | None, ranks: Ranks) -> None:
        super().__init__(ranks)
        self.judge, self.servers = judge, servers
        self._sleep()

    @contextmanager
    def awake(self, timed: Timed) -> Iterator[None]:
        """The judges are awake within; the policy engine must sleep.

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
