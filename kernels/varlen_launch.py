"""How packed attention is launched: the work list, the blocks by kernel, GPU, type and head dimension, and the arguments kernels share.

A tile is `TILE` consecutive tokens of one sequence. Tiles begin at a sequence's first token, never at a multiple of `TILE` of the
packed row, so a sequence is cut the same way, and gives the same bits, alone and in any pack. The list is made on the device from
`cu_seqlens` with an upper bound N that follows from T and B, so nothing waits for the device. Shapes: T tokens, B sequences, Hq query
heads, Hkv key heads, D head dimension, N tiles.
"""

# pyright: reportReturnType=false
from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from soundrl.kernels.backend import check_offsets, launch, operator, reads_values
from soundrl.kernels.language import INTERPRETING, triton
from soundrl.kernels.varlen_backward import varlen_dkv_kernel, varlen_dkv_tma_kernel, varlen_dq_kernel
from soundrl.kernels.varlen_forward import varlen_forward_kernel, varlen_forward_tma_kernel

Pass = Literal["forward", "dq", "dkv"]
TILE = 128
LOG2E = 1.4426950408889634  # scores are kept in units of log 2: exp2 is one instruction
EVERY_LENGTH = 2**31 - 1


def tile_bound(tokens: int, sequences: int) -> int:
    """N: no packing of `tokens` tokens in `sequences` sequences has more tiles, those of rows behind the last boundary included."""
    return tokens // TILE + sequences + 1


def check_cu_seqlens(cu_seqlens: Tensor, tokens: int) -> None:
    """ValueError unless `cu_seqlens` bounds sequences of a row of `tokens` tokens.

    On a GPU the device itself checks the values and stops with an assertion, as reading them here would wait for it; after
    `backend.check_values(True)` they are read there too.
    """
    check_offsets("cu_seqlens", cu_seqlens, "q", tokens, whole=False)
    if not reads_values(cu_seqlens):
        ordered = (cu_seqlens[0] == 0) & (cu_seqlens.diff() >= 0).all() & (cu_seqlens[-1] <= tokens)
        torch._assert_async(
            ordered, "cu_seqlens must start at 0, not decrease, and not exceed the tokens"
        )  # no number: torch.compile would fix it


