"""Which code runs, and the checks of arguments that every kernel shares."""

# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable
from typing import Any, get_type_hints

import torch
from torch import Tensor

from soundrl.kernels.language import HAS_TRITON, INTERPRETING

if torch.distributed.is_available():
    from torch.distributed.tensor import DTensor, Replicate
else:
    DTensor = Replicate = ()  # of which nothing is an instance

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OFFSETS = (torch.int32, torch.int64)  # types of bounds

_check_values = False


def runs_triton(x: Tensor) -> bool:
    """True where the Triton kernel computes on `x`: on a GPU, or interpreted; fp64 and plain CPU tensors go to the reference."""
    return HAS_TRITON and (x.is_cuda or INTERPRETING) and x.dtype in KERNEL_DTYPES


def wide(x: Tensor) -> torch.dtype:
    """The type in which results of `x` are computed and returned: fp64 for fp64, else fp32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def columns(x: Tensor, number: int) -> tuple[Tensor, ...]:
    """`number` uninitialised [T] for results of the rows of `x`."""
    return tuple(torch.empty(x.shape[0], dtype=wide(x), device=x.device) for _ in range(number))


def operator(schema: str, waits: bool = False) -> Callable[[Callable], Any]:
    """Registers a function under `soundrl::` with its schema, which names the arguments and tells which are written to: `Tensor(a!)`.

    Its first argument is a tensor. Autocast is off inside: what an operator computes is said by its arguments' types alone.
    `waits`: it waits for the GPU, so that nobody may capture it into a CUDA graph.
    """
    name, written = schema.partition("(")[0], re.findall(r"Tensor\(\w+!\) (\w+)", schema)
    tags = (torch.Tag.cudagraph_unsafe,) if waits else ()
    register = torch.library.custom_op(f"soundrl::{name}", mutates_args=written, schema=schema.removeprefix(name), tags=tags)

    def registered(function: Callable) -> Any:
        @functools.wraps(function)
        def exact(first: Tensor, *rest: Any) -> Any:
            with torch.autocast(first.device.type, enabled=False):
                return function(first, *rest)

        return register(exact)

    return registered


def schema_of(record: type) -> str:
    """The fields of a NamedTuple as arguments of an operator: `Tensor logprob_T, Tensor? old_T, …`."""
    kinds = {Tensor: "Tensor", Tensor | None: "Tensor?", float: "float", int: "SymInt", bool: "bool", str: "str"}
    return ", ".join(f"{kinds[kind]} {name}" for name, kind in get_type_hints(record).items())


def launch(kernel: Any, programs: int, like: Tensor, *arguments: Any, **options: Any) -> None:
    """Start so many programs, if any, on the device of `like`: Triton launches on the current one, which may be another."""
    if programs:
        with torch.cuda.device(like.device) if like.is_cuda else contextlib.nullcontext():
            kernel[(programs,)](*arguments, **options)


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


def local(name: str, x: Tensor) -> Tensor:
    """The tensor itself; of a DTensor that every rank holds whole, this rank's copy; ValueError for one that is sharded."""
    if not isinstance(x, DTensor):
        return x
    require(
        all(isinstance(placement, Replicate) for placement in x.placements),
        lambda: (
            f"{name} is a DTensor with placements {x.placements}: where rows are sharded pass {name}.to_local() and everything else of "
            f"the same rows, where anything else is pass {name}.redistribute(placements=[Replicate()] * {x.device_mesh.ndim})"
        ),
    )
    return x.to_local()


def require(holds: bool, message: Callable[[], str]) -> None:
    """ValueError with `message()`, which names the argument, what it is, and the cure, unless `holds`.

    Made only when it is needed: torch.compile cannot trace text with symbolic sizes in it.
    """
    if not holds:
        raise ValueError(message())


def check_device(name: str, x: Tensor, like_name: str, like: Tensor) -> None:
    require(
        x.device == like.device,
        lambda: f"{name} is on {x.device}, {like_name} on {like.device}: move {name} with .to({str(like.device)!r})",
    )


def check_rows(name: str, x: Tensor, like_name: str, like: Tensor) -> None:
    """`x` must be [T], floating point, on `like`'s device, with T the rows of `like`."""
    require(
        x.shape == like.shape[:1],
        lambda: (
            f"{name} has shape {tuple(x.shape)}, {like_name} has {tuple(like.shape)}: give {name} one entry a row, shape ({like.shape[0]},)"
        ),
    )
    check_device(name, x, like_name, like)
    require(x.dtype.is_floating_point, lambda: f"{name} is {x.dtype}: give floating point, e.g. {name}.float()")


def check_softcap(softcap: float | None) -> None:
    require(softcap is None or 0 < softcap < math.inf, lambda: f"softcap={softcap} must be finite and > 0; None = no cap")


def check_offsets(name: str, offsets: Tensor, rows_name: str, rows: int, *, whole: bool = True) -> None:
    """[n+1] int32 or int64, from 0 to `rows` (not beyond, unless `whole`), never decreasing."""
    require(
        offsets.ndim == 1 and len(offsets) >= 1 and offsets.dtype in OFFSETS,
        lambda: (
            f"{name} has shape {tuple(offsets.shape)} and type {offsets.dtype}: give {' or '.join(str(t)[6:] for t in OFFSETS)} [n+1], "
            "the running sum of the sizes from 0"
        ),
    )
    if reads_values(offsets):
        first, last = int(offsets[0]), int(offsets[-1])
        require(
            first == 0 and (last == rows or (not whole and last < rows)),
            lambda: f"{name} runs from {first} to {last}, {rows_name} has {rows} rows: it must run from 0 to {rows}",
        )
        falls = (offsets.diff() < 0).nonzero()
        require(len(falls) == 0, lambda: f"{name} decreases at entry {int(falls[0]) + 1 if len(falls) else 0}: sizes cannot be negative")
