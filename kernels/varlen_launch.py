"""How the kernels of packed attention are launched: configurations by head dimension, type and GPU, and the arguments they share.

Shapes: T tokens, Hq query heads, Hkv key heads, D head dimension, N tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from soundrl.kernels.varlen_scores import LOG2E
from soundrl.kernels.varlen_tiles import TILE

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Kernels run in Triton's interpreter: TRITON_INTERPRET=1 stood in the environment when they were imported."""

FORWARD, DQ, DKV = 0, 1, 2


@dataclass(frozen=True)
class Config:
    """Blocks and pipeline of one kernel."""

    own: int
    """Rows that a program writes; divides TILE."""
    step: int
    """Rows of one turn of its loop."""
    warps: int
    stages: int


# GPU generation, bytes of an element, BLOCK_D → forward, dQ, dK/dV.
CONFIGS: dict[tuple[str, int, int], tuple[Config, Config, Config]] = {}


def load():
    h, a = "hopper", "ampere"
    for d in (16, 32, 64):
        CONFIGS[h, 2, d] = (Config(128, 64, 8, 3), Config(128, 64, 8, 2), Config(128, 64, 8, 2))
        CONFIGS[a, 2, d] = (Config(128, 64, 4, 2), Config(64, 64, 4, 2), Config(64, 64, 4, 2))
        CONFIGS[a, 4, d] = CONFIGS[h, 4, d] = (Config(64, 32, 4, 2), Config(64, 32, 4, 2), Config(64, 32, 4, 2))
    CONFIGS[h, 2, 128] = (Config(128, 64, 8, 2), Config(128, 64, 8, 2), Config(128, 64, 8, 2))
    CONFIGS[h, 2, 256] = (Config(128, 64, 8, 2), Config(64, 32, 8, 2), Config(64, 32, 8, 2))
    CONFIGS[a, 2, 128] = (Config(64, 64, 4, 2), Config(64, 32, 4, 2), Config(64, 32, 4, 2))
    CONFIGS[a, 2, 256] = (Config(64, 32, 8, 1), Config(64, 32, 8, 1), Config(32, 32, 8, 1))
    for g in (h, a):
        CONFIGS[g, 4, 128] = (Config(64, 32, 8, 1), Config(32, 32, 8, 1), Config(32, 32, 8, 1))
        CONFIGS[g, 4, 256] = (Config(32, 32, 8, 1), Config(32, 16, 8, 1), Config(32, 16, 8, 1))


load()
INTERPRETER = (Config(64, 32, 4, 1), Config(64, 32, 4, 1), Config(64, 32, 4, 1))


@dataclass(frozen=True)
class Scores:
    """How products become scores: × scale, then softcap · tanh(score / softcap); 0 = no softcap, no window."""

    scale: float
    window: int
    softcap: float


@lru_cache
def generation(device: torch.device) -> str:
    return "hopper" if torch.cuda.get_device_capability(device)[0] in (9, 10) else "ampere"


def block_d(head_dim: int) -> int:
    return max(16, triton.next_power_of_2(head_dim))


def launch(kernel: Any, number: int, arguments: tuple, q_THD: Tensor, k_THD: Tensor, tiles_N4: Tensor, scores: Scores) -> None:
    """Start `kernel` over all tiles and heads with the arguments that every kernel ends with."""
    tokens, heads, head_dim = q_THD.shape
    kv_heads, block = k_THD.shape[1], block_d(head_dim)
    config = INTERPRETER[number] if INTERPRETED else CONFIGS[generation(q_THD.device), q_THD.element_size(), block][number]
    softcap = scores.softcap
    grid = len(tiles_N4) * (TILE // config.own) * (kv_heads if number == DKV else heads)
    with torch.cuda.device_of(q_THD):
        kernel[(grid,)](
            *arguments,
            tokens,
            len(tiles_N4),
            scores.window,
            *(() if number == FORWARD else (scores.scale,)),
            scores.scale / softcap if softcap else scores.scale * LOG2E,
            softcap * LOG2E,
            HEADS=heads,
            GROUP=heads // kv_heads,
            D=head_dim,
            BLOCK_D=block,
            TILE=TILE,
            BLOCK_M=config.step if number == DKV else config.own,
            BLOCK_K=config.own if number == DKV else config.step,
            WINDOW=scores.window > 0,
            SOFTCAP=softcap > 0,
            UPCAST=INTERPRETED,
            num_warps=config.warps,
            num_stages=config.stages,
        )
