"""What a benchmark writes down: a `Row` a provider and case, the machine it ran on, and the table on the terminal."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import triton

from soundrl.kernels.language import INTERPRETING

ROOT = Path(__file__).resolve().parent.parent


@dataclass(kw_only=True)
class Row:
    """One line of the result file. Times in ms, memory in MiB; what was not measured is None."""

    bench: str
    mode: str
    provider: str
    shape: dict[str, int | float]
    dtype: str
    timing: str = "none"
    """events (CUDA), graph (replays of a CUDA graph), perf_counter (CPU) or process_time (CPU, one thread)."""
    l2: str = "hot"
    ms: float | None = None
    p20: float | None = None
    p80: float | None = None
    repeats: int = 0
    peak_mib: float | None = None
    """Most memory allocated during one repetition beyond what was there before, results included; None on CPU."""
    result_mib: float | None = None
    """Memory of the results."""
    errors: dict[str, float] = field(default_factory=dict)
    """‖out − reference‖ / ‖reference‖ of each result."""
    floor_ms: float | None = None
    floor_by: str | None = None
    x_floor: float | None = None
    """ms over floor_ms: the longest time any ceiling of the same run gives for the case's FLOP or bytes."""
    error: str | None = None
    stamp: dict[str, Any] = field(default_factory=dict)


def machine(device: str) -> dict[str, Any]:
    """Device, versions, commit ($COMMIT where there is no git) and date of a run."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        model = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = f"{model[0] if model else platform.machine()}, {torch.get_num_threads()} threads"
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    versions = {"torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version(), "cuda": torch.version.cuda}
    if INTERPRETING:
        versions["interpreted"] = True  # such times say nothing of the kernels
    commit = git.stdout.strip() if git.returncode == 0 else os.environ.get("COMMIT", "unknown")
    return {"device": name, **versions, "commit": commit, "date": datetime.now(UTC).isoformat(timespec="seconds")}


def clocks(device: str) -> str | None:
    """`SM MHz, memory MHz, °C, W, throttle reasons` as nvidia-smi says at this moment; None without a GPU or nvidia-smi."""
    if device != "cuda":
        return None
    query = "clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_throttle_reasons.active"
    uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
    try:
        command = ["nvidia-smi", f"--id={uuid}", f"--query-gpu={query}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"clocks are not recorded: {error}", file=sys.stderr)
        return None
    return done.stdout.strip()


def table(rows: Sequence[Row]) -> str:
    """The rows as text, a line each, under the case they belong to."""
    head = f"  {'provider':28}{'ms':>10}{'p20':>10}{'p80':>10}{'x floor':>10}{'peak MiB':>10}  largest error"
    lines = []
    for row in rows:
        if not lines:
            lines += [f"{row.mode}  {' '.join(f'{k}={v}' for k, v in row.shape.items())}  {row.dtype}  L2 {row.l2}", head]
        numbers = "".join(f"{'n/a' if x is None else format(x, '.4f'):>10}" for x in (row.ms, row.p20, row.p80))
        floor = "" if row.x_floor is None else format(row.x_floor, ".3f")
        peak = "n/a" if row.peak_mib is None else format(row.peak_mib, ".1f")
        worst = max(row.errors.items(), key=lambda item: item[1], default=None)
        note = row.error.splitlines()[0][:110] if row.error else "" if worst is None else f"{worst[1]:.1e} ({worst[0]})"
        lines.append(f"  {row.provider:28}{numbers}{floor:>10}{peak:>10}  {note}")
    return "\n".join(lines)
