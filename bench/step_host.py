"""What a step costs beside sampling and training: seconds and memory of each stage on one core, 4,096 rollouts × 1,500 tokens.

    python bench/step_host.py                                         # three rounds; some minutes, most of them for making the rollouts
    python bench/step_host.py --rollouts 64 --tokens 40 --rounds 1

One rank that holds all of them: exchange (a process group of one; it copies all the same), mini-batches with windows dealt into rounds of
micro-batches, packing of all of these, and writing, beside which stands how rollouts were written until format 2. Each stage of each round
has a process of its own, bound to one core; CPU seconds say the same on a busy machine. Memory is what its resident size grew by at most
(VmHWM, reset before the stage). What a stage has made is checked after the clock has stopped.
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
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import tyro

from soundrl.engine.exchange import StepBatch, exchange
from soundrl.engine.files.rollout_file import RolloutWriter, read_file
from soundrl.engine.packing import Sample, micro_batches, pack
from soundrl.engine.ranks import Ranks
from soundrl.engine.schedule import minibatches
from soundrl.fapo.pending import PendingGroups, done
from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Verdict

ROOT = Path(__file__).resolve().parent.parent
SAMPLES, VOCABULARY = 8, 151_936
MINIBATCH, BUDGET = 32, 10_240  # prompts; tokens of a micro-batch


@dataclass(frozen=True)
class Arguments:
    rollouts: int = 4096
    tokens: int = 1500
    """Tokens a rollout, on average: lengths go from none to twice as many."""
    rounds: int = 3
    out: Path = ROOT / "bench" / "results" / "step_host.jsonl"
    stage: str = ""
    """One stage in this process; what the rounds are made of."""


def groups_of(arguments: Arguments) -> list[Group]:
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
                    prompt_tokens=np.ones(100, np.int32),
                    tokens=tokens,
                    logprobs=logprobs,
                    text="".join(letters[rng.integers(len(letters), size=3 * length)]),
                    finish_reason="stop",
                    policy_version=12,
                )
            )
        outcomes = [Outcome.CORRECT if sample % 2 else Outcome.WRONG for sample in range(SAMPLES)]
        verdicts = [Verdict.flawed(3) if outcome is Outcome.CORRECT else None for outcome in outcomes]
        numbers = {"rewards": [1.0] * SAMPLES, "advantages": [0.5, -0.5] * (SAMPLES // 2), "kept": [True] * SAMPLES}
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
                    **{name: getattr(rollout, name) for name in ("prompt_id", "sample", "text", "finish_reason", "policy_version")},
                    **{"prompt": group.prompt.text, "answer": group.prompt.answer},
                    **{"outcome": group.outcomes[i].value, "verdict": verdict and vars(verdict), "tokens": rollout.tokens.tolist()},
                    **{"reward": group.rewards[i], "advantage": group.advantages[i], "kept": group.kept[i]},
                    "logprobs": [round(value, 6) if math.isfinite(value) else None for value in rollout.logprobs.tolist()],
                }
                sink.write(json.dumps(row) + "\n")


def write_arrow(groups: list[Group], file: Path) -> None:
    with RolloutWriter(file) as sink:
        for start in range(0, len(groups), 32):
            sink.add(groups[start : start + 32])


def holds_all(groups: list[Group], made: None, file: Path) -> bool:
    """Whether every token and log-probability stands in the file, bit for bit where it is Arrow."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    if file.read_bytes()[:1] == b"{":
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        return all(row["tokens"] == rollout.tokens.tolist() for row, rollout in zip(rows, rollouts, strict=True))
    table = read_file(file)[0]
    for name in ("tokens", "logprobs"):
        there = np.concatenate([chunk.flatten().to_numpy() for chunk in table[name].chunks])
        if not np.array_equal(there, np.concatenate([getattr(rollout, name) for rollout in rollouts]), equal_nan=True):
            return False
    return table.num_rows == len(rollouts)


def alone() -> Ranks:
    """One rank with a real process group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    ranks = Ranks(0, 1, torch.device("cpu"), None)  # type: ignore[arg-type]
    ranks.gather_array(np.zeros(1))  # the first collective starts what later ones find
    return ranks


def finished(groups: list[Group]) -> tuple[list[Prompt], PendingGroups]:
    """The groups as sampling leaves them, every verdict there."""
    pending = PendingGroups([group.prompt for group in groups], lambda new: None, decisive=False)
    for group in groups:
        of = pending.by_prompt[group.prompt.id]
        for rollout, outcome, verdict in zip(group.rollouts, group.outcomes, group.verdicts, strict=True):
            of.add(rollout, done(outcome), done(verdict))
        of._group = group
    return [group.prompt for group in groups], pending


def exchanged(groups: list[Group]) -> StepBatch:
    return exchange(*finished(groups), alone())


def dealt(batch: StepBatch) -> list[list[Sample]]:
    """The micro-batches of all windows of all mini-batches."""
    out = []
    for minibatch in minibatches(batch, MINIBATCH, BUDGET):
        for window in minibatch.trained():
            out += [[window[i] for i in own] for (own,) in micro_batches([sample.length for sample in window], 1, BUDGET)]
    return out


def packed(parts: list[list[Sample]]) -> int:
    """Tokens; as in training, one micro-batch is alive at a time."""
    return sum(pack(part, torch.device("cpu")).tokens for part in parts)


def lengths(groups: list[Group]) -> list[int]:
    return [len(rollout.tokens) for group in groups for rollout in group.rollouts]


@dataclass(frozen=True)
class Stage:
    given: Callable[[list[Group]], Any]
    """What stands there when it begins, from the step's rollouts; not timed."""
    run: Callable[[Any, Path], Any]
    """Timed; may write to the path."""
    right: Callable[[list[Group], Any, Path], bool]


STAGES = {
    "exchange": Stage(
        lambda groups: (*finished(groups), alone()),
        lambda given, file: exchange(*given),
        lambda groups, made, file: [len(sample.tokens) for sample in made.samples] == lengths(groups),
    ),
    "deal": Stage(
        exchanged,
        lambda batch, file: dealt(batch),
        lambda groups, made, file: sorted(len(s.tokens) for part in made for s in part) == sorted(n for n in lengths(groups) if n),
    ),
    "pack": Stage(
        lambda groups: dealt(exchanged(groups)),
        lambda parts, file: packed(parts),
        lambda groups, made, file: made == sum(n + 100 for n in lengths(groups) if n),
    ),
    "write": Stage(lambda groups: groups, write_arrow, holds_all),
    "write, JSON": Stage(lambda groups: groups, write_json, holds_all),
}
NEW = ("exchange", "deal", "pack", "write")


def resident(name: str) -> float:
    """MiB of VmRSS or VmHWM of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def measure(stage: Stage, arguments: Arguments) -> dict[str, float]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    groups = groups_of(arguments)
    given = stage.given(groups)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rollouts"
        Path("/proc/self/clear_refs").write_text("5")
        before, start, used = resident("VmRSS"), time.perf_counter(), time.process_time()
        made = stage.run(given, file)
        seconds, cpu, peak = time.perf_counter() - start, time.process_time() - used, resident("VmHWM") - before
        if not stage.right(groups, made, file):
            raise SystemExit("what the stage has made is not what went in")
        return {"seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak, "disk_mb": file.stat().st_size / 1e6 if file.exists() else 0.0}


def main(arguments: Arguments) -> None:
    if arguments.stage:
        print(json.dumps(measure(STAGES[arguments.stage], arguments)))
        return
    from record import machine

    shape = {"rollouts": arguments.rollouts, "tokens": arguments.tokens}
    sizes = [part for name, value in shape.items() for part in (f"--{name}", str(value))]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in STAGES}
    for _ in range(arguments.rounds):
        for name, rows in found.items():
            done = subprocess.run([sys.executable, __file__, *sizes, "--stage", name], stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout))
    middle = {name: {key: round(statistics.median(row[key] for row in rows), 4) for key in rows[0]} for name, rows in found.items()}
    sums = {key: round(sum(middle[name][key] for name in NEW), 4) for key in ("seconds", "cpu_seconds", "disk_mb")}
    middle["in all"] = sums | {"peak_mib": max(middle[name]["peak_mib"] for name in NEW)}
    for name, figures in middle.items():
        row = {"bench": "step_host", "stage": name, **shape, **figures, "rounds": arguments.rounds, "stamp": machine("cpu")}
        print(f"{name:14}" + "".join(f"{key} {value:<12.3f}" for key, value in figures.items()), flush=True)
        with arguments.out.open("a") as out:
            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
