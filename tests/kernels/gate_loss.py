"""Compile cases of the loss kernels: every configuration that variants, types and options can reach."""

import itertools

import torch
from gate import Case

from soundrl.kernels.advantage_triton import group_advantage_kernel
from soundrl.kernels.linear_logprob_triton import GROUP_M, SPLITS, linear_logprob_kernel, merge_parts_kernel, tile_config
from soundrl.kernels.logprob_triton import logprob_backward_kernel, logprob_forward_kernel
from soundrl.kernels.policy_loss_triton import BLOCK_T, COLUMNS, policy_loss_kernel, sequence_mean_kernel, sum_rows_kernel

TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def given(**kinds: str | None) -> tuple[dict, dict]:
    """(signature, constexprs) of optional arguments: those that are None are compile-time."""
    return {k: v for k, v in kinds.items() if v}, {k: None for k, v in kinds.items() if not v}


def loss_cases():
    tensors = ("logprob", "advantages", "slope_out", "entropy_slope_out", "partial_out")
    numbers = ("clip_low", "clip_high", "dual_clip", "tau_positive", "tau_negative", "kl_coef", "entropy_coef", "low", "high")
    for surrogate, correction, kl, full in (
        ("clip", "none", "none", False),
        ("clip", "tis", "k3", True),
        ("clip", "icepop", "k1", True),
        ("gspo", "sequence", "k2", True),
        ("cispo", "tis", "none", True),
        ("sapo", "none", "none", False),
    ):
        optional = ("old", "sampler", "entropy", "reference", "scale", "sequence_log_ratio", "sequence_log_q")
        present = {name: "*fp32" if full else None for name in optional}
        present["sequence_log_ratio"] = "*fp32" if surrogate == "gspo" else None
        signature, nothing = given(**present)
        yield Case(
            kernel=policy_loss_kernel,
            label=f"{surrogate} {correction} {kl}",
            signature={**{n: "*fp32" for n in tensors}, **{n: "fp32" for n in numbers}, "T": "i32", **signature},
            constexprs={
                "SURROGATE": surrogate,
                "CORRECTION": correction,
                "KL": kl,
                "KL_TIMES_RATIO": full,
                "BLOCK": BLOCK_T,
                "WIDTH": COLUMNS,
                **nothing,
            },
        )
    yield Case(
        kernel=sum_rows_kernel,
        label="",
        signature={"partial": "*fp32", "out": "*fp32", "rows": "i32"},
        constexprs={"BLOCK": 32, "WIDTH": COLUMNS},
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
                signature, nothing = given(temperature_T="*fp32" if full else None, bias=f"*{dtype}" if full else None)
                shared = {"logits": f"*{dtype}", "targets": "*i64", "temperature": "fp32", "softcap": "fp32", "V": "i32"} | signature
                shape = {"HAS_CAP": full, "BLOCK": block, **nothing}
                label = f"{dtype} {'all' if full else 'plain'} {block}"
                yield Case(
                    kernel=logprob_forward_kernel,
                    label=label,
                    signature=shared | dict.fromkeys(("logprob", "entropy", "maximum", "log_sum"), "*fp32") | {"row_stride": "i32"},
                    constexprs=shape,
                    num_warps=warps,
                    aligned=("V", "row_stride"),
                )
                order, no_order = given(order="*i64" if full else None)
                yield Case(
                    kernel=logprob_backward_kernel,
                    label=label,
                    signature=shared
                    | dict.fromkeys(("maximum", "log_sum", "entropy", "grad_logprob", "grad_entropy"), "*fp32")
                    | {"dlogits": f"*{dtype}", "row_stride": "i32", "out_stride": "i32", **order},
                    constexprs=shape | no_order,
                    num_warps=warps,
                    aligned=("V", "row_stride", "out_stride"),
                )


def streaming_cases():
    for dtype, name in TYPES.items():
        for full, arch in itertools.product((False, True), (80, 90)):
            block_m, block_n, block_k, warps, stages = tile_config(dtype, not full, arch)
            signature, nothing = given(temperature_T="*fp32" if full else None, bias=f"*{name}" if full else None)
            yield Case(
                kernel=linear_logprob_kernel,
                label=f"{name} {'all' if full else 'plain'} {block_m}x{block_n}x{block_k}",
                signature={"hidden": f"*{name}", "weight": f"*{name}", "targets": "*i64"}
                | dict.fromkeys(("partial_m", "partial_s", "partial_w", "target_u"), "*fp32")
                | {"temperature": "fp32", "softcap": "fp32"}
                | dict.fromkeys(("T", "V", "H", "hidden_stride", "weight_stride", "part_columns"), "i32")
                | signature,
                constexprs={
                    "ROUND": dtype != torch.float32,
                    "HAS_CAP": full,
                    "UPCAST": False,
                    "BLOCK_M": block_m,
                    "BLOCK_N": block_n,
                    "BLOCK_K": block_k,
                    "GROUP": GROUP_M,
                    "PARTS": SPLITS,
                    **nothing,
                },
                num_warps=warps,
                num_stages=stages,
                aligned=("H", "hidden_stride", "weight_stride", "part_columns"),
                wgmma=dtype != torch.float32,
                architectures=(arch,),
            )
    for full in (False, True):
        signature, nothing = given(temperature_T="*fp32" if full else None)
        yield Case(
            kernel=merge_parts_kernel,
            label="temperatures" if full else "plain",
            signature=dict.fromkeys(
                ("partial_m", "partial_s", "partial_w", "target_u", "logprob", "entropy", "maximum", "log_sum"), "*fp32"
            )
            | {"temperature": "fp32", "T": "i32"}
            | signature,
            constexprs={"PARTS": SPLITS, "BLOCK": 128, **nothing},
        )


CASES = [*loss_cases(), *row_cases(), *streaming_cases()]
