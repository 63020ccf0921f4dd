"""Forward kernel of packed attention: online softmax over blocks of keys (FlashAttention-2, arXiv 2307.08691 Alg. 1), LSE kept.

Shapes: T tokens, Hq query heads, D head dimension, N tiles; inside a program M query rows, K key rows.
"""

# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from soundrl.kernels.backend import operator
from soundrl.kernels.language import tl, triton
from soundrl.kernels.varlen_launch import QKV, SCORES, Scores, launch_all, strided
from soundrl.kernels.varlen_scores import dense_rows, dot, key_range, load_rows, query_tile, scores2, visible


@triton.jit(do_not_specialize=["tokens", "tile_count"])
def varlen_forward_kernel(q, k, v, out, lse2, tiles, tokens, tile_count, window, score_scale, softcap2, C: tl.constexpr):
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
    q_MD = load_rows(q, start + first, head, local_M, row_ok, True, C)

    accumulated_MD = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    weight_M = tl.zeros((BLOCK_M,), tl.float32)
    top_M = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    low, middle, high = key_range(first, length, live, window, C)
    for MASK in tl.static_range(2):
        if MASK or not C.WINDOW:
            for n in range(middle if MASK else low, high if MASK else middle, BLOCK_K):
                column_ok = (n + local_K < length)[:, None]
                k_KD = load_rows(k, start + n, kv_head, local_K, column_ok, MASK, C)
                score_MK = scores2(dot(q_MD, tl.trans(k_KD), C), score_scale, softcap2, C)
                seen = visible(row_M[:, None], n + local_K[None, :], length, window, C)
                if MASK:
                    score_MK = tl.where(seen, score_MK, float("-inf"))
                new_M = tl.maximum(top_M, tl.max(score_MK, 1))
                # A row that has seen no key yet has −inf here, and −inf − −inf is NaN.
                safe_M = tl.where(new_M == float("-inf"), 0.0, new_M)
                p_MK = tl.exp2(score_MK - safe_M[:, None])
                if MASK:
                    p_MK = tl.where(seen, p_MK, 0.0)
                decay_M = tl.exp2(top_M - safe_M)
                v_KD = load_rows(v, start + n, kv_head, local_K, column_ok, MASK, C)
                accumulated_MD = accumulated_MD * decay_M[:, None] + dot(p_MK, v_KD, C)
                weight_M = weight_M * decay_M + tl.sum(p_MK, 1)
                top_M = new_M

    some_M = weight_M > 0.0
    weight_M = tl.where(some_M, weight_M, 1.0)
    out_MD = (accumulated_MD / weight_M[:, None]).to(out.dtype.element_ty)
    own_ok = row_ok & (tl.arange(0, BLOCK_D)[None, :] < C.D)
    tl.store(dense_rows(out, start + first, head, local_M, C.HEADS, C), out_MD, own_ok)
    lse2_M = tl.where(some_M, top_M + tl.log2(weight_M), 0.0)
    tl.store(lse2 + head * tokens + start + row_M, lse2_M, row_M < length)


@operator(f"varlen_attention({QKV}, Tensor tiles_N4, {SCORES}) -> (Tensor, Tensor)")
def forward(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, tiles_N4: Tensor, *scores: Any) -> tuple[Tensor, Tensor]:
    """Output [T, Hq, D] in q's type, and log2 Σ exp of the scores, [Hq, T] float32; both are 0 in rows behind the last boundary."""
    out_THD, lse2_HT = outputs(q_THD)
    rows = (strided(x) for x in (q_THD, k_THD, v_THD))
    launch_all("forward", varlen_forward_kernel, (*rows, out_THD, lse2_HT), q_THD, k_THD, tiles_N4, Scores(*scores))
    return out_THD, lse2_HT


@forward.register_fake
def outputs(q_THD: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return q_THD.new_empty(q_THD.shape), q_THD.new_empty((q_THD.shape[1], q_THD.shape[0]), dtype=torch.float32)
