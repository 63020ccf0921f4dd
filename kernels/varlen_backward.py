"""Backward kernels of packed attention, without atomics: each program owns the rows it writes, so repeats give the same bits.

dQ loops over keys, dK/dV over the queries of its group, each in a fixed order; both recompute probabilities from the LSE
(FlashAttention-2, arXiv 2307.08691 Alg. 2, with its loop cut in two). Shapes: T tokens, Hq query heads, Hkv key heads, D head
dimension, N tiles; inside a program M query rows, K key rows.
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from soundrl.kernels.varlen_launch import Scores, addressable, launch
from soundrl.kernels.varlen_scores import dot, key_range, load_rows, query_tile, scores2, visible


@triton.jit(do_not_specialize=["tokens", "tile_count"])
def varlen_dq_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_out_ptr,
    out_ptr,
    lse2_ptr,
    delta_ptr,
    dq_ptr,
    tiles_ptr,
    q_stride_t,
    q_stride_h,
    k_stride_t,
    k_stride_h,
    v_stride_t,
    v_stride_h,
    grad_stride_t,
    grad_stride_h,
    tokens,
    tile_count,
    window,
    scale,
    score_scale,
    softcap2,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """dQ of M query rows, and for the second kernel delta = Σ_d dO·O."""
    start, length, live, first, kv_head, head = query_tile(tiles_ptr, tile_count, GROUP, TILE, BLOCK_M)
    if first >= length:
        return

    d = tl.arange(0, BLOCK_D)[None, :]
    local_M = tl.arange(0, BLOCK_M)
    local_K = tl.arange(0, BLOCK_K)
    row_M = first + local_M
    row_ok = (row_M < length)[:, None]
    own = ((start + first) * HEADS + head) * D  # out and dq are contiguous
    own_offset = local_M[:, None] * (HEADS * D) + d
    grad_start = grad_out_ptr + (start + first) * grad_stride_t + head * grad_stride_h
    grad_MD = load_rows(grad_start, local_M[:, None] * grad_stride_t + d, row_ok, d < D, True, D != BLOCK_D)
    out_MD = load_rows(out_ptr + own, own_offset, row_ok, d < D, True, D != BLOCK_D)
    delta_M = tl.sum(grad_MD.to(tl.float32) * out_MD.to(tl.float32), 1)
    per_row = head * tokens + start + row_M
    tl.store(delta_ptr + per_row, delta_M, row_M < length)
    lse2_M = tl.load(lse2_ptr + per_row, row_M < length, 0.0)
    q_start = q_ptr + (start + first) * q_stride_t + head * q_stride_h
    q_MD = load_rows(q_start, local_M[:, None] * q_stride_t + d, row_ok, d < D, True, D != BLOCK_D)

    dq_MD = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    low, middle, high = key_range(first, length, live, window, BLOCK_M, BLOCK_K, WINDOW)
    for MASK in tl.static_range(2):
        if MASK or not WINDOW:
            for n in range(middle if MASK else low, high if MASK else middle, BLOCK_K):
                column_ok = (n + local_K < length)[:, None]
                k_start = k_ptr + (start + n) * k_stride_t + kv_head * k_stride_h
                k_KD = load_rows(k_start, local_K[:, None] * k_stride_t + d, column_ok, d < D, MASK, D != BLOCK_D)
                score_MK = scores2(dot(q_MD, tl.trans(k_KD), UPCAST), score_scale, softcap2, SOFTCAP)
                p_MK = tl.exp2(score_MK - lse2_M[:, None])
                if MASK:  # after the exponential: what the mask hides may exceed the row's LSE and overflow
                    p_MK = tl.where(visible(row_M[:, None], n + local_K[None, :], length, window, WINDOW), p_MK, 0.0)
                v_start = v_ptr + (start + n) * v_stride_t + kv_head * v_stride_h
                v_KD = load_rows(v_start, local_K[:, None] * v_stride_t + d, column_ok, d < D, MASK, D != BLOCK_D)
                ds_MK = p_MK * (dot(grad_MD, tl.trans(v_KD), UPCAST) - delta_M[:, None])
                if SOFTCAP:
                    ds_MK = ds_MK * (1.0 - (score_MK / softcap2) * (score_MK / softcap2))
                dq_MD += dot(ds_MK, k_KD, UPCAST)
    tl.store(dq_ptr + own + own_offset, (dq_MD * scale).to(dq_ptr.dtype.element_ty), row_ok & (d < D))


@triton.jit(do_not_specialize=["tokens", "tile_count"])
def varlen_dkv_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_out_ptr,
    lse2_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    tiles_ptr,
    q_stride_t,
    q_stride_h,
    k_stride_t,
    k_stride_h,
    v_stride_t,
    v_stride_h,
    grad_stride_t,
    grad_stride_h,
    tokens,
    tile_count,
    window,
    scale,
    score_scale,
    softcap2,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """dK and dV of K key rows: the sum over the group's query heads, and over the query rows that see them."""
    PARTS: tl.constexpr = TILE // BLOCK_K
    pid = tl.program_id(0)
    tile_ptr = tiles_ptr + pid // PARTS % tile_count * 4
    kv_head = (pid // PARTS // tile_count).to(tl.int64)
    start = tl.load(tile_ptr).to(tl.int64)
    length = tl.load(tile_ptr + 1)
    # The first keys are read by most queries: mirrored, the list that is sorted for queries is sorted for keys.
    index = tl.cdiv(length, TILE) - 1 - tl.load(tile_ptr + 2)
    first = index * TILE + pid % PARTS * BLOCK_K
    live = tl.load(tile_ptr + 3)
    if (first < 0) | (first >= length):  # below 0: a tile without rows, mirrored
        return

    d = tl.arange(0, BLOCK_D)[None, :]
    local_M = tl.arange(0, BLOCK_M)
    local_K = tl.arange(0, BLOCK_K)
    column_K = first + local_K
    column_ok = (column_K < length)[:, None]
    k_start = k_ptr + (start + first) * k_stride_t + kv_head * k_stride_h
    k_KD = load_rows(k_start, local_K[:, None] * k_stride_t + d, column_ok, d < D, True, D != BLOCK_D)
    v_start = v_ptr + (start + first) * v_stride_t + kv_head * v_stride_h
    v_KD = load_rows(v_start, local_K[:, None] * v_stride_t + d, column_ok, d < D, True, D != BLOCK_D)

    dk_KD = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    dv_KD = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    # Query rows [low, high) see some of the keys. One loop over all heads of the group, with the mask in every turn: two loops, or a
    # loop a head, need more registers than there are.
    high = tl.minimum(length, first + BLOCK_K - 1 + window) * live if WINDOW else length * live
    low = first // BLOCK_M * BLOCK_M
    blocks = tl.cdiv(tl.maximum(high - low, 0), BLOCK_M)
    for turn in range(blocks * GROUP):
        head = kv_head * GROUP + turn // blocks
        m = low + turn % blocks * BLOCK_M
        row_M = m + local_M
        row_ok = (row_M < length)[:, None]
        q_start = q_ptr + (start + m) * q_stride_t + head * q_stride_h
        q_MD = load_rows(q_start, local_M[:, None] * q_stride_t + d, row_ok, d < D, True, D != BLOCK_D)
        score_KM = scores2(dot(k_KD, tl.trans(q_MD), UPCAST), score_scale, softcap2, SOFTCAP)
        per_row = head * tokens + start + row_M
        lse2_M = tl.load(lse2_ptr + per_row, row_M < length, 0.0)
        p_KM = tl.exp2(score_KM - lse2_M[None, :])
        p_KM = tl.where(visible(row_M[None, :], column_K[:, None], length, window, WINDOW), p_KM, 0.0)
        grad_start = grad_out_ptr + (start + m) * grad_stride_t + head * grad_stride_h
        grad_MD = load_rows(grad_start, local_M[:, None] * grad_stride_t + d, row_ok, d < D, True, D != BLOCK_D)
        dv_KD += dot(p_KM, grad_MD, UPCAST)
        delta_M = tl.load(delta_ptr + per_row, row_M < length, 0.0)
        ds_KM = p_KM * (dot(v_KD, tl.trans(grad_MD), UPCAST) - delta_M[None, :])
        if SOFTCAP:
            ds_KM = ds_KM * (1.0 - (score_KM / softcap2) * (score_KM / softcap2))
        dk_KD += dot(ds_KM, q_MD, UPCAST)

    own = ((start + first) * (HEADS // GROUP) + kv_head) * D
    own_offset = local_K[:, None] * (HEADS // GROUP * D) + d
    own_ok = column_ok & (d < D)
    tl.store(dk_ptr + own + own_offset, (dk_KD * scale).to(dk_ptr.dtype.element_ty), own_ok)
    tl.store(dv_ptr + own + own_offset, dv_KD.to(dv_ptr.dtype.element_ty), own_ok)


def backward(
    grad_out_THD: Tensor,
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    out_THD: Tensor,
    lse2_HT: Tensor,
    tiles_N4: Tensor,
    scores: Scores,
) -> tuple[Tensor, Tensor, Tensor]:
    """dQ [T, Hq, D], dK and dV [T, Hkv, D], in the inputs' types; 0 in rows behind the last boundary."""
    grad_out_THD = addressable(grad_out_THD)
    delta_HT = torch.empty_like(lse2_HT)
    dq_THD, dk_THD, dv_THD = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q_THD, k_THD, v_THD))
    inputs = (q_THD, k_THD, v_THD, grad_out_THD)
    strides = [stride for x in inputs for stride in x.stride()[:2]]
    launch("dq", varlen_dq_kernel, (*inputs, out_THD, lse2_HT, delta_HT, dq_THD, tiles_N4, *strides), q_THD, k_THD, tiles_N4, scores)
    launch("dkv", varlen_dkv_kernel, (*inputs, lse2_HT, delta_HT, dk_THD, dv_THD, tiles_N4, *strides), q_THD, k_THD, tiles_N4, scores)
    return dq_THD, dk_THD, dv_THD
