"""Compile cases of the loss kernels: every configuration that variants, types and options can reach."""

import itertools

import torch
from gate import Case

from soundrl.kernels.advantage import group_advantage_kernel
from soundrl.kernels.linear_logprob_triton import SPLITS, Constants, linear_logprob_kernel, merge_parts_kernel, tile_config
from soundrl.kernels.logprob_triton import logprob_backward_kernel, logprob_forward_kernel
from soundrl.kernels.policy_loss import Tokens
from soundrl.kernels.policy_loss_triton import policy_loss_kernel, sequence_mean_kernel, sum_rows_kernel
from soundrl.kernels.softmax import Softmax

TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def softmax(full: bool, dtype: str = "fp32") -> Softmax:
    """Types of its fields, with all of them given or only what must be."""
    return Softmax("fp32", "*fp32" if full else "constexpr", f"*{dtype}" if full else "constexpr", "fp32")  # type: ignore[arg-type]


def given(**kinds: str | None) -> tuple[dict, dict]:
    """(signature, constexprs) of optional arguments: those that are None are compile-time."""
    return {k: v for k, v in kinds.items() if v}, {k: None for k, v in kinds.items() if not v}


def loss_cases():
    for surrogate, correction, kl, full in (
        ("clip", "none", "none", False),
        ("clip", "tis", "k3", True),
        ("clip", "icepop", "k1", True),
        ("gspo", "sequence", "k2", True),
        ("cispo", "tis", "none", True),
        ("sapo", "none", "none", False),
    ):
        present = {name: "*fp32" if full or name in ("logprob_T", "advantages_T") else "constexpr" for name in Tokens._fields}
        present["sequence_log_ratio_T"] = "*fp32" if surrogate == "gspo" else "constexpr"
        yield Case(
            kernel=policy_loss_kernel,
            label=f"{surrogate} {correction} {kl}",
            signature={
                "tokens": Tokens(**present),  # type: ignore[arg-type]
                "numbers": ("fp32",) * 9,
                "slopes": ("*fp32", "*fp32"),
                "partial": "*fp32",
                "T": "i32",
            },
            constexprs={"SURROGATE": surrogate, "CORRECTION": correction, "KL": kl, "KL_TIMES_RATIO": full},
        )
    yield Case(
        kernel=sum_rows_kernel,
        label="",
        signature={"partial": "*fp32", "out": "*fp32", "rows": "i32"},
        constexprs={"BLOCK": 32},
    )
    yield Case(
        kernel=sequence_mean_kernel, label="", signature={"x": "*fp32", "cu_seqlens": "*i64", "out": "*fp32"}, constexprs={"BLOCK": 1024}
    )
    for full in (False, True):
        signature, nothing = given(flawed="*i1" if full else None, kept="*i1" if full else None)
        yield Case(
            kernel=group_advantage_kernel,
            label="flawed, kept" if full else "plain",
            signature={"rewards": "*fp32", "offsets": "*i64", "advantages": "*fp32", "lam": "fp32", "epsilon": "fp32", **signature},
            constexprs={"NORMALIZE_STD": True, "BLOCK": 64, **nothing},
            num_warps=1,
        )


def row_cases():
    for dtype in TYPES.values():
        for full in (False, True):
            for block, warps in ((4096, 8), (512, 4)):
                shared = {"logits": f"*{dtype}", "targets": "*i64", "softmax": softmax(full, dtype), "V": "i32", "row_stride": "i32"}
                shape = {"HAS_CAP": full, "BLOCK": block}
                label = f"{dtype} {'all' if full else 'plain'} {block}"
                yield Case(
                    kernel=logprob_forward_kernel,
                    label=label,
                    signature=shared | {"out": ("*fp32",) * 4},
                    constexprs=shape,
                    num_warps=warps,
                    aligned=("V", "row_stride"),
                )
                order, no_order = given(order="*i64" if full else None)
                yield Case(
                    kernel=logprob_backward_kernel,
                    label=label,
                    signature=shared
                    | {"dlogits": f"*{dtype}", "statistics": ("*fp32",) * 3, "grads": ("*fp32",) * 3, "out_stride": "i32", **order},
                    constexprs=shape | no_order,
                    num_warps=warps,
                    aligned=("V", "row_stride", "out_stride"),
                )


def streaming_cases():
    for dtype, name in TYPES.items():
        for full, arch in itertools.product((False, True), (80, 90)):
            block_m, block_n, block_k, warps, stages = tile_config(dtype, not full, arch)
            yield Case(
                kernel=linear_logprob_kernel,
                label=f"{name} {'all' if full else 'plain'} {block_m}x{block_n}x{block_k}",
                signature={"hidden": (f"*{name}", "i32"), "weight": (f"*{name}", "i32"), "targets": "*i64", "softmax": softmax(full, name)}
                | {"partial": ("*fp32",) * 3, "target_u": "*fp32"}
                | dict.fromkeys(("T", "V", "H", "part_columns"), "i32"),
                constexprs={"C": Constants(block_m, block_n, block_k, dtype != torch.float32, full, SPLITS)},
                num_warps=warps,
                num_stages=stages,
                aligned=("H", "hidden", "weight", "part_columns"),
                wgmma=dtype != torch.float32,
                architectures=(arch,),
            )
    for full in (False, True):
        yield Case(
            kernel=merge_parts_kernel,
            label="temperatures" if full else "plain",
            signature={
                "partial": ("*fp32",) * 3,
                "target_u": "*fp32",
                "softmax": softmax(full),
                "out": ("*fp32",) * 4,
                "T": "i32",
            },
            constexprs={"PARTS": SPLITS, "BLOCK": 128},
        )


CASES = [*loss_cases(), *row_cases(), *streaming_cases()]
