"""Rollouts and verdicts of a step under way, on the disk as they come, so that an interrupted step samples and asks only what is missing.

    underway/step-000041/1-rank-3.arrows            what rank 3 has sampled (columns as `rollout_file`'s), up to its last whole batch
                         1-rank-3.verdicts.jsonl    {"prompt_id": …, "sample": 2, "kind": "flawed", "step": 1, "reason": "", "critique": …}
                         2-…                        the same of the second start; and rollouts of a step that is trained once more

The first number counts starts: a start reads what earlier ones have left, whatever their ranks, and writes its own files. A step's folder
goes when its rollouts stand under `rollouts/`. Seeds follow from what is sampled, so a kept rollout is the one that would be sampled again.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import numpy as np

from soundrl.engine.files.rollout_file import OF_JUDGE, RolloutWriter, read_file
from soundrl.engine.files.rollout_rows import arrays, rollout_of, verdict_of
from soundrl.engine.launch.last_words import remove
from soundrl.engine.ranks import Ranks
from soundrl.fapo.judging import Judge
from soundrl.fapo.pending import done
from soundrl.fapo.records import Group, Prompt, Rollout, Verdict
from soundrl.genrm.verdict import UNASKED

BATCH = 16  # rollouts written at once: what a kill may lose of a rank; a batch costs 1 ms
Key = tuple[str, int]
log = logging.getLogger(__name__)


class Underway:
    """Of one rank; `start` is the number of this start, which whoever takes the folder over says."""

    def __init__(self, folder: Path, ranks: Ranks, start: int = 0) -> None:
        self.folder, self.ranks, self.rank, self.start = folder, ranks, ranks.rank, start
        self.open = False
        """Between the begin of a step and its end; what is judged beside (an evaluation) is not kept"""
        self.needed = ""
        """A checkpoint in the middle of the step that begins, whose weights are not those that sampled: all must be here"""
        self.writer: RolloutWriter | None = None
        self.verdicts: IO[str] | None = None
        self.waiting: list[Rollout] = []
        self.told: dict[Key, Verdict] = {}
        """Verdicts that earlier starts have heard, of the step under way"""
        self.lock = threading.Lock()
        self.fault: OSError | None = None

    def begin(self, step: int, version: int, prompts: Mapping[str, tuple[Prompt, np.ndarray]]) -> dict[Key, Rollout]:
        """The step begins: what is known of its rollouts, of `prompts` (by id: prompt and its tokens) alone, sampled by this `version` of
        the weights."""
        self.close()
        self.open, self.prompts = True, {}
        self.path = self.folder / f"step-{step:06d}"
        for old in self.folder.glob("step-*") if self.rank == 0 else ():
            if old.name < self.path.name:  # a verdict that came when its step had ended
                remove(old)
        with self.lock:
            self.told = {}
        found = self.more(version, prompts)
        for file in sorted(self.path.glob("*-rank-*.verdicts.jsonl")):
            if started(file) < self.start:
                for row in read_verdicts(file):
                    self._hear(row.pop("prompt_id"), row.pop("sample"), Verdict(**row))
        return found

    def more(self, version: int, prompts: Mapping[str, tuple[Prompt, np.ndarray]]) -> dict[Key, Rollout]:
        """The same of further prompts of the step that has begun (`rollout.refill`)."""
        self.prompts |= {id_: prompt for id_, (prompt, _) in prompts.items()}
        found: dict[Key, Rollout] = {}
        dropped = 0
        for file in sorted(self.path.glob("*-rank-*.arrows*")):
            if started(file) < self.start:
                for rollout, verdict in read_rollouts(file, prompts):
                    if rollout.policy_version != version:
                        dropped += 1
                        continue
                    found[rollout.prompt_id, rollout.sample] = rollout
                    self._hear(rollout.prompt_id, rollout.sample, verdict)
        if dropped:
            log.warning("%d rollouts in %s are of other weights, and sampled again", dropped, self.path)
        return found

    def _hear(self, prompt_id: str, sample: int, verdict: Verdict | None) -> None:
        if verdict is not None:
            self.told[prompt_id, sample] = verdict

    def add(self, rollout: Rollout) -> None:
        """One that has just finished, of this rank's own."""
        self.waiting.append(rollout)
        if len(self.waiting) >= BATCH:
            self.flush()

    def flush(self, sync: bool = False) -> None:
        """Write what waits; `sync`: a checkpoint that is written now will need it."""
        if self.waiting:
            if self.writer is None:
                self.path.mkdir(parents=True, exist_ok=True)
                self.writer = RolloutWriter(self.path / f"{self.start}-rank-{self.rank}.arrows").__enter__()
            self.writer.add([Group(prompt=self.prompts[rollout.prompt_id], rollouts=[rollout]) for rollout in self.waiting])
            self.writer.file.flush()
            self.waiting = []
        if self.writer is not None and sync:
            os.fsync(self.writer.file.fileno())
        if self.fault is not None:
            raise self.fault

    def lacks(self, missing: int) -> None:
        """ValueError where so many rollouts of the step under way are missing, and must not be."""
        if self.needed and missing:
            raise ValueError(
                f"{self.needed} goes on in the middle of a step, but {missing} rollouts of it are missing in {self.path}; restore them, or "
                "remove that checkpoint, and the run goes on from the one before"
            )

    def judged(self, rollout: Rollout, verdict: Verdict) -> None:
        """From any thread."""
        if not self.open or verdict.reason in UNASKED:  # says something of this moment alone: asked again
            return
        row = {"prompt_id": rollout.prompt_id, "sample": rollout.sample} | vars(verdict)
        try:
            with self.lock:
                if self.verdicts is None:
                    self.path.mkdir(parents=True, exist_ok=True)
                    self.verdicts = (self.path / f"{self.start}-rank-{self.rank}.verdicts.jsonl").open("w")
                self.verdicts.write(json.dumps(row) + "\n")
                self.verdicts.flush()
        except OSError as error:  # a full disk: a callback's exception would vanish
            self.fault = error

    def end(self) -> None:
        """The step's rollouts stand under `rollouts/`: rank 0 removes what was kept here."""
        self.flush()
        self.close()
        self.needed = ""
        if self.rank == 0:
            remove(self.path)

    def close(self) -> None:
        self.open, self.waiting = False, []
        if self.writer is not None:
            self.writer.__exit__(None, None, None)
        with self.lock:
            if self.verdicts is not None:
                self.verdicts.close()
            self.writer = self.verdicts = None


