"""Compile cases of the streaming log-probabilities: every entry of its tables, on the GPUs that take it."""

from __future__ import annotations

import dataclasses
import itertools

import torch

from soundrl.kernels.certificate.case import EVERYWHERE, NAMES, Case, softmax_types
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

PARTS = 119  # of 151,936 entries in tiles of 256
# Accepted spills in bytes. sm_100 reads 128 sums a thread out of tensor memory at once; what it spills it spills once a tile, and none in
# the loop of products. Smaller tiles spill nothing, but fetch a third more out of L2, which is the bound there.
SPILLS = {(100, WIDE): 160}


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
