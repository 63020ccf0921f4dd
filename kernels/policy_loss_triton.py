"""Triton kernels of the policy loss. Shapes: T tokens, B sequences; formulas and names: `kernels/policy_loss.py`."""

# pyright: reportArgumentType=false
from __future__ import annotations

from soundrl.kernels.language import tl, triton

BLOCK_T = tl.constexpr(1024)
COLUMNS = tl.constexpr(16)  # loss and ten metric sums, padded to a power of two
LOG_RATIO_LIMIT = tl.constexpr(20.0)
LOGPROB_LIMIT = tl.constexpr(1e-3)


# T is not specialised (to 1, to multiples of 16): one compilation serves every length.
@triton.jit(do_not_specialize=["T"])
def policy_loss_kernel(
    tokens, numbers, slopes, partial, T, SURROGATE: tl.constexpr, CORRECTION: tl.constexpr, KL: tl.constexpr, KL_TIMES_RATIO: tl.constexpr
):
    """Program b: tokens b·BLOCK_T … of slope and entropy slope, and one row of partial sums (loss, then METRIC_SUMS).

    `tokens` are `policy_loss.Tokens`, `numbers` those of a `LossRule`.
    """
    clip_low, clip_high, dual_clip, kl_coef, entropy_coef, low, high, tau_positive, tau_negative = numbers
    block = tl.program_id(0).to(tl.int64)
    t = block * BLOCK_T + tl.arange(0, BLOCK_T)
    real = t < T
    lp = tl.load(tokens.logprob_T + t, real, other=0.0)
    advantage = tl.load(tokens.advantages_T + t, real, other=0.0)
    before = lp
    known = real
    if tokens.old_T is not None:
        before = tl.load(tokens.old_T + t, real, other=0.0)
        known = known & (before <= LOGPROB_LIMIT) & (before > -float("inf"))
        before = tl.where(known, before, lp)
    negative = advantage < 0
    x = lp - before
    inside = tl.abs(x) < LOG_RATIO_LIMIT
    near_old = inside
    x = tl.minimum(tl.maximum(x, -LOG_RATIO_LIMIT), LOG_RATIO_LIMIT)
    ratio = tl.exp(x)
    zero = tl.zeros_like(lp)
    clipped_low = zero
    clipped_high = zero
    dual = zero
    if SURROGATE == "clip" or SURROGATE == "gspo":
        r = ratio
        if tokens.sequence_log_ratio_T is not None:
            s = tl.load(tokens.sequence_log_ratio_T + t, real, other=0.0)
            inside = tl.abs(s) < LOG_RATIO_LIMIT
            r = tl.exp(tl.minimum(tl.maximum(s, -LOG_RATIO_LIMIT), LOG_RATIO_LIMIT))
        plain = -advantage * r
        clipped = -advantage * tl.minimum(tl.maximum(r, 1 - clip_low), 1 + clip_high)
        bound = tl.where(negative, -advantage * dual_clip, float("inf"))
        loss = tl.maximum(plain, clipped)
        over = loss > bound
        loss = tl.minimum(loss, bound)
        cut = clipped > plain
        slope = tl.where(cut | over | (inside == 0), 0.0, plain)
        clipped_low = tl.where(cut & negative, 1.0, 0.0)
        clipped_high = tl.where(cut & (negative == 0), 1.0, 0.0)
        dual = tl.where(over, 1.0, 0.0)
    elif SURROGATE == "cispo":
        slope = -advantage * tl.minimum(ratio, 1 + clip_high)
        loss = slope * lp
        clipped_high = tl.where(ratio > 1 + clip_high, 1.0, 0.0)
    else:
        tau = tl.where(negative, tau_negative, tau_positive)
        gate = tl.sigmoid(tau * (ratio - 1))
        loss = -advantage * gate * 4 / tau
        slope = tl.where(inside, -advantage * gate * (1 - gate) * 4 * ratio, 0.0)

    weight = zero + 1.0
    gap = zero
    if tokens.sampler_T is not None:
        theirs = tl.load(tokens.sampler_T + t, real, other=0.0)
        known = known & (theirs <= LOGPROB_LIMIT) & (theirs > -float("inf"))
        gap = tl.where(known, before - theirs, 0.0)
    if CORRECTION == "tis":
        weight = tl.minimum(tl.exp(gap), high)
    elif CORRECTION == "icepop":
        q = tl.exp(gap)
        weight = tl.where((q >= low) & (q <= high), q, 0.0)
    elif CORRECTION == "sequence":
        q = tl.exp(tl.load(tokens.sequence_log_q_T + t, real, other=0.0))
        weight = tl.where((q >= low) & (q <= high), 1.0, 0.0)
    loss = weight * loss
    slope = weight * slope

    reference_kl = zero
    if tokens.reference_T is not None:
        y = tl.load(tokens.reference_T + t, real, other=0.0) - lp
        near = tl.abs(y) < LOG_RATIO_LIMIT
        y = tl.minimum(tl.maximum(y, -LOG_RATIO_LIMIT), LOG_RATIO_LIMIT)
        if KL == "k1":
            estimate = -y
            change = zero + 1.0
        elif KL == "k2":
            estimate = y * y / 2
            change = -y
        else:
            estimate = tl.exp(y) - 1 - y
            change = 1 - tl.exp(y)
        reference_kl = estimate
        change = tl.where(near, change, 0.0)
        if KL_TIMES_RATIO:
            change = ratio * (change + tl.where(near_old, estimate, 0.0))
            estimate = estimate * ratio
        loss += kl_coef * estimate
        slope += kl_coef * change
    entropy_slope = zero
    if tokens.entropy_T is not None:
        loss -= entropy_coef * tl.load(tokens.entropy_T + t, real, other=0.0)
        entropy_slope -= entropy_coef
    if tokens.scale_T is not None:
        s = tl.load(tokens.scale_T + t, real, other=0.0)
        loss *= s
        slope *= s
        entropy_slope *= s
    tl.store(slopes[0] + t, slope, real)
    tl.store(slopes[1] + t, entropy_slope, real)

    g = tl.minimum(tl.maximum(gap, -LOG_RATIO_LIMIT), LOG_RATIO_LIMIT)
    exp_gap = zero
    if tokens.sampler_T is not None:
        exp_gap = tl.exp(tl.abs(g))
    # One column a sum; a padded token would count in most of them.
    row = partial + block * COLUMNS
    tl.store(row + 0, tl.sum(tl.where(real, loss, 0.0)))
    tl.store(row + 1, tl.sum(tl.where(real, 1.0, 0.0)))
    tl.store(row + 2, tl.sum(tl.where(real, clipped_low, 0.0)))
    tl.store(row + 3, tl.sum(tl.where(real, clipped_high, 0.0)))
    tl.store(row + 4, tl.sum(tl.where(real, dual, 0.0)))
    tl.store(row + 5, tl.sum(tl.where(real, ratio - 1 - x, 0.0)))
    tl.store(row + 6, tl.sum(tl.where(known, exp_gap, 0.0)))
    tl.store(row + 7, tl.sum(tl.where(real, tl.exp(g) - 1 - g, 0.0)))
    tl.store(row + 8, tl.sum(tl.where(real & (weight != 1), 1.0, 0.0)))
    tl.store(row + 9, tl.sum(tl.where(real, reference_kl, 0.0)))
    tl.store(row + 10, tl.sum(tl.where(real & (known == 0), 1.0, 0.0)))


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
