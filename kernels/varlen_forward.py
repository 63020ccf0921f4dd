"""Forward kernel of packed attention: online softmax over blocks of keys (FlashAttention-2, arXiv 2307.08691 Alg. 1), LSE kept.

Shapes: T tokens, Hq query heads, D head dimension, N tiles; inside a program M query rows, K key rows.
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from soundrl.kernels.varlen_launch import Scores, launch
from soundrl.kernels.varlen_scores import dot, key_range, load_rows, query_tile, scores2, visible


@triton.jit(do_not_specialize=["tokens", "tile_count"])
def varlen_forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse2_ptr,
    tiles_ptr,
    q_stride_t,
    q_stride_h,
    k_stride_t,
    k_stride_h,
    v_stride_t,
    v_stride_h,
    tokens,
    tile_count,
    window,
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
    start, length, live, first, kv_head, head = query_tile(tiles_ptr, tile_count, GROUP, TILE, BLOCK_M)
    if first >= length:
        return

    d = tl.arange(0, BLOCK_D)[None, :]
    local_M = tl.arange(0, BLOCK_M)
    local_K = tl.arange(0, BLOCK_K)
    row_M = first + local_M
    row_ok = (row_M < length)[:, None]
    q_MD = load_rows(
        q_ptr + (start + first) * q_stride_t + head * q_stride_h, local_M[:, None] * q_stride_t + d, row_ok, d < D, True, D != BLOCK_D
    )

    accumulated_MD = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    weight_M = tl.zeros((BLOCK_M,), tl.float32)
    top_M = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    low, middle, high = key_range(first, length, live, window, BLOCK_M, BLOCK_K, WINDOW)
    for MASK in tl.static_range(2):
        if MASK or not WINDOW:
            for n in range(middle if MASK else low, high if MASK else middle, BLOCK_K):
                column_ok = (n + local_K < length)[:, None]
                k_start = k_ptr + (start + n) * k_stride_t + kv_head * k_stride_h
                k_KD = load_rows(k_start, local_K[:, None] * k_stride_t + d, column_ok, d < D, MASK, D != BLOCK_D)
                score_MK = scores2(dot(q_MD, tl.trans(k_KD), UPCAST), score_scale, softcap2, SOFTCAP)
                seen = visible(row_M[:, None], n + local_K[None, :], length, window, WINDOW)
                if MASK:
                    score_MK = tl.where(seen, score_MK, float("-inf"))
                new_M = tl.maximum(top_M, tl.max(score_MK, 1))
                # A row that has seen no key yet has −inf here, and −inf − −inf is NaN.
                safe_M = tl.where(new_M == float("-inf"), 0.0, new_M)
                p_MK = tl.exp2(score_MK - safe_M[:, None])
                if MASK:
                    p_MK = tl.where(seen, p_MK, 0.0)
                decay_M = tl.exp2(top_M - safe_M)
                v_start = v_ptr + (start + n) * v_stride_t + kv_head * v_stride_h
                v_KD = load_rows(v_start, local_K[:, None] * v_stride_t + d, column_ok, d < D, MASK, D != BLOCK_D)
                accumulated_MD = accumulated_MD * decay_M[:, None] + dot(p_MK, v_KD, UPCAST)
                weight_M = weight_M * decay_M + tl.sum(p_MK, 1)
                top_M = new_M

    some_M = weight_M > 0.0
    weight_M = tl.where(some_M, weight_M, 1.0)
    out_MD = (accumulated_MD / weight_M[:, None]).to(out_ptr.dtype.element_ty)
    out_start = out_ptr + ((start + first) * HEADS + head) * D
    tl.store(out_start + local_M[:, None] * (HEADS * D) + d, out_MD, row_ok & (d < D))
    lse2_M = tl.where(some_M, top_M + tl.log2(weight_M), 0.0)
    tl.store(lse2_ptr + head * tokens + start + row_M, lse2_M, row_M < length)


def forward(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, tiles_N4: Tensor, scores: Scores) -> tuple[Tensor, Tensor]:
    """Output [T, Hq, D] in q's type, and log2 Σ exp of the scores, [Hq, T] float32; both are 0 in rows behind the last boundary."""
    tokens, heads, _ = q_THD.shape
    out_THD = torch.empty_like(q_THD, memory_format=torch.contiguous_format)
    lse2_HT = q_THD.new_empty((heads, tokens), dtype=torch.float32)
    strides = (*q_THD.stride()[:2], *k_THD.stride()[:2], *v_THD.stride()[:2])
    launch("forward", varlen_forward_kernel, (q_THD, k_THD, v_THD, out_THD, lse2_HT, tiles_N4, *strides), q_THD, k_THD, tiles_N4, scores)
    return out_THD, lse2_HT
