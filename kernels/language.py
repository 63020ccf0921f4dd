"""Triton where it is installed; where it is not, as much of its names as importing our kernels needs (they are then never launched).

Triton has wheels for Linux alone: on other systems every function computes by its plain-torch reference. Kernels are written against
`from soundrl.kernels.language import tl, triton`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
    # Decided when triton is first imported: with TRITON_INTERPRET=1 kernels run on CPU tensors, program by program, in numpy.
    INTERPRETING = bool(triton.knobs.runtime.interpret)
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != "triton":
        raise
    HAS_TRITON = INTERPRETING = False

    def _jit(function: Callable | None = None, **_: Any) -> Any:
        """The plain function, also as `@jit(…)`."""
        return function if function is not None else lambda decorated: decorated

    def _cdiv(a: int, b: int) -> int:
        return -(-a // b)

    def _next_power_of_2(n: int) -> int:
        return 1 << max(n - 1, 0).bit_length()

    triton: Any = SimpleNamespace(jit=_jit, cdiv=_cdiv, next_power_of_2=_next_power_of_2)
    # `constexpr` stands in annotations and around constants of a module, whose `.value` launchers read.
    tl: Any = SimpleNamespace(constexpr=lambda value: SimpleNamespace(value=value))

__all__ = ["HAS_TRITON", "INTERPRETING", "tl", "triton"]