class RememberingJudge(Judge):
    """`judge`, asked for what `underway` does not know; what it says is written there."""

    def __init__(self, judge: Judge, underway: Underway) -> None:
        self.judge, self.underway = judge, underway

    def submit(self, prompt: Prompt, rollout: Rollout, priority: int = 0) -> Future[Verdict]:
        if (known := self.underway.told.get((rollout.prompt_id, rollout.sample))) is not None:
            return done(known)
        verdict = self.judge.submit(prompt, rollout, priority)
        verdict.add_done_callback(lambda said: self.underway.judged(rollout, said.result()) if not said.exception() else None)
        return verdict


def started(file: Path) -> int:
    """The number of the start that wrote a file; none: of no start, and read never."""
    number = file.name.partition("-")[0]
    return int(number) if number.isdecimal() else 1 << 60


def next_start(folder: Path) -> int:
    """The number of a run's next start, from 1, which is counted in `folder/starts`; the run's end removes it."""
    file = folder / "starts"
    number = int(file.read_text()) + 1 if file.is_file() else 1
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{number}\n")
    return number


def take_over(rollouts: Path, folder: Path, after: int, start: int) -> None:
    """At start `start`: rollouts of steps behind `after` become steps under way: they are trained once more, and not sampled."""
    for step in sorted(rollouts.glob("step-*")):
        if step.is_dir() and step.name[5:].isdecimal() and int(step.name[5:]) > after:
            into = folder / step.name
            into.mkdir(parents=True, exist_ok=True)
            for file in step.glob("rank-*.arrows*"):
                file.rename(into / f"{start - 1}-again-{file.name}")
            remove(step)


def read_rollouts(
    file: Path, prompts: Mapping[str, tuple[Prompt, np.ndarray]], kinds: Sequence[str] = ("train", "replaced")
) -> Iterable[tuple[Rollout, Verdict | None]]:
    """Those of these `kinds` and `prompts`, up to the file's last whole batch."""
    table, _, _ = read_file(file)
    said = ("prompt_id", "sample", "kind", "text", "finish_reason", "policy_version", "mask", "turns", "verdict", "times")
    rows = table.select([*said, *OF_JUDGE]).to_pylist()
    columns = [arrays(table.column(name)) for name in ("tokens", "logprobs")]
    for row, tokens, logprobs in zip(rows, *columns, strict=True):
        if row["kind"] in kinds and row["prompt_id"] in prompts:
            rollout = rollout_of(row, prompts[row["prompt_id"]][1], tokens, logprobs)
            yield rollout, None if row["verdict"] is None else verdict_of(row)


def read_verdicts(file: Path) -> list[dict[str, Any]]:
    """Whole lines; a last one without its end was being written."""
    rows = []
    for line in file.read_text("utf-8").split("\n")[:-1]:
        try:
            row = {"asked": 0.0, "answered": 0.0} | json.loads(line)
            row["votes"] = tuple(row["votes"])
            rows.append({name: row[name] for name in ("prompt_id", "sample", *(field.name for field in fields(Verdict)))})
        except (ValueError, KeyError, TypeError):
            log.warning("%s: a line is damaged, and its rollout judged again", file)
    return rows
