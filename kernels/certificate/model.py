"""What the machine code lets one expect of a whole function, as ratios and milliseconds with the arithmetic beside them.

From the machine code alone: stalls that only a GPU shows are not in it, so a measured figure may be worse and not much better. Each figure
is beside its measurement wherever there is one (`measured.py`). What a family of kernels promises stands beside its cases, in `predict`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from soundrl.kernels.certificate.case import families
from soundrl.kernels.certificate.machine import MACHINES
from soundrl.kernels.certificate.row import Row

ARCH = 90
GPU = MACHINES[ARCH]
S1 = (8192, 4096, 151_936)  # tokens, hidden, vocabulary


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


def predictions(rows: list[Row]) -> list[Prediction]:
    """Of the rows of one Triton: what each family of kernels makes of those that compiled for the GPU of the model."""
    usable = [row for row in rows if row.arch == ARCH and not row.failed]
    return [p for family in families() if hasattr(family, "predict") for p in family.predict(usable)]


def best(rows: list[Row], kernel: str, label: str) -> Row | None:
    """The row of the largest share among those whose label begins so."""
    return max((r for r in rows if r.kernel == kernel and r.label.startswith(label)), key=lambda r: r.share, default=None)


def product_seconds(shape: tuple[int, int, int]) -> float:
    return 2 * math.prod(shape) / GPU.gemm
