"""Streaming log-probabilities of an LM head: the logits live in registers only. Shapes: T tokens, H hidden, V vocabulary.

The vocabulary is cut into at most SPLITS parts, a program computes BLOCK_M rows of one part, and a second kernel merges a row's parts.
A row's result depends on its own hidden state alone: not on T, not on its place, not on the other rows.

Running statistics of a row are m = max u, s = Σ 2^d and w = Σ 2^d · d with d = (u − m) · inverse2, inverse2 = log₂e / temperature: exp2 is
one instruction, exp is three. "Nothing yet" is m = −1e30, not −∞: no difference of two of them is NaN, nothing has to be selected away.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false, reportReturnType=false
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from soundrl.kernels.backend import columns, launch
from soundrl.kernels.language import HAS_TRITON, INTERPRETING, tl, triton
from soundrl.kernels.logprob_triton import IGNORED, LN2, LOG2E, add_entries, fold, tanh
from soundrl.kernels.softmax import Softmax

# Constant, so that partial results take 12 · SPLITS bytes a token whatever the vocabulary. 151,936 entries are 594 tiles of 256: 119 parts
# of 5, with which 8,192 rows fill 132 multiprocessors 57.7 times (64 parts: 29.1, the last for a tenth), and 128 rows fill 119 of them.
SPLITS = 128
GROUP_M = 16  # token blocks that walk through the same part of the weight together, so that it stays in L2
NOTHING = tl.constexpr(-1e30)


@dataclass(frozen=True)
class Config:
    """Tiles and pipeline of the streaming kernel."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    specialised: bool = False
    """TMA descriptors, a warp that loads, two groups of warps that multiply: one works on its statistics while the other multiplies."""


WIDE = Config(128, 256, 64, 8, 3)  # fewest bytes for each product
SQUARE = Config(128, 128, 64, 8, 4)
EXACT = Config(64, 64, 16, 8, 2)  # fp32 multiplies exactly (ieee), on the FMA units
SPECIALISED = Config(128, 256, 64, 4, 3, specialised=True)

# By generation of the GPU (9 = sm_90) and whether bias and softcap are off, chosen by what the certificate says of registers, spills and
# asynchronous products; those not listed take SQUARE. Never by the number of rows: a row's bits may not depend on its batch.
CONFIGS = {(9, True): WIDE, (10, True): WIDE}
# (GPU, Triton) on which tests/gpu has passed with SPECIALISED: there it replaces WIDE for 16-bit types. What no GPU has run is no default.
PROVED: frozenset[tuple[int, str]] = frozenset()


