"""What a run has come to, by the world's exact oracle, whoever judged it: a row of science.jsonl from its run folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Any

from soundrl.engine.environments.arithmetic import chains
from soundrl.engine.files.run_reader import RunReader

Rollouts = Sequence[Mapping[str, Any]]


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
    def of(cls, rollouts: Iterable[Mapping[str, Any]]) -> Sums:
        sums = cls()
        for rollout in rollouts:
            sums.all += 1
            sums.tokens += len(rollout["tokens"])
            if rollout["outcome"] == "correct":
                flaw = chains.first_flaw(chains.parse(rollout["prompt"]), rollout["text"])
                sums.right += 1
                sums.sound += flaw is None
                sums.lines += len(chains.steps(rollout["text"])) - 1
                sums.kinds[flaw[1] if flaw else ""] += 1
        return sums

    def measures(self) -> dict[str, float]:
        """Shares `of right` are 0 where nothing is right, which no arm comes to."""
        right = max(self.right, 1)
        kinds = {kind: self.kinds[kind] / right for kind in ("skip", "guess", "false")}
        out = {"right": self.right / self.all, "sound": self.sound / self.all, "flawed": (self.right - self.sound) / right}
        return out | {"tokens": self.tokens / self.all, "lines": self.lines / right} | kinds


def groups_of(rollouts: Rollouts) -> list[Rollouts]:
    """By prompt, in the order of the file."""
    return [list(group) for _, group in groupby(rollouts, key=lambda rollout: rollout["prompt_id"])]


def shift(group: Rollouts) -> tuple[int, int]:
    """α and β of a group as its judge sees it: sound and wrong rollouts among those that were kept."""
    kept = [rollout for rollout in group if rollout["kept"]]
    right = [rollout for rollout in kept if rollout["outcome"] == "correct"]
    flawed = sum((rollout["verdict"] or {}).get("kind") == "flawed" for rollout in right)
    return len(right) - flawed, len(kept) - len(right)


def past(group: Rollouts, lam: Fraction) -> bool:
    """ρ = α/β > 2/λ − 1, without a division by β = 0."""
    sound, wrong = shift(group)
    return lam > 0 and lam * sound > (2 - lam) * wrong


def sign(groups: Iterable[Rollouts], lam: Fraction) -> dict[str, int]:
    """The identity of App. A (arXiv 2510.22543), group by group: a flawed rollout's advantage is below 0 iff ρ > 2/λ − 1, and 0 where they
    are equal, up to rounding. Of groups with a flawed rollout and rewards that differ."""
    found = {"groups": 0, "exceptions": 0, "ties": 0}
    for group in groups:
        advantages = [r["advantage"] for r in group if r["kept"] and (r["verdict"] or {}).get("kind") == "flawed"]
        if not lam or not advantages or not any(rollout["advantage"] for rollout in group):
            continue
        sound, wrong = shift(group)
        distance = lam * sound - (2 - lam) * wrong
        found["groups"] += 1
        found["ties"] += distance == 0
        as_said = (abs(a) < 1e-6 if distance == 0 else (a < 0) == (distance > 0) and a != 0 for a in advantages)
        found["exceptions"] += not all(as_said)
    return found


def series_of(run: RunReader, lam: Fraction) -> tuple[dict[str, list[float | None]], dict[str, int]]:
    """By step, of the training rollouts; and the sign identity over all of them."""
    series: dict[str, list[float | None]] = {}
    signs = Counter[str]()
    for step in run.steps():
        rollouts = run.rollouts(step)
        sums, groups = Sums.of(rollouts), groups_of(rollouts)
        found = sums.measures()
        wrong = sums.all - sums.right
        now: dict[str, float | None] = {name: found[name] for name in ("right", "sound", "lines", "skip", "guess", "tokens")}
        now |= {"wrong": wrong / sums.all, "flawed": (sums.right - sums.sound) / sums.all}
        now |= {"rho": sums.sound / wrong if wrong else None, "past": sum(past(group, lam) for group in groups) / len(groups)}
        now |= {"judged_flawed": sum((r["verdict"] or {}).get("kind") == "flawed" for r in rollouts) / sums.all}
        for name, value in now.items():
            series.setdefault(name, []).append(value)
        signs.update(sign(groups, lam))
    return series, dict(signs)


def evaluated(run: RunReader, step: int) -> dict[str, float]:
    """Of the evaluation after `step`, the tens-digit set's as `p2/…`."""
    out: dict[str, float] = {}
    for name in sorted({rollout["set"] for rollout in run.rollouts(step, "eval")}):
        part = "p2/" if name.endswith("-p2") else ""
        out |= {part + measure: value for measure, value in Sums.of(run.rollouts(step, "eval", name)).measures().items()}
    return out


def of_policy(folder: Path, lam: Fraction) -> dict[str, Any]:
    """`before`, `after`, `series` and `sign` of a policy's run that has come to its end."""
    run = RunReader(folder)
    series, signs = series_of(run, lam)
    first, *_, last = run.steps("eval")
    return {"before": evaluated(run, first), "after": evaluated(run, last), "series": series, "sign": signs}
