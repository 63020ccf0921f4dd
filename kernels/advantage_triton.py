"""Triton kernel of the group advantage. Shapes: N rollouts, P groups; formulas: `kernels/advantage.py`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def penalised(rewards, flawed, kept, i, inside, lam):
    """Reward less λ where flawed, and whether rollout i counts."""
    r = tl.load(rewards + i, inside, other=0.0).to(tl.float32)
    counts = inside
    if flawed is not None:
        r -= lam * tl.load(flawed + i, inside, other=0).to(tl.float32)
    if kept is not None:
        counts = inside & (tl.load(kept + i, inside, other=0) != 0)
    return r, counts


@triton.jit
def group_advantage_kernel(rewards, offsets, flawed, kept, advantages, lam, epsilon, NORMALIZE_STD: tl.constexpr, BLOCK: tl.constexpr):
    """Program g: all of group g, of any size; mean, then the spread around it, then the advantages (three passes over at most a few KB)."""
    g = tl.program_id(0).to(tl.int64)
    start = tl.load(offsets + g)
    end = tl.load(offsets + g + 1)
    number = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    low = tl.full([BLOCK], float("inf"), tl.float32)
    high = tl.full([BLOCK], float("-inf"), tl.float32)
    for first in range(start, end, BLOCK):
        i = first + tl.arange(0, BLOCK)
        r, counts = penalised(rewards, flawed, kept, i, i < end, lam)
        number += tl.where(counts, 1.0, 0.0)
        total += tl.where(counts, r, 0.0)
        low = tl.where(counts, tl.minimum(low, r), low)
        high = tl.where(counts, tl.maximum(high, r), high)
    n = tl.sum(number)
    mean = tl.sum(total) / tl.maximum(n, 1.0)
    scale = 1.0
    if NORMALIZE_STD:
        square = tl.zeros([BLOCK], tl.float32)
        for first in range(start, end, BLOCK):
            i = first + tl.arange(0, BLOCK)
            r, counts = penalised(rewards, flawed, kept, i, i < end, lam)
            square += tl.where(counts, (r - mean) * (r - mean), 0.0)
        scale = 1.0 / (tl.sqrt(tl.sum(square) / tl.maximum(n - 1, 1.0)) + epsilon)
    # Equal rewards are exactly 0: rounding of the mean must not become ±1e-8 / 1e-6.
    scale = tl.where(tl.min(low) < tl.max(high), scale, 0.0)
    for first in range(start, end, BLOCK):
        i = first + tl.arange(0, BLOCK)
        r, counts = penalised(rewards, flawed, kept, i, i < end, lam)
        tl.store(advantages + i, tl.where(counts, (r - mean) * scale, 0.0), i < end)
