"""Triton kernels over rows of logits. Shapes: T rows, V vocabulary.

A row's distribution is softmax(u / temperature) (`softmax`: bias and softcap make u of logits). Its statistics are two fp32 numbers,
m = max u and log S = log Σ exp((u − m) / temperature). The maximum is taken off before anything is scaled, and the two are never added
up: at |u| = 10⁴ an ulp is 10⁻³, and every probability made from a rounded sum would be wrong in the third digit.
"""

# pyright: reportReturnType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from soundrl.kernels.language import tl, triton

NEGATIVE_INFINITY = tl.constexpr(float("-inf"))
LEAST = tl.constexpr(torch.finfo(torch.float32).min)  # the largest of no entries; −inf − −inf would be NaN
LOG2E = tl.constexpr(1 / math.log(2))
LN2 = tl.constexpr(math.log(2))
IGNORED = tl.constexpr(-100)


@triton.jit
def tanh(x):
    """libdevice has one, the interpreter has not."""
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def inverse_temperature(softmax, t):
    """Of row t."""
    inverse = 1.0 / softmax.temperature
    if softmax.temperature_T is not None:
        inverse = 1.0 / tl.load(softmax.temperature_T + t).to(tl.float32)
    return inverse


@triton.jit
def places(LANES: tl.constexpr, EACH: tl.constexpr, APART: tl.constexpr):
    """[LANES, EACH] entries of one turn: a thread's are adjacent (vector loads) or LANES APART (rows that are not aligned to 16 bytes)."""
    lane = tl.arange(0, LANES)[:, None]
    each = tl.arange(0, EACH)[None, :]
    return lane + each * LANES if APART else lane * EACH + each


@triton.jit
def target_of(targets, t, V):
    """Of row t: int32, −1 for whatever lies outside the vocabulary; and whether it is `IGNORED`."""
    target = tl.load(targets + t)
    inside = (target >= 0) & (target < V)
    return tl.where(inside, target, -1).to(tl.int32), target == IGNORED


@triton.jit
def entries(row, first, place, softmax, V, HAS_CAP: tl.constexpr, TAIL: tl.constexpr):
    """u of a row's entries first + `place` in fp32; only those of a TAIL may lie beyond the vocabulary, where u is −inf."""
    real = place < V - first if TAIL else None
    x = tl.load(row + first + place, real, other=NEGATIVE_INFINITY if TAIL else None).to(tl.float32)
    if softmax.bias_V is not None:
        x += tl.load(softmax.bias_V + first + place, real, other=0.0 if TAIL else None).to(tl.float32)
    if HAS_CAP:
        x = softmax.softcap * tanh(x / softmax.softcap)
        if TAIL:
            x = tl.where(real, x, NEGATIVE_INFINITY)
    return x


@triton.jit
def add_entries(u, m, s, w, inverse2):
    """m = max u, s = Σ 2ᵈ and w = Σ 2ᵈ d of each lane, d = (u − m) · inverse2 [lanes], with the entries u [lanes, entries] added.

    2⁻¹⁵⁰ is 0 in fp32: a bound there keeps 0 · −inf out, and NaN is in s whether max lets it through or not.
    """
    m_new = tl.maximum(m, tl.max(u, 1))
    d = (u - m_new[:, None]) * inverse2[:, None]
    e = tl.exp2(d)
    shift = tl.maximum((m - m_new) * inverse2, -150.0)
    decay = tl.exp2(shift)
    w = (w + shift * s) * decay + tl.sum(e * tl.maximum(d, -150.0), 1)
    return m_new, s * decay + tl.sum(e, 1), w


@triton.jit
def fold(m, s, w, inverse2, AXIS: tl.constexpr):
    """Statistics of parts of a row together, along AXIS; `inverse2` broadcasts over them."""
    m_new = tl.max(m, AXIS)
    shift = tl.maximum((m - tl.expand_dims(m_new, AXIS)) * inverse2, -150.0)
    decay = tl.exp2(shift)
    return m_new, tl.sum(s * decay, AXIS), tl.sum((w + shift * s) * decay, AXIS)


@triton.jit
def logprob_forward_kernel(
    logits, targets, softmax, out, V, row_stride, HAS_CAP: tl.constexpr, LANES: tl.constexpr, EACH: tl.constexpr, APART: tl.constexpr
):
    """Program t: log-probability of the target, entropy, m and log S of row t, each to its tensor of `out`, in one pass over the row.

    Each of LANES threads keeps statistics of its own over EACH entries a turn, adjacent ones (a vector load) or LANES APART: threads
    exchange nothing before the end. Exponents are those of 2: one instruction each.
    """
    t = tl.program_id(0).to(tl.int64)
    logprob, entropy, maximum, log_sum = out
    target, ignored = target_of(targets, t, V)
    if ignored:
        for i in tl.static_range(4):
            tl.store(out[i] + t, 0.0)
    else:
        row = logits + t * row_stride
        inverse2 = inverse_temperature(softmax, t) * LOG2E
        place = places(LANES, EACH, APART)
        inverse2_L = inverse2 + tl.zeros([LANES], tl.float32)
        m = tl.full([LANES], LEAST, tl.float32)
        s = tl.zeros([LANES], tl.float32)
        w = tl.zeros([LANES], tl.float32)
        whole = V // (LANES * EACH) * (LANES * EACH)
        for start in range(0, whole, LANES * EACH):
            m, s, w = add_entries(entries(row, start, place, softmax, V, HAS_CAP, False), m, s, w, inverse2_L)
        m, s, w = add_entries(entries(row, whole, place, softmax, V, HAS_CAP, True), m, s, w, inverse2_L)
        m_row, s, w = fold(m, s, w, inverse2, 0)
        u = entries(row, 0, tl.maximum(target, 0), softmax, V, HAS_CAP, False)
        log2_s = tl.log2(s)
        tl.store(logprob + t, tl.where(target >= 0, ((u - m_row) * inverse2 - log2_s) * LN2, float("nan")))
        tl.store(entropy + t, (log2_s - w / s) * LN2)
        tl.store(maximum + t, m_row)
        tl.store(log_sum + t, log2_s * LN2)


