"""FAPO against GRPO in the embedded world: the same warm-started policy, seed and steps, λ = 1 and λ = 0, several seeds.

    python bench/arith_lambda.py --seeds 3 --steps 60
    python bench/arith_lambda.py --recipe arith-tools        # with a calculator: misuse of the tool among the flaws

Each seed is warm-started once; then every λ continues from that very policy. Prints mean ± sd over seeds, and what each later λ gains over
the first, paired by seed, with 95 % t intervals; appends a JSON line with hardware, versions, date and commit to
bench/results/arith_lambda.jsonl (arith_tools.jsonl).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

sys.path.append(str(Path(__file__).resolve().parent / "science"))
import over_seeds  # noqa: E402
from record import machine  # noqa: E402

from soundrl.engine.files.run_reader import RunReader  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
MEASURES = {
    "flawed ÷ correct": "-test/flawed_ratio",
    "tool misuse ÷ correct": "-test/tool_misuse",
    "accuracy": "-test/accuracy",
    "sound": "-test/sound",
    "accuracy, tens digit": "-test-p2/accuracy",
    "sound, tens digit": "-test-p2/sound",
}


@dataclass(frozen=True)
class Arguments:
    recipe: Literal["arith", "arith-tools"] = "arith"
    """The world."""
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
    """Run the main job (or reuse it) and return its last evaluation's measures."""
    of_recipe = f"{arguments.recipe}-{name}"
    folder = arguments.folder / of_recipe
    if not (folder / "done").exists():
        command = [sys.executable, "engine/train.py", arguments.recipe, "--run.folder", str(arguments.folder), "--run.name", of_recipe]
        environment = os.environ | {"NPROC": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, *map(str, settings)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{of_recipe} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        (folder / "done").touch()
    first = f"eval/{arguments.recipe}"
    last = [row for row in RunReader(folder).metrics() if f"{first}-test/accuracy" in row][-1]
    return {label: last[first + name] for label, name in MEASURES.items() if first + name in last}


def one_seed(arguments: Arguments, seed: int) -> dict[str, dict[str, float]]:
    common = ("--run.seed", seed, "--data.test-rows", arguments.rows)
    out = {"start": train(arguments, f"seed{seed}-warm", *common, "--run.steps", 0)}
    start = arguments.folder / f"{arguments.recipe}-seed{seed}-warm" / "policy" / "step-000000"
    for lam in arguments.lams:
        settings = ("--model.path", start, "--warm-start.steps", 0, "--run.steps", arguments.steps, "--fapo.lam", lam)
        out[f"λ = {lam:g}"] = train(arguments, f"seed{seed}-lam{lam:g}", *common, *settings)
    return out


def spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def paired(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Mean of the differences, and half the width of its 95 % interval (absent for one pair).

    >>> [round(value, 3) for value in paired([0.1, 0.2, 0.3], [0.3, 0.3, 0.3])]
    [-0.1, 0.248]
    """
    gain = over_seeds.mean([a - b for a, b in zip(ours, theirs, strict=True)])
    return [gain.value, gain.high - gain.value] if gain.n > 1 else [gain.value]


def main(arguments: Arguments) -> None:
    if arguments.seeds < 1:
        raise SystemExit(f"error: --seeds {arguments.seeds}; use 1 or more")
    with ThreadPoolExecutor(arguments.parallel) as pool:
        seeds = list(pool.map(lambda seed: one_seed(arguments, seed), range(arguments.seeds)))
    record = machine("cpu") | {name: getattr(arguments, name) for name in ("recipe", "seeds", "steps", "rows")} | {"samples": 2}
    grpo, *others = (f"λ = {lam:g}" for lam in arguments.lams)
    for variant in seeds[0]:
        print(f"{variant}   (n = {arguments.seeds} seeds)")
        for label in seeds[0][variant]:
            values = record[f"{variant}: {label}"] = [seed[variant][label] for seed in seeds]
            line = f"    {label:<22} {statistics.fmean(values):.3f} ± {spread(values):.3f}   {' '.join(f'{v:.3f}' for v in values)}"
            if variant in others:
                gain = record[f"{variant} − {grpo}: {label}"] = paired(values, [seed[grpo][label] for seed in seeds])
                line += f"   − {grpo}: {' ± '.join(f'{v:+.3f}' if not i else f'{v:.3f}' for i, v in enumerate(gain))}"
            print(line)
    name = "arith_lambda" if arguments.recipe == "arith" else "arith_tools"
    with (ROOT / "bench" / "results" / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
