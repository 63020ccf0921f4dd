"""Does a run grow? 500 steps of arith with the torch sampler on two ranks, looked at from outside after every step.

    python bench/soak.py                       # about a quarter of an hour on two quiet cores
    python bench/soak.py --steps 40 --every 5

Of each process: resident memory, open descriptors, threads, children; of the run folder: bytes. A line is fitted to each figure over the
last four fifths of the steps: it *grows* where the line's rise over them is more than three times the figure's scatter about it, and more
than a hundredth of the figure. Files that keep every step are meant to grow: of them bytes a step are said, over all steps and over the
last half of them. Every `every`-th step and the verdict are appended to bench/results/soak.jsonl.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = (
    "--model.path starts/policy --warm-start.steps 0 --rollout.engine torch --rollout.samples 2 --rollout.max-new-tokens 32 --data.test"
)
KEPT = ("rollouts", "trace.json", "tensorboard", "metrics.jsonl")
TURNED_OVER = ("checkpoints", "underway")  # a few of the last
WARM_UP = 0.2  # of the steps: allocators and caches fill
SCATTERS, LEAST = 3.0, 0.01


@dataclass(frozen=True)
class Arguments:
    steps: int = 500
    prompts: int = 4
    """Prompts a step, two samples each."""
    every: int = 10
    """Steps between two rows of the result file."""
    out: Path = ROOT / "bench" / "results" / "soak.jsonl"


def figures(launcher: int) -> dict[str, float]:
    """Of the launcher and its ranks, in order; memory in MiB."""
    out: dict[str, float] = {}
    ranks = sorted(map(int, Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()))
    for name, pid in zip(("launcher", *(f"rank {number}" for number in range(len(ranks)))), (launcher, *ranks), strict=True):
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        out[f"{name}, MiB"] = round(int(status["VmRSS"].split()[0]) / 1024, 2)
        out[f"{name}, threads"] = int(status["Threads"])
        out[f"{name}, descriptors"] = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        out[f"{name}, children"] = len(children)
    return out


def size(path: Path) -> int:
    """Bytes of a file, or of all below a folder; what goes meanwhile does not count."""
    total = 0
    for file in [path] if path.is_file() else path.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def fitted(steps: list[int], values: list[float]) -> dict[str, float | bool]:
    """The line over the last steps: value at its end, rise over them, scatter, and whether that is growth."""
    first = int(WARM_UP * len(steps))
    x, y = np.array(steps[first:], float), np.array(values[first:], float)
    slope, start = np.polyfit(x, y, 1)
    rise, scatter, last = slope * (x[-1] - x[0]), float(np.std(y - slope * x - start)), slope * x[-1] + start
    grows = bool(rise > SCATTERS * scatter and rise > LEAST * abs(last))
    return {"last": round(last, 2), "rise": round(rise, 3), "scatter": round(scatter, 3), "grows": grows}


def main(arguments: Arguments) -> None:
    from record import machine

    rows: list[dict[str, float]] = []
    stamp = machine("cpu")
    with tempfile.TemporaryDirectory() as runs:
        folder = Path(runs) / "arith"
        command = [sys.executable, "engine/train.py", "arith", *SETTINGS.split(), "--run.folder", runs, "--run.steps", str(arguments.steps)]
        command += ["--rollout.prompts", str(arguments.prompts), "--optim.minibatch-prompts", str(arguments.prompts)]
        with (Path(runs) / "said").open("w") as said:
            process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
        metrics, seen = folder / "metrics.jsonl", 0
        while process.poll() is None:
            lines = metrics.read_text().count("\n") if metrics.exists() else 0
            if lines > seen and lines < arguments.steps:  # at the end processes go
                seen = lines
                row = {"step": seen} | figures(process.pid)
                row |= {f"{part}, bytes": size(folder / part) for part in KEPT + TURNED_OVER}
                rows.append(row)
                if seen % arguments.every == 0:
                    print(json.dumps(row), flush=True)
            time.sleep(0.02)
        if process.returncode:
            raise SystemExit((Path(runs) / "said").read_text()[-3000:])
    steps = [int(row["step"]) for row in rows]
    kept = [f"{part}, bytes" for part in KEPT]
    fits = {name: fitted(steps, [row[name] for row in rows]) for name in rows[0] if name not in ("step", *kept)}
    for name, fit in fits.items():
        line = f"{name:24}{fit['last']:>14,.1f}  rise {fit['rise']:>10,.3f}  scatter {fit['scatter']:>9,.3f}"
        print(line + ("  GROWS" if fit["grows"] else ""))
    half = len(rows) // 2
    a_step = {n: [round(float(np.polyfit(steps[i:], [row[n] for row in rows[i:]], 1)[0])) for i in (0, half)] for n in kept}
    print("bytes a step, over all and over the last half:", a_step)
    shape = {"bench": "soak", "steps": arguments.steps, "prompts": arguments.prompts, "seen": len(rows)}
    with arguments.out.open("a") as out:
        for row in rows:
            if row["step"] % arguments.every == 0 or row is rows[0]:
                out.write(json.dumps({"bench": "soak", **row}) + "\n")
        out.write(json.dumps({**shape, "bytes_a_step": a_step, "fits": fits, "stamp": stamp}) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
