"""Streaming log-probabilities of an LM head: the logits live in registers only. Shapes: T tokens, H hidden, V vocabulary.

The vocabulary is cut into SPLITS parts, a program computes BLOCK_M rows of one part, and a second kernel merges a row's parts in order.
A row's result depends on its own hidden state alone: not on T, not on its place, not on the other rows.
"""

# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from soundrl.kernels.backend import INTERPRETING, device_of
from soundrl.kernels.logprob_triton import block_statistics, bounded_logits, merge_statistics

# Constant, so that partial results take 12 · SPLITS bytes a token whatever the vocabulary.
SPLITS = 64
# BLOCK_M, BLOCK_N, BLOCK_K, warps, stages
WIDE = (128, 256, 64, 8, 3)  # fewest bytes for each product; with bias and softcap, or without WGMMA, it spills
SQUARE = (128, 128, 64, 8, 4)
EXACT = (64, 64, 16, 8, 2)  # fp32 multiplies exactly (ieee), on the FMA units


def tile_config(dtype: torch.dtype, plain: bool, capability: int) -> tuple[int, int, int, int, int]:
    """Tiles by type, by whether bias and softcap are off, and by compute capability (90 = sm_90); never by the number of rows: a row's
    bits may not depend on its batch."""
    if dtype == torch.float32:
        return EXACT
    return WIDE if plain and capability >= 90 else SQUARE


GROUP_M = 16  # token blocks that walk through the same part of the weight together, so that it stays in L2


@triton.jit(do_not_specialize=["T"])
def linear_logprob_kernel(
    hidden,
    weight,
    targets,
    temperature_T,
    bias,
    partial_m,
    partial_s,
    partial_w,
    target_u,
    temperature,
    softcap,
    T,
    V,
    H,
    hidden_stride,
    weight_stride,
    part_columns,
    ROUND: tl.constexpr,
    HAS_CAP: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Program (token block, part): m, s, w of `logprob_triton` over the part's columns, and u of the target where the part holds it."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(T, BLOCK_M)
    group = pid // (GROUP * PARTS)
    first_block = group * GROUP
    members = tl.minimum(blocks - first_block, GROUP)
    block = first_block + (pid % (GROUP * PARTS)) % members
    part = (pid % (GROUP * PARTS)) // members

    t = block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = t < T
    target = tl.load(targets + t, row, other=-1)
    inverse = tl.zeros([BLOCK_M], tl.float32) + 1.0 / temperature
    if temperature_T is not None:
        inverse = 1.0 / tl.load(temperature_T + t, row, other=1.0).to(tl.float32)
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
        x = hidden + t[:, None] * hidden_stride + k[None, :]
        y = weight + v.to(tl.int64)[None, :] * weight_stride + k[:, None]
        u = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for done in range(0, H, BLOCK_K):
            inner = k < H - done
            a = tl.load(x, row[:, None] & inner[None, :], other=0.0)
            b = tl.load(y, inner[:, None] & column[None, :], other=0.0)
            if UPCAST:  # the interpreter multiplies the bit patterns of bf16
                a = a.to(tl.float32)
                b = b.to(tl.float32)
            u = tl.dot(a, b, u, input_precision="ieee")
            x += BLOCK_K
            y += BLOCK_K
        if ROUND:
            u = u.to(hidden.dtype.element_ty).to(tl.float32)
        u = bounded_logits(u, bias, v[None, :], column[None, :], softcap, HAS_CAP)
        tu += tl.sum(tl.where(v[None, :] == target[:, None], u, 0.0), 1)
        m2, s2, w2 = block_statistics(u, inverse, 1)
        m, s, w = merge_statistics(m, s, w, m2, s2, w2, inverse)
    place = part.to(tl.int64) * T + t
    tl.store(partial_m + place, m, row)
    tl.store(partial_s + place, s, row)
    tl.store(partial_w + place, w, row)
    tl.store(target_u + t, tu, row & (target >= start) & (target < end))


@triton.jit(do_not_specialize=["T"])
def merge_parts_kernel(
    partial_m,
    partial_s,
    partial_w,
    target_u,
    temperature_T,
    logprob,
    entropy,
    maximum,
    log_sum,
    temperature,
    T,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program b: BLOCK tokens; the parts of each are merged in order."""
    t = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = t < T
    inverse = tl.zeros([BLOCK], tl.float32) + 1.0 / temperature
    if temperature_T is not None:
        inverse = 1.0 / tl.load(temperature_T + t, row, other=1.0).to(tl.float32)
    m = tl.full([BLOCK], float("-inf"), tl.float32)
    s = tl.zeros([BLOCK], tl.float32)
    w = tl.zeros([BLOCK], tl.float32)
    place = t
    for _ in range(PARTS):
        m2 = tl.load(partial_m + place, row, other=0.0)
        s2 = tl.load(partial_s + place, row, other=1.0)
        w2 = tl.load(partial_w + place, row, other=0.0)
        m, s, w = merge_statistics(m, s, w, m2, s2, w2, inverse)
        place += T
    u = tl.load(target_u + t, row, other=0.0)
    tl.store(logprob + t, (u - m) * inverse - tl.log(s), row)
    tl.store(entropy + t, tl.log(s) - w / s, row)
    tl.store(maximum + t, m, row)
    tl.store(log_sum + t, tl.log(s), row)


def launch_streaming(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    temperature: float,
    temperature_T: Tensor | None,
    bias_V: Tensor | None,
    softcap: float,
    round_logits: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log-prob, entropy, m, log S of each row, [T] fp32; `round_logits` rounds logits to hidden's type before anything else."""
    (rows, width), vocabulary = hidden_TH.shape, weight_VH.shape[0]
    major, minor = torch.cuda.get_device_capability(hidden_TH.device) if hidden_TH.is_cuda else (9, 0)
    plain = bias_V is None and softcap == 0
    block_m, block_n, block_k, warps, stages = tile_config(hidden_TH.dtype, plain, 10 * major + minor)
    parts = min(SPLITS, triton.cdiv(vocabulary, block_n))
    part_columns = triton.cdiv(triton.cdiv(vocabulary, block_n), parts) * block_n
    out = [torch.empty(rows, device=hidden_TH.device) for _ in range(4)]
    if rows == 0:
        return out[0], out[1], out[2], out[3]
    partial = [torch.empty(parts, rows, device=hidden_TH.device) for _ in range(3)]
    target_u = torch.empty(rows, device=hidden_TH.device)
    with device_of(hidden_TH):
        linear_logprob_kernel[(triton.cdiv(rows, block_m) * parts,)](
            hidden_TH,
            weight_VH,
            targets_T,
            temperature_T,
            bias_V,
            *partial,
            target_u,
            temperature,
            softcap or 1.0,
            rows,
            vocabulary,
            width,
            hidden_TH.stride(0),
            weight_VH.stride(0),
            part_columns,
            ROUND=round_logits,
            HAS_CAP=softcap != 0,
            UPCAST=INTERPRETING,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            GROUP=GROUP_M,
            PARTS=parts,
            num_warps=warps,
            num_stages=stages,
        )
        merge_parts_kernel[(triton.cdiv(rows, 128),)](
            *partial, target_u, temperature_T, *out, temperature, rows, PARTS=parts, BLOCK=128, num_warps=4
        )
    return out[0], out[1], out[2], out[3]
