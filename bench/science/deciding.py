"""How a claim is decided: contrasts of arms over seeds, what is claimed of them, and the rule of `protocol.md`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import words
from claim import Arm, Claim, Contrast, Row, Verdict
from experiments import EARLY
from over_seeds import mean, rises, sign_flip, t_test

Measure = Callable[[Row], float]
LEVEL, FEWEST = 0.05, 3
"""Of Holm's p; seeds below which nothing is decided."""


def after(name: str) -> Measure:
    return lambda row: float(row["after"][name])


def early(name: str) -> Measure:
    """Mean over the first steps."""

    def of(row: Row) -> float:
        values = row["series"][name][:EARLY]
        return sum(values) / len(values)

    return of


def rising(row: Row) -> float:
    return rises(row["series"]["rho"])


def half_past(row: Row) -> float:
    """The first step in which half of the groups are past the shift; one more than there are where none is."""
    past = row["series"]["past"]
    return float(next((step for step, share in enumerate(past, 1) if share >= 0.5), len(past) + 1))


@dataclass(frozen=True)
class Test:
    """A contrast with what is claimed of it: `bound` and the side. `at_least`: the interval above `bound`; else below."""

    contrast: Contrast
    p: float
    """Of the t test against 0 of what is claimed to differ; 0 where a margin decides alone."""
    bound: float = 0.0
    at_least: bool = True
    margin: bool = False

    @property
    def holds(self) -> bool:
        low, high = self.contrast.low, self.contrast.high
        return (low > self.bound if self.at_least else high < self.bound) and self._sure

    @property
    def fails(self) -> bool:
        low, high = self.contrast.low, self.contrast.high
        return (high < self.bound if self.at_least else low > self.bound) and self._sure

    @property
    def _sure(self) -> bool:
        return self.margin or (self.contrast.holm is not None and self.contrast.holm < LEVEL)


class Rows:
    """By start, arm and seed."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        self.by: dict[tuple[str, str], dict[int, Row]] = {}
        for row in self.rows:
            self.by.setdefault((row["start"], row["arm"]), {})[row["seed"]] = row

    def values(self, start: str, arm: str, measure: Measure) -> dict[int, float]:
        return {seed: measure(row) for seed, row in sorted(self.by.get((start, arm), {}).items())}

    def contrast(self, what: str, start: str, pair: tuple[str, str], measure: Measure, primary: bool = True) -> Contrast:
        """The first arm less the second, over the seeds that both have."""
        ours, theirs = (self.values(start, arm, measure) for arm in pair)
        return contrast(what, [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())], primary)

    def arms(self, start: str, named: dict[str, str], measures: dict[str, Measure]) -> list[Arm]:
        """Those that were run, label → arm."""
        out = []
        for label, arm in named.items():
            if rows := self.by.get((start, arm)):
                found = {name: mean([measure(row) for row in rows.values()]) for name, measure in measures.items()}
                out.append(Arm(label=label, figures={name: (m.value, m.low, m.high) for name, m in found.items()}, n=len(rows)))
        return out


def contrast(what: str, values: Sequence[float], primary: bool = True, unit: str = "") -> Contrast:
    """Its interval is everything where there are no values."""
    if not values:
        return Contrast(what=what, values=(), mean=float("nan"), low=-float("inf"), high=float("inf"), p=1.0, primary=primary, unit=unit)
    found = mean(values)
    return Contrast(
        what=what, values=tuple(values), mean=found.value, low=found.low, high=found.high, p=sign_flip(values), primary=primary, unit=unit
    )


@dataclass(frozen=True)
class Asked:
    """A claim before its verdict."""

    id: str
    claim: str
    source: str
    tests: Sequence[Test]
    others: Sequence[Contrast] = ()
    arms: Sequence[Arm] = ()
    notes: Sequence[str] = ()

    def decided(self) -> Claim:
        verdict = decide(self.tests)
        because = "; ".join(in_words(test) for test in self.tests)
        contrasts = [test.contrast for test in self.tests] + list(self.others)
        return Claim(
            id=self.id,
            claim=self.claim,
            source=self.source,
            verdict=verdict,
            because=because + ".",
            contrasts=contrasts,
            arms=self.arms,
            notes=self.notes,
        )


def decide(tests: Sequence[Test]) -> Verdict:
    if any(test.contrast.n < FEWEST for test in tests):
        return "not run"
    if any(test.fails for test in tests):
        return "contradicted"
    return "supported" if all(test.holds for test in tests) else "no power"


def in_words(test: Test) -> str:
    c = test.contrast
    if not c.n:
        return f"{c.what}: not run (n = 0)"
    sign = ("≥" if test.at_least else "≤") if test.margin else ">" if test.at_least else "<"
    side = f"{sign} {test.bound:g}".replace("-", "−")
    p = "" if test.margin or c.holm is None else f", {words.chance('Holm p', c.holm)}"
    return f"{c.what}: {words.shown(c)}, claimed {side}, n = {c.n} {c.counted}{p}"


def more(contrast: Contrast) -> Test:
    return Test(contrast, t_test(contrast.values))


def less(contrast: Contrast) -> Test:
    return Test(contrast, t_test(contrast.values), at_least=False)


def no_worse(contrast: Contrast, margin: float) -> Test:
    return Test(contrast, 0.0, bound=-margin, margin=True)
