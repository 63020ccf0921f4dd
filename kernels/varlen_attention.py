"""Causal attention over packed sequences. Shapes: T tokens of B sequences, Hq query heads, Hkv key heads, D head dimension, N tiles."""

# pyright: reportArgumentType=false, reportOptionalMemberAccess=false
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence

from soundrl.kernels.backend import check_softcap, require, runs_triton
from soundrl.kernels.varlen_backward import backward
from soundrl.kernels.varlen_forward import forward
from soundrl.kernels.varlen_launch import addressable
from soundrl.kernels.varlen_tiles import check_cu_seqlens, sequence_tiles, tile_bound

SMALLEST_D, LARGEST_D, STEP_D = 16, 256, 8


def length_buckets(cu_seqlens: Tensor) -> list[Tensor]:
    """Index tensors [b, L] that gather sequences of similar length into rectangles; −1 marks padding.

    Sequences share a rectangle when their lengths round up to the same power of two, so padding stays below one half. Reads
    `cu_seqlens` on the host. Worked example: cu_seqlens [0, 3, 5, 9] (lengths 3, 2, 4) → [[3, 4]] and [[0, 1, 2, −1], [5, 6, 7, 8]].
    """
    rows = torch.arange(int(cu_seqlens[-1]), device=cu_seqlens.device).split(cu_seqlens.diff().tolist())
    buckets: dict[int, list[Tensor]] = {}
    for row in rows:
        if len(row):
            buckets.setdefault((len(row) - 1).bit_length(), []).append(row)
    return [pad_sequence(members, batch_first=True, padding_value=-1) for _, members in sorted(buckets.items())]


def varlen_attention_reference(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    buckets: list[Tensor],
    scale: float | None = None,
    *,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """`varlen_attention` by SDPA over rectangles of similar length, in any floating type; explicit softmax where there is a softcap.

    `buckets` from `length_buckets(cu_seqlens)`, computed once a batch and used by every layer. Padding sits behind the last token of
    a row, where the causal mask hides it from every real query.
    """
    out_THD = torch.zeros_like(q_THD)
    group = q_THD.shape[1] // k_THD.shape[1]
    # No sequence at all is an empty rectangle: the zeros are part of the graph all the same.
    for index_bL in buckets or [torch.zeros(0, 1, dtype=torch.int64, device=q_THD.device)]:
        real_bL = index_bL >= 0
        safe_bL = index_bL.clamp(min=0)
        q, k, v = (x[safe_bL].transpose(1, 2) for x in (q_THD, k_THD, v_THD))
        row = torch.arange(index_bL.shape[1], device=index_bL.device)
        distance_LL = row[:, None] - row
        seen_LL = (distance_LL >= 0) & (distance_LL < (window or len(row)))
        if softcap:
            k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
            score = softcap * torch.tanh(
                (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)) * (scale or q.shape[-1] ** -0.5) / softcap
            )
            out = score.masked_fill(~seen_LL, -torch.inf).softmax(-1).to(q.dtype) @ v
        elif window and window < len(row):
            out = scaled_dot_product_attention(q, k, v, attn_mask=seen_LL, scale=scale, enable_gqa=group > 1)
        else:
            out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=group > 1)
        out_THD = out_THD.index_put((index_bL[real_bL],), out.transpose(1, 2)[real_bL])
    return out_THD


def _setup_context(ctx, inputs, output) -> None:
    q_THD, k_THD, v_THD, tiles_N4, *ctx.scores = inputs
    out_THD, lse2_HT = output
    ctx.mark_non_differentiable(lse2_HT)
    ctx.save_for_backward(q_THD, k_THD, v_THD, out_THD, lse2_HT, tiles_N4)


def _backward(ctx, grad_out_THD: Tensor, _: Tensor | None) -> tuple:
    return *backward(grad_out_THD, *ctx.saved_tensors, *ctx.scores), None, None, None, None


forward.register_autograd(_backward, setup_context=_setup_context)


