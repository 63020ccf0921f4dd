"""The stages of a command that takes days: a folder each, begun under a stamp that says what it is made from, ended with what was found."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from soundrl.genrm.journal import digest

STAGES = ("sampled", "labelled", "split", "trained", "benchmarked", "selected", "written")
Found = dict[str, Any]


def write_json(file: Path, value: Any) -> None:
    """Written beside and renamed at once."""
    beside = file.with_name(file.name + ".part")
    beside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, file)


def file_digest(file: Path) -> str:
    """sha256 of a file, hex."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file of a model folder by its name, in it and below it; a card is none of the model."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "card.json")
    return {str(file.relative_to(folder)): file_digest(file) for file in files}


def linked(folder: Path, target: Path, name: str, text: str) -> Path:
    """A folder `target` of links to the files of `folder`, and the file `name` with `text` in place of its own; made anew, and at once."""
    beside = target.with_name(target.name + ".part")
    for old in (beside, target):
        shutil.rmtree(old, ignore_errors=True)  # links alone; a link itself it refuses
    beside.mkdir(parents=True)
    for file in folder.iterdir():
        if file.name != name:
            (beside / file.name).symlink_to(file.resolve())
    (beside / name).write_text(text, encoding="utf-8")
    os.replace(beside, target)
    return target


class Stages:
    """Those in `work`, by name. One process at a time: ValueError where another one is at work there.

    >>> stages = Stages(Path("models/genrm.work"))
    >>> stages.done("sampled", {"samples": 4}, lambda folder: {"solutions": 68000})
    {'solutions': 68000, 'seconds': 5021.3}
    """

    def __init__(self, work: Path, names: Sequence[str] = STAGES) -> None:
        """`names`: of all stages, in their order."""
        self.work, self.names = work, names
        work.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(work / ".lock")
        self._before = ""
        """Digest of all that came before: what a stage is made from beside its own settings."""

    def done(self, name: str, stamp: dict[str, Any], make: Callable[[Path], Found]) -> Found:
        """What `make(folder)` has found, with `seconds`: of the start that ended it, not of those that were killed. A stage that has ended
        is only read. ValueError, which says what differs and what to do, where it was begun under another `stamp`."""
        folder, stamp = self.work / name, json.loads(json.dumps(stamp | {"what came before": self._before[:16]}))
        folder.mkdir(exist_ok=True)
        begun, ended = folder / "made_from.json", folder / "stage.json"
        before = json.loads(begun.read_text()) if begun.exists() else stamp
        if changed := [f"{key} {before.get(key)} (now {value})" for key, value in stamp.items() if before.get(key) != value]:
            after = " ".join(str(self.work / other) for other in self.names[self.names.index(name) :] if (self.work / other).exists())
            raise ValueError(
                f"{folder} was made with {', '.join(changed)}; give it the same, name another --out, or make it and what follows anew: "
                f"rm -r {after}"
            )
        if not begun.exists():
            write_json(begun, stamp)
        if not ended.exists():
            start = time.monotonic()
            found = make(folder)
            write_json(ended, found | {"seconds": round(time.monotonic() - start, 1)})
        found = json.loads(ended.read_text())
        self._before = digest([stamp, {key: value for key, value in found.items() if key != "seconds"}])
        return found

    def close(self) -> None:
        self._lock.close()


def _locked(file: Path) -> IO[str]:
    """Held until it is closed or this process ends, in whatever way."""
    lock = file.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ValueError(f"{file.parent} is at work in another process; wait for it, end it, or name another --out") from None
    return lock
