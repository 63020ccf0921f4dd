"""Backward kernels of packed attention, without atomics: each program owns the rows it writes, so repeats give the same bits.

dQ loops over keys, dK/dV over the queries of its group, each in a fixed order; both recompute probabilities from the LSE
(FlashAttention-2, arXiv 2307.08691 Alg. 2, with its loop cut in two). Shapes: T tokens, Hq query heads, Hkv key heads, D head
dimension, N tiles; inside a program M query rows, K key rows.
"""

# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from soundrl.kernels.backend import operator
from soundrl.kernels.language import tl, triton
from soundrl.kernels.varlen_launch import QKV, SCORES, Scores, addressable, launch_all, strided
from soundrl.kernels.varlen_scores import dense_rows, dot, key_range, load, load_rows, query_tile, scores2, visible

SAVED = "Tensor out_THD, Tensor lse2_HT, Tensor tiles_N4"


@triton.jit(do_not_specialize=["tokens", "tile_count"])
def varlen_dq_kernel(
    q, k, v, grad_out, out, lse2, delta, dq, tiles, tokens, tile_count, window, scale, score_scale, softcap2, C: tl.constexpr
):
    """dQ of M query rows, and for the second kernel delta = Σ_d dO·O."""
    start, length, live, first, kv_head, head = query_tile(tiles, tile_count, C)
    if first >= length:
        return

    BLOCK_M: tl.constexpr = C.BLOCK_M
    BLOCK_K: tl.constexpr = C.BLOCK_K
    BLOCK_D: tl.constexpr = C.BLOCK_D
    local_M = tl.arange(0, BLOCK_M)
    local_K = tl.arange(0, BLOCK_K)
    row_M = first + local_M
    row_ok = (row_M < length)[:, None]
    grad_MD = load_rows(grad_out, start + first, head, local_M, row_ok, True, C)
    out_MD = load(dense_rows(out, start + first, head, local_M, C.HEADS, C), row_ok, True, C)
    delta_M = tl.sum(grad_MD.to(tl.float32) * out_MD.to(tl.float32), 1)
    per_row = head * tokens + start + row_M
    tl.store(delta + per_row, delta_M, row_M < length)
    lse2_M = tl.load(lse2 + per_row, row_M < length, 0.0)
    q_MD = load_rows(q, start + first, head, local_M, row_ok, True, C)

    dq_MD = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    low, middle, high = key_range(first, length, live, window, C)
    for MASK in tl.static_range(2):
        if MASK or not C.WINDOW:
            for n in range(middle if MASK else low, high if MASK else middle, BLOCK_K):
                column_ok = (n + local_K < length)[:, None]
                k_KD = load_rows(k, start + n, kv_head, local_K, column_ok, MASK, C)
                score_MK = scores2(dot(q_MD, tl.trans(k_KD), C), score_scale, softcap2, C)
                p_MK = tl.exp2(score_MK - lse2_M[:, None])
                if MASK:  # after the exponential: what the mask hides may exceed the row's LSE and overflow
                    p_MK = tl.where(visible(row_M[:, None], n + local_K[None, :], length, window, C), p_MK, 0.0)
                v_KD = load_rows(v, start + n, kv_head, local_K, column_ok, MASK, C)
                ds_MK = p_MK * (dot(grad_MD, tl.trans(v_KD), C) - delta_M[:, None])
                if C.SOFTCAP:
                    ds_MK = ds_MK * (1.0 - (score_MK / softcap2) * (score_MK / softcap2))
                dq_MD += dot(ds_MK, k_KD, C)
    own_ok = row_ok & (tl.arange(0, BLOCK_D)[None, :] < C.D)
    tl.store(dense_rows(dq, start + first, head, local_M, C.HEADS, C), (dq_MD * scale).to(dq.dtype.element_ty), own_ok)


