"""FAPO against GRPO in the embedded world: the same warm-started policy, seed and steps, λ = 1 and λ = 0, several seeds.

    python bench/arith_lambda.py --seeds 3 --steps 60

Each seed is warm-started once; then every λ continues from that very policy. Prints mean ± sd over seeds and appends a JSON line with
hardware, versions, date and commit to bench/results/arith_lambda.jsonl.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import tyro

from soundrl.engine.files.run_reader import RunReader

ROOT = Path(__file__).resolve().parent.parent
MEASURES = {
    "flawed ÷ correct": "eval/arith-test/flawed_ratio",
    "accuracy": "eval/arith-test/accuracy",
    "sound": "eval/arith-test/sound",
    "accuracy, tens digit": "eval/arith-test-p2/accuracy",
    "sound, tens digit": "eval/arith-test-p2/sound",
}


@dataclass(frozen=True)
class Arguments:
    seeds: int = 3
    """Seeds 0 … seeds − 1."""
    steps: int = 60
    """RL steps."""
    lams: tuple[float, ...] = (0.0, 1.0)
    """Values of λ to compare; 0 is GRPO."""
    rows: int = 500
    """Test problems of each of the two sets, two samples each."""
    folder: Path = Path("runs/arith_lambda")
    """Where the runs live; a finished run is not repeated."""
    parallel: int = 2
    """Runs at a time, one process and one thread each."""


def train(arguments: Arguments, name: str, *settings: object) -> dict[str, float]:
    """Run the main job (or reuse it) and return its last evaluation."""
    folder = arguments.folder / name
    if not (folder / "done").exists():
        command = [sys.executable, "engine/train.py", "arith", "--run.folder", str(arguments.folder), "--run.name", name]
        environment = os.environ | {"NPROC": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, *map(str, settings)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        (folder / "done").touch()
    rows = RunReader(folder).metrics()
    return [row for row in rows if MEASURES["accuracy"] in row][-1]


def one_seed(arguments: Arguments, seed: int) -> dict[str, dict[str, float]]:
    common = ("--run.seed", seed, "--data.test-rows", arguments.rows)
    out = {"start": train(arguments, f"seed{seed}-warm", *common, "--run.steps", 0)}
    start = arguments.folder / f"seed{seed}-warm" / "policy" / "step-000000"
    for lam in arguments.lams:
        settings = ("--model.path", start, "--warm-start.steps", 0, "--run.steps", arguments.steps, "--fapo.lam", lam)
        out[f"λ = {lam:g}"] = train(arguments, f"seed{seed}-lam{lam:g}", *common, *settings)
    return out


def main(arguments: Arguments) -> None:
    with ThreadPoolExecutor(arguments.parallel) as pool:
        seeds = list(pool.map(lambda seed: one_seed(arguments, seed), range(arguments.seeds)))
    record: dict[str, object] = {}
    for variant in seeds[0]:
        print(variant)
        for label, name in MEASURES.items():
            values = [seed[variant][name] for seed in seeds]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"    {label:<22} {statistics.fmean(values):.3f} ± {spread:.3f}   {' '.join(f'{v:.3f}' for v in values)}")
            record[f"{variant}: {label}"] = values
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    stamp = {
        "date": date.today().isoformat(),
        "commit": commit,
        "cores": os.cpu_count(),
        "torch": version("torch"),
        "steps": arguments.steps,
        "rows": arguments.rows,
        "samples": 2,
    }
    with (ROOT / "bench" / "results" / "arith_lambda.jsonl").open("a") as file:
        file.write(json.dumps(stamp | record, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
