"""`loss.balance`: the load of experts over a mini-batch, its metrics, and where it has a weight the term that evens it out.

The term stands in engine/experts/routers.py. Its fractions are those of the whole mini-batch, on all ranks, under the weights that are
about to be trained: they are counted in a forward pass before it, so that the gradient is that of one rank with one micro-batch. All
samples of the mini-batch count, prompts included, and with the term all are trained. It costs that pass; the metrics alone cost nothing of
note, and are taken over what is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from soundrl.engine.experts.routers import Seen
from soundrl.engine.packing import PackedBatch, Sample
from soundrl.engine.policy import Policy
from soundrl.engine.telemetry.timeline import TIMELINE
from soundrl.kernels.lm_head import LMHead

LOAD = ("moe/balance", "moe/busiest")


class Balance:
    """Of one policy. ValueError where a term is asked for of a model whose routers are not known."""

    def __init__(self, policy: Policy, weight: float) -> None:
        if weight and policy.routers is None:
            raise ValueError(
                f"loss.balance {weight} evens out the load of experts, but {policy.architecture} has none, or routers that are no softmax; "
                "leave it 0"
            )
        self.policy, self.ranks, self.routers, self.weight = policy, policy.ranks, policy.routers, weight
        self.names = LOAD if self.routers is not None else ()
        self._fractions_LE: Tensor | None = None
        self._tokens = 1.0
        self._seen: Seen | None = None
        self._begin()

    def _begin(self) -> None:
        if self.routers is not None:
            shape = (self.routers.layers, self.routers.experts)
            self._counts_LE, self._probs_LE = (torch.zeros(shape, dtype=torch.float64, device=self.ranks.device) for _ in range(2))

    @torch.no_grad()
    def count(self, batches: Iterable[PackedBatch], samples: Sequence[Sample]) -> None:
        """Before a mini-batch of `samples` is trained: `batches` are this rank's micro-batches of all of them. A collective; nothing where
        the term has no weight."""
        if not self.weight or self.routers is None:
            return
        counts_LE = torch.zeros_like(self._counts_LE)
        with TIMELINE.detail("experts' load"):
            for batch in batches:
                with self.routers.watched(counted(batch)) as seen:
                    self.policy.run(batch, nothing)
                counts_LE += seen.counts_LE
        self._tokens = float(max(1, sum(sample.length for sample in samples if sample.own)))
        total = torch.tensor(self.ranks.sum(counts_LE.flatten().tolist())).view_as(counts_LE)
        self._fractions_LE = (total / self._tokens).float().to(self.ranks.device)

    @contextmanager
    def watched(self, batch: PackedBatch) -> Iterator[None]:
        """The forward pass of a micro-batch that is trained."""
        if self.routers is None:
            yield
            return
        with self.routers.watched(counted(batch), self._fractions_LE) as self._seen:
            yield

    def added(self, loss: Tensor) -> Tensor:
        """`loss` of the micro-batch just `watched`, with its part of the term."""
        if self.routers is None or self._seen is None:
            return loss
        seen, self._seen = self._seen, None
        self._counts_LE += seen.counts_LE
        self._probs_LE += seen.probs_LE
        if not self.weight:
            return loss
        return loss + self.weight * self.routers.experts / (self.routers.layers * self._tokens) * seen.term

    def take(self) -> dict[str, float]:
        """`LOAD` of what was trained since it was last asked, over all ranks: L (`engine/routers`), and the busiest expert of any layer as
        a multiple of the mean one. Empty for a model without experts; zeros where nothing was trained. A collective."""
        if self.routers is None:
            return {}
        layers, experts, chosen = self.routers.layers, self.routers.experts, self.routers.chosen
        whole = self.ranks.sum(torch.stack([self._counts_LE, self._probs_LE]).flatten().tolist())
        counts_LE, probs_LE = torch.tensor(whole, dtype=torch.float64).view(2, layers, experts)
        self._begin()
        if not (tokens := counts_LE[0].sum().item() / chosen):
            return dict.fromkeys(LOAD, 0.0)
        even = experts / layers * (counts_LE * probs_LE).sum().item() / tokens**2
        return dict(zip(LOAD, (even, counts_LE.max().item() * experts / (tokens * chosen)), strict=True))


def counted(batch: PackedBatch) -> Tensor:
    """[T] bool: the tokens of sequences with a response. The sequence that a rank without samples computes has none."""
    own_B, length_B = batch.response_cu_seqlens.diff() > 0, batch.cu_seqlens.diff()
    return own_B.repeat_interleave(length_B, output_size=batch.tokens)


def nothing(hidden_RH: Tensor, head: LMHead) -> Tensor:
    """What is computed of the head where routers alone are asked."""
    return hidden_RH.new_zeros(())
