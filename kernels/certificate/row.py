"""What one compilation showed, what is wrong with it, and in what it is worse than another."""

from __future__ import annotations

from dataclasses import dataclass, field

from soundrl.kernels.certificate.case import Case
from soundrl.kernels.certificate.machine import MACHINES

MORE_INSTRUCTIONS = 1.02
LESS_SHARE = 0.98


@dataclass(frozen=True, kw_only=True)
class Row:
    kernel: str
    label: str
    arch: int
    triton: str
    ptxas: str = ""
    fingerprint: str = ""
    failed: str = ""
    """Why there is no machine code."""
    registers: int = 0
    spill: int = 0
    """Bytes of local memory a thread."""
    shared: int = 0
    products: str = ""
    """The instruction that multiplies matrices: HGMMA (WGMMA), HMMA, UTCHMMA (tcgen05)."""
    serialised: str = ""
    """Why products do not overlap anything: ptxas' own C75xx, or each waits alone."""
    early_releases: int = 0
    loads: dict[str, int] = field(default_factory=dict)
    """tma, async (cp.async) and plain loads from global memory, whole kernel."""
    fp64: int = 0
    quiet_minmax: int = 0
    """min and max of fp32 without .NaN: they drop a NaN."""
    turn: float = 0.0
    """Instructions of a warp in a turn of the main loop, summed over the groups of warps that have a loop of their own."""
    outside: float = 0.0
    """Instructions of a warp in a turn of the loop around it, rarely run stretches left out."""
    spills_in_loop: int = 0
    per_element: float = 0.0
    clocks: dict[str, float] = field(default_factory=dict)
    """Of a turn (row kernels: of an element) on one multiprocessor: tensor, issue, l2, bytes."""
    bound: str = ""
    share: float = 0.0
    """Predicted: of the ceiling (tensor cores, or memory) that the main loop reaches."""

    @property
    def name(self) -> str:
        return f"{self.kernel} {self.label}".strip()

    @property
    def key(self) -> tuple[str, int, str]:
        return self.name, self.arch, self.triton

    def faults(self, case: Case) -> list[str]:
        """What no kernel may do, unless its case says so with a reason."""
        if self.failed:
            return [f"does not compile: {self.failed}"]
        limit = MACHINES[self.arch].shared
        checks = (
            (self.spill > case.spill, f"spills {self.spill} bytes, {case.spill} accepted"),
            (self.shared > limit, f"needs {self.shared} bytes of shared memory, sm_{self.arch} has {limit}"),
            (self.fp64, f"{self.fp64} fp64 instructions"),
            (case.wgmma and self.arch == 90 and self.products != "HGMMA", "no WGMMA"),
            (case.wgmma and self.serialised, f"products are serialised: {self.serialised}"),
            (self.early_releases, f"gives shared memory back {self.early_releases} times before its products are done"),
            (
                case.instructions and self.arch == 90 and self.per_element > case.instructions,
                f"{self.per_element:.1f} instructions an element, at most {case.instructions:g}",
            ),
        )
        return [message for wrong, message in checks if wrong]

    def worse_than(self, other: Row) -> list[str]:
        """In what it is worse than a row of the same case, GPU and Triton."""
        limit = MACHINES[self.arch].shared
        out = [f"does not compile: {self.failed}"] if self.failed and not other.failed else []
        if self.shared > limit >= other.shared:
            out.append(f"does not fit: {self.shared} bytes of shared memory of {limit}")
        if self.serialised and not other.serialised:
            out.append(f"products are serialised: {self.serialised}")
        for name in ("spill", "spills_in_loop", "fp64", "early_releases", "quiet_minmax"):
            if getattr(self, name) > getattr(other, name):
                out.append(f"{name} {getattr(self, name)}, was {getattr(other, name)}")
        for name in ("turn", "outside", "per_element"):
            if getattr(self, name) > MORE_INSTRUCTIONS * getattr(other, name) > 0:
                out.append(f"{name} {getattr(self, name):.4g} instructions, was {getattr(other, name):.4g}")
        if self.share < LESS_SHARE * other.share:
            out.append(f"predicted share {self.share:.3f}, was {other.share:.3f}")
        return out


def table(rows: list[Row]) -> str:
    head = f"{'kernel and configuration':58} arch Triton  regs spill  shared products tma/async/plain   turn outside /elem bound   share"
    return "\n".join([head, *map(line, rows)])


def line(r: Row) -> str:
    start = f"{r.name:58} {r.arch:4} {r.triton:6}"
    if r.failed:
        return f"{start} {r.failed}"
    products, loads = r.products + "!" * bool(r.serialised), "/".join(str(r.loads[kind]) for kind in ("tma", "async", "plain"))
    loop = f"{r.turn:6.0f} {r.outside:7.0f} {r.per_element:5.1f} {r.bound:7} {r.share:5.2f}"
    return f"{start} {r.registers:5} {r.spill:5} {r.shared:7} {products:8} {loads:15} {loop}"
