"""A vocabulary cut over the ranks of a process group: statistics of the slices of a row, made into those of the whole.

Shapes: T rows, K targets a row (1 or more), P ranks. A row costs 3 + K numbers of communication; its logits stay where they are.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group

from soundrl.kernels.backend import require
from soundrl.kernels.gathered import row_targets
from soundrl.kernels.softmax import IGNORED, Softmax


def place_of_slice(group: Any, entries: int, device: torch.device) -> tuple[int, int, int]:
    """(id of this rank's first entry, entries of the largest slice, entries of all), where this rank has so many `entries`. A collective
    that waits for the GPU: by the largest slice all ranks agree upon the rows of a chunk."""
    require(dist.get_rank(group) >= 0, lambda: "group does not hold this rank: give the group over which the weight is cut")
    sizes_P = torch.empty(dist.get_world_size(group), dtype=torch.int64, device=device)
    dist.all_gather_into_tensor(sizes_P, torch.tensor([entries], device=device), group)
    sizes = sizes_P.tolist()
    return sum(sizes[: dist.get_rank(group)]), max(sizes), sum(sizes)


def own_targets(targets: Tensor, first: int, entries: int) -> Tensor:
    """Ids of the whole vocabulary as ids of a slice: −1 where another rank has it, −100 as it is."""
    at = targets - first
    return at.masked_fill((at < 0) | (at >= entries), -1).masked_fill(targets == IGNORED, IGNORED)


def merged(own: tuple[Tensor, ...], softmax: Softmax, targets: Tensor, group: str) -> tuple[Tensor, ...]:
    """log-prob [T] or [T, K], entropy, m, log S of the whole vocabulary from those of this rank's slice (`row_forward`'s). A collective.

    With aᵣ = (mᵣ − m) / temperature + log Sᵣ:  log S = log Σ exp aᵣ,  H = log S − Σ exp(aᵣ − log S) (aᵣ − Hᵣ), and the target's owner has
    log p = log pᵣ + aᵣ − log S. Nothing is scaled before the maximum is taken off.
    """
    logprob, entropy_T, m_T, log_sum_T = own
    rows_T = torch.stack([entropy_T, m_T, log_sum_T, *logprob.view(len(m_T), -1).unbind(-1)])
    ranks = _resolve_process_group(group)
    all_P = rows_T.new_empty(dist.get_world_size(ranks), *rows_T.shape)
    dist.all_gather_into_tensor(all_P.view(-1), rows_T.view(-1), ranks)
    entropy_PT, m_PT, log_sum_PT, logprob_PKT = all_P[:, 0], all_P[:, 1], all_P[:, 2], all_P[:, 3:]
    m_T = m_PT.amax(0)
    a_PT = (m_PT - m_T) / (softmax.temperature if softmax.temperature_T is None else softmax.temperature_T.to(m_T.dtype)) + log_sum_PT
    a_PT = a_PT.masked_fill(m_PT == -torch.inf, -torch.inf)  # also where all are, which is NaN otherwise
    log_sum_T = a_PT.logsumexp(0)
    share_PT = (a_PT - log_sum_T).exp()
    entropy_T = log_sum_T - (share_PT * (a_PT - entropy_PT)).masked_fill(share_PT == 0, 0.0).sum(0)
    owned_PKT = ~logprob_PKT.isnan()
    logprob_KT = torch.where(owned_PKT, logprob_PKT + (a_PT - log_sum_T)[:, None], 0.0).sum(0)
    logprob = logprob_KT.masked_fill(~owned_PKT.any(0), torch.nan).t().reshape(targets.shape).masked_fill(targets == IGNORED, 0.0)
    dead_T = row_targets(targets) == IGNORED  # zeros of every rank, which are no statistics
    return logprob, *(x_T.masked_fill(dead_T, 0.0) for x_T in (entropy_T, m_T, log_sum_T))


def add_over(group: str, *partial: Tensor) -> None:
    """Sum each over the group's ranks, in place."""
    for x in partial:
        dist.all_reduce(x, group=_resolve_process_group(group))
