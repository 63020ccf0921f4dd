"""Which code runs, and the checks of arguments that every kernel shares."""

# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import torch
import triton
from torch import Tensor
from torch.distributed.tensor import DTensor

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Decided when triton is first imported: with TRITON_INTERPRET=1 kernels run on CPU tensors, program by program, in numpy.
INTERPRETING = bool(triton.knobs.runtime.interpret)

_check_values = False


def runs_triton(x: Tensor) -> bool:
    """True where the Triton kernel computes on `x`: on a GPU, or interpreted; fp64 and plain CPU tensors go to the reference."""
    return (x.is_cuda or INTERPRETING) and x.dtype in KERNEL_DTYPES


def device_of(x: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def check_values(on: bool) -> None:
    """Switch on or off, for GPU tensors, the checks that must read them: targets within the vocabulary, offsets that cover the rows, finite
    temperatures. They wait for the GPU, hence off by default; on CPU they always run."""
    global _check_values
    _check_values = on


def reads_values(x: Tensor) -> bool:
    """Whether checks may look into `x`: not while it is traced, and on a GPU only where `check_values(True)` asked for it."""
    if torch.compiler.is_compiling() or isinstance(x, torch._subclasses.FakeTensor):
        return False
    return _check_values or x.device.type == "cpu"


def require(holds: bool, message: Callable[[], str]) -> None:
    """ValueError with `message()`, which names the argument, what it is, and the cure, unless `holds`.

    Made only when it is needed: torch.compile cannot trace text with symbolic sizes in it.
    """
    if not holds:
        raise ValueError(message())


def check_rows(name: str, x: Tensor, like_name: str, like: Tensor, integer: bool = False) -> None:
    """`x` must be [T] on `like`'s device, with T the rows of `like`; integers are int64, everything else floating point."""
    require(
        x.shape == like.shape[:1],
        lambda: (
            f"{name} has shape {tuple(x.shape)}, {like_name} has {tuple(like.shape)}: give {name} one entry a row, shape ({like.shape[0]},)"
        ),
    )
    require(
        x.device == like.device,
        lambda: f"{name} is on {x.device}, {like_name} on {like.device}: move {name} with .to({str(like.device)!r})",
    )
    if integer:
        require(x.dtype == torch.int64, lambda: f"{name} is {x.dtype}: give int64, e.g. {name}.long()")
    else:
        require(x.dtype.is_floating_point, lambda: f"{name} is {x.dtype}: give floating point, e.g. {name}.float()")


def check_targets(targets_T: Tensor, like_name: str, like: Tensor, vocabulary: int) -> None:
    """Targets [T] int64 within the vocabulary."""
    check_rows("targets", targets_T, like_name, like, integer=True)
    if reads_values(targets_T) and targets_T.numel():
        low, high = int(targets_T.min()), int(targets_T.max())
        require(
            0 <= low and high < vocabulary,
            lambda: f"targets lie in {low} … {high}, the vocabulary has {vocabulary} entries: leave padding out (no index is ignored)",
        )


def check_temperature(temperature: float | Tensor, like_name: str, like: Tensor) -> None:
    """A finite number above 0, or such a number for each row."""
    if isinstance(temperature, Tensor):
        check_rows("temperature", temperature, like_name, like)
        if reads_values(temperature) and temperature.numel():
            require(
                bool((torch.isfinite(temperature) & (temperature > 0)).all()),
                lambda: "temperature holds values that are not finite or not > 0: greedy rows have no log-probability; use 1.0 there",
            )
    else:
        require(
            0 < temperature < math.inf,
            lambda: f"temperature={temperature} must be finite and > 0: greedy sampling has no log-probability; use 1.0",
        )


def check_softcap(softcap: float | None) -> None:
    require(softcap is None or 0 < softcap < math.inf, lambda: f"softcap={softcap} must be finite and > 0; None = no cap")


def check_offsets(name: str, offsets: Tensor, rows_name: str, rows: int) -> None:
    """int64 [n+1] from 0 to `rows`, never decreasing."""
    require(
        offsets.ndim == 1 and len(offsets) >= 1 and offsets.dtype == torch.int64,
        lambda: f"{name} has shape {tuple(offsets.shape)} and type {offsets.dtype}: give int64 [n+1], the running sum of the sizes from 0",
    )
    if reads_values(offsets):
        require(
            int(offsets[0]) == 0 and int(offsets[-1]) == rows,
            lambda: f"{name} runs from {int(offsets[0])} to {int(offsets[-1])}, {rows_name} has {rows} rows: it must run from 0 to {rows}",
        )
        falls = (offsets.diff() < 0).nonzero()
        require(len(falls) == 0, lambda: f"{name} decreases at entry {int(falls[0]) + 1 if len(falls) else 0}: sizes cannot be negative")


def refuse_sharded(name: str, x: Tensor) -> None:
    """An FSDP2 parameter is a DTensor outside its module's forward; gathering it here would bypass FSDP2's hooks and gradient reduction."""
    require(
        not isinstance(x, DTensor),
        lambda: (
            f"{name} is a sharded DTensor: call the kernel inside the forward of the module that owns it, where FSDP2 has gathered it "
            "(engine/head.py shows how), or pass full_tensor() for a pass without gradient"
        ),
    )
