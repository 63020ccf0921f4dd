"""Compile cases of the policy loss and the group advantage: every configuration that variants, types and options can reach."""

from __future__ import annotations

from collections.abc import Iterator

from soundrl.kernels.advantage import group_advantage_kernel, group_moments_kernel
from soundrl.kernels.certificate.case import Case, given
from soundrl.kernels.policy_loss import Tokens
from soundrl.kernels.policy_loss_triton import policy_loss_kernel, sequence_mean_kernel, sum_rows_kernel


def loss_cases() -> Iterator[Case]:
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
                "near": "fp32",
            },
            constexprs={"SURROGATE": surrogate, "CORRECTION": correction, "KL": kl, "TIMES": full},
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
        groups, block = {"rewards": "*fp32", "offsets": "*i64", "moments": "*fp32", **signature}, {"BLOCK": 64, **nothing}
        label = "flawed, kept" if full else "plain"
        yield Case(kernel=group_moments_kernel, label=label, signature=groups | {"lam": "fp32"}, constexprs=block, num_warps=1)
        for moments in (False, True):
            own, none = given(moments="*fp32" if moments else None)
            yield Case(
                kernel=group_advantage_kernel,
                label=label + ", moments" * moments,
                signature={k: v for k, v in groups.items() if k != "moments"} | own | {"advantages": "*fp32", "numbers": ("fp32", "fp32")},
                constexprs={"NORMALIZE_STD": True, **block, **none},
                num_warps=1,
            )


CASES = list(loss_cases())
