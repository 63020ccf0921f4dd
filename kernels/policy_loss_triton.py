"""Triton kernels of the policy loss: memory, masks and sums around `token_loss`. Shapes: T tokens, B sequences."""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

from soundrl.kernels.language import tl, triton
from soundrl.kernels.token_loss import token_loss

BLOCK_T = tl.constexpr(1024)
COLUMNS = tl.constexpr(16)  # loss and ten metric sums, padded to a power of two


# T is not specialised (to 1, to multiples of 16): one compilation serves every length.
@triton.jit(do_not_specialize=["T"])
def policy_loss_kernel(
    tokens,
    numbers,
    slopes,
    partial,
    T,
    near,
    SURROGATE: tl.constexpr,
    CORRECTION: tl.constexpr,
    KL: tl.constexpr,
    TIMES: tl.constexpr,
):
    """Program b: tokens b·BLOCK_T … of slope and entropy slope, and one row of partial sums (loss, then METRIC_SUMS).

    `tokens` are `policy_loss.Tokens`, `numbers` those of a `LossRule`.
    """
    block = tl.program_id(0).to(tl.int64)
    t = block * BLOCK_T + tl.arange(0, BLOCK_T)
    real = t < T
    loss, slope, entropy_slope, low, high, dual, kl, exp_gap, sampler_kl, corrected, reference_kl, unknown = token_loss(
        tl.load(tokens.logprob_T + t, real, other=0.0),
        None if tokens.old_T is None else tl.load(tokens.old_T + t, real, other=0.0),
        tl.load(tokens.advantages_T + t, real, other=0.0),
        None if tokens.sampler_T is None else tl.load(tokens.sampler_T + t, real, other=0.0),
        None if tokens.entropy_T is None else tl.load(tokens.entropy_T + t, real, other=0.0),
        None if tokens.reference_T is None else tl.load(tokens.reference_T + t, real, other=0.0),
        None if tokens.scale_T is None else tl.load(tokens.scale_T + t, real, other=0.0),
        None if tokens.sequence_log_ratio_T is None else tl.load(tokens.sequence_log_ratio_T + t, real, other=0.0),
        None if tokens.sequence_log_q_T is None else tl.load(tokens.sequence_log_q_T + t, real, other=0.0),
        numbers,
        near,
        SURROGATE,
        CORRECTION,
        KL,
        TIMES,
    )
    tl.store(slopes[0] + t, slope, real)
    tl.store(slopes[1] + t, entropy_slope, real)
    # One column a sum; a padded token would count in most of them.
    row = partial + block * COLUMNS
    tl.store(row + 0, tl.sum(tl.where(real, loss, 0.0)))
    tl.store(row + 1, tl.sum(tl.where(real, 1.0, 0.0)))
    tl.store(row + 2, tl.sum(tl.where(real, low, 0.0)))
    tl.store(row + 3, tl.sum(tl.where(real, high, 0.0)))
    tl.store(row + 4, tl.sum(tl.where(real, dual, 0.0)))
    tl.store(row + 5, tl.sum(tl.where(real, kl, 0.0)))
    tl.store(row + 6, tl.sum(tl.where(real, exp_gap, 0.0)))
    tl.store(row + 7, tl.sum(tl.where(real, sampler_kl, 0.0)))
    tl.store(row + 8, tl.sum(tl.where(real, corrected, 0.0)))
    tl.store(row + 9, tl.sum(tl.where(real, reference_kl, 0.0)))
    tl.store(row + 10, tl.sum(tl.where(real, unknown, 0.0)))


@triton.jit(do_not_specialize=["rows"])
def sum_rows_kernel(partial, out, rows, BLOCK: tl.constexpr):
    """Column sums of partial [rows, COLUMNS] in one fixed order: no atomics, so repeats are equal bit for bit."""
    column = tl.arange(0, COLUMNS)
    total = tl.zeros([BLOCK, COLUMNS], tl.float32)
    for start in range(0, rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        total += tl.load(partial + row[:, None] * COLUMNS + column[None, :], (row < rows)[:, None], other=0.0)
    tl.store(out + column, tl.sum(total, 0))


@triton.jit
def sequence_mean_kernel(x, cu_seqlens, out, BLOCK: tl.constexpr):
    """Program b: the mean of x over sequence b, written to each of its tokens."""
    b = tl.program_id(0).to(tl.int64)
    start = tl.load(cu_seqlens + b)
    end = tl.load(cu_seqlens + b + 1)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(start, end, BLOCK):
        t = first + tl.arange(0, BLOCK)
        total += tl.load(x + t, t < end, other=0.0).to(tl.float32)
    mean = tl.sum(total) / tl.maximum(end - start, 1).to(tl.float32)
    for first in range(start, end, BLOCK):
        t = first + tl.arange(0, BLOCK)
        tl.store(out + t, tl.zeros([BLOCK], tl.float32) + mean, t < end)
