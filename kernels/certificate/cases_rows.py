"""Compile cases of the kernels over rows of logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from soundrl.kernels.certificate.case import EVERYWHERE, NAMES, Case, given, softmax_types
from soundrl.kernels.logprob_triton import logprob_backward_kernel, logprob_forward_kernel


def row_cases() -> Iterator[Case]:
    for dtype in NAMES.values():
        for full in (False, True):
            size: dict[str, Any] = {} if full else {"element_bytes": 4 if dtype == "fp32" else 2}
            for block, warps in ((4096, 8), (512, 4)):
                shared = {"logits": f"*{dtype}", "targets": "*i64", "softmax": softmax_types(full, dtype), "V": "i32", "row_stride": "i32"}
                shape = {"HAS_CAP": full, "BLOCK": block}
                label = f"{dtype} {'all' if full else 'plain'} {block}"
                yield Case(
                    kernel=logprob_forward_kernel,
                    label=label,
                    signature=shared | {"out": ("*fp32",) * 4},
                    constexprs=shape,
                    num_warps=warps,
                    architectures=EVERYWHERE if dtype == "bf16" else (80, 90),
                    aligned=("V", "row_stride"),
                    **size,
                )
                order, no_order = given(order="*i64" if full else None)
                yield Case(
                    kernel=logprob_backward_kernel,
                    label=label,
                    signature=shared
                    | {"dlogits": f"*{dtype}", "statistics": ("*fp32",) * 3, "grads": ("*fp32",) * 2, "out_stride": "i32", **order},
                    constexprs=shape | no_order,
                    num_warps=warps,
                    architectures=EVERYWHERE if dtype == "bf16" else (80, 90),
                    aligned=("V", "row_stride", "out_stride"),
                    **size,
                )


CASES = list(row_cases())
