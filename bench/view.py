"""Does the inspector stay quick and small beside a long run? A made run of 500 steps × 4,096 rollouts × 500 tokens, looked at over HTTP.

    python bench/view.py                       # about three minutes; 1 GB in a temporary folder
    python bench/view.py --steps 40 --prompts 32

The rollouts of five steps are made with the run's own writer; the other steps are hard links to their files. The server is a process of
its own. Before a page is asked for, its step's files are dropped from the page cache, so that they come from the disk. Of each kind of page
the milliseconds until it has come and those that the server has computed (`cpu`, a mean), resident memory and its peak are appended to
bench/results/view.jsonl, with the machine's load and the bars: a step page within 1 s, a rollout within 300 ms, 300 MiB.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.record import machine
from soundrl.engine.files.rollout_file import RolloutWriter, file_name
from soundrl.engine.files.trained_file import Trained, trained_name, write_trained
from soundrl.engine.recipes import RECIPES
from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Verdict

ROOT = Path(__file__).resolve().parent.parent
MADE = 5  # steps with rollouts of their own
RANKS = 8
BARS = {"step": 1000.0, "rollout": 300.0, "tokens": 300.0, "MiB": 300.0}


@dataclass(frozen=True)
class Arguments:
    steps: int = 500
    prompts: int = 256
    samples: int = 16
    tokens: int = 500
    walk: int = 100
    """Steps that are looked at, one after the other, with rollouts of each"""
    out: Path = ROOT / "bench" / "results" / "view.jsonl"


WORDS = [
    f"{a}{b}"
    for a in "so the we add take by then number half sum of each line left right total".split()
    for b in ("", " 12", " = 7", ".\n\n")
]


def group_of(rng: np.random.Generator, step: int, g: int, args: Arguments) -> Group:
    """Right, wrong and flawed rollouts with texts and critiques as long as those of a small model."""
    text = f"What is {g} + {step}? " + "Some words of a problem. " * 8
    group = Group(prompt=Prompt(id=f"made.jsonl:{step}:{g}", text=text, answer=str(g + step), source="made"), rollouts=[])
    for sample in range(args.samples):
        kind = rng.integers(3)
        text = " ".join(rng.choice(WORDS, args.tokens)).strip()
        tokens = rng.integers(0, 150_000, args.tokens)
        logprobs = -rng.random(args.tokens, np.float32)
        rollout = Rollout(
            prompt_id=group.prompt.id, sample=sample, prompt_tokens=np.zeros(60, np.int32), tokens=tokens, logprobs=logprobs, text=text,
            finish_reason="stop", policy_version=step,
        )  # fmt: skip
        rollout.paragraphs, rollout.sampled, rollout.verified, rollout.window = tuple(text.split("\n\n")), 1e9 + 5.0, 1e9 + 5.1, g % 4
        verdict = (Verdict.sound, lambda: Verdict.flawed(2), lambda: None)[kind]()
        if verdict is not None:
            said = {
                "critique": " ".join(rng.choice(WORDS, 200)),
                "tokens": 200,
                "seconds": float(rng.random() * 9),
                "worker": "http://127.0.0.1:1/v1",
            }
            verdict = Verdict(verdict.kind, verdict.step, verdict.reason, **said)  # pyright: ignore
        group.rollouts.append(rollout)
        group.outcomes.append(Outcome.WRONG if kind == 2 else Outcome.CORRECT)
        group.verdicts.append(verdict)
        group.scores.append(None)
        group.extracted.append(str(g))
        group.rewards.append((1.0, 0.0, -1.0)[kind])
        group.advantages.append(float(rng.normal()))
        group.kept.append(True)
    return group


def make_rollouts(folder: Path, step: int, args: Arguments) -> None:
    rng = np.random.default_rng(step)
    folder.mkdir(parents=True)
    counts = [args.prompts // RANKS * args.samples] * RANKS
    for rank in reversed(range(RANKS)):
        groups = [group_of(rng, step, g, args) for g in range(rank, args.prompts // RANKS * RANKS, RANKS)]
        with RolloutWriter(folder / file_name(rank, "train")) as file:
            for start in range(0, len(groups), 32):
                file.add(groups[start : start + 32])
            if rank == 0:
                file.end(counts)
        rows = [Trained(r.prompt_id, r.sample, r.logprobs, r.logprobs.astype(np.float16)) for group in groups for r in group.rollouts]
        write_trained(folder / trained_name(rank), rows)


def make_trace(path: Path, args: Arguments) -> int:
    """Phases of each rank and the calls of half of the rollouts; lines."""
    lines = 0
    with path.open("w") as file:
        file.write("[\n")
        for step in range(1, args.steps + 1):
            begin, out = 1_700_000_000_000_000 + step * 60_000_000, []
            for rank in range(RANKS):
                for name, at, dur in (
                    ("generate", 0, 30),
                    ("rank_wait", 30, 2),
                    ("judge_wait", 32, 3),
                    ("train", 35, 20),
                    ("sync", 55, 4),
                    ("step", 0, 59),
                ):
                    place = f'"ts": {begin + at * 1_000_000}, "pid": {rank}, "tid": 0, "cat": "phase", "dur": {dur * 1_000_000}'
                    out.append(f'{{"name": "{name}", "ph": "X", {place}}},\n')
                for call in range(args.prompts * args.samples // 2 // RANKS):
                    name = f"made.jsonl:{step}:{call // 8 * RANKS + rank} {call % 8}"
                    for mark, at in (("b", 10_000_000 + call * 1000), ("e", 20_000_000 + call * 3000)):
                        place = f'"ts": {begin + at}, "pid": {rank}, "tid": 0, "cat": "judge", "id": "{rank}/{name}/{call}"'
                        out.append(f'{{"name": "{name}", "ph": "{mark}", {place}}},\n')
            file.writelines(out)
            lines += len(out)
    return lines


def make_run(folder: Path, args: Arguments) -> int:
    """Lines of its trace."""
    config = asdict(RECIPES["fapo-7b"]())
    config["run"] |= {"name": folder.name, "steps": args.steps}
    config["rollout"] |= {"prompts": args.prompts, "samples": args.samples}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"format": 3, **config}))
    for step in range(1, min(MADE, args.steps) + 1):
        make_rollouts(folder / "rollouts" / f"step-{step:06d}", step, args)
    for step in range(MADE + 1, args.steps + 1):
        target, source = (folder / "rollouts" / f"step-{number:06d}" for number in (step, (step - 1) % MADE + 1))
        target.mkdir()
        for file in source.iterdir():
            os.link(file, target / file.name)
    rng = random.Random(0)
    with (folder / "metrics.jsonl").open("w") as file:
        names = [f"group{i % 9}/measure_{i}" for i in range(90)] + [
            "reward/correct",
            "time/step",
            "fapo/flawed_ratio",
            "mismatch/gate",
            "tokens/response",
        ]
        for step in range(1, args.steps + 1):
            file.write(json.dumps({"step": step, **{name: rng.random() for name in names}}) + "\n")
    return make_trace(folder / "trace.json", args)


class Client:
    """Asks the server, and times it."""

    def __init__(self, address: str) -> None:
        self.host, self.token = address.split("/")[2], address.strip().split("token=")[1]

    def __call__(self, path: str) -> tuple[float, bytes]:
        """Milliseconds to the last byte, and the body."""
        start = time.perf_counter()
        connection = http.client.HTTPConnection(self.host, timeout=120)
        connection.request("GET", path, headers={"Authorization": f"Bearer {self.token}"})
        answer = connection.getresponse()
        body = answer.read()
        spent = (time.perf_counter() - start) * 1e3
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {body[:200]!r}")
        return spent, body


def forget(folder: Path) -> None:
    """Its files come from the disk when they are read next."""
    for file in folder.iterdir():
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def memory(pid: int) -> tuple[float, float]:
    """MiB now and at its peak."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) / 1024, int(status["VmHWM"].split()[0]) / 1024


