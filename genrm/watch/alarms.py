"""What the steps of a run say of its judge: errors on fresh rollouts, disagreement with a second opinion, and the signs by which FAPO fails
(arXiv 2510.22543: an over-critic, a jump in reasoning, a long tail of critiques).

A *share* (`Share`) is tested exactly against what it was in the run's first steps, with room for what a policy that learns may change: what
a judge misses stays in the rollouts, and what it finds goes. A *level* (`Level`) must be far from that start for several steps in a row.

Everything here is computed on every rank from what all of them know, so that all act alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from soundrl.fapo.measures import TooManyUnknownError
from soundrl.genrm.watch.chance import ALPHA, at_least

Counts = Mapping[str, tuple[int, int]]
"""By the name of a share: how many were bad, of how many; of one step, over all ranks"""
FIRST = 3  # steps that are a share's start
LAST = 10  # steps that are looked at together, at most
SUSTAINED = 5  # steps in a row that a level must be far off; and those that are its start


class JudgeUnfitError(TooManyUnknownError):
    """The judge is under an alarm, and the run is to stop then (`genrm.alarm`)."""


@dataclass
class Share:
    """Of bad answers, a step at a time."""

    least: float
    """What is always allowed, unless that is half-way from the start to always bad"""
    most: float
    """What is never allowed, however it began"""
    start: list[int] = field(default_factory=lambda: [0, 0, 0])
    """Bad, of how many, steps"""
    steps: list[list[int]] = field(default_factory=list)
    """The last ones: bad, of how many"""

    @property
    def limit(self) -> float:
        """
        >>> Share(0.15, 0.5).limit, Share(0.15, 0.5, [2, 98, 3]).limit, Share(0.6, 0.9, [19, 98, 3]).limit
        (0.5, 0.15, 0.6)
        """
        bad, of, steps = self.start
        if steps < FIRST:
            return self.most
        began = (bad + 1) / (of + 2)
        return min(max(self.least, 2 * began), (1 + began) / 2, self.most)

    def __call__(self, bad: int, of: int) -> str:
        """What is told where the last steps are bad, however many of them; else empty."""
        if of and self.start[2] < FIRST:
            self.start = [self.start[0] + bad, self.start[1] + of, self.start[2] + 1]
        self.steps = [*self.steps, [bad, of]][-LAST:]
        limit, bad, of = self.limit, 0, 0
        for number, (more, whole) in enumerate(reversed(self.steps), 1):
            bad, of = bad + more, of + whole
            if (chance := at_least(bad, of, limit)) <= ALPHA:
                began = f"; {self.start[0]} of {self.start[1]} at the start" if self.start[2] == FIRST else ""
                return f"{bad} of {of} in the last {number} steps, where {limit:.0%} may be{began} (chance {chance:.0e})"
        return ""


@dataclass
class Level:
    """A figure of each step; `off(value, start)`: it is far from where it began."""

    off: Callable[[float, float], bool]
    start: list[float] = field(default_factory=list)
    row: int = 0
    """Steps in a row that it is off by now"""

    def __call__(self, value: float | None, excused: bool = False) -> str:
        """What is told where it has been off for long; else empty. A step without a value, or `excused`, breaks the row."""
        if value is not None and len(self.start) < SUSTAINED:
            self.start = [*self.start, value]  # a state that was taken holds the list
            return ""
        began = sum(self.start) / max(len(self.start), 1)
        self.row = self.row + 1 if value is not None and not excused and self.off(value, began) else 0
        return f"{value:.3g} (was {began:.3g} at the start), for {self.row} steps" if self.row >= SUSTAINED else ""


SHARES = {
    "fresh_over_critic": (0.15, 0.5, "calls sound rollouts flawed", "the judge is an over-critic by the oracle"),
    "fresh_missed": (0.6, 0.9, "calls flawed rollouts sound", "the judge misses flaws by the oracle"),
    "second_disagrees": (0.15, 1.0, "second opinions that disagree", "read disagreements.jsonl (python -m soundrl.genrm.label)"),
    "second_over_critic": (0.15, 1.0, "flawed, which a second opinion calls sound", "an over-critic? python -m soundrl.genrm.label"),
    "second_missed": (0.6, 1.0, "sound, which a second opinion calls flawed", "does it miss flaws? python -m soundrl.genrm.label"),
}
LEVELS: dict[str, tuple[Callable[[float, float], bool], str, str]] = {
    "steps": (lambda now, start: now < 0.75 * start, "steps a judged rollout", "the policy jumps over steps, and the judge lets it"),
    "jumped": (lambda now, start: now > start + 0.15, "right answers that skip or guess", "the policy jumps, and the judge lets it"),
    "critique_tokens": (lambda now, start: now > 2 * start, "tokens a critique", "critiques grow a long tail; look at some in rollouts/"),
    "latency": (lambda now, start: now > 3 * start, "latency, p99 ÷ p50", "a few critiques take very long; look at the judge's load"),
}
JUMPS = ("fapo/kind_skip", "fapo/kind_guess")
"""Shares of right answers, where an oracle knows the kinds of flaw"""
TIME = ("latency",)
"""Alarms by the clock, which only tell: nothing that a run does may depend on how busy a machine is."""


class Alarms:
    """`alarms(step's counts, its metrics)`; what stands then is in `standing`, name → text."""

    def __init__(self) -> None:
        self.shares = {name: Share(least, most) for name, (least, most, *_) in SHARES.items()}
        self.levels = {name: Level(off) for name, (off, *_) in LEVELS.items()}
        self.correct: list[float] = []
        """Right answers in the first steps"""
        self.standing: dict[str, str] = {}

    def __call__(self, counts: Counts, metrics: Mapping[str, float]) -> None:
        correct = metrics.get("reward/correct", 0.0)
        self.correct = [*self.correct, correct][:SUSTAINED]
        fewer = correct < sum(self.correct) / len(self.correct) - 0.05  # a policy that falls apart may say little
        p50, p99 = (metrics.get(f"genrm/latency_{name}", 0.0) for name in ("p50", "p99"))
        jumps = [metrics[name] for name in JUMPS if name in metrics]
        values = {
            "steps": metrics.get("fapo/steps"),
            "jumped": sum(jumps) if jumps else None,
            "critique_tokens": metrics.get("genrm/critique_tokens") or None,
            "latency": p99 / p50 if p50 else None,
        }
        told = {name: share(*counts.get(name, (0, 0))) for name, share in self.shares.items()}
        told |= {name: level(values[name], excused=fewer and name in ("steps", "jumped")) for name, level in self.levels.items()}
        about = {name: more[-2:] for name, more in (SHARES | LEVELS).items()}
        self.standing = {name: f"{name}: {about[name][0]}: {text}; {about[name][1]}" for name, text in told.items() if text}

    def forgive(self) -> None:
        """Somebody has looked: what is bad again is told again, from here on."""
        self.standing = {}
        for share in self.shares.values():
            share.steps = []
        for level in self.levels.values():
            level.row = 0

    def state(self) -> dict[str, Any]:
        """Plain JSON."""
        shares = {name: [share.start, share.steps] for name, share in self.shares.items()}
        return {
            "shares": shares,
            "levels": {name: [level.start, level.row] for name, level in self.levels.items()},
            "correct": self.correct,
            "standing": self.standing,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, (start, steps) in state["shares"].items():
            self.shares[name].start, self.shares[name].steps = start, steps
        for name, (start, row) in state["levels"].items():
            self.levels[name].start, self.levels[name].row = start, row
        self.correct, self.standing = state["correct"], state["standing"]
