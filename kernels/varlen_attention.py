"""Causal attention over packed sequences. Shapes: T tokens of B sequences, Hq query heads, Hkv key heads, D head dimension."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def length_buckets(cu_seqlens: Tensor) -> list[Tensor]:
    """Index tensors [b, L] that gather sequences of similar length into rectangles; −1 marks padding.

    Sequences share a rectangle when their lengths round up to the same power of two, so padding stays below one half.
    Worked example: cu_seqlens [0, 2, 5] → one rectangle [[0, 1, −1], [2, 3, 4]] (lengths 2 and 3 need not share: 2 → 2, 3 → 4,
    so here two rectangles [[0, 1]] and [[2, 3, 4]]).
    """
    starts, lengths = cu_seqlens[:-1].tolist(), cu_seqlens.diff().tolist()
    buckets: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        if length:
            buckets.setdefault((length - 1).bit_length(), []).append(i)
    rectangles = []
    for _, members in sorted(buckets.items()):
        start_b = torch.tensor([starts[i] for i in members], device=cu_seqlens.device)
        length_b = torch.tensor([lengths[i] for i in members], device=cu_seqlens.device)
        column = torch.arange(int(length_b.max()), device=cu_seqlens.device)
        rectangles.append(torch.where(column < length_b[:, None], start_b[:, None] + column, -1))
    return rectangles


def varlen_attention_reference(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, buckets: list[Tensor], scale: float | None = None) -> Tensor:
    """Causal attention that never crosses a sequence boundary, by SDPA over rectangles of similar length.

    q_THD [T, Hq, D]; k_THD, v_THD [T, Hkv, D] with Hkv dividing Hq; `buckets` from `length_buckets(cu_seqlens)`, computed once a
    batch and used by every layer. Returns [T, Hq, D]. Padding sits behind the last token of a row, where the causal mask
    hides it from every real query.
    """
    out_THD = torch.zeros_like(q_THD)
    grouped = q_THD.shape[1] != k_THD.shape[1]
    for index_bL in buckets:
        real_bL = index_bL >= 0
        safe_bL = index_bL.clamp(min=0)
        q, k, v = (x[safe_bL].transpose(1, 2) for x in (q_THD, k_THD, v_THD))
        out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped).transpose(1, 2)
        out_THD = out_THD.index_put((index_bL[real_bL],), out[real_bL])
    return out_THD
