"""The runs below a folder, with the health of each."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from soundrl.view.advice import advice
from soundrl.view.lock import holder
from soundrl.view.plain import NotThere, key_of, one_fault
from soundrl.view.recipe import nearest
from soundrl.view.run import Run

DEPTH = 3
MOST = 1000  # runs
STALL = 6.0  # times the median step without anything new
STALL_LEAST = 120.0  # seconds: a run that begins, compiles or evaluates is not stalled
Json = dict[str, Any]
FIGURES = {
    "right": "reward/correct",
    "flawed": "fapo/flawed_ratio",
    "flawed_corrected": "fapo/flawed_corrected",
    "flawed_low": "fapo/flawed_corrected_low",
    "flawed_high": "fapo/flawed_corrected_high",
    "judge_f1": "genrm/probe_f1",
    "gate": "mismatch/gate",
}
OF_EVAL = {"sound": "sound", "sound_low": "sound_low", "sound_high": "sound_high"}


class Runs:
    """`Runs(Path("runs"))`: a folder of runs, or one run. What it has found stays, so that files are read on and not anew."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise ValueError(f"{root} is no folder; name one with runs, as runs, or one run, as runs/arith-genrm")
        self.given, self.root = root, root.resolve()
        self.held: dict[str, Run] = {}
        self.lock = threading.Lock()

    def all(self) -> list[Run]:
        """As they are now on the disk, by name."""
        found = [self.root] if is_run(self.root) else sorted(self._below(self.root, DEPTH))[:MOST]
        with self.lock:
            held, self.held = self.held, {}
            for path in found:
                name = path.name if path == self.root else os.fspath(path.relative_to(self.root))
                key = key_of(name)
                known = held.get(key)
                self.held[key] = known if known is not None and known.path == path else Run(path, self.root, key, name)
            return list(self.held.values())

    def _below(self, folder: Path, depth: int) -> list[Path]:
        out = []
        try:
            entries = [entry for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=True)]
        except OSError:
            return []
        for entry in entries:
            path = Path(entry.path)
            if entry.is_symlink() and not path.resolve().is_relative_to(self.root):
                continue
            if is_run(path):
                out.append(path)
            elif depth > 1 and not entry.is_symlink():
                out += self._below(path, depth - 1)
        return out

    def run(self, key: str) -> Run:
        """NotThere for a name that is none."""
        if key not in self.held:
            self.all()
        if key not in self.held:
            raise NotThere(f"no run has the key {key[:100]!a}; runs.json lists those that there are")
        return self.held[key]

    def page(self) -> Json:
        """`runs.json`"""
        return {
            "version": 1,
            "root": os.fspath(self.given).encode("utf-8", "replace").decode(),
            "runs": [entry_of(run) for run in self.all()],
        }


def is_run(path: Path) -> bool:
    return (path / "metrics.jsonl").is_file() or ((path / "rollouts").is_dir() and (path / "config.json").is_file())


def entry_of(run: Run) -> Json:
    """A run's row; one that cannot be read says so, and is there."""
    try:
        return _entry(run)
    except (OSError, ValueError) as error:
        none = dict.fromkeys([*FIGURES, *OF_EVAL, "tokens_per_second"])
        return EMPTY | {"key": run.key, "name": shown(run.name), "state": "broken", "fault": one_fault(error), "figures": none}


EMPTY: Json = {name: None for name in ("step", "steps", "recipe", "task", "started", "updated", "eta")} | {"alarms": []}


def shown(name: str) -> str:
    """A name that is no UTF-8 is readable all the same."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _entry(run: Run) -> Json:
    run.check(run.path / "metrics.jsonl")
    metrics = run.metrics.read()
    steps = run.setting("run.steps")
    steps = steps if isinstance(steps, int) else None
    state, seconds, updated = state_of(run, steps), metrics.seconds, updated_of(run)
    recipe = nearest(run.config)
    left = None if steps is None or seconds is None or state not in ("running", "stalled") else max(steps - metrics.step, 0) * seconds
    fault = "; ".join(filter(None, (run.fault, metrics.unread and metrics.fault)))
    entry = {
        "key": run.key,
        "name": shown(run.name),
        "state": "broken" if fault else state,
        "step": metrics.step if metrics.train.steps or metrics.evals.steps else None,
        "steps": steps,
        "recipe": recipe and recipe[0],
        "task": run.setting("run.task", "") or None,
        "started": started_of(run),
        "updated": updated,
        "eta": left,
        "figures": figures(run),
        "alarms": [found["what"] for found in advice(run, state, updated) if found["level"] == "alarm"],
    }
    return entry | ({"fault": fault} if fault else {})


def figures(run: Run) -> Json:
    train, evals = run.metrics.train, run.metrics.evals
    out: Json = {name: train.last(of) if name == "judge_f1" else train.now(of) for name, of in FIGURES.items()}
    out["judge_f1"] = max(((s, v) for series in (train, evals) for s, v in series.pairs("genrm/probe_f1")), default=(0, None))[1]
    first = next((name.split("/")[1] for name in evals.values if name.endswith("/accuracy")), "")
    out |= {name: evals.last(f"eval/{first}/{of}") for name, of in OF_EVAL.items()}
    prompts, samples = run.setting("rollout.prompts"), run.setting("rollout.samples")
    tokens, seconds = train.now("tokens/response"), train.now("time/step")
    known = isinstance(prompts, int) and isinstance(samples, int) and tokens is not None and seconds
    out["tokens_per_second"] = tokens * prompts * samples / seconds if known else None  # pyright: ignore
    return out


def updated_of(run: Run) -> float | None:
    times = []
    for name in ("metrics.jsonl", "trace.json", "underway"):
        try:
            times.append((run.path / name).stat().st_mtime)
        except OSError:
            continue
    return max(times, default=None)


def started_of(run: Run) -> float | None:
    """When its trace begins, else when config.json was written."""
    try:
        with (run.path / "trace.json").open("rb") as file:
            head = file.read(400)
        at = head.find(b'"ts": ')
        if at >= 0 and (digits := head[at + 6 : at + 26].split(b",")[0].strip()).isdigit():
            return int(digits) / 1e6
        return (run.path / "config.json").stat().st_mtime
    except OSError:
        return None


def state_of(run: Run, steps: int | None) -> str:
    held, updated = holder(run.path), updated_of(run) or 0.0
    patience = max(STALL * (run.metrics.seconds or 0.0), STALL_LEAST)
    quiet = time.time() - updated > patience
    if held == "held":
        return "stalled" if quiet and run.metrics.seconds is not None else "running"
    if steps is not None and run.metrics.step >= steps:
        return "ended"
    # Locks of another machine are not seen from here: what is new tells.
    return "running" if held == "elsewhere" and not quiet else "stopped"
