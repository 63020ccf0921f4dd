"""Does killing the judge in mid step lose anything? SmolLM2 on sums of one step, judged by a second SmolLM2 that the run serves itself.

    python bench/judge_killed.py --model models/smollm2            # `make smollm2-judged`: seven and a half minutes on two busy CPU cores

Once the server works on questions of step 2 it is killed (SIGKILL); the run must start it again, ask again, and end with status 0. Then the
run folder is read: every correct rollout was submitted, and holds a verdict or `unknown` with its reason. A judge of this size gives hardly
any verdict (`no_box`, `cut_off`), which is what is counted here; and GSM8K itself is too hard for a policy of this size to have much to
judge, so the problems are sums of one step, after a short warm start. Appends a JSON line to bench/results/judge_killed.jsonl.
"""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import tyro
from record import machine

from soundrl.engine.files.run_reader import RunReader
from soundrl.engine.tools.trace import read_trace
from soundrl.genrm.serve.servers import TOKEN_ENV

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 3600.0
TOKEN = secrets.token_urlsafe(24)  # every route of the server wants it, the one of its metrics too
SETTINGS = (
    *("--data.test", "--model.max-length", "256", "--warm-start.steps", "8", "--warm-start.batch", "4", "--warm-start.lr", "2e-4"),
    *("--rollout.prompts", "8", "--rollout.samples", "4", "--rollout.max-new-tokens", "48", "--rollout.eager"),
    *("--optim.minibatch-prompts", "8", "--optim.microbatch-tokens", "1024", "--run.steps", "2", "--run.name", "judged"),
    *("--fapo.lam", "1", "--genrm.judge", "serve", "--genrm.max-tokens", "64", "--genrm.unknown", "drop", "1"),
)
Found = TypeVar("Found")


@dataclass(frozen=True)
class Arguments:
    model: Path
    """SmolLM2 as a Hugging Face folder: the policy's start, and the judge."""
    folder: Path = Path("runs/judge_killed")


def problems(path: Path, count: int = 200) -> None:
    rng = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            a, b = rng.randint(2, 9), rng.randint(2, 9)
            row = {
                "id": f"sum-{number}",
                "problem": f"Tom has {a} apples and buys {b} more. How many apples does Tom have now?",
                "answer": str(a + b),
                "solution": f"Tom starts with {a} apples and buys {b} more.\n\n{a} + {b} = {a + b}\n\nThe answer is \\boxed{{{a + b}}}.",
            }
            file.write(json.dumps(row) + "\n")


def wait_for(what: str, find: Callable[[], Found | None], run: subprocess.Popen[bytes]) -> Found:
    """What `find` returns, once it does. SystemExit where the run ends or time does first."""
    end = time.monotonic() + PATIENCE
    while (found := find()) is None:
        if run.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"no {what} before the run ended with {run.poll()} or {PATIENCE:.0f} s were over")
        time.sleep(0.1)
    return found


def server_of(run: subprocess.Popen[bytes]) -> psutil.Process | None:
    """vLLM's API server among the run's own descendants; its guard, which starts it, has the same words on its command line."""
    for child in psutil.Process(run.pid).children(recursive=True):
        try:
            words = child.cmdline()
        except psutil.Error:  # it has just ended
            continue
        if "vllm.entrypoints.openai.api_server" in words and not any("guard.py" in word for word in words):
            return child
    return None


def in_work(server: psutil.Process) -> int | None:
    """Requests that the server runs at this moment; None while there are fewer than two, of which one may be the watch's probe."""
    command = server.cmdline()
    address = f"http://127.0.0.1:{command[command.index('--port') + 1]}/metrics"
    with urllib.request.urlopen(urllib.request.Request(address, headers={"authorization": f"Bearer {TOKEN}"}), timeout=20) as reply:
        page = reply.read().decode()
    running = sum(float(value) for value in re.findall(r"^vllm:num_requests_running\{.*\} (\S+)$", page, re.MULTILINE))
    return int(running) if running >= 2 else None


def first_step(folder: Path) -> dict[str, Any] | None:
    rows = RunReader(folder).metrics() if (folder / "metrics.jsonl").exists() else []
    return next((row for row in rows if "loss/policy" in row), None)


def main(arguments: Arguments) -> None:
    arguments.folder.mkdir(parents=True, exist_ok=True)
    problems(arguments.folder / "problems.jsonl")
    folder, said = arguments.folder / "judged", arguments.folder / "output.txt"
    if folder.exists():
        raise SystemExit(f"{folder} is there from an earlier run: remove it, or name another --folder")
    where = ("--run.folder", arguments.folder, "--data.train", arguments.folder / "problems.jsonl")
    models = ("--model.path", arguments.model, "--genrm.model", arguments.model)
    command = [sys.executable, "engine/train.py", "smollm2-gsm8k", *map(str, (*where, *models)), *SETTINGS]
    started = time.monotonic()
    with said.open("wb") as sink:
        run = subprocess.Popen(command, cwd=ROOT, env={"NPROC": "1", TOKEN_ENV: TOKEN} | os.environ, stdout=sink, stderr=sink)
    try:
        wait_for("first step", lambda: first_step(folder), run)
        server = wait_for("server", lambda: server_of(run), run)
        questions = wait_for("question of step 2", lambda: in_work(server), run)
        server.kill()
        again = wait_for("second server", lambda: found if (found := server_of(run)) and found.pid != server.pid else None, run)
        print(f"killed server {server.pid} with {questions} questions in work; server {again.pid} started", flush=True)
        status = run.wait(PATIENCE)
    finally:
        if run.poll() is None:
            for process in [*psutil.Process(run.pid).children(recursive=True), run]:
                process.kill()
    seen = RunReader(folder)
    rollouts = [row for step in seen.steps() for row in seen.rollouts(step)]
    submitted = [row for row in rollouts if row["outcome"] == "correct"]
    kinds = Counter(row["verdict"]["kind"] for row in submitted if row["verdict"] is not None)
    last = [row for row in seen.metrics() if "loss/policy" in row][-1]
    record = {
        "killed_with_in_work": questions,
        "restarts": said.read_text().count("started again"),
        "status": status,
        "seconds": round(time.monotonic() - started),
        "rollouts": len(rollouts),
        "submitted": len(submitted),
        "calls_in_trace": sum(event["ph"] == "b" for event in read_trace(folder / "trace.json")),
        "scored": kinds["sound"] + kinds["flawed"],
        "unknown": dict(Counter(row["verdict"]["reason"] for row in submitted if row["verdict"] and row["verdict"]["kind"] == "unknown")),
        **{name: last[f"genrm/{name}"] for name in ("requests", "retries", "ejections", "alive")},
    }
    print(json.dumps(record, indent=1))
    with (ROOT / "bench" / "results" / "judge_killed.jsonl").open("a") as file:
        file.write(json.dumps(record | {"stamp": machine("cpu")}) + "\n")
    if status or record["restarts"] != 1 or len(submitted) != kinds.total() or last["step"] != 2:
        raise SystemExit(f"the run did not get over it: see {said}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
