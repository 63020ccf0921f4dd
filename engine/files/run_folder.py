"""The memory of a run: `runs/<name>/` with config.json, metrics.jsonl, trace.json and every rollout; TensorBoard where it is installed."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import json
import math
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from soundrl.engine.config import GROUPS, Config
from soundrl.engine.files.checkpoint import checkpoints
from soundrl.engine.files.older_config import of_today
from soundrl.engine.files.rollout_file import RolloutWriter, file_name
from soundrl.engine.files.run_reader import FORMAT, read_lines
from soundrl.engine.files.trained_file import Trained, trained_name, write_trained
from soundrl.engine.files.whole import whole
from soundrl.engine.launch.last_words import RANK, remove, undone
from soundrl.engine.launch.words import WARM_START
from soundrl.engine.ranks import Ranks
from soundrl.engine.telemetry.timeline import TraceFile
from soundrl.fapo.records import Group


class RunFolder:
    """Written by rank 0 alone, but for the rollouts, of which each rank writes its own; every line is flushed, so that a killed run keeps
    what it has done. `soundrl.engine.files.run_reader` reads it."""

    def __init__(self, config: Config, ranks: Ranks) -> None:
        self.path = RANK.home = Path(config.run.folder) / config.run.name
        self.config, self.ranks, self.writes = config, ranks, ranks.main
        self.metrics = self.board = self.trace = self.lock = None
        self.lines = self.disagreed = 0
        self.standing: dict[str, str] = {}
        """Alarms that the file says stand, by name"""
        self.goes_on = False
        """Whether an earlier run of this name goes on, from its last checkpoint, or from its beginning where it has none"""
        self.marks: dict[str, int] = {}
        """How far the files of the run that goes on are its state's (`mark`), which who has read the state says before the block ends"""

    @contextlib.contextmanager
    def claimed(self) -> Iterator[Config]:
        """Take the folder, prepare the run in the block, and open the files. A collective. An earlier run of this name goes on, if it is
        this one and may; else it moves aside, and back where the preparation fails. Yields the configuration, in which what comes from the
        earlier run is named where it is. ValueError where another process writes to the folder or it cannot be made, and where the run
        that would go on has other settings."""
        undo = contextlib.ExitStack()
        with undone(undo.close):
            aside, failure = None, ""
            try:
                aside = self._take(undo) if self.writes else None
            except OSError as error:
                failure = f"run.folder: cannot write {error.filename or self.path} ({os.strerror(error.errno or 0)}); choose another one"
            except ValueError as error:
                failure = str(error)
            aside, failure, self.goes_on = self.ranks.gather((aside, failure, self.goes_on))[0]
            if failure:
                raise ValueError(failure)
            (self.path / "rollouts").mkdir(parents=True, exist_ok=True)  # another one, where nodes share no disk
            config = self.config if aside is None else relocated(self.config, self.path, aside)
            yield config
            if self.writes:
                self._open(config)
        RANK.folder = self.path
        RANK.tell("folder", str(self.path))

    def _take(self, undo: contextlib.ExitStack) -> Path | None:
        """Lock the folder, and empty it where no run goes on; where the earlier run is then."""
        aside = lock = None
        if (self.path / "metrics.jsonl").exists():
            lock = locked(self.path)
            self.goes_on = goes_on(self.path, self.config)
            if not self.goes_on:
                aside = next(old for n in itertools.count(1) if not (old := self.path.with_name(f"{self.path.name}.{n}")).exists())
                self.path.rename(aside)
                undo.callback(aside.rename, self.path)
        if self.goes_on:
            self.lock = lock
        else:
            new = not self.path.exists()
            (self.path / "rollouts").mkdir(parents=True, exist_ok=True)
            if new:
                undo.callback(remove, self.path)
            self.lock = locked(self.path)
            if lock is not None:
                lock.close()
        for pattern in ("error-rank*.txt", "*.part"):
            for old in self.path.glob(pattern):
                remove(old)
        return aside

    def _open(self, config: Config) -> None:
        """What an interrupted run has written behind its state is written again."""
        (self.path / "config.json").write_text(json.dumps({"format": FORMAT, **dataclasses.asdict(config)}, indent=2) + "\n")
        self.lines = self.marks.get("metrics", 0)
        with (self.path / "metrics.jsonl").open("a+b") as log:
            log.seek(0)
            log.truncate(sum(len(line) for line in itertools.islice(log, self.lines)))
        self.metrics = (self.path / "metrics.jsonl").open("a")
        self.disagreed = self.marks.get("disagreements", 0)
        if (file := self.path / "disagreements.jsonl").exists():
            os.truncate(file, self.disagreed)
        self._keep_alarms(self.marks.get("step", 0))
        self.trace = TraceFile(self.path / "trace.json", self.marks.get("trace", 0))
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        if self.goes_on and not self.lines:
            remove(self.path / "tensorboard")
        # TensorBoard's own way to forget steps.
        self.board = SummaryWriter(str(self.path / "tensorboard"), purge_step=self.marks["step"] + 1 if self.lines else None)

    def mark(self, step: int) -> dict[str, int]:
        """How far the files are those of a run in which `step` steps have ended."""
        trace = 0 if self.trace is None else self.trace.size
        return {"step": step, "metrics": self.lines, "trace": trace, "disagreements": self.disagreed}

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One object a step; keys are those of DESIGN §7. Not-finite values are written as null: JSON has no NaN."""
        if self.metrics is None:
            return
        clean = {k: (v if math.isfinite(v) else None) for k, v in metrics.items()}
        self.metrics.write(json.dumps({"step": step, **clean}) + "\n")
        self.metrics.flush()
        self.lines += 1
        if self.board is not None:
            for name, value in metrics.items():
                self.board.add_scalar(name, value, step)

    def disagree(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Rollouts of which a second opinion says otherwise, a line each (`soundrl.genrm.watch.second`); a file where there are any."""
        if self.writes and rows:
            with (self.path / "disagreements.jsonl").open("a") as file:
                file.writelines(json.dumps({"step": step, **row}, ensure_ascii=False) + "\n" for row in rows)
                self.disagreed = file.tell()

    def alarms(self, step: int, standing: Mapping[str, str]) -> None:
        """Those that stand after a step, by name: a line where they are others than before (`alarms.jsonl`)."""
        if self.writes and standing != self.standing:
            self.standing = dict(standing)
            with (self.path / ALARMS).open("a") as file:
                file.write(json.dumps({"step": step, "alarms": self.standing}, ensure_ascii=False) + "\n")

    def _keep_alarms(self, step: int) -> None:
        """Those up to a step; what an interrupted run has said later is said again."""
        if (file := self.path / ALARMS).exists():
            kept = [row for row in read_lines(file) if row["step"] <= step]
            file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
            self.standing = kept[-1]["alarms"] if kept else {}

    def save_rollouts(self, step: int, groups: Sequence[Group], kind: str = "train", set: str = "") -> None:
        """This rank's groups of one sampling with outcomes, verdicts, rewards and advantages; `kind` and `set` as `rollout_file` has them.
        A collective, of numbers alone: rank 0 ends its file when all others have theirs. A rank without rollouts writes nothing."""
        rows = sum(len(group.rollouts) for group in groups)
        folder = self.path / "rollouts" / f"step-{step:06d}"
        if rows or self.writes:
            folder.mkdir(exist_ok=True)
            target = folder / file_name(self.ranks.rank, kind, set)
            with whole(target) as beside, RolloutWriter(beside, kind, set) as file:
                for start in range(0, len(groups), 32):
                    file.add(groups[start : start + 32])
                if self.writes:
                    file.end(self.ranks.gather(rows))
        if not self.writes:
            self.ranks.gather(rows)

    def save_trained(self, step: int, rows: Iterable[Trained]) -> None:
        """What this rank has computed of the tokens that it trained; nothing where it trained none."""
        if rows := list(rows):
            folder = self.path / "rollouts" / f"step-{step:06d}"
            folder.mkdir(exist_ok=True)
            with whole(folder / trained_name(self.ranks.rank)) as beside:
                write_trained(beside, rows)

    def save_plan(self, plan: dict[str, float]) -> None:
        """What the run will hold in memory, MiB by name (`plan.json`)."""
        (self.path / "plan.json").write_text(json.dumps(plan, indent=2) + "\n")

    def save_trace(self, events: Sequence[dict[str, Any]]) -> None:
        """This rank's events, see `soundrl.engine.telemetry.timeline`. A collective."""
        parts = self.ranks.gather(events)
        if self.trace is not None:
            self.trace.add(event for part in parts for event in part)

    def close(self) -> None:
        for sink in (self.metrics, self.board, self.trace, self.lock):
            if sink is not None:
                sink.close()


