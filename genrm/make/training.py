"""Training a GenRM: `engine/train.py` in a process of its own, which goes on by itself where it was interrupted, and its checkpoints."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from soundrl.genrm.make.stages import Found, digests, linked
from soundrl.genrm.selection import exported
from soundrl.genrm.serve.machine import group_runs


def _script(module: str) -> str:
    """Its path, as it is started: this floor imports nothing of the one above, whose processes are programs like others."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"{module} is not installed, which trains: install soundrl[train]")
    return os.path.relpath(spec.origin)


def train_command(folder: Path, recipe: str, settings: Mapping[str, tuple[object, ...]], more: Sequence[str]) -> list[str]:
    """The critic's run in `folder`/run; `more` are the user's own settings, which come last and count."""
    words = [part for name, values in settings.items() for part in (f"--{name}", *map(str, values))]
    return [sys.executable, _script("soundrl.engine.train"), recipe, "--run.folder", str(folder), "--run.name", "run", *words, *more]


def train(command: Sequence[str], folder: Path, base: Path, prompt: str) -> Found:
    """Runs `command` and exports every checkpoint it has kept; `policy/step-000000` is the `base` itself, to compare with. Each is marked
    as one that reads `prompt`. ValueError where a process has failed; its own words stand above."""
    run = folder / "run"
    to_its_end(command, run)
    dtype = json.loads((run / "config.json").read_text())["model"]["dtype"]
    guarded([sys.executable, "-m", "soundrl.engine.tools.export", "write", str(run), "--dtype", dtype])
    card = json.dumps({"prompt": prompt}) + "\n"
    for path in exported(run):
        (path / "card.json").write_text(card)  # not the one that the base may have, which speaks of other weights
    if (start := run / "policy" / "step-000000") not in exported(run):
        linked(base, start, "card.json", card)
    return {"checkpoints": {path.name: digests(path) for path in exported(run)}}


def to_its_end(command: Sequence[str], run: Path) -> None:
    """The run in `run`, begun or gone on with by `command`. ValueError where it has failed, or has not come to its end."""
    ended(run / ".lock")
    guarded(command)
    if (run / "underway").exists():  # stopped and saved, it ends with status 0 as well
        raise ValueError(f"{run} was stopped before its end; the same command goes on")


def ended(lock: Path, seconds: float = 30.0) -> None:
    """Waits for ranks of a run that was killed with us: they end by themselves, a moment later. Who holds it longer is named by the run."""
    end = time.monotonic() + seconds
    while lock.exists() and time.monotonic() < end:
        with contextlib.suppress(BlockingIOError), lock.open("a") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.1)


def guarded(command: Sequence[str]) -> None:
    """Runs it in a session of its own, which ends when this process does, in whatever way. ValueError where it fails."""
    print(f"$ {shlex.join(command)}", flush=True)
    process = subprocess.Popen(
        [sys.executable, "-P", _script("soundrl.genrm.serve.guard"), *command], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        status = process.wait()
    except KeyboardInterrupt:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # a run saves its state first
        while group_runs(process.pid):
            time.sleep(0.1)
        raise
    if status:
        raise ValueError(f"`{shlex.join(command)}` ended with status {status}; see above. The same command goes on")
