"""Compile cases of the kernels over rows of logits; and what they let one expect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from soundrl.kernels.certificate.case import EVERYWHERE, NAMES, Case, given, softmax_types
from soundrl.kernels.certificate.model import GPU, S1, Prediction, best, product_seconds
from soundrl.kernels.certificate.row import Row
from soundrl.kernels.logprob_triton import logprob_backward_kernel, logprob_forward_kernel

LAUNCHES = 0.1e-3  # seconds of launches and small tensors in a fused loss


def row_cases() -> Iterator[Case]:
    """Rows aligned to 16 bytes with a wide vocabulary, and the general way: odd strides, bias, softcap, temperature by row, an order."""
    for dtype in NAMES.values():
        everywhere = EVERYWHERE if dtype == "bf16" else (80, 90)
        for odd, warps in ((False, 8), (True, 1)):
            size: dict[str, Any] = {} if odd else {"element_bytes": 4 if dtype == "fp32" else 2}
            shared = {"logits": f"*{dtype}", "targets": "*i64", "softmax": softmax_types(odd, dtype), "V": "i32", "row_stride": "i32"}
            shape = {"HAS_CAP": odd, "LANES": 32 * warps, "APART": odd}
            label = f"{dtype} {'all, odd' if odd else 'plain'} {32 * warps}"
            yield Case(
                kernel=logprob_forward_kernel,
                label=label,
                signature=shared | {"out": ("*fp32",) * 4},
                constexprs=shape | {"EACH": 8 if odd or dtype != "fp32" else 4},
                num_warps=warps,
                architectures=everywhere,
                aligned=() if odd else ("V", "row_stride"),
                instructions=0 if odd else 11,
                **size,
            )
            order, no_order = given(order="*i64" if odd else None)
            for entropy in {odd, True}:
                yield Case(
                    kernel=logprob_backward_kernel,
                    label=f"{label}{' entropy' if entropy else ''}",
                    signature=shared
                    | {"dlogits": f"*{dtype}", "statistics": ("*fp32",) * 3, "out_stride": "i32", **order}
                    | {"grads": ("*fp32", "*fp32", "*fp32" if entropy else "constexpr")},
                    constexprs=shape | no_order | {"EACH": 8 if odd else 16, "ENTROPY": entropy},
                    num_warps=warps,
                    architectures=everywhere,
                    aligned=() if odd else ("V", "row_stride", "out_stride"),
                    instructions=0 if odd else 10 if entropy else 8,
                    **size,
                )


CASES = list(row_cases())


def predict(rows: list[Row]) -> list[Prediction]:
    forward, backward = best(rows, "logprob_forward_kernel", "bf16 plain"), best(rows, "logprob_backward_kernel", "bf16 plain")
    if not forward or not backward:
        return []
    passes = [over_rows(forward, 1, "forward", 0.90), over_rows(backward, 2, "backward", 1.85)]
    return [*passes, two_passes(forward), fused(forward, backward)]


def row_seconds(row: Row, passes: int) -> float:
    tokens, _, vocabulary = S1
    return tokens * vocabulary * 2 * passes / GPU.memory / row.share


def over_rows(row: Row, passes: int, mode: str, bar: float) -> Prediction:
    milliseconds = row_seconds(row, passes) * 1e3
    return Prediction(
        f"log-prob from logits, {mode}",
        round(milliseconds, 3),
        bar,
        "ms",
        f"8,192 · 151,936 · {2 * passes} bytes at {GPU.memory / 1e12:.2f} TB/s / share {row.share} ({row.bound}; {row.per_element} "
        f"instructions an element, clocks {row.clocks})",
        bench={"bench": "logprob", "mode": mode, "provider": "ours, in place" if mode == "backward" else "ours", "of": "ms"},
    )


def two_passes(forward: Row) -> Prediction:
    product, rows = product_seconds(S1), row_seconds(forward, 1)
    return Prediction(
        "log-prob of a head in two passes, H 4096",
        round(1 + rows / product, 3),
        1.08,
        "× one product",
        f"1 + rows {rows * 1e3:.2f} ms / product {product * 1e3:.2f} ms",
    )


def fused(forward: Row, backward: Row) -> Prediction:
    product, rows = 3 * product_seconds(S1), row_seconds(forward, 1) + row_seconds(backward, 2)
    return Prediction(
        "F1, fused loss in one chunk, S1",
        round(1 + (rows + LAUNCHES) / product, 3),
        1.08,
        "× three products",
        f"1 + (rows forward and backward {rows * 1e3:.2f} ms + launches {LAUNCHES * 1e3:.1f}) / {product * 1e3:.2f} ms, "
        "no zero fill, no cast",
        bench={"bench": "linear_logprob", "mode": "grpo", "provider": "ours", "shape": list(S1), "of": "x_floor"},
    )