def check_arguments(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, cu_seqlens: Tensor, scale: float, window: int | None, softcap: float | None
) -> None:
    """ValueError naming the argument, what it conflicts with, and the cure."""

    def shapes() -> str:
        return f"q {tuple(q_THD.shape)}, k {tuple(k_THD.shape)}, v {tuple(v_THD.shape)}"

    require(q_THD.ndim == k_THD.ndim == v_THD.ndim == 3, lambda: f"{shapes()}: give [T, heads, D] each, without a batch dimension")
    tokens, heads, head_dim = q_THD.shape
    kv_heads = k_THD.shape[1]
    require(
        k_THD.shape == v_THD.shape and k_THD.shape[0] == tokens and k_THD.shape[2] == head_dim,
        lambda: f"{shapes()}: k and v must have one shape, and q's number of tokens and head dimension",
    )
    require(
        kv_heads > 0 and heads % kv_heads == 0,
        lambda: f"{heads} query heads cannot share {kv_heads} key heads evenly; the key heads must divide the query heads",
    )
    require(
        head_dim % STEP_D == 0 and SMALLEST_D <= head_dim <= LARGEST_D,
        lambda: (
            f"head dimension {head_dim} is not supported: multiples of {STEP_D} from {SMALLEST_D} to {LARGEST_D} are; pad q, k and v with "
            "zeros and pass `scale`, or use varlen_attention_reference"
        ),
    )
    for name, x in (("k", k_THD), ("v", v_THD)):
        require(
            x.dtype == q_THD.dtype and x.device == q_THD.device,
            lambda name=name, x=x: f"{name} is {x.dtype} on {x.device}, q is {q_THD.dtype} on {q_THD.device}; bring them together",
        )
    require(cu_seqlens.device == q_THD.device, lambda: f"cu_seqlens is on {cu_seqlens.device}, q on {q_THD.device}; move cu_seqlens there")
    require(scale > 0, lambda: f"scale={scale} must be > 0; None = 1/√D")
    require(window is None or window > 0, lambda: f"window={window} must be > 0; None = no window")
    check_softcap(softcap)


def varlen_attention(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    cu_seqlens: Tensor,
    scale: float | None = None,
    *,
    window: int | None = None,
    softcap: float | None = None,
    tiles_N4: Tensor | None = None,
) -> Tensor:
    """Causal attention that never crosses a sequence boundary, with a deterministic backward.

    q_THD [T, Hq, D], k_THD and v_THD [T, Hkv, D] with Hkv dividing Hq, in one type: float32, bfloat16 or float16 (sums in float32); D
    a multiple of 8 from 16 to 256; copied only where the last dimension is not dense. `cu_seqlens` [B+1] int32 or int64 on the same
    device: sequence b holds tokens cu_seqlens[b] … cu_seqlens[b+1] − 1; sequences may be empty. Rows from cu_seqlens[B] on belong to
    none: their output and gradients are 0. `scale` of the scores, 1/√D by default; `window`: a token sees that many keys, its own
    included; `softcap`: softcap · tanh(score / softcap). `tiles_N4` from `sequence_tiles(cu_seqlens, T)` saves making it in every layer.

    Returns [T, Hq, D]. The bits of a sequence do not depend on what it is packed with. On a CPU without TRITON_INTERPRET=1 the
    reference serves. ValueError names what does not fit. Scores and gradients: FlashAttention-2, arXiv 2307.08691; softcap: Gemma 2,
    arXiv 2408.00118 §2.
    """
    scale = q_THD.shape[-1] ** -0.5 if scale is None else scale
    check_arguments(q_THD, k_THD, v_THD, cu_seqlens, scale, window, softcap)
    tokens = q_THD.shape[0]
    if not runs_triton(q_THD):
        require(
            tiles_N4 is None,
            lambda: f"tiles_N4 is for the Triton kernels, which do not run {q_THD.dtype} on {q_THD.device} here; leave it out",
        )
        check_cu_seqlens(cu_seqlens, tokens)
        return varlen_attention_reference(q_THD, k_THD, v_THD, length_buckets(cu_seqlens), scale, window=window, softcap=softcap)
    if tiles_N4 is None:
        tiles_N4 = sequence_tiles(cu_seqlens, tokens)
    shape = tiles_N4.shape
    require(
        shape == (tile_bound(tokens, len(cu_seqlens) - 1), 4),
        lambda: f"tiles_N4 {tuple(shape)} was made for another packing; call sequence_tiles(cu_seqlens, {tokens})",
    )
    q_THD, k_THD, v_THD = (addressable(x) for x in (q_THD, k_THD, v_THD))
    return forward(q_THD, k_THD, v_THD, tiles_N4, scale, window or 0, softcap or 0.0)[0]
