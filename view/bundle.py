"""Chosen steps of runs as a folder of files for any web server: the very bytes that the server would answer, frozen."""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path
from typing import Any

from soundrl.view.api import answer
from soundrl.view.plain import NotThere, encoded
from soundrl.view.runs import Runs
from soundrl.view.server import PAGE, TYPES

BASE = '<meta name="base" content="api">'
MARK = "soundrl-bundle.json"
"""By it a folder is known as a bundle, which may be written anew"""


def steps_in(said: str) -> set[int]:
    """ValueError for what is none.

    >>> sorted(steps_in("1-3,8"))
    [1, 2, 3, 8]
    """
    out: set[int] = set()
    for part in said.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip())
        if match is None or (match[2] and int(match[2]) - int(match[1]) not in range(100_000)):
            raise ValueError(f"--bundle {said!a}: steps are written as 1-8 or 1,4,8")
        out |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return out


def bundle(runs: Runs, said: str, out: Path) -> str:
    """Write it; what has been written, in a line. ValueError where `out` holds anything but an earlier bundle."""
    steps = steps_in(said)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARK).is_file())):
        raise ValueError(f"{out} is there and is no bundle; choose a new folder")
    if (out / "data").is_dir():
        shutil.rmtree(out / "data")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text('{"format": 1}\n')
    for file in PAGE.iterdir() if PAGE.is_dir() else ():
        if file.suffix in TYPES:
            text = file.read_bytes()
            if file.name == "index.html":
                text = text.replace(BASE.encode(), BASE.replace("api", "data").encode())
            (out / file.name).write_bytes(text)
    count, size = Writer(runs, out / "data").all(steps)
    return f"{count} files, {size / 1e6:.1f} MB, in {out}; serve it with any web server, as python -m http.server -d {out}"


class Writer:
    def __init__(self, runs: Runs, out: Path) -> None:
        self.runs, self.out, self.count, self.bytes = runs, out, 0, 0

    def put(self, path: str) -> Any:
        found = answer(self.runs, path, {}, whole=True)
        self.write(path, encoded(found))
        return found

    def write(self, path: str, content: bytes) -> None:
        file = self.out / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        self.count, self.bytes = self.count + 1, self.bytes + len(content)

    def all(self, steps: set[int]) -> tuple[int, int]:
        """Files and bytes."""
        for entry in self.put("runs.json")["runs"]:
            key = entry["key"]
            found = answer(self.runs, f"{key}/run.json", {}, whole=True)
            # The page's links lead to what is here.
            found["steps"] = {kind: sorted(steps.intersection(there)) for kind, there in found["steps"].items()}
            self.write(f"{key}/run.json", encoded(found))
            for name in ("series", "judge"):
                self.put(f"{key}/{name}.json")
            for kind, there in found["steps"].items():
                for step in there:
                    self.step(f"{key}/step-{step:06d}", kind)
                    if kind == "train":
                        self.put(f"{key}/find-texts-{step}.json")
                        with contextlib.suppress(NotThere):  # of a run without a trace
                            self.put(f"{key}/step-{step:06d}/anatomy.json")
        return self.count, self.bytes

    def step(self, place: str, kind: str) -> None:
        for group in self.put(f"{place}/{kind}.json")["groups"]:
            self.put(f"{place}/{kind}/group-{group['g']}.json")
            for sample in range(len(group["cells"])):
                for what in ("rollout", "tokens"):
                    self.put(f"{place}/{kind}/{what}-{group['g']}-{sample}.json")
