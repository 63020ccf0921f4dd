"""Two runs compared, one of which was interrupted: all but times, memory and where a rollout was sampled must be equal to the bit."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import start

from soundrl.engine.files.run_reader import RunReader

OF_TIME = ("time/", "memory/", "speed/", "genrm/overlap", "genrm/latency")
OF_PROCESS = tuple(
    f"genrm/{name}"
    for name in ("requests", "replies", "deduplicated", "hedges", "ejections", "alive", "retries", "critique_tokens", "unknown_")
)
"""How a judge was asked, since this process began"""
SMALL = (
    *("--model.path", "starts/policy", "--warm-start.steps", 0, "--rollout.engine", "torch", "--data.test-rows", 8),
    *("--run.eval-sampling", 1, 1.0, 1.0, "--run.eval-every", 2, "--rollout.prompts", 8, "--optim.minibatch-prompts", 4),
    *("--run.save", 2, 2, 0, "--run.steps", 5, "--rollout.max-new-tokens", 40),
)


def job(folder: Path, *more: Any, worker: str = "tests/workers/killed.py", settings: Sequence[Any] = SMALL, **environment: Any):
    """The main job on two ranks, in `folder`/arith."""
    command = [sys.executable, worker, "arith", *map(str, settings), "--run.folder", str(folder), *map(str, more)]
    return start(command, **{"NPROC": "2"} | {name: str(value) for name, value in environment.items()})


def said(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout[-3000:] + done.stderr[-3000:]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith((*OF_TIME, *OF_PROCESS))} for row in RunReader(folder).metrics()]


def rollouts(folder: Path) -> dict[tuple, str]:
    """A digest of each rollout by step, kind, prompt and sample."""
    run, out = RunReader(folder), {}
    for kind in ("train", "replaced", "eval"):
        for step in run.steps(kind):
            for row in run.rollouts(step, kind):
                row = {name: value for name, value in row.items() if not name.startswith(("judge_", "times"))}
                row["logprobs"] = np.array(row["logprobs"], np.float32).tobytes().hex()
                key = (step, kind, row["prompt_id"], row["sample"])
                assert key not in out, key
                out[key] = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()
    return out


def weights(folder: Path) -> str:
    (last,) = sorted((folder / "policy").glob("step-*"))[-1:]
    return hashlib.sha256((last / "model.safetensors").read_bytes()).hexdigest()


def everything(folder: Path) -> dict[str, Any]:
    return {"metrics": metrics(folder), "rollouts": rollouts(folder), "weights": weights(folder)}


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The first difference by name."""
    assert [row["step"] for row in one["metrics"]] == [row["step"] for row in other["metrics"]]
    for a, b in zip(one["metrics"], other["metrics"], strict=True):
        differ = {name: (a.get(name), b.get(name)) for name in a.keys() | b.keys() if a.get(name) != b.get(name)}
        assert not differ, (a["step"], differ)
    assert one["rollouts"].keys() == other["rollouts"].keys()
    differ = [key for key, digest in one["rollouts"].items() if digest != other["rollouts"][key]]
    assert not differ, (len(differ), differ[:3])
    assert one["weights"] == other["weights"]


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of this size, mounted at `folder`; the test is skipped where that is not allowed."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