def computed(pid: int) -> float:
    """Milliseconds that the server has computed for, in tens: what a page costs, however busy the machine is."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1e3 / os.sysconf("SC_CLK_TCK")


def look(run: Path, args: Arguments, pid: int, ask: Client) -> dict[str, Any]:
    times: dict[str, list[tuple[float, float]]] = {}

    def get(kind: str, path: str) -> None:
        before = computed(pid)
        spent, _ = ask(path)
        times.setdefault(kind, []).append((spent, computed(pid) - before))

    empty = memory(pid)[0]
    get("first runs", "/api/runs.json")
    get("first run", "/api/made/run.json")
    get("series", "/api/made/series.json")
    rng, resident = random.Random(1), []
    for at in range(min(args.walk, args.steps)):
        step = 1 + at * args.steps // min(args.walk, args.steps)
        forget(run / "rollouts" / f"step-{step:06d}")
        place = f"/api/made/step-{step:06d}"
        get("step", f"{place}/train.json")
        get("step again", f"{place}/train.json")
        for _ in range(3):
            g, sample = rng.randrange(args.prompts), rng.randrange(args.samples)
            get("group", f"{place}/train/group-{g}.json")
            get("rollout", f"{place}/train/rollout-{g}-{sample}.json")
            get("tokens", f"{place}/train/tokens-{g}-{sample}.json")
        forget(run / "rollouts" / f"step-{(step + 7) % args.steps + 1:06d}")
        # A link to one rollout, of a step that nobody has looked at.
        get("rollout, its step not read", f"/api/made/step-{(step + 7) % args.steps + 1:06d}/train/rollout-3-3.json")
        get("anatomy", f"{place}/anatomy.json")
        resident.append(memory(pid)[0])
    get("judge", "/api/made/judge.json")
    get("find", "/api/made/find.json?q=half+sum")
    get("runs", "/api/runs.json")
    get("run", "/api/made/run.json")
    now, peak = memory(pid)
    found = {}
    for name, said in times.items():
        waited, own = zip(*said, strict=True)
        found[name] = {
            "n": len(said),
            "median": round(median(waited), 1),
            "worst": round(max(waited), 1),
            "cpu": round(sum(own) / len(own), 1),
        }
    load = round(os.getloadavg()[0], 1)
    return {
        "load": load,
        "ms": found,
        "MiB": {"empty": round(empty), "half": round(resident[len(resident) // 2]), "end": round(now), "peak": round(peak)},
    }


def main(args: Arguments) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "runs" / "made"
        lines = make_run(run, args)
        command = [sys.executable, "-m", "soundrl.view", str(run.parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                row = look(run, args, server.pid, Client(server.stdout.readline()))
            finally:
                server.terminate()
    worst = {name: row["MiB"]["peak"] if name == "MiB" else row["ms"][name]["worst"] for name in BARS}
    held = {name: worst[name] <= bar for name, bar in BARS.items()}
    asked = {name: value for name, value in asdict(args).items() if name != "out"}
    line = {"bench": "view", **asked, "trace_lines": lines, **row, "bars": BARS, "held": held, "stamp": machine("cpu")}
    with args.out.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line, indent=1))
    sys.exit(0 if all(held.values()) else 1)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