@operator("sequence_tiles(Tensor cu_seqlens, SymInt tokens) -> Tensor")
def sequence_tiles(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """Tiles of a packed batch, longest work first; made once a batch, it serves every layer, forward and backward.

    cu_seqlens [B+1] int32 or int64; `tokens` = T ≥ cu_seqlens[-1]. Returns [N, 4] int32, a row a tile: first token of its sequence,
    length of its sequence, index of the tile in the sequence, 1 for a sequence and 0 for the rows behind the last boundary. Rows of
    length 0 fill the list up to `tile_bound`. ValueError as in `check_cu_seqlens`.

    Worked example (TILE = 128): cu_seqlens [0, 200, 210], 212 tokens →
    [[0, 200, 1, 1], [0, 200, 0, 1], [200, 10, 0, 1], [210, 2, 0, 0]].
    """
    check_cu_seqlens(cu_seqlens, tokens)
    bound_B2 = torch.cat([cu_seqlens.long(), cu_seqlens.new_full((1,), tokens, dtype=torch.int64)])
    start, length = bound_B2[:-1], bound_B2.diff()
    count = (length + TILE - 1) // TILE
    ends = count.cumsum(0)
    tile_N = torch.arange(tile_bound(tokens, len(cu_seqlens) - 1), device=cu_seqlens.device)
    owner_N = torch.searchsorted(ends, tile_N, right=True).clamp(max=len(count) - 1)
    index_N = tile_N - (ends - count)[owner_N]
    used_N, live_N = tile_N < ends[-1], owner_N < len(count) - 1
    # A causal tile reads the tiles before it. Ties keep their order, so the list is a function of cu_seqlens alone.
    order_N = torch.where(used_N & live_N, index_N + 1, 0).argsort(descending=True, stable=True)
    tiles_N4 = torch.stack([start[owner_N], length[owner_N] * used_N, index_N, live_N.long()], dim=-1)
    return tiles_N4[order_N].int()


@sequence_tiles.register_fake
def _(cu_seqlens: Tensor, tokens: int) -> Tensor:
    return cu_seqlens.new_empty((tile_bound(tokens, cu_seqlens.shape[0] - 1), 4), dtype=torch.int32)


@dataclass(frozen=True)
class Config:
    """Blocks and pipeline of one kernel."""

    own: int
    """Rows that a program writes; divides TILE."""
    step: int
    """Rows of one turn of its loop."""
    warps: int
    stages: int
    tma: bool = False
    """The kernel with tensor descriptors."""


class Scores(NamedTuple):
    """How products of queries and keys become scores; 0 = no window, no softcap."""

    scale: float
    window: int
    softcap: float


def passes(forward: Config, dq: Config, dkv: Config) -> dict[Pass, Config]:
    return {"forward": forward, "dq": dq, "dkv": dkv}


# (GPU, bytes of an element, BLOCK_D). Chosen by what machine code shows of registers, spills, shared memory and waits (227 KiB on "hopper"
# and "blackwell", sm_90 and sm_100; 99 KiB on "ampere", all others), not by timing. One entry serves all lengths, or bits would depend on
# the pack.
CONFIGS: dict[tuple[str, int, int], dict[Pass, Config]] = {
    ("hopper", 2, 16): passes(Config(128, 64, 4, 3), Config(128, 64, 4, 2), Config(128, 64, 8, 2)),
    ("hopper", 2, 32): passes(Config(128, 64, 4, 3), Config(128, 64, 4, 2), Config(128, 64, 8, 2)),
    ("hopper", 2, 64): passes(Config(128, 64, 4, 3), Config(128, 128, 8, 2), Config(128, 64, 8, 3)),
    ("hopper", 2, 128): passes(Config(128, 128, 8, 2), Config(128, 64, 8, 3), Config(128, 64, 8, 2)),
    ("hopper", 2, 256): passes(Config(128, 32, 8, 2), Config(128, 32, 8, 2), Config(64, 32, 8, 2)),
    ("ampere", 2, 16): passes(Config(128, 64, 4, 2), Config(64, 64, 4, 2), Config(64, 64, 4, 2)),
    ("ampere", 2, 32): passes(Config(128, 64, 4, 2), Config(64, 64, 4, 2), Config(64, 64, 4, 2)),
    ("ampere", 2, 64): passes(Config(128, 64, 8, 2), Config(64, 32, 4, 2), Config(128, 32, 8, 2)),
    ("ampere", 2, 128): passes(Config(64, 64, 4, 2), Config(64, 32, 4, 2), Config(64, 64, 8, 2)),
    ("ampere", 2, 256): passes(Config(64, 32, 8, 2), Config(64, 32, 8, 1), Config(32, 32, 8, 2)),
}
# float32 multiplies without tensor cores (see `dot`), whatever the GPU.
for gpu in ("hopper", "ampere"):
    for width in (16, 32, 64):
        CONFIGS[gpu, 4, width] = passes(Config(64, 32, 8, 1), Config(32, 32, 8, 1), Config(32, 32, 8, 1))
    CONFIGS[gpu, 4, 128] = passes(Config(16, 32, 8, 1), Config(16, 16, 8, 1), Config(32, 16, 8, 1))
    CONFIGS[gpu, 4, 256] = passes(Config(16, 32, 8, 1), Config(16, 16, 8, 1), Config(16, 16, 8, 1))

for (gpu, itemsize, width), entry in list(CONFIGS.items()):
    if gpu == "hopper":
        CONFIGS["blackwell", itemsize, width] = entry
CONFIGS["blackwell", 2, 128] = passes(Config(128, 64, 8, 3), Config(128, 64, 8, 3), Config(128, 64, 8, 2))  # 128 x 128 spills there

# The kernels with tensor descriptors, by Triton's version and by (kernel, GPU, bytes of an element, D): 16 bits at head dimensions without
# padding. Triton 3.6 gives warps roles where `warps` is 4: one group loads, two multiply. 3.8 and 3.9 cannot with descriptors that the host
# makes; without roles their products are serialised, or shared memory is given back before products are done: not there.
TMA: dict[tuple[int, int], dict[tuple[Pass, str, int, int], Config]] = {
    (3, 6): {
        ("forward", "hopper", 2, 64): Config(128, 128, 4, 2, tma=True),
        ("forward", "hopper", 2, 128): Config(128, 128, 4, 2, tma=True),
        ("forward", "hopper", 2, 256): Config(128, 64, 4, 2, tma=True),
        ("dkv", "hopper", 2, 64): Config(128, 64, 4, 2, tma=True),
        ("dkv", "hopper", 2, 128): Config(128, 64, 4, 2, tma=True),
    }
}
# Of those, the ones that a GPU has shown to be right and faster, with Triton's version: they are the default where they are listed. So
# far none has run on one. SOUNDRL_TMA=1 takes all of them, 0 none.
PROVED: frozenset[tuple[Pass, str, int, int, tuple[int, int]]] = frozenset()
ASKED = os.environ.get("SOUNDRL_TMA")

# few programs and few steps: each costs about a millisecond
INTERPRETER = passes(*[Config(128, 64, 4, 1)] * 3)
INTERPRETER_TMA: dict[Pass, Config] = {which: Config(128, 64, 4, 1, tma=True) for which in ("forward", "dkv")}


def triton_version() -> tuple[int, int]:
    major, minor = triton.__version__.split(".")[:2]
    return int(major), int(minor)


@lru_cache
def gpu_kind(device: torch.device) -> str:
    return {9: "hopper", 10: "blackwell"}.get(torch.cuda.get_device_capability(device)[0], "ampere")


def block_d(head_dim: int) -> int:
    return max(16, triton.next_power_of_2(head_dim))


@lru_cache
def configs(which: Pass, gpu: str, itemsize: int, head_dim: int, asked: str | None, version: tuple[int, int]) -> tuple[Config, ...]:
    """What serves: the kernel with descriptors, if it is to, and the one with pointers, then for what the first leaves."""
    by_pointers = CONFIGS[gpu, itemsize, block_d(head_dim)][which]
    key = which, gpu, itemsize, head_dim
    by_descriptors = TMA.get(version, {}).get(key)
    wanted = (*key, version) in PROVED if asked is None else asked != "0"
    return (by_descriptors, by_pointers) if by_descriptors and wanted else (by_pointers,)


def configs_for(which: Pass, q_THD: Tensor) -> tuple[Config, ...]:
    if INTERPRETING:
        square = q_THD.shape[2] == block_d(q_THD.shape[2])
        return (INTERPRETER_TMA[which], INTERPRETER[which]) if ASKED == "1" and square and which != "dq" else (INTERPRETER[which],)
    return configs(which, gpu_kind(q_THD.device), q_THD.element_size(), q_THD.shape[2], ASKED, triton_version())


@dataclass(frozen=True)
class Constants:
    """What a kernel is compiled for."""

    HEADS: int
    GROUP: int
    D: int
    BLOCK_D: int
    BLOCK_M: int
    BLOCK_K: int
    WINDOW: bool
    SOFTCAP: bool
    BELOW: int = EVERY_LENGTH
    """Longer sequences are another kernel's."""
    TILE: int = TILE
    UPCAST: bool = INTERPRETING


def constants(
    which: Pass, config: Config, heads: int, kv_heads: int, head_dim: int, scores: Scores, below: int = EVERY_LENGTH
) -> Constants:
    queries, keys = (config.step, config.own) if which == "dkv" else (config.own, config.step)
    flags = scores.window > 0, scores.softcap > 0
    return Constants(heads, heads // kv_heads, head_dim, block_d(head_dim), queries, keys, *flags, below)


def addressable(x_THD: Tensor) -> Tensor:
    """`x_THD`, copied where a kernel could not address it: rows must be dense, and 128 of them within 2³¹ elements."""
    return x_THD if x_THD.stride(-1) == 1 and x_THD.stride(0) < 2**24 else x_THD.contiguous()


def descriptor(x: Tensor, rows: int) -> Any:
    """[T, heads · D] of `x`, copied where heads do not lie side by side or not on 16 bytes, for blocks of `rows` × the last dimension."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    *_, heads, width = x.shape
    side_by_side = x.stride(-1) == 1 and (heads == 1 or x.stride(-2) == width)
    if not (side_by_side and x.data_ptr() % 16 == 0 and x.stride(0) % (16 // x.element_size()) == 0 and x.stride(0) >= heads * width):
        x = x.clone(memory_format=torch.contiguous_format)
    return TensorDescriptor(x, [x.shape[0], heads * width], [x.stride(0), 1], [rows, width])


def strided(x_THD: Tensor) -> tuple[Tensor, int, int]:
    """As kernels take it: with the strides of a token and of a head."""
    return x_THD, x_THD.stride(0), x_THD.stride(1)


def launch_all(
    which: Pass,
    kernels: tuple[Any, ...],
    inputs: tuple[Tensor, ...],
    rows_HT4: Tensor | None,
    results: tuple[Tensor, ...],
    tiles_N4: Tensor,
    scores: Scores,
) -> None:
    """Start `kernels`, by pointers and by descriptors, as the table says. `inputs`: q, k, v and, backward, the gradient of the output."""
    q_THD, k_THD = inputs[:2]
    tokens, heads, head_dim = q_THD.shape
    kv_heads = k_THD.shape[1]
    score_scale = scores.scale / scores.softcap if scores.softcap else scores.scale * LOG2E
    numbers = (scores.window, *(() if which == "forward" else (scores.scale,)), score_scale, scores.softcap * LOG2E)
    chosen = configs_for(which, q_THD)
    for config in chosen if tokens else ():
        # With descriptors a sequence shorter than the blocks of the loop would be read beyond its bounds.
        below = chosen[0].step if chosen[0].tma and not config.tma else EVERY_LENGTH
        fixed = constants(which, config, heads, kv_heads, head_dim, scores, below)
        if config.tma:
            blocks = fixed.BLOCK_M, fixed.BLOCK_K, fixed.BLOCK_K, fixed.BLOCK_M
            given = [descriptor(x, block) for x, block in zip(inputs, blocks, strict=False)]
            given += [] if rows_HT4 is None else [descriptor(rows_HT4.view(-1, 1, 4), fixed.BLOCK_M)]
        else:
            given = [strided(x) for x in inputs] + ([] if rows_HT4 is None else [rows_HT4])
        # All programs on axis x, the only one that goes beyond 65,535.
        programs = len(tiles_N4) * (TILE // config.own) * (kv_heads if which == "dkv" else heads)
        more = (*given, *results, tiles_N4, tokens, len(tiles_N4), *numbers)
        launch(kernels[config.tma], programs, q_THD, *more, C=fixed, num_warps=config.warps, num_stages=config.stages)


def launch_forward(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, out_THD: Tensor, lse2_HT: Tensor, tiles_N4: Tensor, scores: Scores) -> None:
    """Fill the output, [T, Hq, D], and log2 Σ exp of the scores, [Hq, T] float32: dense, and 0 in rows behind the last boundary."""
    inputs = tuple(addressable(x) for x in (q_THD, k_THD, v_THD))
    kernels = varlen_forward_kernel, varlen_forward_tma_kernel
    launch_all("forward", kernels, inputs, None, (out_THD, lse2_HT), tiles_N4.contiguous(), scores)


def launch_backward(saved: tuple[Tensor, ...], gradients: tuple[Tensor, Tensor, Tensor], tiles_N4: Tensor, scores: Scores) -> None:
    """Fill dQ [T, Hq, D], dK and dV [T, Hkv, D] from the gradient of the output, q, k, v, the output and its LSE (the last two dense)."""
    *inputs, out_THD, lse2_HT = saved
    grad_out_THD, *qkv = (addressable(x) for x in inputs)
    tiles_N4, given = tiles_N4.contiguous(), (*qkv, grad_out_THD)
    rows_HT4 = lse2_HT.new_empty((*lse2_HT.shape, 4))  # LSE and delta, twice: 16 bytes, which a descriptor can take from any row on
    dq_THD, dk_THD, dv_THD = gradients
    launch_all("dq", (varlen_dq_kernel,), given, None, (out_THD, lse2_HT, rows_HT4, dq_THD), tiles_N4, scores)
    launch_all("dkv", (varlen_dkv_kernel, varlen_dkv_tma_kernel), given, rows_HT4, (dk_THD, dv_THD), tiles_N4, scores)
