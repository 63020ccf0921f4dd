"""Compile cases of the streaming log-probabilities: every entry of its tables, on the GPUs that take it; and what they let one expect."""

from __future__ import annotations

import dataclasses
import itertools

import torch

from soundrl.kernels.certificate.case import EVERYWHERE, NAMES, Case, softmax_types
from soundrl.kernels.certificate.model import GPU, S1, Prediction, product_seconds
from soundrl.kernels.certificate.row import Row
from soundrl.kernels.linear_logprob_triton import (
    ELEMENT,
    SPECIALISED,
    SPLITS,
    WIDE,
    Config,
    Constants,
    config_for,
    linear_logprob_kernel,
    merge_parts_kernel,
)

ROUND_TRIP = 700  # clocks until the first tile of a new loop is there: one read of memory
S4 = (8192, 1024, 151_936)  # the narrowest head of the bench
PARTS = 119  # of 151,936 entries in tiles of 256
# Accepted spills in bytes, of the worst Triton: 3.6, 3.8 and 3.9 spill 0, 8 and 216 on sm_90; 160, 888 and 896 on sm_100, which reads 128
# sums a thread out of tensor memory at once. All of it once a tile, none in the loop of products. Smaller tiles spill nothing, but fetch
# a third more out of L2, which costs more.
SPILLS = {(90, WIDE): 216, (100, WIDE): 896}


def case(dtype: torch.dtype, full: bool, even: bool, config: Config, architectures: tuple[int, ...]) -> Case:
    name, narrow = NAMES[dtype], dtype != torch.float32
    shapes = ((config.block_m, config.block_k), (config.block_n, config.block_k))
    hidden, weight = (f"tensordesc<{name}[{m}, {k}]>" if config.specialised else (f"*{name}", "i32") for m, k in shapes)
    options = "all" if full else "plain" if even else "ragged"
    tiles = f"{config.block_m}x{config.block_n}x{config.block_k}"
    return Case(
        kernel=linear_logprob_kernel,
        label=f"{name} {options} {tiles}{' specialised' if config.specialised else ''}",
        signature={"hidden": hidden, "weight": weight, "targets": "*i64", "softmax": softmax_types(full, name)}
        | {"partial": ("*fp32",) * 3, "target_u": "*fp32"}
        | dict.fromkeys(("T", "V", "H", "part_columns"), "i32"),
        constexprs={
            "C": Constants(
                *(config.block_m, config.block_n, config.block_k, config.specialised, even),
                ROUND=ELEMENT[dtype] if narrow else None,
                HAS_CAP=full,
                PARTS=PARTS,
                UPCAST=False,
            )
        },
        num_warps=config.warps,
        num_stages=config.stages,
        aligned=("H", "hidden", "weight", "part_columns"),
        wgmma=narrow,
        architectures=architectures,
    )


def streaming_cases() -> list[Case]:
    out = []
    for dtype, (full, even) in itertools.product(NAMES, ((False, True), (True, True), (False, False))):
        for arch in EVERYWHERE:
            config = config_for(dtype, not full, arch, 4096)
            one = case(dtype, full, even, config, (arch,))
            out.append(dataclasses.replace(one, spill=SPILLS.get((arch, config), 0)))
    return [*out, *(case(dtype, False, True, SPECIALISED, (90,)) for dtype in (torch.bfloat16, torch.float16))]


def merge_cases() -> list[Case]:
    given = {"partial": ("*fp32",) * 3, "target_u": "*fp32", "targets": "*i64", "out": ("*fp32",) * 4, "T": "i32"}
    shape = {"PARTS": PARTS, "WIDTH": SPLITS, "BLOCK": 16}
    return [
        Case(
            kernel=merge_parts_kernel,
            label="temperatures" if full else "plain",
            signature=given | {"softmax": softmax_types(full)},
            constexprs=shape,
        )
        for full in (False, True)
    ]


CASES = [*streaming_cases(), *merge_cases()]


def predict(rows: list[Row]) -> list[Prediction]:
    mine = [row for row in rows if row.kernel == "linear_logprob_kernel" and row.label.startswith("bf16 plain") and row.share]
    return [streaming(row, shape) for row in mine for shape in (S1, S4)]


def streaming(row: Row, shape: tuple[int, int, int]) -> Prediction:
    """Streaming forward over one product of the same shape."""
    tokens, hidden, vocabulary = shape
    case = next(case for case in CASES if case.name == row.name and row.arch in case.architectures)
    c, specialised = case.constexprs["C"], case.constexprs["C"].SPECIALISED
    tiles = -(-vocabulary // c.BLOCK_N)
    each = -(-tiles // c.PARTS)
    programs = -(-tokens // c.BLOCK_M) * -(-tiles // each)
    waves, turns = -(-programs // GPU.multiprocessors), -(-hidden // c.BLOCK_K)
    l2 = (c.BLOCK_M + c.BLOCK_N) * c.BLOCK_K * 2 / GPU.l2
    tensor, alone = row.clocks["tensor"] / GPU.sustained, row.clocks.get("outside", 0.0)
    turn = max(tensor / row.share, row.clocks["issue"], l2)
    if specialised:  # a group's statistics run beside what the other still has in the ring of stages
        outside = max(0.0, alone / 2 - case.num_stages * tensor / 2)
        how = f"outside max(0, {alone / 2:.0f} of a group − {case.num_stages} stages · {tensor / 2:.0f})"
    else:
        outside = alone + l2 + ROUND_TRIP
        how = f"outside {alone:.0f} + first tile {l2:.0f} + {ROUND_TRIP}"
    seconds = waves * each * (turns * turn + outside) / GPU.clock + 12 * c.PARTS * tokens / GPU.memory
    return Prediction(
        f"streaming forward, {row.label}, H {hidden}",
        round(seconds / product_seconds(shape), 3),
        1.12 if shape == S1 else None,
        "× one product",
        f"{programs} programs in {waves} waves of {GPU.multiprocessors}, {each} tiles each of {turns} turns · max(tensor {tensor:.0f} at "
        f"{GPU.sustained:.2f} of peak / share {row.share}, issue {row.clocks['issue']:.0f}, L2 {l2:.0f}) clk + {how} = "
        f"{seconds * 1e3:.2f} ms against {product_seconds(shape) * 1e3:.2f}",
        bench={
            **{"bench": "linear_logprob", "mode": "forward", "shape": [tokens, hidden, vocabulary], "of": "x_floor"},
            "provider": "ours, specialised" if specialised else "ours",
        },
    )
