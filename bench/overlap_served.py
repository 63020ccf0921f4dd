"""Is overlapping ever slower? The embedded world with a GenRM that the run serves itself, overlapped and serial, in turns.

    python bench/overlap_served.py --policy runs/arith/policy/step-000000 --judge runs/genrm-arith/policy/step-000040

On two CPU cores judge and trainer compete for the same arithmetic: nothing can be gained, and nothing must be lost. Both settings start
from the same policy and, being equal to the bit, do the same work; they take turns, a run each, so that what else the machine does meets
both. Prints medians over all steps and the share hidden, from metrics.jsonl; appends a JSON line to bench/results/overlap_served.jsonl.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import tyro

from soundrl.engine.files.run_reader import RunReader

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {"overlapped": "--run.overlap", "serial": "--run.no-overlap"}


@dataclass(frozen=True)
class Arguments:
    policy: Path
    """A warm-started policy of the embedded world."""
    judge: Path
    """Its GenRM (recipe genrm-arith)."""
    steps: int = 8
    """RL steps a run; the first is not counted."""
    turns: int = 2
    """Runs of each setting."""
    folder: Path = Path("runs/overlap_served")


def steps_of_run(arguments: Arguments, name: str, setting: str) -> list[dict[str, float]]:
    judge = ("--genrm.judge", "serve", "--genrm.model", arguments.judge, "--genrm.max-tokens", 64, "--genrm.deadline", 60, 60)
    common = ("--model.path", arguments.policy, "--warm-start.steps", 0, "--run.steps", arguments.steps, "--data.test")
    where = ("--run.folder", arguments.folder, "--run.name", name, "--run.no-resume")
    command = [sys.executable, "engine/train.py", "arith", *map(str, (*judge, setting, *where, *common))]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    rows = RunReader(arguments.folder / name).metrics()
    return [row for row in rows if "time/step" in row][1:]


def main(arguments: Arguments) -> None:
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
    for turn in range(arguments.turns):
        for name, setting in SETTINGS.items():
            rows[name] += steps_of_run(arguments, f"{name}-{turn}", setting)
    # The witness that both did the same: rewards and losses, step for step.
    same = all(a[key] == b[key] for a, b in zip(*rows.values(), strict=True) for key in ("loss/policy", "optim/grad_norm", "reward/mean"))
    names = ("time/step", "time/judge_wait", "genrm/overlap", "genrm/unknown")
    record = {f"{setting} {key}": round(statistics.median(row[key] for row in rows[setting]), 4) for setting in SETTINGS for key in names}
    record["ratio"] = round(record["overlapped time/step"] / record["serial time/step"], 3)
    for setting in SETTINGS:
        seconds, wait, share, unknown = (record[f"{setting} {key}"] for key in names)
        print(f"{setting:<11} {seconds:6.2f} s a step, {wait:.2f} waiting for verdicts, judging hidden {share:.1%}, unknown {unknown:.1%}")
    print(f"overlapped ÷ serial {record['ratio']}; losses {'equal to the bit' if same else 'DIFFER'}")
    stamp = {"date": date.today().isoformat(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "torch": version("torch")}
    with (ROOT / "bench" / "results" / "overlap_served.jsonl").open("a") as file:
        file.write(json.dumps(stamp | {"steps": len(rows["serial"]), "equal": same} | record) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
