"""Streaming log-probabilities of an LM head: the logits live in registers only. Shapes: T tokens, H hidden, V vocabulary.

The vocabulary is cut into SPLITS parts, a program computes BLOCK_M rows of one part, and a second kernel merges a row's parts in order.
A row's result depends on its own hidden state alone: not on T, not on its place, not on the other rows.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from soundrl.kernels.backend import columns, launch
from soundrl.kernels.language import INTERPRETING, tl, triton
from soundrl.kernels.logprob_triton import block_statistics, bounded_logits, merge_statistics
from soundrl.kernels.softmax import Softmax

# Constant, so that partial results take 12 · SPLITS bytes a token whatever the vocabulary.
SPLITS = 64
GROUP_M = 16  # token blocks that walk through the same part of the weight together, so that it stays in L2
# BLOCK_M, BLOCK_N, BLOCK_K, warps, stages
WIDE = (128, 256, 64, 8, 3)  # fewest bytes for each product; with bias and softcap, or without WGMMA, it spills
SQUARE = (128, 128, 64, 8, 4)
EXACT = (64, 64, 16, 8, 2)  # fp32 multiplies exactly (ieee), on the FMA units


@dataclass(frozen=True)
class Constants:
    """What the streaming kernel is compiled for."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    ROUND: bool
    HAS_CAP: bool
    PARTS: int
    GROUP: int = GROUP_M
    UPCAST: bool = INTERPRETING


def tile_config(dtype: torch.dtype, plain: bool, capability: int) -> tuple[int, int, int, int, int]:
    """Tiles by type, by whether bias and softcap are off, and by compute capability (90 = sm_90); never by the number of rows: a row's
    bits may not depend on its batch."""
    if dtype == torch.float32:
        return EXACT
    return WIDE if plain and capability >= 90 else SQUARE


@triton.jit
def inverse_temperatures(softmax, t, row, BLOCK: tl.constexpr):
    """[BLOCK] of rows t where `row`."""
    inverse = tl.zeros([BLOCK], tl.float32) + 1.0 / softmax.temperature
    if softmax.temperature_T is not None:
        inverse = 1.0 / tl.load(softmax.temperature_T + t, row, other=1.0).to(tl.float32)
    return inverse


@triton.jit(do_not_specialize=["T"])
def linear_logprob_kernel(hidden, weight, targets, softmax, partial, target_u, T, V, H, part_columns, C: tl.constexpr):
    """Program (token block, part): m, s, w of `logprob_triton` over the part's columns, and u of the target where the part holds it.

    `hidden` and `weight` are (pointer, stride of a row).
    """
    BLOCK_M: tl.constexpr = C.BLOCK_M
    BLOCK_N: tl.constexpr = C.BLOCK_N
    BLOCK_K: tl.constexpr = C.BLOCK_K
    pid = tl.program_id(0)
    blocks = tl.cdiv(T, BLOCK_M)
    group = pid // (C.GROUP * C.PARTS)
    first_block = group * C.GROUP
    members = tl.minimum(blocks - first_block, C.GROUP)
    block = first_block + (pid % (C.GROUP * C.PARTS)) % members
    part = (pid % (C.GROUP * C.PARTS)) // members

    t = block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = t < T
    target = tl.load(targets + t, row, other=-1)
    inverse = inverse_temperatures(softmax, t, row, BLOCK_M)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    s = tl.zeros([BLOCK_M], tl.float32)
    w = tl.zeros([BLOCK_M], tl.float32)
    tu = tl.zeros([BLOCK_M], tl.float32)
    k = tl.arange(0, BLOCK_K)
    start = part * part_columns
    end = tl.minimum(start + part_columns, V)
    for first in range(start, end, BLOCK_N):
        v = first + tl.arange(0, BLOCK_N)
        column = v < end
        x = hidden[0] + t[:, None] * hidden[1] + k[None, :]
        y = weight[0] + v.to(tl.int64)[None, :] * weight[1] + k[:, None]
        u = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for done in range(0, H, BLOCK_K):
            inner = k < H - done
            a = tl.load(x, row[:, None] & inner[None, :], other=0.0)
            b = tl.load(y, inner[:, None] & column[None, :], other=0.0)
            if C.UPCAST:  # the interpreter multiplies the bit patterns of bf16
                a = a.to(tl.float32)
                b = b.to(tl.float32)
            u = tl.dot(a, b, u, input_precision="ieee")
            x += BLOCK_K
            y += BLOCK_K
        if C.ROUND:
            u = u.to(hidden[0].dtype.element_ty).to(tl.float32)
        u = bounded_logits(u, softmax, v[None, :], column[None, :], C.HAS_CAP)
        tu += tl.sum(tl.where(v[None, :] == target[:, None], u, 0.0), 1)
        m2, s2, w2 = block_statistics(u, inverse, 1)
        m, s, w = merge_statistics(m, s, w, m2, s2, w2, inverse)
    place = part.to(tl.int64) * T + t
    tl.store(partial[0] + place, m, row)
    tl.store(partial[1] + place, s, row)
    tl.store(partial[2] + place, w, row)
    tl.store(target_u + t, tu, row & (target >= start) & (target < end))


