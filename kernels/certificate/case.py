"""One configuration of one kernel, as it is compiled; files `cases_<family>.py` beside this one list the `CASES` of a family of kernels,
and in `predict(rows)` what they promise."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

import soundrl.kernels.certificate as room
from soundrl.kernels.softmax import Softmax

EVERYWHERE = (80, 90, 100, 120)
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One configuration of one kernel."""

    kernel: Any
    """The `@triton.jit` function."""
    label: str
    """What tells this configuration from the kernel's others, e.g. `bf16 D128`."""
    signature: dict[str, Any]
    """Type of each run-time argument: `*bf16`, `*i64`, `i32`, `fp32`, … or a tuple of them; in it `constexpr` is a None."""
    constexprs: dict[str, Any]
    """Value of each compile-time argument; `None` for a pointer that is not given."""
    num_warps: int = 4
    num_stages: int = 2
    aligned: tuple[str, ...] = ()
    """Integer arguments, or tuples that hold some, that the wrapper guarantees to be multiples of 16 (pointers always are)."""
    wgmma: bool = False
    """The kernel multiplies matrices: on sm_90 it must use WGMMA, and asynchronously."""
    spill: int = 0
    """Bytes of local memory that are accepted, with the reason in a comment where this is not 0."""
    architectures: tuple[int, ...] = EVERYWHERE
    element_bytes: int = 0
    """Row kernels without bias: bytes of an entry of the row; from its loads follow how many entries a turn takes."""
    instructions: float = 0.0
    """Row kernels: most instructions an element on sm_90; 0 = none promised."""

    @property
    def name(self) -> str:
        return f"{self.kernel.__name__} {self.label}".strip()

    def fingerprint(self) -> str:
        """Of everything that decides the machine code but Triton, ptxas and the GPU: source of the functions it reaches, types, constants.

        Comments, docstrings and line numbers are no part of it.
        """
        given = (self.signature, self.constexprs, self.num_warps, self.num_stages, self.aligned)
        text = "\n".join([repr(given), *sources(self.kernel)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def sources(kernel: Any) -> tuple[str, ...]:
    """The syntax trees of a Triton function and of all that it calls, and the constants that they name, sorted."""
    out: dict[str, str] = {}
    waiting = [kernel]
    while waiting:
        function = waiting.pop()
        name = f"{function.fn.__module__}.{function.fn.__name__}"
        if name in out:
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(function.fn)))
        body = tree.body[0].body  # type: ignore[attr-defined]
        if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            del body[0]
        out[name] = ast.dump(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id in function.fn.__globals__:
                value = function.fn.__globals__[node.id]
                if type(value).__module__.startswith("triton.runtime"):
                    waiting.append(value)
                elif type(value).__name__ == "constexpr" or isinstance(value, int | float | str):
                    out[f"{function.fn.__module__}.{node.id}"] = repr(getattr(value, "value", value))
    return tuple(f"{name} {text}" for name, text in sorted(out.items()))


def source_of(case: Case) -> Any:
    """What Triton compiles for `case`; ValueError where its arguments are not the kernel's."""
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    missing = set(names) - set(case.signature) - set(case.constexprs)
    unknown = (set(case.signature) | set(case.constexprs)) - set(names)
    if missing or unknown:
        raise ValueError(f"{case.name}: arguments missing {sorted(missing)}, unknown {sorted(unknown)}: give each of {names} once")
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    leaves = {path: (name, kind) for i, name in enumerate(names) for path, kind in leaves_of((i,), signature[name])}
    divisible = [path for path, (name, kind) in leaves.items() if kind.startswith("*") or (name in case.aligned and kind == "i32")]
    nothing = {path: None for path, (name, kind) in leaves.items() if kind == "constexpr" and name not in case.constexprs}
    attributes = {path: [["tt.divisibility", 16]] for path in divisible}
    return ASTSource(fn=case.kernel, signature=signature, constexprs=dict(case.constexprs) | nothing, attrs=attributes)


def leaves_of(path: tuple[int, ...], kind: Any) -> Iterator[tuple[tuple[int, ...], str]]:
    """(place, type) of an argument, or of each in a tuple of arguments."""
    if isinstance(kind, str):
        yield path, kind
    else:
        for i, inner in enumerate(kind):
            yield from leaves_of((*path, i), inner)


def given(**kinds: str | None) -> tuple[dict, dict]:
    """(signature, constexprs) of optional arguments: those that are None are compile-time."""
    return {k: v for k, v in kinds.items() if v}, {k: None for k, v in kinds.items() if not v}


def softmax_types(full: bool, dtype: str = "fp32") -> Softmax:
    """Types of a `Softmax`'s fields, with all of them given or only what must be."""
    return Softmax("fp32", "*fp32" if full else "constexpr", f"*{dtype}" if full else "constexpr", "fp32")  # type: ignore[arg-type]


def families() -> list[Any]:
    """The modules `cases_<family>`, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(room.__path__) if module.name.startswith("cases_"))
    return [importlib.import_module(f"{room.__name__}.{name}") for name in names]


def all_cases() -> list[Case]:
    """Of every family; ValueError where two have one name, as a committed row would then stand for both."""
    cases = [case for family in families() for case in family.CASES]
    seen: set[tuple[str, int]] = set()
    for case in cases:
        for arch in case.architectures:
            if (case.name, arch) in seen:
                raise ValueError(f"two cases are called {case.name!r} on sm_{arch}: give each its own label")
            seen.add((case.name, arch))
    return cases
