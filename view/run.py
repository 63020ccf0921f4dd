"""One run's folder as the inspector holds it: configuration, what is read on while the run writes, and steps by need."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from soundrl.engine.files.rollout_file import NAME
from soundrl.view.alarms import AlarmFile
from soundrl.view.cache import Cache
from soundrl.view.cells import Rule
from soundrl.view.disagreements import Disagreements
from soundrl.view.labels import LabelFile
from soundrl.view.metrics import Metrics
from soundrl.view.plain import NotThere, depth, one_fault
from soundrl.view.prompts import Prompts
from soundrl.view.step import KINDS, Step
from soundrl.view.trace_index import TraceIndex
from soundrl.view.trained import TrainedStep

STEPS = Cache(48 << 20)
"""Of all runs together"""
DEEPEST = 20  # lists and objects in each other; a run has 3
CONFIG = 4 << 20  # bytes of a config.json, at most
STEP = re.compile(r"step-(\d{6,9})(\.jsonl)?")


class Run:
    """`root` bounds what is read: a file that lies outside of it, by a link, is not."""

    def __init__(self, path: Path, root: Path, key: str, name: str) -> None:
        self.path, self.root, self.key, self.name = path, root, key, name
        self.metrics, self.disagreements = Metrics(path), Disagreements(path)
        self.labels, self.prompts, self.trace = LabelFile(path), Prompts(), TraceIndex(path)
        self.alarms = AlarmFile(path)
        self._kept: dict[Hashable, tuple[Hashable, Any]] = {}
        self._config: tuple[tuple[int, int], dict[str, Any], str] = ((0, 0), {}, "")

    def check(self, *files: Path) -> None:
        """NotThere for what a link leads out of the root."""
        for file in files:
            if not file.resolve().is_relative_to(self.root):
                raise NotThere(f"{file.name} is a link out of the folder that is shown; start the inspector there")

    @property
    def config(self) -> dict[str, Any]:
        """Empty where it cannot be read, which `fault` then says."""
        file = self.path / "config.json"
        try:
            self.check(file)
            said = file.stat()
            stamp = (said.st_mtime_ns, said.st_size)
            if stamp != self._config[0]:
                self._config = (stamp, *read_config(file, said.st_size))
        except (OSError, NotThere) as error:
            self._config = ((0, 0), {}, f"config.json: {one_fault(error)}")
        return self._config[1]

    @property
    def fault(self) -> str:
        return self._config[2] if self.config or self._config[2] else "config.json is empty; restore it"

    def setting(self, name: str, default: Any = None) -> Any:
        """`setting("run.steps")`; the default where config.json has none of that type."""
        group, _, field = name.partition(".")
        found = self.config.get(group)
        value = found.get(field, default) if isinstance(found, dict) else default
        return value if default is None or isinstance(value, type(default)) else default

    @property
    def rule(self) -> Rule:
        return Rule.of(self.config)

    def steps(self) -> dict[str, list[int]]:
        """Those with rollouts, by kind."""
        out: dict[str, list[int]] = {kind: [] for kind in KINDS}
        folder = self.path / "rollouts"
        if not folder.is_dir():
            return out
        with os.scandir(folder) as entries:
            found = [(entry, match) for entry in entries if (match := STEP.fullmatch(entry.name))]
        for entry, match in found:
            kinds = (
                {"train"}
                if match[2]
                else self.once(("kinds", entry.name), entry.stat().st_mtime_ns, lambda entry=entry: kinds_in(entry.path))
            )
            for kind in kinds:
                out[kind].append(int(match[1]))
        return {kind: sorted({*steps}) for kind, steps in out.items()}

    def once(self, key: Hashable, stamp: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gave, kept while the stamp is the same; small things alone."""
        if key not in self._kept or self._kept[key][0] != stamp:
            self._kept[key] = (stamp, make())
        return self._kept[key][1]

    def step(self, step: int, kind: str) -> Step:
        """From the cache, while its files are the same."""
        if kind not in KINDS:
            raise NotThere(f"no kind of rollouts is named {kind[:40]!a}; there are {', '.join(KINDS)}")
        _, stamp = self._files(step)
        held = STEPS((str(self.path), step, kind), stamp, lambda: Step(self.path, step, kind))
        self.prompts.add(step, kind, stamp, [head.prompt_id for head in held.heads])
        return held

    def trained(self, step: int) -> TrainedStep:
        """What training has computed of its tokens, from the cache likewise."""
        folder, stamp = self._files(step)
        return STEPS((str(self.path), step, "trained"), stamp, lambda: TrainedStep(folder))

    def _files(self, step: int) -> tuple[Path, Hashable]:
        """Folder of a step, and what changes with them."""
        folder = self.path / "rollouts" / f"step-{step:06d}"
        old = folder.with_suffix(".jsonl")
        self.check(folder, old)
        if not folder.is_dir():
            return folder, tuple((old.name, said.st_size, said.st_mtime_ns) for said in [old.stat()]) if old.is_file() else ()
        with os.scandir(folder) as entries:
            files = sorted(entries, key=lambda entry: entry.name)
        self.check(*(Path(entry.path) for entry in files if entry.is_symlink()))
        return folder, tuple((entry.name, said.st_size, said.st_mtime_ns) for entry in files for said in [entry.stat()])


def kinds_in(folder: str) -> set[str]:
    """Of the rollout files in a step's folder."""
    try:
        matches = [NAME.fullmatch(name) for name in os.listdir(folder)]
    except OSError:
        return set()
    return {kind for match in matches if match and (kind := match[2] or "train") in KINDS}


def read_config(file: Path, size: int) -> tuple[dict[str, Any], str]:
    if size > CONFIG:
        return {}, f"config.json has {size} bytes, which no run writes; restore it"
    try:
        found = json.loads(file.read_bytes())
    except RecursionError:
        return {}, "config.json is nested too deep; restore it"
    except (OSError, ValueError) as error:
        return {}, f"config.json holds no JSON ({one_fault(error)}); restore it"
    if depth(found) > DEEPEST:
        return {}, "config.json is nested too deep; restore it"
    return (found, "") if isinstance(found, dict) else ({}, "config.json holds no JSON object; restore it")
