"""`metrics.jsonl` as columns of numbers, read on while the run writes."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from soundrl.view.plain import finite
from soundrl.view.tail import Tail, object_of

NAN = float("nan")
MOST = 2000  # names of series; a file with more is no run's


class Series:
    """Values by step and name; NaN = not said."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: dict[str, array[float]] = {}

    def add(self, step: int, row: dict[str, object]) -> None:
        """A row of a step that is there already is joined to it."""
        if not self.steps or step != self.steps[-1]:
            self.steps.append(step)
            for column in self.values.values():
                column.append(NAN)
        for name, value in row.items():
            if name not in self.values:
                if len(self.values) >= MOST:
                    continue
                self.values[name] = array("d", [NAN]) * len(self.steps)
            if isinstance(value, int | float) and not isinstance(value, bool):
                try:
                    self.values[name][-1] = float(value)
                except OverflowError:
                    pass

    def last(self, name: str) -> float | None:
        """The newest value that was said."""
        return next((finite(value) for value in reversed(self.values.get(name, ())) if not math.isnan(value)), None)

    def now(self, name: str) -> float | None:
        """That of the last step."""
        column = self.values.get(name)
        return finite(column[-1]) if column else None

    def row(self, at: int) -> dict[str, float]:
        return {name: column[at] for name, column in self.values.items() if math.isfinite(column[at])}

    def pairs(self, name: str) -> Iterator[tuple[int, float]]:
        """(step, value) of those that were said."""
        for step, value in zip(self.steps, self.values.get(name, ()), strict=False):
            if math.isfinite(value):
                yield step, value

    def after(self, step: int | None) -> tuple[list[int], dict[str, list[float | None]]]:
        """Steps later than that one, and their values."""
        start = 0 if step is None else next((i for i, each in enumerate(self.steps) if each > step), len(self.steps))
        return self.steps[start:], {name: [finite(value) for value in column[start:]] for name, column in self.values.items()}


class Metrics:
    """Of one run. Rows of an evaluation (names `eval/…`) stand apart from those of training."""

    def __init__(self, folder: Path) -> None:
        self.tail = Tail(folder / "metrics.jsonl", self._take, self._reset)
        self.unread = ""
        """Why not all of it could be read"""
        self._reset()

    def _reset(self) -> None:
        self.train, self.evals, self.bad = Series(), Series(), 0

    def _take(self, _: int, line: bytes) -> None:
        row = object_of(line) if line else None
        step = None if row is None else row.pop("step", None)
        if row is None or not isinstance(step, int) or isinstance(step, bool):
            self.bad += bool(line)
            return
        trained = (step > 0 or "time/step" in row) and not any(name.startswith("eval/") for name in row)
        (self.train if trained else self.evals).add(step, row)

    def read(self) -> Metrics:
        self.unread = self.tail.whole()
        return self

    @property
    def step(self) -> int:
        """The last one that has ended; 0 before the first."""
        return max((*self.train.steps[-1:], *self.evals.steps[-1:]), default=0)

    @property
    def seconds(self) -> float | None:
        """Of a step, the median of the last twenty."""
        said = [value for value in self.train.values.get("time/step", ())[-20:] if math.isfinite(value)]
        return median(said) if said else None

    @property
    def fault(self) -> str:
        if self.unread:
            return f"metrics.jsonl: {self.unread}"
        return f"metrics.jsonl: {self.bad} lines hold no JSON object with a step; they are left out" if self.bad else ""
