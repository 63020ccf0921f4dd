"""What a step costs beside sampling and training: seconds and memory of each stage on one core, 4,096 rollouts × 1,500 tokens.

    python bench/step_host.py                                         # three rounds; some minutes, most of them for making the rollouts
    python bench/step_host.py --rollouts 64 --tokens 40 --rounds 1

Each stage of each round has a process of its own, bound to one core; CPU seconds say the same on a busy machine. Memory is what its
resident size grew by at most (VmHWM, reset before the stage). What a stage has made is checked after the clock has stopped. A further stage
of the step (exchange, dealing, packing) is an entry of `STAGES`.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from soundrl.engine.files.rollout_file import RolloutWriter, read_file
from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Verdict

ROOT = Path(__file__).resolve().parent.parent
SAMPLES, VOCABULARY = 8, 151_936


@dataclass(frozen=True)
class Arguments:
    rollouts: int = 4096
    tokens: int = 1500
    """Tokens a rollout, on average: lengths go from none to twice as many."""
    rounds: int = 3
    out: Path = ROOT / "bench" / "results" / "step_host.jsonl"
    stage: str = ""
    """One stage in this process; what the rounds are made of."""


def groups_of(arguments: Arguments, arrays: bool) -> list[Group]:
    """A step like those of a run: tokens by Zipf's law, most of them nearly certain, and text of about three letters a token."""
    rng = np.random.default_rng(0)
    letters = np.array([*"etaoin shrdlu cmfwyp vbgkjq xz"])
    made = []
    for number in range(arguments.rollouts // SAMPLES):
        rollouts = []
        for sample in range(SAMPLES):
            length = int(rng.integers(2 * arguments.tokens + 1))
            tokens = (rng.zipf(1.2, length) % VOCABULARY).astype(np.int32)
            logprobs = -(rng.exponential(0.3, length).astype(np.float32) ** 2)
            rollouts.append(
                Rollout(
                    prompt_id=f"dapo.parquet:{number}",
                    sample=sample,
                    prompt_tokens=(1,) * 100,
                    tokens=tokens if arrays else tuple(tokens.tolist()),  # type: ignore[arg-type]
                    logprobs=logprobs if arrays else tuple(logprobs.tolist()),  # type: ignore[arg-type]
                    text="".join(letters[rng.integers(len(letters), size=3 * length)]),
                    finish_reason="stop",
                    policy_version=12,
                )
            )
        outcomes = [Outcome.CORRECT if sample % 2 else Outcome.WRONG for sample in range(SAMPLES)]
        verdicts = [Verdict.flawed(3) if outcome is Outcome.CORRECT else None for outcome in outcomes]
        numbers = {"rewards": [1.0] * SAMPLES, "advantages": [0.5] * SAMPLES, "kept": [True] * SAMPLES}
        prompt = Prompt(id=f"dapo.parquet:{number}", text="What is the sum of …? " * 15, answer="34")
        made.append(Group(prompt=prompt, rollouts=rollouts, outcomes=outcomes, verdicts=verdicts, **numbers))
    return made


def write_json(groups: list[Group], file: Path) -> None:
    """How rollouts were written until format 2: by rank 0 for all ranks, an object a line."""
    with file.open("w") as sink:
        for group in groups:
            for i, rollout in enumerate(group.rollouts):
                verdict = group.verdicts[i]
                row = {
                    **{
                        "prompt_id": rollout.prompt_id,
                        "sample": rollout.sample,
                        "prompt": group.prompt.text,
                        "answer": group.prompt.answer,
                    },
                    **{"text": rollout.text, "outcome": group.outcomes[i].value, "verdict": verdict and vars(verdict)},
                    **{"reward": group.rewards[i], "advantage": group.advantages[i], "kept": group.kept[i]},
                    **{"finish_reason": rollout.finish_reason, "policy_version": rollout.policy_version, "tokens": rollout.tokens},
                    "logprobs": [round(value, 6) if math.isfinite(value) else None for value in rollout.logprobs],
                }
                sink.write(json.dumps(row) + "\n")


def write_arrow(groups: list[Group], file: Path) -> None:
    with RolloutWriter(file) as sink:
        for start in range(0, len(groups), 32):
            sink.add(groups[start : start + 32])


def holds_all(groups: list[Group], file: Path) -> bool:
    """Whether every token and log-probability stands in the file, bit for bit where it is Arrow."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    if file.read_bytes()[:1] == b"{":
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        return [tuple(row["tokens"]) for row in rows] == [rollout.tokens for rollout in rollouts]
    table = read_file(file)[0]
    for name, kind in (("tokens", np.int32), ("logprobs", np.float32)):
        there = np.concatenate([chunk.flatten().to_numpy() for chunk in table[name].chunks])
        if not np.array_equal(there, np.concatenate([np.asarray(getattr(rollout, name), kind) for rollout in rollouts]), equal_nan=True):
            return False
    return table.num_rows == len(rollouts)


@dataclass(frozen=True)
class Stage:
    run: Callable[[list[Group], Path], None]
    """Timed; may write to the path."""
    right: Callable[[list[Group], Path], bool]
    arrays: bool
    """Tokens and log-probabilities come as numpy arrays, not as tuples."""


STAGES = {
    "write, JSON": Stage(write_json, holds_all, arrays=False),
    "write, Arrow from tuples": Stage(write_arrow, holds_all, arrays=False),
    "write, Arrow": Stage(write_arrow, holds_all, arrays=True),
}


def resident(name: str) -> float:
    """MiB of VmRSS or VmHWM of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def measure(stage: Stage, arguments: Arguments) -> dict[str, float]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    groups = groups_of(arguments, stage.arrays)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rollouts"
        Path("/proc/self/clear_refs").write_text("5")
        before, start, used = resident("VmRSS"), time.perf_counter(), time.process_time()
        stage.run(groups, file)
        seconds, cpu, peak = time.perf_counter() - start, time.process_time() - used, resident("VmHWM") - before
        if not stage.right(groups, file):
            raise SystemExit("what the stage has made is not what went in")
        return {"seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak, "disk_mb": file.stat().st_size / 1e6 if file.exists() else 0.0}


def main(arguments: Arguments) -> None:
    if arguments.stage:
        print(json.dumps(measure(STAGES[arguments.stage], arguments)))
        return
    from record import machine  # torch and triton, which no stage has to hold

    shape = {"rollouts": arguments.rollouts, "tokens": arguments.tokens}
    sizes = [part for name, value in shape.items() for part in (f"--{name}", str(value))]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in STAGES}
    for _ in range(arguments.rounds):
        for name, rows in found.items():
            done = subprocess.run([sys.executable, __file__, *sizes, "--stage", name], stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout))
    for name, rows in found.items():
        figures = {key: round(statistics.median(row[key] for row in rows), 4) for key in rows[0]}
        row = {"bench": "step_host", "stage": name, **shape, **figures, "rounds": arguments.rounds, "stamp": machine("cpu")}
        print(f"{name:28}" + "".join(f"{key} {value:<12.3f}" for key, value in figures.items()), flush=True)
        with arguments.out.open("a") as out:
            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
