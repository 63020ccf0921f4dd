"""Triton kernels over rows of logits. Shapes: T rows, V vocabulary.

A row's distribution is softmax(u / temperature) (`softmax`: bias and softcap make u of logits). Its statistics are two fp32 numbers,
m = max u and log S = log Σ exp((u − m) / temperature). The maximum is taken off before anything is scaled, and the two are never added
up: at |u| = 10⁴ an ulp is 10⁻³, and every probability made from a rounded sum would be wrong in the third digit.
"""

# pyright: reportReturnType=false
from __future__ import annotations

from typing import Any

from soundrl.kernels import softmax
from soundrl.kernels.language import tl, triton

NEGATIVE_INFINITY = tl.constexpr(float("-inf"))
IGNORED = tl.constexpr(softmax.IGNORED)


@triton.jit
def tanh(x):
    """libdevice has one, the interpreter has not."""
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def bounded_logits(x, softmax, column, real, HAS_CAP: tl.constexpr):
    """u of raw logits `x` in fp32, −inf beyond the vocabulary."""
    if softmax.bias_V is not None:
        x += tl.load(softmax.bias_V + column, real, other=0.0).to(tl.float32)
    if HAS_CAP:
        x = softmax.softcap * tanh(x / softmax.softcap)
    return tl.where(real, x, NEGATIVE_INFINITY)


@triton.jit
def block_statistics(u, inverse, AXIS: tl.constexpr):
    """m = max u, s = Σ exp(d) and w = Σ exp(d) d along AXIS, with d = (u − m) · inverse temperature.

    −inf − −inf and exp(−inf) · −inf are NaN where 0 is meant: a row of −inf has m = −inf and s = w = 0.
    """
    m = tl.max(u, AXIS)
    base = tl.where(m == NEGATIVE_INFINITY, 0.0, m)
    d = (u - tl.expand_dims(base, AXIS)) * tl.expand_dims(inverse, AXIS)
    e = tl.exp(d)
    return m, tl.sum(e, AXIS), tl.sum(tl.where(e > 0, e * d, 0.0), AXIS)


@triton.jit
def merge_statistics(m, s, w, m2, s2, w2, inverse):
    """Statistics of two parts of a row together. Moving the maximum by δ changes every d of that part by δ, hence the correction of w."""
    m_new = tl.maximum(m, m2)
    shift = tl.where(m == NEGATIVE_INFINITY, 0.0, (m - m_new) * inverse)
    shift2 = tl.where(m2 == NEGATIVE_INFINITY, 0.0, (m2 - m_new) * inverse)
    decay = tl.exp(shift)
    decay2 = tl.exp(shift2)
    return m_new, s * decay + s2 * decay2, (w + shift * s) * decay + (w2 + shift2 * s2) * decay2


@triton.jit
def inverse_temperature(softmax, t):
    """Of row t."""
    inverse = 1.0 / softmax.temperature
    if softmax.temperature_T is not None:
        inverse = 1.0 / tl.load(softmax.temperature_T + t).to(tl.float32)
    return inverse


@triton.jit
def logprob_forward_kernel(logits, targets, softmax, out, V, row_stride, HAS_CAP: tl.constexpr, BLOCK: tl.constexpr):
    """Program t: log-probability of the target, entropy, m and log S of row t, each to its tensor of `out`, in one pass over the row."""
    t = tl.program_id(0).to(tl.int64)
    logprob, entropy, maximum, log_sum = out
    inverse = inverse_temperature(softmax, t)
    inverse_1 = inverse + tl.zeros([1], tl.float32)
    row = logits + t * row_stride
    m = tl.full([1], float("-inf"), tl.float32)
    s = tl.zeros([1], tl.float32)
    w = tl.zeros([1], tl.float32)
    target = tl.load(targets + t)
    dead = target == IGNORED
    for start in range(0, tl.where(dead, 0, V), BLOCK):
        column = start + tl.arange(0, BLOCK)
        real = column < V
        x = tl.load(row + column, real, other=0.0).to(tl.float32)
        u = bounded_logits(x, softmax, column, real, HAS_CAP)
        m2, s2, w2 = block_statistics(tl.expand_dims(u, 0), inverse_1, 1)
        m, s, w = merge_statistics(m, s, w, m2, s2, w2, inverse_1)
    one = tl.arange(0, 1)
    column = target + one
    inside = (column >= 0) & (column < V)
    x = tl.load(row + column, inside, other=0.0).to(tl.float32)
    u = bounded_logits(x, softmax, tl.where(inside, column, 0), inside, HAS_CAP)
    tl.store(logprob + t + one, tl.where(dead, 0.0, tl.where(inside, (u - m) * inverse - tl.log(s), float("nan"))))
    tl.store(entropy + t + one, tl.where(dead, 0.0, tl.log(s) - w / s))
    tl.store(maximum + t + one, tl.where(dead, 0.0, m))
    tl.store(log_sum + t + one, tl.where(dead, 0.0, tl.log(s)))


@triton.jit
def logprob_backward_kernel(
    logits, dlogits, targets, softmax, statistics, grads, order, V, row_stride, out_stride, HAS_CAP: tl.constexpr, BLOCK: tl.constexpr
):
    """Program j: row j of dlogits from row order[j] (or j) of logits and of everything else:

    of_target 1[v = target] − p_v (of_mass + of_entropy (log p_v + H)), then down through temperature and softcap.

    `dlogits` may be `logits`: a row is either its own source, block by block, or goes to a row that is nobody's source.
    """
    j = tl.program_id(0).to(tl.int64)
    t = j
    if order is not None:
        t = tl.load(order + j)
    maximum, log_sum, entropy = statistics
    of_target, of_mass, of_entropy = grads
    inverse = inverse_temperature(softmax, t)
    row = logits + t * row_stride
    out = dlogits + j * out_stride
    target = tl.load(targets + t)
    m = tl.load(maximum + t)
    log_s = tl.load(log_sum + t)
    h = tl.load(entropy + t)
    g = tl.load(of_target + t).to(tl.float32)
    gm = tl.load(of_mass + t).to(tl.float32)
    gh = tl.load(of_entropy + t).to(tl.float32)
    live = ((g != 0) | (gm != 0) | (gh != 0)) & (target != IGNORED)
    for start in range(0, V, BLOCK):
        column = start + tl.arange(0, BLOCK)
        real = column < V
        x = tl.load(row + column, real, other=0.0).to(tl.float32)
        u = bounded_logits(x, softmax, column, real, HAS_CAP)
        logp = (u - m) * inverse - log_s
        p = tl.exp(logp)
        dz = tl.where(column == target, g, 0.0) - gm * p - gh * tl.where(p > 0, p * (logp + h), 0.0)
        dx = dz * inverse
        if HAS_CAP:
            dx *= 1 - (u / softmax.softcap) * (u / softmax.softcap)
        # A row without gradient is exactly 0 even where its logits are not finite.
        dx = tl.where(live, dx, 0.0)
        tl.store(out + column, dx.to(dlogits.dtype.element_ty), real)


def row_options(vocabulary: int, softcap: float) -> dict[str, Any]:
    """How row kernels are compiled: one pass for small vocabularies, 4,096 entries at a time for large ones."""
    block = min(4096, max(16, triton.next_power_of_2(vocabulary)))
    return {"HAS_CAP": softcap != 0, "BLOCK": block, "num_warps": 8 if block >= 4096 else 4}
