"""Compile cases of packed attention: every entry of its tables that a GPU can meet, heads 4 : 1; and what they let one expect."""

from __future__ import annotations

import dataclasses
from typing import Any

from soundrl.kernels.certificate.case import EVERYWHERE, Case
from soundrl.kernels.certificate.model import GPU, Prediction
from soundrl.kernels.certificate.row import Row
from soundrl.kernels.certificate.varlen_model import BAR, FA3, varlen_prediction
from soundrl.kernels.varlen_backward import varlen_dkv_kernel, varlen_dkv_tma_kernel, varlen_dq_kernel
from soundrl.kernels.varlen_forward import varlen_forward_kernel, varlen_forward_tma_kernel
from soundrl.kernels.varlen_launch import EVERY_LENGTH, Config, Pass, Scores, configs, constants, triton_version

KERNELS: dict[tuple[Pass, bool], object] = {
    ("forward", False): varlen_forward_kernel,
    ("dq", False): varlen_dq_kernel,
    ("dkv", False): varlen_dkv_kernel,
    ("forward", True): varlen_forward_tma_kernel,
    ("dkv", True): varlen_dkv_tma_kernel,
}
FP32 = ("lse2", "rows", "scale", "score_scale", "softcap2")
INT32 = ("tiles", "tokens", "tile_count", "window")
DENSE = ("out", "dq", "dk", "dv", "lse2", "rows", "tiles")
QUERIES, KEYS = ("q", "grad_out"), ("k", "v")
PLAIN, WINDOW, SOFTCAP = Scores(0.1, 0, 0.0), Scores(0.1, 4096, 0.0), Scores(0.1, 4096, 50.0)
# Accepted spills in bytes, by Triton's version and (GPU, type, D, kernel, scores, by descriptors). Forward by pointers: all outside its
# loops, and half the keys a turn would wait twice as often. dK/dV: two accumulators of 64 registers a thread beside two blocks of scores;
# smaller blocks spill nothing, but issue half as much again (D 128) or wait for products of 16 columns (D 256). float32 is for
# correctness.
SPILLS: dict[tuple[int, int], dict[tuple, int]] = {
    (3, 6): {
        (90, "bf16", 96, "forward", PLAIN, False): 32,
        (90, "bf16", 128, "forward", PLAIN, False): 24,
        (90, "fp16", 128, "forward", PLAIN, False): 24,
        (90, "bf16", 128, "dkv", PLAIN, True): 72,
        (90, "fp16", 128, "dkv", PLAIN, True): 72,
        (90, "bf16", 128, "dkv", WINDOW, True): 72,
        (90, "bf16", 128, "dkv", WINDOW, False): 24,
        (90, "bf16", 256, "forward", SOFTCAP, True): 56,
        (90, "bf16", 192, "dq", PLAIN, False): 8,
        (90, "bf16", 256, "dq", PLAIN, False): 24,
        (90, "fp32", 32, "forward", PLAIN, False): 8,
        (90, "fp32", 32, "dq", PLAIN, False): 8,
        (90, "fp32", 256, "dq", PLAIN, False): 232,
        (80, "fp32", 32, "forward", PLAIN, False): 8,
        (80, "fp32", 128, "forward", PLAIN, False): 8,
        (80, "fp32", 256, "dq", PLAIN, False): 216,
        (100, "bf16", 96, "dq", PLAIN, False): 16,
        (100, "bf16", 128, "dq", WINDOW, False): 8,
        (100, "bf16", 128, "dkv", WINDOW, False): 8,
        (100, "fp32", 32, "dq", PLAIN, False): 8,
        (100, "fp32", 256, "dq", PLAIN, False): 224,
        (120, "bf16", 128, "forward", WINDOW, False): 40,
        (120, "fp32", 256, "dq", PLAIN, False): 264,
    },
    (3, 8): {
        (90, "bf16", 96, "forward", PLAIN, False): 48,
        (90, "bf16", 128, "forward", PLAIN, False): 32,
        (90, "fp16", 128, "forward", PLAIN, False): 32,
        (90, "bf16", 192, "dq", PLAIN, False): 16,
        (90, "bf16", 256, "dq", PLAIN, False): 32,
        (90, "bf16", 192, "dkv", PLAIN, False): 8,
        (90, "bf16", 256, "dkv", SOFTCAP, False): 8,
        (90, "fp32", 32, "forward", PLAIN, False): 8,
        (90, "fp32", 32, "dq", PLAIN, False): 8,
        (90, "fp32", 256, "dq", PLAIN, False): 232,
        (100, "bf16", 96, "dq", PLAIN, False): 16,
        (100, "bf16", 128, "dq", PLAIN, False): 8,
        (100, "fp16", 128, "dq", PLAIN, False): 8,
        (100, "fp32", 256, "dq", PLAIN, False): 280,
    },
    (3, 9): {
        (90, "bf16", 96, "forward", PLAIN, False): 48,
        (90, "bf16", 128, "forward", PLAIN, False): 48,
        (90, "fp16", 128, "forward", PLAIN, False): 48,
        (90, "bf16", 96, "dkv", PLAIN, False): 56,
        (90, "bf16", 128, "dkv", PLAIN, False): 56,
        (90, "fp16", 128, "dkv", PLAIN, False): 56,
        (90, "bf16", 128, "dkv", WINDOW, False): 56,
        (90, "bf16", 192, "dkv", PLAIN, False): 176,
        (90, "bf16", 256, "dkv", PLAIN, False): 224,
        (90, "bf16", 256, "dkv", SOFTCAP, False): 224,
        (90, "bf16", 192, "dq", PLAIN, False): 16,
        (90, "bf16", 256, "dq", PLAIN, False): 16,
        (90, "fp32", 32, "dq", PLAIN, False): 16,
        (90, "fp32", 256, "dq", PLAIN, False): 264,
        (100, "bf16", 96, "dq", PLAIN, False): 24,
        (100, "bf16", 128, "dq", PLAIN, False): 24,
        (100, "fp16", 128, "dq", PLAIN, False): 24,
        (100, "fp32", 256, "dq", PLAIN, False): 280,
    },
}


