"""GPUs that kernels are compiled for: what one multiprocessor does in a clock, from public data sheets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Per multiprocessor and clock, unless it says otherwise."""

    name: str
    source: str
    multiprocessors: int
    clock: float
    """Hz under load."""
    products: int
    """Multiply-accumulates of bf16 into fp32, dense."""
    memory: float
    """Bytes/s of memory that a copy reaches, of the whole GPU: 0.9 of the data sheet."""
    shared: int
    """Bytes of shared memory that one program may use."""
    gemm: float
    """FLOP/s of a large bf16 product by cuBLAS, of the whole GPU; 0.74 of the tensor cores' peak where nothing is published."""
    registers: int = 65_536
    issue: int = 4
    """Warp instructions."""
    exponentials: int = 16
    l2: float = 38.8
    """Bytes out of L2: 5,120 a clock over 132 multiprocessors; published for A100 (Ampere whitepaper), taken for all."""

    @property
    def memory_clock(self) -> float:
        return self.memory / self.multiprocessors / self.clock

    @property
    def sustained(self) -> float:
        """Share of its peak that the tensor cores hold in a large product (power, clocks, waves): ours are held to no more."""
        return self.gemm / (2 * self.products * self.multiprocessors * self.clock)


def machine(
    name: str, sheet: str, multiprocessors: int, clock: float, products: int, memory: float, shared: int, gemm: float = 0.0
) -> Machine:
    """`shared` in KiB; `memory` as the sheet gives it."""
    peak = 2 * products * multiprocessors * clock
    return Machine(
        name=name,
        source=sheet,
        multiprocessors=multiprocessors,
        clock=clock,
        products=products,
        memory=0.9 * memory,
        shared=shared * 1024,
        gemm=gemm or 0.74 * peak,
    )


# Products follow from the sheets' dense bf16 FLOP/s with fp32 sums: FLOP/s / (2 · multiprocessors · boost clock). Shared memory: CUDA C++
# Programming Guide, "Technical specifications per compute capability". H100 runs below boost under load (1.755 GHz), its cuBLAS rate is the
# one its users report for products of this size (700 TFLOP/s).
MACHINES = {
    80: machine("A100 SXM 80 GB", "NVIDIA A100 data sheet, 2021: 312 TFLOP/s, 2,039 GB/s", 108, 1.41e9, 1024, 2.039e12, 163),
    86: machine("A10", "NVIDIA A10 data sheet, 2021: 125 TFLOP/s, 600 GB/s", 72, 1.695e9, 512, 0.6e12, 99),
    89: machine("L40S", "NVIDIA L40S data sheet, 2023: 362 TFLOP/s, 864 GB/s", 142, 2.52e9, 512, 0.864e12, 99),
    90: machine("H100 SXM", "NVIDIA H100 data sheet, 2023: 989 TFLOP/s, 3,350 GB/s", 132, 1.755e9, 2048, 3.35e12, 227, 700e12),
    100: machine("B200", "NVIDIA HGX B200 data sheet, 2024: 2,250 TFLOP/s, 8,000 GB/s", 148, 1.85e9, 4096, 8e12, 227),
    120: machine("RTX 5090", "NVIDIA RTX Blackwell whitepaper, 2025: 209.5 TFLOP/s, 1,792 GB/s", 170, 2.407e9, 256, 1.792e12, 99),
}
