"""Compile cases of packed attention: every entry of its table that a GPU can meet, heads 4 : 1; and what they let one expect."""

from __future__ import annotations

from soundrl.kernels.certificate.case import EVERYWHERE, Case
from soundrl.kernels.certificate.model import GPU, Prediction, best
from soundrl.kernels.certificate.row import Row
from soundrl.kernels.varlen_backward import varlen_dkv_kernel, varlen_dq_kernel
from soundrl.kernels.varlen_forward import varlen_forward_kernel
from soundrl.kernels.varlen_launch import CONFIGS, Pass, Scores, block_d, constants

KERNELS: dict[Pass, object] = {"forward": varlen_forward_kernel, "dq": varlen_dq_kernel, "dkv": varlen_dkv_kernel}
FA3 = 521e12  # FLOP/s of FA3, causal, forward, D 128, sequences of 2,048 (its paper, arXiv 2407.08608, figure 5)
FP32 = ("lse2", "delta", "scale", "score_scale", "softcap2")
INT32 = ("tiles", "tokens", "tile_count", "window")
DENSE = ("out", "dq", "dk", "dv", "lse2", "delta", "tiles")
STRIDED = ("q", "k", "v", "grad_out")
PLAIN, WINDOW, SOFTCAP = Scores(0.1, 0, 0.0), Scores(0.1, 4096, 0.0), Scores(0.1, 4096, 50.0)
# Accepted spills in bytes. dK/dV of 128 × 128 holds two accumulators of 64 registers a thread and two score blocks of 32, which leaves
# few of 255; its smaller blocks spill nothing, but their narrow products would wait for shared memory. float32 is for correctness.
SPILLS = {
    (90, "bf16", 96, "dkv", PLAIN): 24,
    (90, "bf16", 128, "dkv", PLAIN): 24,
    (90, "fp16", 128, "dkv", PLAIN): 24,
    (90, "bf16", 128, "dkv", WINDOW): 56,
    (90, "bf16", 128, "forward", WINDOW): 24,
    (80, "bf16", 128, "forward", WINDOW): 8,
    (90, "fp32", 32, "dq", PLAIN): 8,
    (90, "fp32", 256, "dq", PLAIN): 232,
    (80, "fp32", 256, "dq", PLAIN): 216,
    (80, "fp32", 256, "forward", PLAIN): 16,
    (100, "bf16", 256, "dkv", PLAIN): 16,
    (100, "bf16", 256, "dkv", SOFTCAP): 16,
    (120, "bf16", 128, "forward", WINDOW): 8,
}


def case(arch: int, kind: str, head_dim: int, which: Pass, scores: Scores) -> Case:
    kernel = KERNELS[which]
    config = CONFIGS["hopper" if arch // 10 in (9, 10) else "ampere", 4 if kind == "fp32" else 2, block_d(head_dim)][which]
    signature = dict.fromkeys(kernel.arg_names, kind) | dict.fromkeys(INT32, "i32") | dict.fromkeys(FP32, "fp32")  # type: ignore[attr-defined]
    signature = {name: "*" + of if name in DENSE else of for name, of in signature.items() if name in kernel.arg_names}  # type: ignore[attr-defined]
    signature |= {name: ("*" + kind, "i32", "i32") for name in STRIDED if name in signature}
    return Case(
        kernel=kernel,
        label=f"{kind} D{head_dim}{' window' * (scores.window > 0)}{' softcap' * (scores.softcap > 0)}",
        signature={name: of for name, of in signature.items() if name != "C"},
        constexprs={"C": constants(which, config, 8, 2, head_dim, scores)},
        num_warps=config.warps,
        num_stages=config.stages,
        aligned=STRIDED,
        wgmma=kind != "fp32" and head_dim >= 64,
        spill=SPILLS.get((arch, kind, head_dim, which, scores), 0),
        architectures=(arch,),
    )


SHAPES = [
    *(("bf16", head_dim, PLAIN) for head_dim in (16, 32, 64, 96, 128, 192, 256)),
    ("fp16", 128, PLAIN),
    *(("fp32", head_dim, PLAIN) for head_dim in (32, 64, 128, 256)),
    ("bf16", 128, WINDOW),
    ("bf16", 256, SOFTCAP),
]
# The newest GPUs take the tables of the older ones: what most models have is enough to see that these fit.
NEWEST = [(kind, head_dim, scores) for kind, head_dim, scores in SHAPES if kind == "bf16" and head_dim in (64, 128, 256)]
CASES = [
    case(arch, kind, head_dim, which, scores)
    for arch in EVERYWHERE
    for kind, head_dim, scores in (SHAPES if arch in (80, 90) else NEWEST)
    for which in KERNELS
]


def predict(rows: list[Row]) -> list[Prediction]:
    row = best(rows, "varlen_forward_kernel", "bf16 D128")
    return [attention(row)] if row else []


def attention(row: Row) -> Prediction:
    blocks = 2048 // 128
    useful = blocks / (blocks + 1)  # of the blocks that a causal mask leaves, the halves on the diagonal are for nothing
    rate = row.share * GPU.gemm * useful
    return Prediction(
        "varlen forward, D 128, documents of 2,048",
        round(rate / FA3, 3),
        0.75,
        "× FA3's published rate",
        f"share {row.share} ({row.bound}; {row.label}) · {GPU.gemm / 1e12:.0f} TFLOP/s · {useful:.2f} of the blocks "
        f"useful / {FA3 / 1e12:.0f} TFLOP/s",
        at_least=True,
    )