def case(arch: int, kind: str, head_dim: int, which: Pass, scores: Scores, config: Config) -> Case:
    kernel = KERNELS[which, config.tma]
    given = dataclasses.replace(constants(which, config, 8, 2, head_dim, scores, EVERY_LENGTH), UPCAST=False)
    names = kernel.arg_names  # type: ignore[attr-defined]
    kinds = dict.fromkeys(names, kind) | dict.fromkeys(INT32, "i32") | dict.fromkeys(FP32, "fp32")
    signature: dict[str, Any] = {name: "*" + of if name in DENSE else of for name, of in kinds.items() if name in names and name != "C"}
    for name in {*QUERIES, *KEYS} & set(signature):
        rows = given.BLOCK_M if name in QUERIES else given.BLOCK_K
        signature[name] = f"tensordesc<{kind}[{rows}, {given.BLOCK_D}]>" if config.tma else ("*" + kind, "i32", "i32")
    if config.tma and which == "dkv":
        signature["rows"] = f"tensordesc<fp32[{given.BLOCK_M}, 4]>"
    flags = " window" * (scores.window > 0) + " softcap" * (scores.softcap > 0)
    return Case(
        kernel=kernel,
        label=f"{kind} D{head_dim}{flags} {config.own}x{config.step}",
        signature=signature,
        constexprs={"C": given},
        num_warps=config.warps,
        num_stages=config.stages,
        aligned=() if config.tma else (*QUERIES, *KEYS),
        wgmma=kind != "fp32" and head_dim >= 64,
        spill=SPILLS.get(triton_version(), {}).get((arch, kind, head_dim, which, scores, config.tma), 0),
        architectures=(arch,),
    )


SHAPES = [
    *(("bf16", head_dim, PLAIN) for head_dim in (16, 32, 64, 96, 128, 192, 256)),
    ("fp16", 128, PLAIN),
    *(("fp32", head_dim, PLAIN) for head_dim in (32, 64, 128, 256)),
    ("bf16", 128, WINDOW),
    ("bf16", 256, SOFTCAP),
]


def chosen(arch: int, kind: str, head_dim: int, which: Pass) -> tuple[Config, ...]:
    """Those with descriptors as well where there are any, proved or not."""
    gpu = {9: "hopper", 10: "blackwell"}.get(arch // 10, "ampere")
    return configs(which, gpu, 4 if kind == "fp32" else 2, head_dim, "1", triton_version())


PASSES: tuple[Pass, ...] = ("forward", "dq", "dkv")
CASES = [
    case(arch, kind, head_dim, which, scores, config)
    for arch in EVERYWHERE
    for kind, head_dim, scores in SHAPES
    for which in PASSES
    for config in chosen(arch, kind, head_dim, which)
]


def predict(rows: list[Row]) -> list[Prediction]:
    """By pointers, which is the default, and, told only, by descriptors."""
    out = []
    for kernel, kind, bar in (("varlen_forward_kernel", "", BAR), ("varlen_forward_tma_kernel", " by descriptors", None)):
        of_kernel = [varlen_prediction(row, GPU) for row in rows if row.kernel == kernel and row.label.startswith("bf16 D128 1")]
        if of_kernel:
            p = max(of_kernel, key=lambda prediction: prediction.share)
            name, unit = f"varlen forward{kind}, D 128, documents of 2,048", f"× FA3's published {FA3 / 1e12:.0f} TFLOP/s"
            arithmetic = f"{p.arithmetic}; holds up to {p.waits_allowed} clocks of waits a turn"
            out.append(Prediction(name, p.share, bar, unit, arithmetic, at_least=True))
    return out