@triton.jit
def store_gradient(
    out, first, place, u, target, numbers, softmax, V, HAS_CAP: tl.constexpr, ENTROPY: tl.constexpr, TAIL: tl.constexpr, BLOCK: tl.constexpr
):
    """dx = −p · (constant + slope · log₂ p), and + at_target in its place; see `logprob_backward_kernel`."""
    m, log2_s, inverse2, at_target, constant, slope = numbers
    log2_p = (u - m) * inverse2 - log2_s
    factor = constant
    if ENTROPY:
        factor += slope * tl.maximum(log2_p, -150.0)
    dx = tl.exp2(log2_p) * factor
    # One turn of a row holds its target: a jump costs the others less than a comparison an entry.
    if (target >= first) & (target < first + BLOCK):
        dx += tl.where(place == target - first, at_target, 0.0)
    if HAS_CAP:
        dx *= 1 - (u / softmax.softcap) * (u / softmax.softcap)
    tl.store(out + first + place, dx.to(out.dtype.element_ty), place < V - first if TAIL else None)


@triton.jit
def logprob_backward_kernel(
    logits,
    dlogits,
    targets,
    softmax,
    statistics,
    grads,
    order,
    V,
    row_stride,
    out_stride,
    HAS_CAP: tl.constexpr,
    LANES: tl.constexpr,
    EACH: tl.constexpr,
    APART: tl.constexpr,
    ENTROPY: tl.constexpr,
):
    """Program j: row j of dlogits from row order[j] (or j) of logits and of everything else:

    of_target 1[v = target] − p_v (of_mass + of_entropy (log p_v + H)), then down through temperature and softcap; without ENTROPY,
    of_entropy is not read. A row without gradient is exactly 0, even where its logits are not finite, and they are not read.

    `dlogits` may be `logits`: a row is either its own source, block by block, or goes to a row that is nobody's source.
    """
    j = tl.program_id(0).to(tl.int64)
    t = j
    if order is not None:
        t = tl.load(order + j)
    maximum, log_sum, entropy = statistics
    of_target, of_mass, of_entropy = grads
    out = dlogits + j * out_stride
    target, ignored = target_of(targets, t, V)
    g = tl.load(of_target + t).to(tl.float32)
    gm = tl.load(of_mass + t).to(tl.float32)
    live = (g != 0) | (gm != 0)
    gh = 0.0
    if ENTROPY:
        gh = tl.load(of_entropy + t).to(tl.float32)
        live |= gh != 0
    BLOCK: tl.constexpr = LANES * EACH
    place = places(LANES, EACH, APART)
    whole = V // BLOCK * BLOCK
    if live & (ignored == 0):
        row = logits + t * row_stride
        inverse = inverse_temperature(softmax, t)
        constant = -(gm + gh * tl.load(entropy + t)) * inverse
        numbers = (tl.load(maximum + t), tl.load(log_sum + t) * LOG2E, inverse * LOG2E, g * inverse, constant, -gh * inverse * LN2)
        for start in range(0, whole, BLOCK):
            u = entries(row, start, place, softmax, V, HAS_CAP, False)
            store_gradient(out, start, place, u, target, numbers, softmax, V, HAS_CAP, ENTROPY, False, BLOCK)
        u = entries(row, whole, place, softmax, V, HAS_CAP, True)
        store_gradient(out, whole, place, u, target, numbers, softmax, V, HAS_CAP, ENTROPY, True, BLOCK)
    else:
        for start in range(0, V, BLOCK):
            tl.store(out + start + place, tl.zeros([LANES, EACH], dlogits.dtype.element_ty), place < V - start)


def row_options(vocabulary: int, softcap: float, each: int, *rows: Tensor) -> dict[str, Any]:
    """How a row kernel is compiled: `each` entries a thread and turn, 8 where `rows` are not aligned; no more warps than one turn needs."""
    aligned = all(x_TV.stride(0) % 16 == 0 and x_TV.data_ptr() % 16 == 0 for x_TV in rows)
    each = each if aligned else 8
    warps = min(8, triton.next_power_of_2(triton.cdiv(vocabulary, 32 * each)))
    return {"HAS_CAP": softcap != 0, "LANES": 32 * warps, "EACH": each, "APART": not aligned, "num_warps": warps}
