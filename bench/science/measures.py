"""What a run has come to, by the world's exact oracle, whoever judged it: a row of science.jsonl from its run folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from soundrl.engine.environments.arithmetic import chains
from soundrl.engine.files.run_reader import RunReader
from soundrl.engine.files.saved_step import read_step
from soundrl.fapo.flips import identity
from soundrl.fapo.measures import past_shift
from soundrl.fapo.records import Outcome


class Solution(NamedTuple):
    problem: str
    text: str
    right: bool
    tokens: int


@dataclass
class Sums:
    """Of rollouts: how many are right, sound, …; kinds of first flaws among the right ones."""

    all: int = 0
    right: int = 0
    sound: int = 0
    tokens: int = 0
    lines: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, solutions: Iterable[Solution]) -> Sums:
        sums = cls()
        for problem, text, right, tokens in solutions:
            sums.all += 1
            sums.tokens += tokens
            if right:
                flaw = chains.first_flaw(chains.parse(problem), text)
                sums.right += 1
                sums.sound += flaw is None
                sums.lines += len(chains.steps(text)) - 1
                sums.kinds[flaw[1] if flaw else ""] += 1
        return sums

    def measures(self) -> dict[str, float]:
        """Shares of the right ones are 0 where nothing is right, which no arm comes to."""
        right = max(self.right, 1)
        kinds = {kind: self.kinds[kind] / right for kind in ("skip", "guess", "false")}
        out = {"right": self.right / self.all, "sound": self.sound / self.all, "flawed": (self.right - self.sound) / right}
        return out | {"tokens": self.tokens / self.all, "lines": self.lines / right} | kinds


def series_of(run: RunReader, lam: float) -> tuple[dict[str, list[float | None]], dict[str, int]]:
    """By step, of the training rollouts; and the sign identity over all of their groups, as the run's judge saw them."""
    series: dict[str, list[float | None]] = {}
    signs = Counter[str](groups=0, exceptions=0, ties=0)
    for step in run.steps():
        groups = read_step(run, step).groups
        sums = Sums.of(
            Solution(group.prompt.text, rollout.text, outcome is Outcome.CORRECT, len(rollout.tokens))
            for group in groups
            for rollout, outcome in zip(group.rollouts, group.outcomes, strict=True)
        )
        found, wrong = sums.measures(), sums.all - sums.right
        now: dict[str, float | None] = {name: found[name] for name in ("right", "sound", "lines", "skip", "guess", "tokens")}
        now |= {"wrong": wrong / sums.all, "flawed": (sums.right - sums.sound) / sums.all, "rho": sums.sound / wrong if wrong else None}
        now["past"] = sum(past_shift(group, lam) for group in groups) / len(groups)
        for name, value in now.items():
            series.setdefault(name, []).append(value)
        if lam:
            held = identity(groups, lam)
            signs.update(groups=held.groups, exceptions=len(held.exceptions), ties=held.ties)
    return series, dict(signs)


def evaluated(run: RunReader, step: int) -> dict[str, float]:
    """Of the evaluation after `step`, the tens-digit set's as `p2/…`."""
    sets: dict[str, list[Solution]] = {}
    for row in run.rollouts(step, "eval"):
        part = "p2/" if row["set"].endswith("-p2") else ""
        sets.setdefault(part, []).append(Solution(row["prompt"], row["text"], row["outcome"] == "correct", len(row["tokens"])))
    return {part + name: value for part, own in sorted(sets.items()) for name, value in Sums.of(own).measures().items()}


def of_policy(folder: Path, lam: float) -> dict[str, Any]:
    """`before`, `after`, `series` and `sign` of a policy's run that has come to its end."""
    run = RunReader(folder)
    series, signs = series_of(run, lam)
    first, *_, last = run.steps("eval")
    return {"before": evaluated(run, first), "after": evaluated(run, last), "series": series, "sign": signs}