def locked(folder: Path) -> IO[str]:
    """The lock of a run folder, held until it is closed or this process ends, in whatever way; its file stays. ValueError, which names the
    process, where another one holds it."""
    lock = (folder / ".lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        who = lock.read().strip() or "another process"
        lock.close()
        raise ValueError(f"{folder} is being written by {who}; wait for it, end it, or choose another --run.name") from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()
    return lock


FREE = (
    "run.steps run.eval_every run.eval_sampling run.overlap run.save run.resume run.patience run.gate data.test data.test_rows "
    "model.save_memory model.replicas model.attention optim.microbatch_tokens rollout.memory rollout.eager rollout.tensor_parallel "
    "genrm.urls genrm.allow_http genrm.workers genrm.deadline genrm.concurrency genrm.probe "
    "genrm.alarm genrm.second"
).split()
"""Settings that may change when a run goes on: how long, how it is measured, where it runs, what it holds in memory. What is computed stays
the same, up to the order in which numbers are added."""


ALARMS = "alarms.jsonl"


def restarted() -> bool:
    """Whether a launcher starts this job again: torchrun counts restarts, Slurm counts requeues."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def goes_on(folder: Path, config: Config) -> bool:
    """Whether the run in `folder` goes on as `config`. ValueError where it has saved its state, with other settings."""
    if not (config.run.resume or restarted()):
        return False
    saved = checkpoints(folder / "checkpoints")
    if not (saved or checkpoints(folder / WARM_START) or (folder / "underway" / "starts").is_file()):
        return False  # it has come to its end, or is of a version that kept nothing
    try:
        before = json.loads((folder / "config.json").read_bytes())
        before = of_today({group: before[group] for group in dataclasses.asdict(config)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not saved:
            return False
        raise ValueError(f"{folder / 'config.json'} cannot be read ({error}); restore it, or begin anew: --run.no-resume") from None
    changed = [f"{name} {was} (now {now})" for name, was, now in differences(before, json.loads(json.dumps(dataclasses.asdict(config))))]
    if changed and saved:
        raise ValueError(
            f"run.name {config.run.name} has {saved[0].name} of a run with {', '.join(changed)}; give it the same settings, choose another "
            "--run.name, or begin anew, which moves that run aside: --run.no-resume"
        )
    return not changed


def differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Settings that must not change and have: name, value before, value now. One that the version before did not have was what it is by
    default: what a setting adds is off then."""
    for group, settings in now.items():
        usual = {field.name: json.loads(json.dumps(field.default)) for field in dataclasses.fields(GROUPS[group]) if has_default(field)}
        for name, value in settings.items():
            if f"{group}.{name}" not in FREE and (was := before[group].get(name, usual.get(name, "not there"))) != value:
                yield f"{group}.{name}", was, value


def has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING


def relocated(config: Config, old: Path, new: Path) -> Config:
    """The configuration with every path below `old` moved below `new` (a run that goes on from its own export)."""
    parent = old.parent.resolve() / old.name  # the folder itself may have been a link

    def moved(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(moved(part) for part in value)
        if isinstance(value, str) and value and Path(value).resolve().is_relative_to(parent):
            return str(new / Path(value).resolve().relative_to(parent))
        return value

    for group, name in (("model", "path"), ("data", "train"), ("data", "test"), ("genrm", "model"), ("genrm", "probe")):
        settings = getattr(config, group)
        config = dataclasses.replace(config, **{group: dataclasses.replace(settings, **{name: moved(getattr(settings, name))})})
    return config
