"""Does the step-wise reward make a critic find the *step*? R_outcome + R_process against R_outcome alone, from the same warm start.

    python bench/critic_reward.py --seeds 3

Each seed is warm-started once; both rewards continue from that very critic. Their last weights judge the same held-out solutions (flaws as
in training, and kinds never trained on), sampled with the same seeds; differences are paired by solution, with 95 % bootstrap intervals
over the solutions of all seeds. Appends a JSON line to bench/results/critic_reward.jsonl.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import tyro
from record import machine

from soundrl.engine.config import Model
from soundrl.engine.encode import Encoder
from soundrl.engine.files.model_folder import load_tokenizer
from soundrl.engine.samplers.sampler import Draw
from soundrl.engine.samplers.torch_sampler import TorchSampler
from soundrl.fapo.records import Verdict
from soundrl.genrm.critic_data.labelled import Labelled, labelled_prompt, load_labelled
from soundrl.genrm.scores import difference, score
from soundrl.genrm.verdict import parse_verdict

ROOT = Path(__file__).resolve().parent.parent
SETS = ("arith", "arith_unseen")
MEASURES = ("error_accuracy", "correct_accuracy", "f1", "recall", "precision", "flawed_f1")


@dataclass(frozen=True)
class Arguments:
    seeds: int = 3
    """Seeds 0 … seeds − 1."""
    steps: int = 60
    """RL steps."""
    warm_start: int = 1000
    """Steps of the warm start."""
    rows: int = 400
    """Held-out solutions of each of the two sets."""
    folder: Path = Path("runs/critic_reward")
    """Where the runs live; a finished run is not repeated."""
    parallel: int = 2
    """Runs at a time, one process and one thread each."""


def train(arguments: Arguments, name: str, *settings: object) -> Path:
    """Run the main job (or reuse it); its last weights."""
    folder = arguments.folder / name
    if not (folder / "done").exists():
        command = [
            sys.executable,
            "engine/train.py",
            "genrm-arith",
            "--run.folder",
            str(arguments.folder),
            "--run.name",
            name,
            "--data.test",
        ]
        environment = os.environ | {"NPROC": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, *map(str, settings)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        (folder / "done").touch()
    return sorted((folder / "policy").glob("step-??????"))[-1]


def one_seed(arguments: Arguments, seed: int) -> dict[str, Path]:
    warm = train(arguments, f"seed{seed}-warm", "--run.seed", seed, "--warm-start.steps", arguments.warm_start, "--run.steps", 0)
    out = {"warm start": warm}
    for task in ("critic-outcome", "critic"):
        settings = ("--model.path", warm, "--warm-start.steps", 0, "--run.steps", arguments.steps, "--run.task", task, "--run.seed", seed)
        out[task] = train(arguments, f"seed{seed}-{task}", *settings)
    return out


def judge(folder: Path, rows: list[Labelled]) -> list[Verdict]:
    """Verdicts of one critic, one sample a row, the same seeds for every critic."""
    tokenizer = load_tokenizer(folder)
    model = Model(path=str(folder), dtype="float32", max_length=144)
    sampler = TorchSampler(folder, tokenizer, model, cast(Any, SimpleNamespace(device=torch.device("cpu"))))
    encode = Encoder(tokenizer, 80)
    prompts = {row.id: labelled_prompt(row, "bench") for row in rows}
    draw = Draw(run_seed=0, phase="bench", step=0, temperature=1.0, max_new_tokens=64)
    requests = draw.requests([(id, encode(prompt)) for id, prompt in prompts.items()], 1)
    found = {r.prompt_id: parse_verdict(r.text, r.finish_reason, prompts[r.prompt_id].steps or 1) for r in sampler.generate(requests)}
    return [found[row.id] for row in rows]


def main(arguments: Arguments) -> None:
    with ThreadPoolExecutor(arguments.parallel) as pool:
        folders = list(pool.map(lambda seed: one_seed(arguments, seed), range(arguments.seeds)))
    record: dict[str, Any] = machine("cpu") | {name: getattr(arguments, name) for name in ("seeds", "steps", "warm_start", "rows")}
    for name in SETS:
        rows = load_labelled(f"soundrl.engine.environments.arithmetic.critic:{name}", max_rows=arguments.rows)
        verdicts = {arm: [judge(seed[arm], rows) for seed in folders] for arm in folders[0]}
        for arm, seeds in verdicts.items():
            pooled = score(rows * len(seeds), [verdict for seed in seeds for verdict in seed])
            print(f"{name:<13} {arm:<15} " + "  ".join(f"{measure} {pooled[measure]}" for measure in MEASURES), flush=True)
            record[f"{name}: {arm}"] = {measure: pooled[measure].value for measure in MEASURES}
        for measure in MEASURES:
            ours, theirs = ([verdict for seed in verdicts[arm] for verdict in seed] for arm in ("critic", "critic-outcome"))
            gain = difference(rows * len(folders), ours, theirs, measure)
            by_seed = [
                difference(rows, verdicts["critic"][i], verdicts["critic-outcome"][i], measure, resamples=2).value
                for i in range(len(folders))
            ]
            print(f"{name:<13} with − without R_process: {measure:<16} {gain}  by seed {' '.join(f'{100 * v:+.1f}' for v in by_seed)}")
            record[f"{name}: gain in {measure}"] = [gain.value, gain.low, gain.high, by_seed]
    with (ROOT / "bench" / "results" / "critic_reward.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
