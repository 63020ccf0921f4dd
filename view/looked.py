"""Figures of a run by which it is told to be well or not, mostly of its last steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from soundrl.engine.phases import PHASES
from soundrl.view.metrics import Series
from soundrl.view.run import Run

LAST = 5  # steps that a figure is taken over: one odd step is none
BEFORE = 20  # steps that are usual
HALF = 0.5


@dataclass(frozen=True)
class Looked:
    """What is looked at."""

    run: Run
    state: str
    quiet: float
    """Seconds since the run has written anything"""

    @property
    def train(self) -> Series:
        return self.run.metrics.train

    def mean(self, name: str) -> float | None:
        """Over the last steps that have it."""
        said = [value for _, value in self.train.pairs(name)][-LAST:]
        return fmean(said) if said else None

    def share(self, phase: str) -> float | None:
        """Of the last steps' time."""
        part, whole = self.mean(f"time/{phase}"), self.mean("time/step")
        return part / whole if part is not None and whole else None


Value = Callable[[Looked], float | None]


def gate_used(looked: Looked) -> float | None:
    """Of what `run.gate` allows above 1, the share that the last steps take."""
    allowed, said = looked.run.setting("run.gate", 1.05) - 1.0, [value for _, value in looked.train.pairs("mismatch/gate")][-LAST:]
    return (median(said) - 1.0) / allowed if said and allowed > 0 else None


def silent(looked: Looked) -> float | None:
    signal = looked.mean("reward/groups_with_signal")
    return None if signal is None else 1.0 - signal


def slowest(looked: Looked) -> tuple[float, str] | None:
    """Of phases that take a part of the last step, how many times its median the longest took."""
    whole, found = looked.train.now("time/step"), []
    for phase in PHASES:
        said = [value for _, value in looked.train.pairs(f"time/{phase}")][-BEFORE - 1 :]
        if whole and len(said) > LAST and (usual := median(said[:-1])) > 0 and said[-1] >= 0.1 * whole:
            found.append((said[-1] / usual, phase))
    return max(found, default=None)


def reasons(prefix: str) -> Callable[[Looked], str]:
    def of(looked: Looked) -> str:
        names = [name for name in looked.train.values if name.startswith(prefix)]
        counts = sorted(
            ((sum([v for _, v in looked.train.pairs(name)][-LAST:]), name.removeprefix(prefix)) for name in names), reverse=True
        )
        return ", ".join(f"{name} {count:.0f}" for count, name in counts if count) or "no reason is recorded"

    return of


def fallen(name: str) -> Value:
    """Its mean over the last steps ÷ over the first ones, as a fall: 0.75 = a quarter is left."""

    def of(looked: Looked) -> float | None:
        said = [value for _, value in looked.train.pairs(name)]
        began = fmean(said[:LAST]) if len(said) >= 2 * LAST else 0.0
        return 1.0 - fmean(said[-LAST:]) / began if began > 0 else None

    return of


def worse(looked: Looked) -> float | None:
    """1 where the last evaluation is below the first, beyond both intervals, on any set."""
    evals = looked.run.metrics.evals
    found = []
    for name in evals.values:
        if name.startswith("eval/") and name.endswith("/accuracy_low"):
            lows, highs = list(evals.pairs(name)), list(evals.pairs(name[:-4] + "_high"))
            found.append(len(lows) > 1 and bool(highs) and highs[-1][1] < lows[0][1])
    return float(any(found)) if found else None


def first_line(folder: Path, pattern: str) -> str:
    """Name and beginning of the newest file of that name."""
    files = sorted(folder.glob(pattern), key=lambda file: file.name)
    if not files:
        return ""
    with files[-1].open("rb") as file:
        lines = [line.strip() for line in file.read(20_000).decode("utf-8", "replace").split("\n") if line.strip()]
    said = lines[-1] if pattern.startswith("error") and lines else lines[0] if lines else ""
    return f"{files[-1].name}: {said[:160]}"


def unknown_limit(looked: Looked) -> float:
    """Half of what ends the run."""
    said = looked.run.setting("genrm.unknown")
    return HALF * said[1] if isinstance(said, list) and len(said) == 2 and isinstance(said[1], float) and said[1] > 0 else 0.1
