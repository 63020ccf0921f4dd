"""What verdicts on labelled solutions are worth: ProcessBench's score, FlawedPositiveBench's, coverage, and intervals.

An unknown verdict is an answer that was not given: wrong for ProcessBench, not "flawed" for FlawedPositiveBench, and missing in the
coverage that stands beside every score. (The released metric counts it as "flawed": a judge that never answers gets F1 46.9.)

Shapes: N rows, F flags, B bootstrap samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from soundrl.fapo.corrected import Z
from soundrl.fapo.records import Verdict
from soundrl.genrm.critic_data.labelled import Labelled

RESAMPLES = 2000
# What is counted for one row; every score is a ratio of sums of these.
FLAGS = ("wrong", "located", "right", "accepted", "positives", "negatives", "true_positive", "false_positive", "answered", "rows")


SHARES = {
    "error_accuracy": ("located", "wrong"),
    "correct_accuracy": ("accepted", "right"),
    "precision": ("true_positive", "said_flawed"),
    "recall": ("true_positive", "positives"),
    "over_critic": ("false_positive", "negatives"),
    "coverage": ("answered", "rows"),
}
"""What of what."""


@dataclass(frozen=True)
class Score:
    """A measure in 0 … 1 and its 95 % interval over rows."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:5.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def flags(row: Labelled, verdict: Verdict) -> list[float]:
    """`FLAGS` of one row. ProcessBench counts all rows; FlawedPositiveBench (`positives` …) those with a right final answer."""
    wrong, said_flawed = row.label >= 0, verdict.kind == "flawed"
    positive, negative = row.right and wrong, row.right and not wrong
    located, accepted = wrong and said_flawed and verdict.step == row.label, not wrong and verdict.kind == "sound"
    found = (wrong, located, not wrong, accepted, positive, negative, positive and said_flawed, negative and said_flawed)
    return [float(flag) for flag in (*found, verdict.kind != "unknown", True)]


def measures(sums: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """Every measure, of shape [] or [B], from sums of flags, [F] or [B, F]; a ratio of nothing is 0.

    * `error_accuracy`, `correct_accuracy`, `f1`: share of wrong rows located exactly, of right ones accepted, and their harmonic mean
      (ProcessBench, arXiv 2412.06559 §3.3).
    * `precision`, `recall`, `flawed_f1`: "flawed" as the positive class among rows with a right final answer (arXiv 2510.22543 Eq. 6).
    * `over_critic`: share of those that are sound and called flawed. `coverage`: share of all rows with a verdict.
    """
    c = dict(zip(FLAGS, np.moveaxis(np.asarray(sums, dtype=np.float64), -1, 0), strict=True))

    def ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(whole > 0, part / np.maximum(whole, 1e-300), 0.0)

    def harmonic(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        return ratio(2 * a * b, a + b)

    error, correct = ratio(c["located"], c["wrong"]), ratio(c["accepted"], c["right"])
    precision, recall = ratio(c["true_positive"], c["true_positive"] + c["false_positive"]), ratio(c["true_positive"], c["positives"])
    found = {"error_accuracy": error, "correct_accuracy": correct, "f1": harmonic(error, correct)}
    found |= {"precision": precision, "recall": recall, "flawed_f1": harmonic(precision, recall)}
    return found | {"over_critic": ratio(c["false_positive"], c["negatives"]), "coverage": ratio(c["answered"], c["rows"])}


def sampled(rows: Sequence[Labelled], verdicts: Sequence[Verdict], seed: int, resamples: int) -> dict[str, NDArray[np.float64]]:
    """Every measure [1 + B]: of the rows themselves, then of `resamples` draws of as many with replacement. A seed draws the same rows each
    time, so that judges can be paired. Raises `ValueError` where there are no rows or the lists differ in length."""
    if not rows:
        raise ValueError("no rows to score")
    flags_NF = np.array([flags(row, verdict) for row, verdict in zip(rows, verdicts, strict=True)])
    n = len(rows)
    drawn_BN = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return measures(np.concatenate([flags_NF.sum(0, keepdims=True), drawn_BN @ flags_NF]))


def as_score(values: NDArray[np.float64]) -> Score:
    """The first value, with the middle 95 % of the others."""
    return Score(values[0].item(), *np.quantile(values[1:], (0.025, 0.975)).tolist())


def wilson(part: float, whole: float) -> Score:
    """A share with Wilson's interval, which is one at 0 and at 1 too, where resampling would find no other value; of nothing it is 0 … 1.

    >>> str(wilson(30, 30))
    '100.0 [88.6, 100.0]'
    """
    if whole <= 0:
        return Score(0.0, 0.0, 1.0)
    share, z2 = part / whole, Z**2 / whole
    middle, spread = share + z2 / 2, Z * math.sqrt(share * (1 - share) / whole + z2 / 4 / whole)
    return Score(share, max(0.0, (middle - spread) / (1 + z2)), min(1.0, (middle + spread) / (1 + z2)))


def score(rows: Sequence[Labelled], verdicts: Sequence[Verdict], *, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Score]:
    """Every measure of `measures` with its interval: Wilson's of shares, of the two F1 the percentile bootstrap over rows (`resamples`
    times, seeded), which reaches from the one end of both shares to the other where one of them is 0 or 1.

    Example: two rows with labels −1 and 2, verdicts sound and flawed(1): error accuracy 0, correct accuracy 1, F1 0, precision 1, recall 1.
    """
    found = {name: as_score(values) for name, values in sampled(rows, verdicts, seed, resamples).items()}
    c: dict[str, float] = dict(
        zip(FLAGS, np.sum([flags(row, verdict) for row, verdict in zip(rows, verdicts, strict=True)], axis=0).tolist(), strict=True)
    )
    c["said_flawed"] = c["true_positive"] + c["false_positive"]
    found |= {name: wilson(c[part], c[whole]) for name, (part, whole) in SHARES.items()}
    for name, parts in {"f1": ("error_accuracy", "correct_accuracy"), "flawed_f1": ("precision", "recall")}.items():
        one, other = (found[part] for part in parts)
        if {one.value, other.value} & {0.0, 1.0}:
            low, high = (2 * a * b / (a + b) if a + b else 0.0 for a, b in ((one.low, other.low), (one.high, other.high)))
            found[name] = Score(found[name].value, min(found[name].low, low), max(found[name].high, high))
    return found


def difference(
    rows: Sequence[Labelled], ours: Sequence[Verdict], theirs: Sequence[Verdict], name: str, *, seed: int = 0, resamples: int = RESAMPLES
) -> Score:
    """Measure `name` of `ours` − `theirs` on the same rows, with its paired interval."""
    return as_score(sampled(rows, ours, seed, resamples)[name] - sampled(rows, theirs, seed, resamples)[name])