@dataclass(frozen=True)
class Constants:
    """What the streaming kernel is compiled for."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    SPECIALISED: bool
    EVEN: bool
    """H is a multiple of BLOCK_K: no load is masked."""
    ROUND: Any
    """The type that logits are rounded to, or None."""
    HAS_CAP: bool
    PARTS: int
    GROUP: int = GROUP_M
    UPCAST: bool = INTERPRETING


def config_for(dtype: torch.dtype, plain: bool, capability: int, width: int) -> Config:
    """Of rows of `width` entries; `plain`: neither bias nor softcap."""
    if dtype == torch.float32:
        return EXACT
    config = CONFIGS.get((capability // 10, plain), SQUARE)
    version = ".".join(triton.__version__.split(".")[:2]) if HAS_TRITON else ""
    return SPECIALISED if config == WIDE and (capability, version) in PROVED and width % 8 == 0 else config


@triton.jit
def inverse_temperatures(softmax, t, row, BLOCK: tl.constexpr):
    """[BLOCK] of rows t where `row`."""
    inverse = tl.zeros([BLOCK], tl.float32) + 1.0 / softmax.temperature
    if softmax.temperature_T is not None:
        inverse = 1.0 / tl.load(softmax.temperature_T + t, row, other=1.0).to(tl.float32)
    return inverse


@triton.jit
def multiply(a, b, u, C: tl.constexpr):
    if C.UPCAST:  # the interpreter multiplies the bit patterns of bf16
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, u, input_precision="ieee")


@triton.jit
def rounded(u, C: tl.constexpr):
    """`u` rounded to the type C.ROUND and back."""
    if C.ROUND is None:
        return u
    elif C.ROUND == tl.bfloat16 and not C.UPCAST:
        # Two at a time: a single fp32 → bf16 runs on the unit that also makes the exponentials, at an eighth of the rate.
        return tl.inline_asm_elementwise(
            "{.reg .b32 both; cvt.rn.bf16x2.f32 both, $3, $2; shl.b32 $0, both, 16; and.b32 $1, both, 0xffff0000;}",
            "=r,=r,r,r",
            [u],
            dtype=tl.float32,
            is_pure=True,
            pack=2,
        )
    else:
        # + 0: else ptxas reads fp16 products before it has waited for them, and therefore runs each of them alone (C7514).
        return (u + 0.0).to(C.ROUND).to(tl.float32)


@triton.jit
def tile_logits(hidden, weight, t, first_row, first, v, H, C: tl.constexpr):
    """[BLOCK_M, BLOCK_N] raw logits of rows `t` (from `first_row`) and columns `v` (from `first`), which are all readable."""
    BLOCK_K: tl.constexpr = C.BLOCK_K
    u = tl.zeros([t.shape[0], v.shape[0]], tl.float32)
    if C.SPECIALISED:
        for done in range(0, H, BLOCK_K):
            a = hidden.load([first_row, done])
            b = weight.load([first, done])
            u = multiply(a, b.T, u, C)
    else:
        k = tl.arange(0, BLOCK_K)
        x = hidden[0] + t[:, None] * hidden[1] + k[None, :]
        y = weight[0] + v.to(tl.int64)[None, :] * weight[1] + k[:, None]
        for done in range(0, H, BLOCK_K):
            if C.EVEN:
                a = tl.load(x)
                b = tl.load(y)
            else:
                a = tl.load(x, (k < H - done)[None, :], other=0.0)
                b = tl.load(y, (k < H - done)[:, None], other=0.0)
            u = multiply(a, b, u, C)
            x += BLOCK_K
            y += BLOCK_K
    return u


@triton.jit(do_not_specialize=["T"])
def linear_logprob_kernel(hidden, weight, targets, softmax, partial, target_u, T, V, H, part_columns, C: tl.constexpr):
    """Program (token block, part): m, s, w over the part's columns, and u of the target where the part holds it.

    `hidden` and `weight` are (pointer, stride of a row), or TMA descriptors where C.SPECIALISED. There the loop may hold no pointer load
    and no branch, or Triton does not specialise: mask and target are looked at in each tile, beside the other group's products.
    """
    BLOCK_M: tl.constexpr = C.BLOCK_M
    BLOCK_N: tl.constexpr = C.BLOCK_N
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
    target = tl.where((target >= 0) & (target < V), target, -1).to(tl.int32)
    inverse2 = inverse_temperatures(softmax, t, row, BLOCK_M) * LOG2E
    m = tl.full([BLOCK_M], NOTHING, tl.float32)
    s = tl.zeros([BLOCK_M], tl.float32)
    w = tl.zeros([BLOCK_M], tl.float32)
    tu = tl.zeros([BLOCK_M], tl.float32)
    readable = tl.where(row, t, 0)  # rows and columns that are none read others in their place: no load needs a mask for them
    start = part * part_columns
    end = tl.minimum(start + part_columns, V)
    for first in tl.range(start, end, BLOCK_N, warp_specialize=C.SPECIALISED):
        v = first + tl.arange(0, BLOCK_N)
        u = tile_logits(hidden, weight, readable, block * BLOCK_M, first, tl.where(v < end, v, start), H, C)
        u = rounded(u, C)
        if softmax.bias_V is not None:
            u += tl.load(softmax.bias_V + v, v < end, other=0.0).to(tl.float32)[None, :]
        if C.HAS_CAP:
            u = softmax.softcap * tanh(u / softmax.softcap)
        if C.SPECIALISED:
            u = tl.where(v[None, :] < end, u, NOTHING)
            tu += tl.sum(tl.where(v[None, :] == target[:, None], u, 0.0), 1)
        else:
            if first + BLOCK_N > end:
                u = tl.where(v[None, :] < end, u, NOTHING)
            hit = (target >= first) & (target < first + BLOCK_N)
            if tl.max(hit.to(tl.int32), 0) != 0:
                tu += tl.sum(tl.where(v[None, :] == target[:, None], u, 0.0), 1)
        m, s, w = add_entries(u, m, s, w, inverse2)
    place = t * C.PARTS + part
    tl.store(partial[0] + place, m, row)
    tl.store(partial[1] + place, s, row)
    tl.store(partial[2] + place, w, row)
    tl.store(target_u + t, tu, row & (target >= start) & (target < end))


@triton.jit(do_not_specialize=["T"])
def merge_parts_kernel(partial, target_u, targets, softmax, out, T, PARTS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Program b: log-probability, entropy, m and log S of BLOCK tokens; WIDTH is PARTS rounded up to a power of two."""
    t = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = t < T
    inverse = inverse_temperatures(softmax, t, row, BLOCK)
    part = tl.arange(0, WIDTH)
    given = row[:, None] & (part < PARTS)[None, :]
    place = t[:, None] * PARTS + part[None, :]
    m = tl.load(partial[0] + place, given, other=NOTHING)
    s = tl.load(partial[1] + place, given, other=0.0)
    w = tl.load(partial[2] + place, given, other=0.0)
    m, s, w = fold(m, s, w, (inverse * LOG2E)[:, None], 1)
    log_sum = tl.log2(s) * LN2
    u = tl.load(target_u + t, row, other=0.0)
    live = tl.load(targets + t, row, other=IGNORED) != IGNORED
    tl.store(out[0] + t, tl.where(live, (u - m) * inverse - log_sum, 0.0), row)
    tl.store(out[1] + t, tl.where(live, log_sum - w / s * LN2, 0.0), row)
    tl.store(out[2] + t, tl.where(live, m, 0.0), row)
    tl.store(out[3] + t, tl.where(live, log_sum, 0.0), row)


