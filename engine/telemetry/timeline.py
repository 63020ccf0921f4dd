"""Where the time of a run goes: seconds by phase, and `trace.json` in Chrome's event format (Perfetto opens it; `tools/trace.py` reads it).

A process of the trace is a rank. Phases and their details are complete events (`X`) on its first thread, judge calls are asynchronous ones
(`b`, `e`), from the moment a rollout is handed to the judge to its verdict. Times are microseconds of the wall clock. On a GPU the host
runs ahead of the card: the phases of a step end with a synchronisation, details within them show when work was queued.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from soundrl.engine.launch.last_words import RANK
from soundrl.engine.memory.memory_watch import MEMORY
from soundrl.engine.phases import PEAK_OF, Interval, hidden
from soundrl.engine.ranks import Ranks


class Timeline:
    """Seconds by phase, of the step under way and of the whole run, and the events of this rank.

    What a phase opens within itself (a wait for verdicts while training) is not counted in it; `step` alone contains others.
    """

    def __init__(self) -> None:
        self.begin(0, keeps=False)

    def begin(self, rank: int, keeps: bool = True) -> None:
        """A run begins on this rank. Events are kept until they are taken (`judged`, `drain`) where somebody does."""
        self.rank, self.keeps = rank, keeps
        self.step: dict[str, float] = {}
        self.total: dict[str, float] = {}
        self.within: list[float] = []
        self.path: list[str] = []
        self.steps = 0
        self.events: list[dict[str, Any]] = []
        self.waits: list[Interval] = []
        # perf_counter never jumps, but only the wall clock is common to machines.
        self.offset = time.time() - time.perf_counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """A phase: counted, and an event."""
        start = time.perf_counter()
        self.steps += name == "step"
        self.path.append(f"step {self.steps}" if name == "step" else name)
        MEMORY.turn(self.path)
        RANK.enter(", ".join(self.path))
        self.within.append(0.0)
        try:
            yield
        finally:
            end = time.perf_counter()
            inner = self.within.pop()
            if self.within:
                self.within[-1] += end - start
            spent = end - start if name == "step" else end - start - inner
            self.step[name] = self.step.get(name, 0.0) + spent
            self.total[name] = self.total.get(name, 0.0) + spent
            if name == "judge_wait" and self.keeps:
                self.waits.append((start, end))
            self._event(name, "X", start, cat="phase", dur=round((end - start) * 1e6))
            self.path.pop()
            MEMORY.turn(self.path)
        RANK.enter(", ".join(self.path) or f"after {name}")  # not where an error came out: that is where it happened

    @contextmanager
    def detail(self, name: str) -> Iterator[None]:
        """An event alone, within a phase."""
        start = time.perf_counter()
        RANK.beat()
        if counted := name in PEAK_OF:
            MEMORY.turn([*self.path, name])
        try:
            yield
        finally:
            RANK.beat()
            if counted:
                MEMORY.turn(self.path)
            self._event(name, "X", start, cat="detail", dur=round((time.perf_counter() - start) * 1e6))

    def _event(self, name: str, mark: str, at: float, **more: Any) -> None:
        if self.keeps:
            self.events.append({"name": name, "ph": mark, "ts": round((at + self.offset) * 1e6), "pid": self.rank, "tid": 0, **more})

    def count(self, name: str, value: float) -> None:
        """A number of this moment: a counter's curve in the trace."""
        self._event(name, "C", time.perf_counter(), args={name: value})

    def judged(self, calls: Iterable[tuple[str, float, float]], ranks: Ranks) -> dict[str, float]:
        """Put the judge calls of the step that ends here (name, start, end by `time.perf_counter`) into the trace. A collective; returns
        `genrm/overlap`, see `hidden`, or nothing where nothing was judged."""
        spans = []
        for name, start, end in calls:
            spans.append((start, end))
            for mark, at in (("b", start), ("e", end)):
                self._event(name, mark, at, cat="judge", id=f"{self.rank}/{name}/{round(start * 1e6)}")
        waits, self.waits = self.waits, []
        waited, judging = ranks.sum(list(hidden(waits, spans)))
        return {"genrm/overlap": 1 - waited / judging} if judging else {}

    def take(self) -> dict[str, float]:
        """`time/<phase>` of the step that ends here."""
        out = {f"time/{name}": seconds for name, seconds in self.step.items()}
        self.step = {}
        return out

    def over_ranks(self, ranks: Ranks) -> dict[str, float]:
        """`take`, and what memory was held by phase (`MemoryWatch.take`), over all ranks: seconds as their mean and, where there are
        several, those of the slowest rank as `time/<phase>_max`; memory of the rank with most. A collective."""
        parts = ranks.gather(self.take() | MEMORY.take())
        out: dict[str, float] = {}
        for name in dict.fromkeys(name for part in parts for name in part):
            values = [part.get(name, 0.0) for part in parts]
            out[name] = max(values) if name.startswith("memory/") else sum(values) / len(values)
            if name.startswith("time/") and len(parts) > 1:
                out[f"{name}_max"] = max(values)
        return out

    def drain(self) -> list[dict[str, Any]]:
        """The events since the last call."""
        events, self.events = self.events, []
        return events

    def spent(self) -> dict[str, float]:
        """Seconds of the whole run by phase, without `step`, which contains others."""
        return {name: seconds for name, seconds in self.total.items() if name != "step"}


TIMELINE = Timeline()
"""Of this process, which is one rank: whoever spends a step's time says so here."""


class TraceFile:
    """`trace.json`, an event a line, flushed whenever events are added: a killed run leaves a list without its end, which Perfetto,
    Chrome and `read_trace` take."""

    def __init__(self, path: Path, keep: int = 0) -> None:
        """`keep`: bytes that stay of an interrupted run's file (`size`)."""
        self.file = path.open("r+" if keep else "w")
        self.file.truncate(keep)
        self.file.seek(0, os.SEEK_END)
        if not keep:
            self.file.write("[\n")

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.file.tell()

    def add(self, events: Iterable[dict[str, Any]]) -> None:
        self.file.writelines(json.dumps(event) + ",\n" for event in events)
        self.file.flush()

    def close(self) -> None:
        self.file.write('{"name": "end of run", "ph": "i", "ts": 0, "pid": 0, "tid": 0, "s": "g"}\n]\n')
        self.file.close()
