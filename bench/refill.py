"""Dynamic sampling that knows the judge, in the embedded world: the same start, seed and steps with and without `rollout.refill`.

    python bench/refill.py --steps 80 --budget 20000

Prints, for each quarter of the steps, the share of groups with a signal before and after, tokens sampled and trained, and the last
evaluation; appends a JSON line a run, with machine, versions, date and commit, to bench/results/refill.jsonl.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import tyro
from record import ROOT, machine

from soundrl.engine.files.run_reader import RunReader


@dataclass(frozen=True)
class Arguments:
    steps: int = 80
    budget: int = 20000
    """`rollout.refill` of the second run; the first has 0."""
    seed: int = 0
    folder: Path = Path("runs/refill")
    """Where the runs live; a finished run is not repeated."""
    settings: str = ""
    """Of both runs, as on the command line of engine/train.py: --settings="--optim.lr 4e-4"."""


def train(arguments: Arguments, budget: int) -> Path:
    """The run's folder."""
    folder = arguments.folder / f"{budget}-seed{arguments.seed}"
    if not (folder / "policy" / f"step-{arguments.steps:06d}").exists():
        command = [sys.executable, "engine/train.py", "arith", "--run.folder", arguments.folder, "--run.name", folder.name]
        command += ["--model.path", "starts/policy", "--warm-start.steps", 0, "--run.steps", arguments.steps, "--run.seed", arguments.seed]
        command += ["--rollout.refill", budget, *shlex.split(arguments.settings)]
        environment = os.environ | {"NPROC": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{folder} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return folder


def figures(folder: Path, steps: int) -> dict[str, Any]:
    """Means over each quarter of the steps, in their order, and the last evaluation."""
    run = RunReader(folder)
    rows = [row for row in run.metrics() if "loss/policy" in row]
    groups, samples = run.config["rollout"]["prompts"], run.config["rollout"]["samples"]
    cuts = [rows[steps * i // 4 : steps * (i + 1) // 4] for i in range(4)]

    def mean(of: str, otherwise: str = "") -> list[float]:
        return [fmean(row.get(of, row.get(otherwise, 0.0)) for row in part) for part in cuts]

    sampled = [
        fmean(row["tokens/response"] * samples * (groups + row.get("refill/prompts", 0.0)) for row in part) for part in cuts
    ]  # every group of a step has as many samples
    return {
        "signal_before": mean("reward/groups_with_signal_before", "reward/groups_with_signal"),
        "signal_after": mean("reward/groups_with_signal"),
        "replaced": mean("refill/groups"),
        "rounds": mean("refill/rounds"),
        "refill_tokens": mean("refill/tokens"),
        "sampled_tokens": sampled,
        "trained_tokens": mean("tokens/trained"),
        "seconds": mean("time/step"),
        "evaluation": {name: value for name, value in run.metrics()[-1].items() if name.startswith("eval/")},
    }


def main(arguments: Arguments) -> None:
    for budget in (0, arguments.budget):
        start = time.perf_counter()
        found = figures(train(arguments, budget), arguments.steps)
        print(f"rollout.refill {budget}, {time.perf_counter() - start:.0f} s")
        for name, value in found.items():
            said = [f"{v:.3g}" for v in value] if isinstance(value, list) else [f"{of} {v:.3f}" for of, v in value.items()]
            print(f"    {name:<16} {'  '.join(said)}")
        row = {
            "bench": "refill",
            "budget": budget,
            "steps": arguments.steps,
            "seed": arguments.seed,
            "settings": arguments.settings,
            **found,
            "stamp": machine("cpu"),
        }
        with (ROOT / "bench" / "results" / "refill.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
