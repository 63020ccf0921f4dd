"""Peak memory by phase, to stand beside the plan: what the device holds, or on CPU this process.

On a GPU the driver's own count of memory in use is read where a phase begins and ends (`mem_get_info`): other processes, CUDA's context and
vLLM's pool are in it, and a sleeping pool is not, which torch's counters go on counting. That catches peaks within a phase since torch's
allocator keeps what it has once taken; what gives memory back, vLLM's sleep and `empty_cache`, stands between phases or where one begins.
On CPU the kernel keeps the highest resident size, and forgets it where a phase begins (`/proc/self/clear_refs`); where that may not be
written, the size where phases end is taken, a lower bound.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from soundrl.engine.phases import peak_phase

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
FORGET_PEAK = "5"  # proc(5): resets VmHWM to the present size


class MemoryWatch:
    """Of this process; `turn` is called wherever phases begin or end (`Timeline`)."""

    def __init__(self) -> None:
        self.phase = ""
        self.peaks: dict[str, float] = {}
        """MiB by phase, since the last `take`"""
        self.highest = 0.0
        """MiB of host memory, of the whole process so far"""
        self.forgets = True
        """Whether the kernel forgets a peak when it is asked to"""

    def turn(self, names: Sequence[str]) -> None:
        """`names`: of the phases that are open from now on, the outermost first."""
        phase = peak_phase(names)
        if not (self.phase or phase):
            return
        used = self._used()
        if self.phase:
            self.peaks[self.phase] = max(self.peaks.get(self.phase, 0.0), used)
        self.phase = phase
        self._forget()

    def _used(self) -> float:
        """MiB at most since the last `_forget`; on a GPU now."""
        if torch.cuda.is_initialized():
            free, total = torch.cuda.mem_get_info()
            return (total - free) / 2**20
        peak = resident("VmHWM" if self.forgets else "VmRSS")
        self.highest = max(self.highest, peak)
        return peak

    def _forget(self) -> None:
        if self.forgets and not torch.cuda.is_initialized():
            try:
                CLEAR.write_text(FORGET_PEAK)
            except OSError:  # a container may not, and other systems have none
                self.forgets = False

    def take(self) -> dict[str, float]:
        """`memory/<phase>_mib` since the last call."""
        peaks, self.peaks = self.peaks, {}
        return {f"memory/{phase}_mib": peak for phase, peak in peaks.items()}

    def process(self) -> dict[str, float]:
        """Peak host memory of this process, and of torch's allocator on its GPU where there is one, in MiB."""
        scale = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is bytes on macOS, KiB on Linux
        # The kernel's own maximum forgets with VmHWM.
        self.highest = max(self.highest, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale)
        out = {"memory/peak_rss_mib": self.highest}
        if torch.cuda.is_available():
            out["memory/peak_gpu_mib"] = torch.cuda.max_memory_allocated() / 2**20
        return out


def resident(name: str) -> float:
    """MiB of VmRSS or VmHWM; 0 where there is no such file."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), 0.0)


MEMORY = MemoryWatch()
"""Of this process, which is one rank."""
