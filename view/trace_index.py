"""Where each step stands in a run's `trace.json`, found in a thread of its own: the file of a long run has millions of lines."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soundrl.engine.tools.trace import Event, step_of

CHUNK = 4 << 20
STEP = b'{"name": "step", "ph": "X"'
PATIENCE = 0.4  # seconds that a page waits for what is not indexed yet
LONGEST = 1 << 14  # of a line
MOST = 64 << 20  # bytes of a step's lines


@dataclass(frozen=True)
class Mark:
    """A rank's `step` event."""

    at: int
    """Bytes before it"""
    begin: float
    """Unix seconds"""
    seconds: float


class TraceIndex:
    """`marks[rank][n - 1]` is step n's."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "trace.json"
        self.known = threading.Condition()
        self.thread: threading.Thread | None = None
        self.rows: dict[int, dict[str, float]] = {}
        """Of steps that have been asked for, see `row`"""
        self._begin(0)

    def _begin(self, inode: int) -> None:
        self.marks: dict[int, list[Mark]] = {}
        self.done = self.whole = 0
        """Bytes that have been looked at, and that there were"""
        self.inode = inode
        self.rows.clear()

    def look(self) -> bool:
        """Index what is new, for as long as a page may wait; whether all is done. It goes on afterwards."""
        try:
            said = self.path.stat()
        except OSError:
            return True
        with self.known:
            if said.st_ino != self.inode or said.st_size < self.done:
                self._begin(said.st_ino)
            self.whole = said.st_size
            if self.done >= self.whole - 1:
                return True
            if self.thread is None or not self.thread.is_alive():
                self.thread = threading.Thread(target=self._index, args=(self.inode,), daemon=True)
                self.thread.start()
            return self.known.wait_for(lambda: self.done >= self.whole - 1 or self.thread is None, PATIENCE) and self.done >= self.whole - 1

    def _index(self, inode: int) -> None:
        try:
            with self.path.open("rb") as file:
                while True:
                    file.seek(self.done)
                    chunk = file.read(CHUNK)
                    end = chunk.rfind(b"\n") + 1
                    if end == 0 and len(chunk) < CHUNK:
                        break
                    found = list(marks_in(chunk[:end], self.done))
                    with self.known:
                        if self.inode != inode:
                            break
                        for rank, mark in found:
                            self.marks.setdefault(rank, []).append(mark)
                        self.done += end or len(chunk)  # a line longer than a chunk is none of a trace
                        self.known.notify_all()
        except OSError:
            pass
        finally:
            with self.known:
                self.thread = None
                self.known.notify_all()

    @property
    def fault(self) -> str:
        if self.done >= self.whole - 1:
            return ""
        return f"trace.json is being read: {self.done / max(self.whole, 1):.0%} so far; load the page again"

    def steps(self) -> int:
        """How many have ended on every rank."""
        return min((len(own) for own in self.marks.values()), default=0)

    def of(self, step: int) -> dict[int, Mark]:
        """By rank; empty where the trace does not have it."""
        return {rank: own[step - 1] for rank, own in self.marks.items() if 0 < step <= len(own)}

    def events(self, step: int, only: bytes = b"") -> list[Event]:
        """Those of one step, of all ranks, and some of its neighbours'; `only`: of lines that hold these bytes."""
        marks = self.of(step)
        if not marks:
            return []
        # A step's events are written together: those of each rank around its `step`.
        start = max((mark.at for mark in self.of(step - 1).values()), default=0)
        end = min((mark.at for mark in self.of(step + 1).values()), default=self.done)
        with self.path.open("rb") as file:
            data = os.pread(file.fileno(), min(end - start, MOST), start)
        out = []
        for line in data.split(b"\n"):
            if line.startswith(b"{") and only in line and (event := event_of(line)) is not None:
                out.append(event)
        return out

    def row(self, step: int) -> dict[str, float] | None:
        """A step's seconds, shares by phase and critical path (`engine.tools.trace.step_of`), without its judge's calls."""
        if step not in self.rows:
            ranks: dict[int, list[Event]] = {}
            for event in self.events(step, b'"cat": "phase"'):
                ranks.setdefault(event["pid"], []).append(event)
            steps = {}
            for rank, mark in self.of(step).items():
                found = [e for e in ranks.get(rank, ()) if e["name"] == "step" and abs(e["ts"] / 1e6 - mark.begin) < 1e-5]
                if not found or found[0]["dur"] <= 0:
                    return None
                steps[rank] = found[0]
            self.rows[step] = step_of(steps, ranks, [])
        return self.rows[step]


def marks_in(chunk: bytes, base: int) -> Iterator[tuple[int, Mark]]:
    at = chunk.find(STEP)
    while at >= 0:
        end = chunk.find(b"\n", at)
        event = event_of(chunk[at : end if end >= 0 else len(chunk)])
        if event is not None and (at == 0 or chunk[at - 1 : at] == b"\n"):
            yield event["pid"], Mark(base + at, event["ts"] / 1e6, event["dur"] / 1e6)
        at = chunk.find(STEP, at + 1)


def event_of(line: bytes) -> Event | None:
    """None for what a run's trace never holds."""
    if len(line) > LONGEST:
        return None
    try:
        event: Any = json.loads(line.rstrip(b",\r\n "))
    except (ValueError, RecursionError):
        return None
    if (
        not isinstance(event, dict)
        or not all(type(event.get(name)) is int for name in ("ts", "pid"))
        or not isinstance(event.get("name"), str)
    ):
        return None
    return None if event.get("ph") == "X" and type(event.get("dur")) is not int else event