@triton.jit(do_not_specialize=["T"])
def merge_parts_kernel(partial, target_u, softmax, out, T, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """Program b: BLOCK tokens; the parts of each are merged in order."""
    t = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = t < T
    inverse = inverse_temperatures(softmax, t, row, BLOCK)
    m = tl.full([BLOCK], float("-inf"), tl.float32)
    s = tl.zeros([BLOCK], tl.float32)
    w = tl.zeros([BLOCK], tl.float32)
    place = t
    for _ in range(PARTS):
        m2 = tl.load(partial[0] + place, row, other=0.0)
        s2 = tl.load(partial[1] + place, row, other=1.0)
        w2 = tl.load(partial[2] + place, row, other=0.0)
        m, s, w = merge_statistics(m, s, w, m2, s2, w2, inverse)
        place += T
    u = tl.load(target_u + t, row, other=0.0)
    tl.store(out[0] + t, (u - m) * inverse - tl.log(s), row)
    tl.store(out[1] + t, tl.log(s) - w / s, row)
    tl.store(out[2] + t, m, row)
    tl.store(out[3] + t, tl.log(s), row)


def launch_streaming(hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor, softmax: Softmax, round_logits: bool) -> tuple[Tensor, ...]:
    """log-prob, entropy, m, log S of each row, [T] fp32; `round_logits` rounds logits to hidden's type before anything else."""
    (rows, width), vocabulary = hidden_TH.shape, weight_VH.shape[0]
    major, minor = torch.cuda.get_device_capability(hidden_TH.device) if hidden_TH.is_cuda else (9, 0)
    plain = softmax.bias_V is None and softmax.softcap == 0
    block_m, block_n, block_k, warps, stages = tile_config(hidden_TH.dtype, plain, 10 * major + minor)
    parts = min(SPLITS, triton.cdiv(vocabulary, block_n))
    part_columns = triton.cdiv(triton.cdiv(vocabulary, block_n), parts) * block_n
    out = columns(hidden_TH, 4)
    partial = tuple(torch.empty(parts, rows, device=hidden_TH.device) for _ in range(3))
    target_u = torch.empty(rows, device=hidden_TH.device)
    strided = [(x, x.stride(0)) for x in (hidden_TH, weight_VH)]
    fixed = Constants(block_m, block_n, block_k, round_logits, softmax.softcap != 0, parts)
    given = (*strided, targets_T, softmax, partial, target_u, rows, vocabulary, width, part_columns)
    programs = triton.cdiv(rows, block_m) * parts
    launch(linear_logprob_kernel, programs, hidden_TH, *given, C=fixed, num_warps=warps, num_stages=stages)
    merged = (partial, target_u, softmax, out, rows)
    launch(merge_parts_kernel, triton.cdiv(rows, 128), hidden_TH, *merged, PARTS=parts, BLOCK=128, num_warps=4)
    return out
