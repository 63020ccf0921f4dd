"""The loss of a token, its slope, and its metrics: the formulas of `policy_loss`, written once for Triton and for plain torch.

`token_loss` is what the kernel calls with a block of tokens, and, given torch's functions for Triton's names (`on_torch`), what computes
where no kernel runs. It knows neither memory nor masks. No assignment in
place: torch's would write over a value that has another name too.
"""

# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportOptionalOperand=false, reportPossiblyUnboundVariable=false
from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from soundrl.kernels.language import tl, triton

LOG_RATIO_LIMIT = tl.constexpr(20.0)  # exp(20) is finite in fp32 with room for the product; verl clamps alike
LOGPROB_LIMIT = tl.constexpr(1e-3)  # rounding may lift a log-probability above 0, not further than this


@triton.jit
def is_logprob(x):
    """Whether finite and not above 0."""
    return (x <= LOGPROB_LIMIT) & (x > -float("inf"))


@triton.jit
def at_least(x, low):
    return tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def at_most(x, high):
    """On a GPU a plain `min` of NaN and a number is the number: a diverged model would train on without a word."""
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def bounded(x):
    return at_most(at_least(x, -LOG_RATIO_LIMIT), LOG_RATIO_LIMIT)


@triton.jit
def k3(x, near):
    """exp(x) − 1 − x, by its series below |x| = `near`, where the difference would be rounding alone (and could be negative)."""
    series = x * x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * (1 / 720 + x * (1 / 5040))))))
    return tl.where(tl.abs(x) < near, series, tl.exp(x) - 1 - x)


@triton.jit
def token_loss(
    lp,
    old,
    advantage,
    sampler,
    entropy,
    reference,
    scale,
    sequence_log_ratio,
    sequence_log_q,
    numbers,
    near,
    SURROGATE: tl.constexpr,
    CORRECTION: tl.constexpr,
    KL: tl.constexpr,
    KL_TIMES_RATIO: tl.constexpr,
):
    """Of the values of `policy_loss.Tokens` (None where one is not given) and the numbers of a `LossRule`: loss, its derivative by the
    log-probability and by the entropy; then, for `METRIC_SUMS` but the first: clipped low, clipped high, dual clip, k3 of the new policy
    against the old one, exp|gap| to the sampler where known, k3 of the gap, corrected, estimate of the KL to the reference, not known."""
    clip_low, clip_high, dual_clip, kl_coef, entropy_coef, low, high, tau_positive, tau_negative = numbers
    zero = tl.zeros_like(lp)
    before = lp
    known = zero == 0
    if old is not None:
        known = is_logprob(old)
        before = tl.where(known, old, lp)
    negative = advantage < 0
    x = lp - before
    far_old = tl.abs(x) >= LOG_RATIO_LIMIT  # not so for NaN, whose slope is NaN
    far = far_old
    x = bounded(x)
    ratio = tl.exp(x)
    clipped_low, clipped_high, dual = zero, zero, zero
    if SURROGATE == "clip" or SURROGATE == "gspo":
        r = ratio
        if sequence_log_ratio is not None:
            far = tl.abs(sequence_log_ratio) >= LOG_RATIO_LIMIT
            r = tl.exp(bounded(sequence_log_ratio))
        plain = -advantage * r
        clipped = -advantage * at_most(at_least(r, 1 - clip_low), 1 + clip_high)
        bound = tl.where(negative, -advantage * dual_clip, float("inf"))
        loss = at_least(plain, clipped)
        over = loss > bound
        loss = at_most(loss, bound)
        cut = clipped > plain
        slope = tl.where(cut | over | far, 0.0, plain)
        clipped_low = tl.where(cut & negative, zero + 1, 0.0)
        clipped_high = tl.where(cut & (negative == 0), zero + 1, 0.0)
        dual = tl.where(over, zero + 1, 0.0)
    elif SURROGATE == "cispo":
        slope = -advantage * at_most(ratio, 1 + clip_high)
        loss = slope * lp
        clipped_high = tl.where(ratio > 1 + clip_high, zero + 1, 0.0)
    else:
        tau = tl.where(negative, zero + tau_negative, zero + tau_positive)
        gate = tl.sigmoid(tau * (ratio - 1))
        loss = -advantage * gate * 4 / tau
        slope = tl.where(far, 0.0, -advantage * gate * (1 - gate) * 4 * ratio)

    gap, exp_gap, weight = zero, zero, zero + 1
    if sampler is not None:
        known = known & is_logprob(sampler)
        gap = tl.where(known, before - sampler, 0.0)
        exp_gap = tl.where(known, tl.exp(tl.abs(bounded(gap))), 0.0)
    if CORRECTION == "tis":
        weight = at_most(tl.exp(gap), high)
    elif CORRECTION == "icepop":
        q = tl.exp(gap)
        weight = tl.where((q < low) | (q > high), 0.0, q)
    elif CORRECTION == "sequence":
        q = tl.exp(sequence_log_q)
        weight = tl.where((q < low) | (q > high), 0.0, zero + 1)
    loss = weight * loss
    slope = weight * slope

    estimate = zero
    if reference is not None:
        y = reference - lp
        far_reference = tl.abs(y) >= LOG_RATIO_LIMIT
        y = bounded(y)
        if KL == "k1":
            estimate = -y
            change = zero + 1
        elif KL == "k2":
            estimate = y * y / 2
            change = -y
        else:
            estimate = k3(y, near)
            change = -(y + estimate)
        change = tl.where(far_reference, 0.0, change)
        term = estimate
        if KL_TIMES_RATIO:
            change = ratio * (change + tl.where(far_old, 0.0, estimate))
            term = estimate * ratio
        loss = loss + kl_coef * term
        slope = slope + kl_coef * change
    entropy_slope = zero
    if entropy is not None:
        loss = loss - entropy_coef * entropy
        entropy_slope = zero - entropy_coef
    if scale is not None:
        loss = loss * scale
        slope = slope * scale
        entropy_slope = entropy_slope * scale

    corrected = tl.where(weight == 1, 0.0, zero + 1)
    unknown = tl.where(known, 0.0, zero + 1)
    kl = k3(x, near)
    sampler_kl = k3(bounded(gap), near)
    return loss, slope, entropy_slope, clipped_low, clipped_high, dual, kl, exp_gap, sampler_kl, corrected, estimate, unknown


def _minimum(x: Tensor, y: Tensor | float, propagate_nan: Any = None) -> Tensor:
    return torch.minimum(x, y) if isinstance(y, Tensor) else x.clamp(max=y)


def _maximum(x: Tensor, y: Tensor | float, propagate_nan: Any = None) -> Tensor:
    return torch.maximum(x, y) if isinstance(y, Tensor) else x.clamp(min=y)


TORCH = SimpleNamespace(
    **{name: getattr(torch, name) for name in ("where", "abs", "exp", "sigmoid", "zeros_like")},
    **{"minimum": _minimum, "maximum": _maximum, "PropagateNan": SimpleNamespace(ALL=None)},
)
"""Triton's names that the formulas use, by torch."""


def on_torch(function: Any) -> Callable:
    """A function written for Triton, with those it calls, running on torch's tensors."""
    plain = getattr(function, "fn", function)
    names: dict[str, Any] = {"tl": TORCH}
    for name in set(plain.__code__.co_names) & set(plain.__globals__):
        value = plain.__globals__[name]
        if name != "tl":
            jitted = callable(getattr(value, "fn", None)) or isinstance(value, FunctionType)
            names[name] = on_torch(value) if jitted else getattr(value, "value", value)
    return FunctionType(plain.__code__, {**plain.__globals__, **names}, plain.__name__)