def launch_streaming(hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor, softmax: Softmax, round_logits: bool) -> tuple[Tensor, ...]:
    """log-prob, entropy, m, log S of each row, [T] fp32; `round_logits` rounds logits to hidden's type before anything else.

    Target −100: all four are 0. Any other target outside the vocabulary: log-prob NaN, without a look at it from here.
    """
    major, minor = torch.cuda.get_device_capability(hidden_TH.device) if hidden_TH.is_cuda else (9, 0)
    plain = softmax.bias_V is None and softmax.softcap == 0
    config = config_for(hidden_TH.dtype, plain, 10 * major + minor, hidden_TH.shape[1])
    return stream(hidden_TH, weight_VH, targets_T, softmax, round_logits, config)


def stream(
    hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor, softmax: Softmax, round_logits: bool, config: Config
) -> tuple[Tensor, ...]:
    """The same by a given configuration; a specialised one takes neither bias nor softcap, and H a multiple of 8."""
    (rows, width), vocabulary = hidden_TH.shape, weight_VH.shape[0]
    targets_T, softmax = targets_T.contiguous(), softmax.dense()
    tiles = triton.cdiv(vocabulary, config.block_n)
    part_tiles = triton.cdiv(tiles, min(SPLITS, tiles))
    parts = triton.cdiv(tiles, part_tiles)
    out = columns(hidden_TH, 4)
    if rows == 0:
        return out
    partial = tuple(torch.empty(rows, parts, device=hidden_TH.device) for _ in range(3))
    target_u = torch.full((rows,), torch.nan, device=hidden_TH.device)  # no program has a target that is outside the vocabulary
    fixed = Constants(
        *(config.block_m, config.block_n, config.block_k, config.specialised, width % config.block_k == 0),
        ROUND=ELEMENT[hidden_TH.dtype] if round_logits else None,
        HAS_CAP=softmax.softcap != 0,
        PARTS=parts,
    )
    operands = [operand(x, height, config) for x, height in ((hidden_TH, config.block_m), (weight_VH, config.block_n))]
    arguments = (*operands, targets_T, softmax, partial, target_u, rows, vocabulary, width, part_tiles * config.block_n)
    programs = triton.cdiv(rows, config.block_m) * parts
    launch(linear_logprob_kernel, programs, hidden_TH, *arguments, C=fixed, num_warps=config.warps, num_stages=config.stages)
    merged = (partial, target_u, targets_T, softmax, out, rows)
    shape = {"PARTS": parts, "WIDTH": triton.next_power_of_2(parts), "BLOCK": 16}
    launch(merge_parts_kernel, triton.cdiv(rows, 16), hidden_TH, *merged, **shape, num_warps=4)
    return out


def operand(x: Tensor, height: int, config: Config) -> Any:
    """[n, H] as the kernel takes it: (pointer, stride of a row), or a TMA descriptor of blocks of `height` rows."""
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        x = x.contiguous()
    if not config.specialised:
        return x, x.stride(0)
    from triton.tools.tensor_descriptor import TensorDescriptor  # not there where Triton is absent

    if x.data_ptr() % 16 or x.stride(0) * x.element_size() % 16:
        x = x.clone(memory_format=torch.contiguous_format)
    return TensorDescriptor(x, list(x.shape), [x.stride(0), 1], [height, config.block_k])


ELEMENT = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32} if HAS_TRITON else {}
