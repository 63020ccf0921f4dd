"""Do sampler and trainer send the same tokens to the same experts? Counted on the probes of the gate, on both sides' own choices.

A choice between two experts of almost one probability may fall either way where the two sides round differently; the token's output then
jumps, and with it its log-probability. So the share of equal choices says what the gate's mean cannot: whether a gap is rounding, or
routing. Shapes: R response tokens, Λ layers with experts, K experts a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from soundrl.engine.experts.routers import Routers
from soundrl.engine.packing import PackedBatch
from soundrl.engine.ranks import Ranks

if TYPE_CHECKING:
    from soundrl.engine.samplers.vllm_routes import Routes


class Agreement:
    """Of one gate. Counts nothing where either side cannot tell its choices."""

    def __init__(self, routers: Routers | None, routes: Routes | None) -> None:
        self.routers, self.routes = routers, routes
        layers = routers.layers if routers else 0
        self.equal_L, self.pairs_L = np.zeros(layers), np.zeros(layers)
        self.alike: list[np.ndarray] = []
        """[R] bool of each batch that was scored: whether no layer is known to have chosen otherwise"""

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Around the sampler's part. Probes have their number as prompt id."""
        if self.routers is None or self.routes is None:
            yield
            return
        with self.routes.watched():
            yield

    @contextmanager
    def scoring(self, batch: PackedBatch) -> Iterator[None]:
        """Around the trainer's forward pass over probes, whose numbers are the batch's `indices`."""
        if self.routers is None or self.routes is None:
            yield
            return
        with self.routers.watched(torch.ones_like(batch.loss_mask), keep=True) as seen:
            yield
        own_TLK = torch.stack(seen.chosen, dim=1).cpu().numpy()
        rows_R, bounds = batch.response_index.cpu().numpy() - 1, batch.response_cu_seqlens.tolist()
        place_T, length_B = batch.position_ids.cpu().numpy(), batch.cu_seqlens.diff().tolist()
        alike: list[np.ndarray] = []
        for b, index in enumerate(batch.indices):
            rows = rows_R[bounds[b] : bounds[b + 1]]
            theirs_RLK = self.routes.chosen(str(index), length_B[b])[place_T[rows]]
            same_RL = (np.sort(own_TLK[rows], -1) == np.sort(theirs_RLK, -1)).all(-1)
            known_RL = theirs_RLK[..., 0] >= 0
            self.equal_L += (same_RL & known_RL).sum(0)
            self.pairs_L += known_RL.sum(0)
            alike.append((same_RL | ~known_RL).all(-1))
        self.alike.append(np.concatenate(alike))

    def shares(self, ranks: Ranks) -> tuple[float, ...]:
        """Of the tokens, by layer, with equal sets of experts, over all ranks; empty where nothing was counted. A collective where there
        are routers."""
        if self.routers is None:
            return ()
        equal_L, pairs_L = np.split(np.array(ranks.sum([*self.equal_L, *self.pairs_L])), 2)
        return tuple((equal_L / pairs_L).tolist()) if pairs_L.all() else ()
