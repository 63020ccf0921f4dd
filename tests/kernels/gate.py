"""Compile gate: every Triton kernel and configuration compiled for NVIDIA GPUs without one, and what the machine code shows.

`gate_<module>.py` beside this file lists the `CASES` of one kernel module. As a program, `python tests/kernels/gate.py 90` compiles all
of them for sm_90 and prints a JSON list of `Row`s; it must run where Triton does not interpret, hence in a process of its own.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes of shared memory that one program may use


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
    """The kernel multiplies matrices: on sm_90 it must use WGMMA."""
    spill: int = 0
    """Bytes of local memory that are accepted, with the reason in a comment where this is not 0."""
    architectures: tuple[int, ...] = (80, 90)


@dataclass(frozen=True)
class Row:
    """What one compilation gave."""

    kernel: str
    label: str
    arch: int
    registers: int
    spill: int
    shared: int
    wgmma: int
    fp64: int
    seconds: float
    expects_wgmma: bool
    may_spill: int

    def faults(self) -> list[str]:
        out = []
        if self.spill > self.may_spill:
            out.append(f"spills {self.spill} bytes, {self.may_spill} accepted")
        if self.shared > SHARED_LIMIT[self.arch]:
            out.append(f"needs {self.shared} bytes of shared memory, sm_{self.arch} has {SHARED_LIMIT[self.arch]}")
        if self.fp64:
            out.append(f"{self.fp64} fp64 instructions")
        if self.expects_wgmma and self.arch == 90 and not self.wgmma:
            out.append("no WGMMA")
        return out


def source_of(case: Case) -> Any:
    """What Triton compiles for `case`; ValueError where its arguments are not the kernel's."""
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    missing = set(names) - set(case.signature) - set(case.constexprs)
    unknown = (set(case.signature) | set(case.constexprs)) - set(names)
    if missing or unknown:
        raise ValueError(f"{case.kernel.__name__} {case.label}: arguments missing {sorted(missing)}, unknown {sorted(unknown)}")
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


def compile_case(case: Case, arch: int) -> Row:
    """Compile for `sm_<arch>` and read registers, local memory and instructions from the result."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas

    source = source_of(case)
    started = time.perf_counter()
    compiled = triton.compile(
        source, target=GPUTarget("cuda", arch, 32), options={"num_warps": case.num_warps, "num_stages": case.num_stages}
    )
    seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        tool = Path(get_ptxas(arch).path).with_name("cuobjdump")
        usage = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    ptx = compiled.asm["ptx"]
    return Row(
        kernel=case.kernel.__name__,
        label=case.label,
        arch=arch,
        registers=int(found[1]),
        spill=int(found[2]),
        shared=compiled.metadata.shared,
        wgmma=ptx.count("wgmma.mma_async"),
        fp64=len(re.findall(r"\.f64\b", ptx)),
        seconds=round(seconds, 2),
        expects_wgmma=case.wgmma,
        may_spill=case.spill,
    )


def all_cases() -> Iterator[Case]:
    for path in sorted(Path(__file__).parent.glob("gate_*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield from module.CASES


def table(rows: list[Row]) -> str:
    head = f"{'kernel':32} {'configuration':30} arch  regs spill  shared wgmma fp64 seconds"
    lines = [
        f"{r.kernel:32} {r.label:30} {r.arch:4} {r.registers:5} {r.spill:5} {r.shared:7} {r.wgmma:5} {r.fp64:4} {r.seconds:7.2f}"
        for r in rows
    ]
    return "\n".join([head, *lines])


def main(arch: int) -> None:
    rows = [compile_case(case, arch) for case in all_cases() if arch in case.architectures]
    print(json.dumps([dataclasses.asdict(row) for row in rows]))


if __name__ == "__main__":
    sys.modules["gate"] = sys.modules["__main__"]  # one `Case` class, also for the files that import it from here
    main(int(sys.argv[1]))
