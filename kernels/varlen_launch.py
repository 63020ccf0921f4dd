"""How the kernels of packed attention are launched: configurations by head dimension, type and GPU, and the arguments they share.

Shapes: T tokens, Hq query heads, Hkv key heads, D head dimension, N tiles.
"""

# pyright: reportReturnType=false
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from soundrl.kernels.backend import launch, schema_of
from soundrl.kernels.language import INTERPRETING, triton
from soundrl.kernels.varlen_scores import LOG2E
from soundrl.kernels.varlen_tiles import TILE

Pass = Literal["forward", "dq", "dkv"]


@dataclass(frozen=True)
class Config:
    """Blocks and pipeline of one kernel."""

    own: int
    """Rows that a program writes; divides TILE."""
    step: int
    """Rows of one turn of its loop."""
    warps: int
    stages: int


class Scores(NamedTuple):
    """How products of queries and keys become scores; 0 = no window, no softcap."""

    scale: float
    window: int
    softcap: float


QKV = "Tensor q_THD, Tensor k_THD, Tensor v_THD"
SCORES = schema_of(Scores)


def passes(forward: Config, dq: Config, dkv: Config) -> dict[Pass, Config]:
    return {"forward": forward, "dq": dq, "dkv": dkv}


# (GPU, bytes of an element, BLOCK_D). Chosen by what the compile gate says of registers, spills and shared memory (227 KiB on "hopper",
# sm_90 and sm_100; 99 KiB on "ampere", all others), not by timing. One entry serves all lengths, or bits would depend on the pack.
CONFIGS: dict[tuple[str, int, int], dict[Pass, Config]] = {
    ("hopper", 2, 16): passes(Config(128, 64, 4, 3), Config(128, 64, 4, 2), Config(128, 64, 8, 2)),
    ("hopper", 2, 32): passes(Config(128, 64, 4, 3), Config(128, 64, 4, 2), Config(128, 64, 8, 2)),
    ("hopper", 2, 64): passes(Config(128, 64, 4, 3), Config(128, 128, 8, 2), Config(128, 64, 8, 3)),
    ("hopper", 2, 128): passes(Config(128, 128, 8, 2), Config(128, 64, 8, 3), Config(128, 64, 8, 2)),
    ("hopper", 2, 256): passes(Config(128, 64, 8, 2), Config(128, 32, 8, 2), Config(64, 32, 8, 2)),
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

INTERPRETER = passes(*[Config(128, 64, 4, 1)] * 3)  # few programs and few steps: each costs about a millisecond


def addressable(x_THD: Tensor) -> Tensor:
    """`x_THD`, copied where a kernel could not address it: rows must be dense, and 128 of them within 2³¹ elements."""
    return x_THD if x_THD.stride(-1) == 1 and x_THD.stride(0) < 2**24 else x_THD.contiguous()


def strided(x_THD: Tensor) -> tuple[Tensor, int, int]:
    """As kernels take it: with the strides of a token and of a head."""
    return x_THD, x_THD.stride(0), x_THD.stride(1)


@lru_cache
def gpu_kind(device: torch.device) -> str:
    return "hopper" if torch.cuda.get_device_capability(device)[0] in (9, 10) else "ampere"


def block_d(head_dim: int) -> int:
    return max(16, triton.next_power_of_2(head_dim))


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
    TILE: int = TILE
    UPCAST: bool = INTERPRETING


def constants(which: Pass, config: Config, heads: int, kv_heads: int, head_dim: int, scores: Scores) -> Constants:
    queries, keys = (config.step, config.own) if which == "dkv" else (config.own, config.step)
    flags = scores.window > 0, scores.softcap > 0
    return Constants(heads, heads // kv_heads, head_dim, block_d(head_dim), queries, keys, *flags)


def launch_all(which: Pass, kernel: Any, tensors: tuple, q_THD: Tensor, k_THD: Tensor, tiles_N4: Tensor, scores: Scores) -> None:
    """Start `kernel` on all tiles and heads; after `tensors` come the arguments that all kernels share."""
    tokens, heads, head_dim = q_THD.shape
    kv_heads = k_THD.shape[1]
    config = (INTERPRETER if INTERPRETING else CONFIGS[gpu_kind(q_THD.device), q_THD.element_size(), block_d(head_dim)])[which]
    # All programs on axis x, the only one that goes beyond 65,535.
    programs = len(tiles_N4) * (TILE // config.own) * (kv_heads if which == "dkv" else heads)
    score_scale = scores.scale / scores.softcap if scores.softcap else scores.scale * LOG2E
    numbers = (scores.window, *(() if which == "forward" else (scores.scale,)), score_scale, scores.softcap * LOG2E)
    fixed = constants(which, config, heads, kv_heads, head_dim, scores)
    given = (*tensors, tiles_N4, tokens, len(tiles_N4), *numbers)
    launch(kernel, programs, q_THD, *given, C=fixed, num_warps=config.warps, num_stages=config.stages)
