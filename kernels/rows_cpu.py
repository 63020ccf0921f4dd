"""Rows of logits by torch's own operators: `row_forward` and `row_backward` where Triton does not run. Shapes: T rows, V vocabulary.

A pass takes a few rows at a time, in two buffers of its own that stay in the processor's cache, and works in place. Arithmetic is that of
`logprob_triton`: the maximum is taken off before anything is scaled; exponents are those of 2, which take half the time of those of e
(AVX2). Rows that have no target, or no gradient, are not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from soundrl.kernels.backend import columns, wide
from soundrl.kernels.softmax import IGNORED, Softmax

BLOCK = 2**18  # entries of a buffer, for each thread: 1 MiB of fp32
LOG2E, LN2 = 1 / math.log(2), math.log(2)


def forward(logits_TV: Tensor, targets_T: Tensor, softmax: Softmax) -> tuple[Tensor, ...]:
    """log-prob, entropy, m, log S, as `row_forward` says."""
    out = tuple(x_T.zero_() for x_T in columns(logits_TV, 4))
    live_T, outside_T = targets_T != IGNORED, (targets_T < 0) | (targets_T >= logits_TV.shape[1])
    nearest_T, inverse2_T = targets_T.masked_fill(outside_T, 0), _inverse2(softmax, out[0])
    for where, z_bV, e_bV in _blocks(live_T, logits_TV):
        _load(z_bV, logits_TV[where], softmax)
        m_b = z_bV.amax(-1).clamp_(min=torch.finfo(z_bV.dtype).min)  # a row of −inf too: −inf − −inf is NaN, and its sum is 0
        z_bV.sub_(m_b[:, None]).mul_(inverse2_T[where, None])
        d_b = z_bV.gather(-1, nearest_T[where, None]).squeeze(-1)
        sum_b = torch.exp2(z_bV, out=e_bV).sum(-1)
        w_b = z_bV.clamp_(min=_floor(z_bV)).mul_(e_bV).sum(-1)
        log2_sum_b = sum_b.log2()
        parts = (d_b - log2_sum_b) * LN2, (log2_sum_b - w_b / sum_b) * LN2, m_b, log2_sum_b * LN2
        for whole_T, part_b in zip(out, parts, strict=True):
            whole_T[where] = part_b
    out[0].masked_fill_(outside_T & live_T, torch.nan)
    return out


def backward(
    dlogits_nV: Tensor,
    logits_TV: Tensor,
    targets_n: Tensor,
    softmax: Softmax,
    statistics: tuple[Tensor, ...],
    grads: tuple[Tensor | None, ...],
    order: Tensor | None,
) -> None:
    """Write dlogits, as `row_backward` says; everything but logits belongs to rows order[0 … n−1] already."""
    (m_n, log_sum_n, entropy_n), (of_target_n, of_mass_n, of_entropy_n) = statistics, grads
    assert of_target_n is not None and of_mass_n is not None
    outside_n, inverse2_n = (targets_n < 0) | (targets_n >= logits_TV.shape[1]), _inverse2(softmax, m_n)
    live_n = (of_target_n != 0) | (of_mass_n != 0)
    # dx = 2ᵈ · (constant + slope · d), and at_target in its place
    scale_n, slope_n = torch.exp(-log_sum_n).mul_(inverse2_n).mul_(-LN2), None
    constant_n = of_mass_n * scale_n
    if of_entropy_n is not None and bool(of_entropy_n.any()):
        live_n |= of_entropy_n != 0
        slope_n = of_entropy_n * scale_n
        constant_n += slope_n * (entropy_n - log_sum_n)
        slope_n *= LN2
    live_n &= targets_n != IGNORED
    at_target_n, nearest_n = (of_target_n * inverse2_n).mul_(LN2).masked_fill_(outside_n, 0.0), targets_n.masked_fill(outside_n, 0)
    dlogits_nV.index_fill_(0, (~live_n).nonzero().squeeze(-1), 0.0)
    for where, z_bV, e_bV in _blocks(live_n, logits_TV, 1 if slope_n is None else 2):
        direct = isinstance(where, slice) and dlogits_nV.dtype == z_bV.dtype
        z_bV = dlogits_nV[where] if direct else z_bV
        _load(z_bV, logits_TV[where if order is None else order[where]], softmax)
        down_bV = 1 - (z_bV / softmax.softcap) ** 2 if softmax.softcap else None
        z_bV.sub_(m_n[where, None]).mul_(inverse2_n[where, None])
        if slope_n is None:
            z_bV.exp2_().mul_(constant_n[where, None])
        else:
            torch.exp2(z_bV, out=e_bV)
            z_bV.clamp_(min=_floor(z_bV)).mul_(slope_n[where, None]).add_(constant_n[where, None]).mul_(e_bV)
        z_bV.scatter_add_(-1, nearest_n[where, None], at_target_n[where, None])
        if down_bV is not None:
            z_bV.mul_(down_bV)
        if not direct:
            dlogits_nV[where] = z_bV if isinstance(where, slice) else z_bV.to(dlogits_nV.dtype)


def _blocks(live_T: Tensor, like_TV: Tensor, buffers: int = 2) -> Iterator[tuple[slice | Tensor, Tensor, Tensor]]:
    """(which rows, buffer, buffer) of a few live rows at a time; a slice where they stand one below the other."""
    live, vocabulary = live_T.nonzero().squeeze(-1), like_TV.shape[1]
    step = max(1, BLOCK * (torch.get_num_threads() if like_TV.device.type == "cpu" else 256) // vocabulary)
    size = min(step, len(live))
    z_bV, e_bV = (torch.empty(size if i < buffers else 0, vocabulary, dtype=wide(like_TV), device=like_TV.device) for i in range(2))
    for start in range(0, len(live), step):
        at = live[start : start + step]
        first, end = int(at[0]), int(at[-1]) + 1
        yield slice(first, end) if end - first == len(at) else at, z_bV[: len(at)], e_bV[: len(at)]


def _load(z_bV: Tensor, logits_bV: Tensor, softmax: Softmax) -> None:
    """u of logits."""
    z_bV.copy_(logits_bV)
    if softmax.bias_V is not None:
        z_bV.add_(softmax.bias_V)
    if softmax.softcap:
        z_bV.div_(softmax.softcap).tanh_().mul_(softmax.softcap)


def _inverse2(softmax: Softmax, like_T: Tensor) -> Tensor:
    """log₂e / temperature of each row."""
    return (
        torch.full_like(like_T, LOG2E / softmax.temperature)
        if softmax.temperature_T is None
        else LOG2E / softmax.temperature_T.to(like_T.dtype)
    )


def _floor(z: Tensor) -> float:
    """An exponent of which 2 to its power is 0: a bound there keeps 0 · −inf, which is NaN, out."""
    return 1.2 * math.log2(torch.finfo(z.dtype).tiny)
