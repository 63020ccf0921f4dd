"""What the machine code lets one expect of a whole function, as ratios and milliseconds with the arithmetic beside them.

From the machine code alone: stalls that only a GPU shows are not in it, so a measured figure may be worse and not much better. Each figure
is beside its measurement wherever there is one (`measured.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from soundrl.kernels.certificate.case import Case
from soundrl.kernels.certificate.machine import MACHINES, Machine
from soundrl.kernels.certificate.row import Row

ARCH = 90
ROUND_TRIP = 700  # clocks until the first tile of a new loop is there: one read of memory
LAUNCHES = 0.1e-3  # seconds of launches and small tensors in a fused loss
S1, S4 = (8192, 4096, 151_936), (8192, 1024, 151_936)  # tokens, hidden, vocabulary
FA3 = 521e12  # FLOP/s of FA3, causal, forward, D 128, sequences of 2,048 (its paper, arXiv 2407.08608, figure 5)


@dataclass(frozen=True)
class Prediction:
    name: str
    value: float
    bar: float | None
    """At most this, or at least where `at_least`; None: told, not promised."""
    unit: str
    arithmetic: str
    at_least: bool = False
    bench: dict[str, Any] | None = None
    """Which row of a bench measures it: fields of `bench.record.Row`, and `of`: the field that is compared."""

    @property
    def holds(self) -> bool:
        return self.bar is None or (self.value >= self.bar if self.at_least else self.value <= self.bar)


def predictions(rows: list[Row], cases: list[Case]) -> list[Prediction]:
    """Of the rows of one Triton."""
    best: Callable[[str, str], Row | None] = lambda kernel, label: max(  # noqa: E731
        (r for r in rows if r.kernel == kernel and r.label.startswith(label) and r.arch == ARCH and not r.failed),
        key=lambda r: r.share,
        default=None,
    )
    gpu, out = MACHINES[ARCH], []
    for row in rows:
        if row.kernel == "linear_logprob_kernel" and row.label.startswith("bf16 plain") and row.arch == ARCH and row.share:
            case = next(c for c in cases if c.name == row.name)
            out += [streaming(row, case, gpu, shape) for shape in (S1, S4)]
    forward, backward = best("logprob_forward_kernel", "bf16 plain"), best("logprob_backward_kernel", "bf16 plain")
    if forward and backward:
        out += [over_rows(forward, gpu, 1, "forward", 0.90), over_rows(backward, gpu, 2, "backward", 1.85)]
        out += [two_passes(forward, gpu), fused(forward, backward, gpu)]
    varlen = best("varlen_forward_kernel", "bf16 D128")
    return [*out, attention(varlen, gpu)] if varlen else out


def product_seconds(gpu: Machine, shape: tuple[int, int, int]) -> float:
    return 2 * math.prod(shape) / gpu.gemm


def streaming(row: Row, case: Case, gpu: Machine, shape: tuple[int, int, int]) -> Prediction:
    """Streaming forward over one product of the same shape."""
    tokens, hidden, vocabulary = shape
    c, specialised = case.constexprs["C"], case.constexprs["C"].SPECIALISED
    tiles = -(-vocabulary // c.BLOCK_N)
    each = -(-tiles // c.PARTS)
    programs = -(-tokens // c.BLOCK_M) * -(-tiles // each)
    waves, turns = -(-programs // gpu.multiprocessors), -(-hidden // c.BLOCK_K)
    l2 = (c.BLOCK_M + c.BLOCK_N) * c.BLOCK_K * 2 / gpu.l2
    tensor = row.clocks["tensor"] / gpu.sustained
    turn = max(tensor / row.share, row.clocks["issue"], l2)
    if specialised:  # a group's statistics run beside what the other still has in the ring of stages
        outside = max(0.0, row.clocks["outside"] / 2 - case.num_stages * tensor / 2)
        how = f"outside max(0, {row.clocks['outside'] / 2:.0f} of a group − {case.num_stages} stages · {tensor / 2:.0f})"
    else:
        outside = row.clocks["outside"] + l2 + ROUND_TRIP
        how = f"outside {row.clocks['outside']:.0f} + first tile {l2:.0f} + {ROUND_TRIP}"
    seconds = waves * each * (turns * turn + outside) / gpu.clock + 12 * c.PARTS * tokens / gpu.memory
    return Prediction(
        f"streaming forward, {row.label}, H {hidden}",
        round(seconds / product_seconds(gpu, shape), 3),
        1.12 if shape == S1 else None,
        "× one product",
        f"{programs} programs in {waves} waves of {gpu.multiprocessors}, {each} tiles each of {turns} turns · max(tensor {tensor:.0f} at "
        f"{gpu.sustained:.2f} of peak / share {row.share}, issue {row.clocks['issue']:.0f}, L2 {l2:.0f}) clk + {how} = "
        f"{seconds * 1e3:.2f} ms against {product_seconds(gpu, shape) * 1e3:.2f}",
        bench={
            **{"bench": "linear_logprob", "mode": "forward", "shape": [tokens, hidden, vocabulary], "of": "x_floor"},
            "provider": "ours, specialised" if specialised else "ours",
        },
    )


def row_seconds(row: Row, gpu: Machine, passes: int) -> float:
    tokens, _, vocabulary = S1
    return tokens * vocabulary * 2 * passes / gpu.memory / row.share


def over_rows(row: Row, gpu: Machine, passes: int, mode: str, bar: float) -> Prediction:
    milliseconds = row_seconds(row, gpu, passes) * 1e3
    return Prediction(
        f"log-prob from logits, {mode}",
        round(milliseconds, 3),
        bar,
        "ms",
        f"8,192 · 151,936 · {2 * passes} bytes at {gpu.memory / 1e12:.2f} TB/s / share {row.share} ({row.bound}; {row.per_element} "
        f"instructions an element, clocks {row.clocks})",
        bench={"bench": "logprob", "mode": mode, "provider": "ours, in place" if mode == "backward" else "ours", "of": "ms"},
    )


def two_passes(forward: Row, gpu: Machine) -> Prediction:
    product, rows = product_seconds(gpu, S1), row_seconds(forward, gpu, 1)
    return Prediction(
        "log-prob of a head in two passes, H 4096",
        round(1 + rows / product, 3),
        1.08,
        "× one product",
        f"1 + rows {rows * 1e3:.2f} ms / product {product * 1e3:.2f} ms",
    )


def fused(forward: Row, backward: Row, gpu: Machine) -> Prediction:
    product, rows = 3 * product_seconds(gpu, S1), row_seconds(forward, gpu, 1) + row_seconds(backward, gpu, 2)
    return Prediction(
        "F1, fused loss in one chunk, S1",
        round(1 + (rows + LAUNCHES) / product, 3),
        1.08,
        "× three products",
        f"1 + (rows forward and backward {rows * 1e3:.2f} ms + launches {LAUNCHES * 1e3:.1f}) / {product * 1e3:.2f} ms, "
        "no zero fill, no cast",
        bench={"bench": "linear_logprob", "mode": "grpo", "provider": "ours", "shape": list(S1), "of": "x_floor"},
    )


def attention(row: Row, gpu: Machine) -> Prediction:
    blocks = 2048 // 128
    useful = blocks / (blocks + 1)  # of the blocks that a causal mask leaves, the halves on the diagonal are for nothing
    rate = row.share * gpu.gemm * useful
    return Prediction(
        "varlen forward, D 128, documents of 2,048",
        round(rate / FA3, 3),
        0.75,
        "× FA3's published rate",
        f"share {row.share} ({row.bound}; {row.label}) · {gpu.gemm / 1e12:.0f} TFLOP/s · {useful:.2f} of the blocks "
        f"useful / {FA3 / 1e12:.0f} TFLOP/s",
        at_least=True,
    )