@triton.jit(do_not_specialize=["tokens", "tile_count"])
def varlen_dkv_kernel(
    q, k, v, grad_out, lse2, delta, dk, dv, tiles, tokens, tile_count, window, scale, score_scale, softcap2, C: tl.constexpr
):
    """dK and dV of K key rows: the sum over the group's query heads, and over the query rows that see them."""
    PARTS: tl.constexpr = C.TILE // C.BLOCK_K
    KV_HEADS: tl.constexpr = C.HEADS // C.GROUP
    pid = tl.program_id(0)
    tile = tiles + pid // PARTS % tile_count * 4
    kv_head = (pid // PARTS // tile_count).to(tl.int64)
    start = tl.load(tile).to(tl.int64)
    length = tl.load(tile + 1)
    # The first keys are read by most queries: mirrored, the list that is sorted for queries is sorted for keys.
    index = tl.cdiv(length, C.TILE) - 1 - tl.load(tile + 2)
    first = index * C.TILE + pid % PARTS * C.BLOCK_K
    live = tl.load(tile + 3)
    if (first < 0) | (first >= length):  # below 0: a tile without rows, mirrored
        return

    BLOCK_M: tl.constexpr = C.BLOCK_M
    BLOCK_K: tl.constexpr = C.BLOCK_K
    BLOCK_D: tl.constexpr = C.BLOCK_D
    local_M = tl.arange(0, BLOCK_M)
    local_K = tl.arange(0, BLOCK_K)
    column_K = first + local_K
    column_ok = (column_K < length)[:, None]
    k_KD = load_rows(k, start + first, kv_head, local_K, column_ok, True, C)
    v_KD = load_rows(v, start + first, kv_head, local_K, column_ok, True, C)

    dk_KD = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    dv_KD = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    # Query rows [low, high) see some of the keys. One loop over all heads of the group, with the mask in every turn: two loops, or a
    # loop a head, need more registers than there are.
    high = tl.minimum(length, first + BLOCK_K - 1 + window) * live if C.WINDOW else length * live
    low = first // BLOCK_M * C.BLOCK_M
    blocks = tl.cdiv(tl.maximum(high - low, 0), BLOCK_M)
    for turn in range(blocks * C.GROUP):
        head = kv_head * C.GROUP + turn // blocks
        m = low + turn % blocks * C.BLOCK_M
        row_M = m + local_M
        row_ok = (row_M < length)[:, None]
        q_MD = load_rows(q, start + m, head, local_M, row_ok, True, C)
        score_KM = scores2(dot(k_KD, tl.trans(q_MD), C), score_scale, softcap2, C)
        per_row = head * tokens + start + row_M
        lse2_M = tl.load(lse2 + per_row, row_M < length, 0.0)
        p_KM = tl.exp2(score_KM - lse2_M[None, :])
        p_KM = tl.where(visible(row_M[None, :], column_K[:, None], length, window, C), p_KM, 0.0)
        grad_MD = load_rows(grad_out, start + m, head, local_M, row_ok, True, C)
        dv_KD += dot(p_KM, grad_MD, C)
        delta_M = tl.load(delta + per_row, row_M < length, 0.0)
        ds_KM = p_KM * (dot(v_KD, tl.trans(grad_MD), C) - delta_M[None, :])
        if C.SOFTCAP:
            ds_KM = ds_KM * (1.0 - (score_KM / softcap2) * (score_KM / softcap2))
        dk_KD += dot(ds_KM, q_MD, C)

    own_ok = column_ok & (tl.arange(0, BLOCK_D)[None, :] < C.D)
    tl.store(dense_rows(dk, start + first, kv_head, local_K, KV_HEADS, C), (dk_KD * scale).to(dk.dtype.element_ty), own_ok)
    tl.store(dense_rows(dv, start + first, kv_head, local_K, KV_HEADS, C), dv_KD.to(dv.dtype.element_ty), own_ok)


@operator(f"varlen_attention_backward(Tensor grad_out_THD, {QKV}, {SAVED}, {SCORES}) -> (Tensor, Tensor, Tensor)")
def backward(grad_out_THD: Tensor, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """dQ [T, Hq, D], dK and dV [T, Hkv, D], in the inputs' types; 0 in rows behind the last boundary."""
    out_THD, lse2_HT, tiles_N4, *scores = rest
    delta_HT = torch.empty_like(lse2_HT)
    dq_THD, dk_THD, dv_THD = gradients(grad_out_THD, q_THD, k_THD, v_THD)
    inputs = [strided(x) for x in (q_THD, k_THD, v_THD, addressable(grad_out_THD))]
    shapes = (q_THD, k_THD, tiles_N4, Scores(*scores))
    launch_all("dq", varlen_dq_kernel, (*inputs, out_THD, lse2_HT, delta_HT, dq_THD), *shapes)
    launch_all("dkv", varlen_dkv_kernel, (*inputs, lse2_HT, delta_HT, dk_THD, dv_THD), *shapes)
    return dq_THD, dk_THD, dv_THD


@backward.register_fake
def gradients(_: Tensor, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, *__: object) -> tuple[Tensor, Tensor, Tensor]:
    return q_THD.new_empty(q_THD.shape), k_THD.new_empty(k_THD.shape), v_THD.new_empty(v_THD.shape)
