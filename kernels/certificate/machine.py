"""GPUs that kernels are compiled for: what one multiprocessor does in a clock, from public data sheets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """Per multiprocessor and clock, unless it says otherwise."""

    name: str
    source: str
    multiprocessors: int
    clock: float
    """Hz under load."""
    products: int
    """Multiply-accumulates of bf16 into fp32, dense."""
    sheet_memory: float
    """Bytes/s of the data sheet, of the whole GPU."""
    shared: int
    """Bytes of shared memory that one program may use."""
    sustained: float = 0.7377
    """Share of their peak that the tensor cores hold in a large product (power, clocks, waves); ours are held to no more. H100's users
    report 700 TFLOP/s of cuBLAS for a head's products, of 949 at 1.755 GHz; taken for all."""
    issue: int = 4
    """Warp instructions."""
    registers: int = 65_536
    """Of 32 bits."""
    special: int = 16
    """Lanes of the unit that makes exponentials and converts single numbers."""
    l2: float = 38.8
    """Bytes out of L2: 5,120 a clock over 132 multiprocessors; published for A100 (NVIDIA A100 whitepaper), taken for all."""

    @property
    def memory(self) -> float:
        """Bytes/s that a copy reaches, of the whole GPU."""
        return 0.9 * self.sheet_memory

    @property
    def memory_clock(self) -> float:
        return self.memory / self.multiprocessors / self.clock

    @property
    def gemm(self) -> float:
        """FLOP/s of a large bf16 product, of the whole GPU."""
        return self.sustained * 2 * self.products * self.multiprocessors * self.clock


# Products follow from the sheets' dense bf16 FLOP/s with fp32 sums: FLOP/s / (2 · multiprocessors · boost clock). Shared memory: CUDA C++
# Programming Guide, "Technical specifications per compute capability". H100 runs at 1.755 GHz under load, below its boost of 1.83.
KIB = 1024
MACHINES = {
    80: Machine("A100 SXM 80 GB", "NVIDIA A100 data sheet, 2021: 312 TFLOP/s, 2,039 GB/s", 108, 1.41e9, 1024, 2.039e12, 163 * KIB),
    86: Machine("A10", "NVIDIA A10 data sheet, 2021: 125 TFLOP/s, 600 GB/s", 72, 1.695e9, 512, 0.6e12, 99 * KIB),
    89: Machine("L40S", "NVIDIA L40S data sheet, 2023: 362 TFLOP/s, 864 GB/s", 142, 2.52e9, 512, 0.864e12, 99 * KIB),
    90: Machine("H100 SXM", "NVIDIA H100 data sheet, 2023: 989 TFLOP/s, 3,350 GB/s", 132, 1.755e9, 2048, 3.35e12, 227 * KIB),
    100: Machine("B200", "NVIDIA HGX B200 data sheet, 2024: 2,250 TFLOP/s, 8,000 GB/s", 148, 1.85e9, 4096, 8e12, 227 * KIB),
    120: Machine("RTX 5090", "NVIDIA RTX Blackwell whitepaper, 2025: 209.5 TFLOP/s, 1,792 GB/s", 170, 2.407e9, 256, 1.792e12, 99 * KIB),
}
