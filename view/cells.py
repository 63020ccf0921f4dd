"""What each rollout of a step is, in one letter, and what follows from rewards: signal, flips, ρ and the shift.

Shapes: N rollouts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from soundrl.view.plain import finite
from soundrl.view.step import Step

LETTERS = "sfwunr"
"""sound, flawed, wrong, unknown, no answer, right and not judged"""
ZERO = 1e-9  # as `fapo.flips` has it
EPSILON = 1e-6  # beside the spread (`kernels.advantage`)
CORRECT, WRONG, NO_ANSWER, UNPARSEABLE, FAILED, UNSCORED = range(6)
SOUND, FLAWED, UNKNOWN = range(3)


@dataclass(frozen=True)
class Rule:
    """From the configuration."""

    lam: float
    normalize_std: bool
    drop_unknown: bool

    @classmethod
    def of(cls, config: dict[str, Any]) -> Rule:
        """Of a run's config.json, whatever it holds."""
        fapo, genrm = (found if isinstance(found := config.get(name), dict) else {} for name in ("fapo", "genrm"))
        lam, unknown = fapo.get("lam", 1.0), genrm.get("unknown")
        number = isinstance(lam, int | float) and not isinstance(lam, bool) and np.isfinite(lam)
        drop = unknown[0] == "drop" if isinstance(unknown, list) and unknown else True
        return cls(float(lam) if number else 1.0, fapo.get("normalize_std", True) is not False, drop)


def letters(step: Step) -> np.ndarray:
    """[N] of one letter each."""
    outcome, verdict = step.columns["outcome"], step.columns["verdict"]
    right = outcome == CORRECT
    out = np.full(len(outcome), "u")
    out[outcome == WRONG] = "w"
    out[(outcome == NO_ANSWER) | (outcome == UNPARSEABLE)] = "n"
    out[right & (verdict == SOUND)] = "s"
    out[right & (verdict == FLAWED)] = "f"
    out[right & (verdict == -1)] = "r"
    return out


def rule_of(step: Step, rows: slice, rule: Rule) -> dict[str, Any] | None:
    """What rewards and advantages follow from at any λ; None where the rollouts have no rewards (an evaluation, a damaged file)."""
    reward = step.columns["reward"][rows]
    if not len(reward) or not np.isfinite(reward).all():
        return None
    flawed = step.columns["verdict"][rows] == FLAWED
    unknown = step.columns["verdict"][rows] == UNKNOWN
    leaves = np.isin(step.columns["outcome"][rows], (FAILED, UNSCORED))
    # What has been written holds a user's own reward and the length penalty too.
    base = np.where(flawed, reward + rule.lam * flawed, reward)
    exact = np.round(base)
    base = np.where(np.abs(base - exact) < 1e-12, exact, base)
    return {
        "lam": rule.lam,
        "normalize_std": rule.normalize_std,
        "base": base,
        "flawed": flawed,
        "kept": ~leaves & ~(unknown & rule.drop_unknown),
        "kept_zero": ~leaves,
    }


def advantages(rule: dict[str, Any], lam: float) -> np.ndarray:
    """[N] of one group, as the run would have had them with another λ."""
    kept = rule["kept"] if lam > 0 else rule["kept_zero"]
    reward = rule["base"] - lam * rule["flawed"]
    out = np.zeros(len(reward))
    own = reward[kept]
    if len(own) < 2 or own.min() == own.max():
        return out
    out[kept] = own - own.mean()
    return out / (own.std(ddof=1) + EPSILON) if rule["normalize_std"] else out


def signs(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) < ZERO, 0, np.sign(values))


def mix(step: Step, rows: slice, rule: Rule) -> dict[str, Any]:
    """α, β, γ of what stays in the group, ρ and the threshold above which flawed rollouts are pushed down (arXiv 2510.22543 App. A)."""
    outcome, verdict = step.columns["outcome"][rows], step.columns["verdict"][rows]
    kept = ~np.isin(outcome, (FAILED, UNSCORED)) & ~((verdict == UNKNOWN) & rule.drop_unknown & (rule.lam > 0))
    right = kept & (outcome == CORRECT)
    gamma = int((right & (verdict == FLAWED)).sum())
    alpha, beta = int(right.sum()) - gamma, int((kept & (outcome != CORRECT)).sum())
    return {
        "alpha": alpha,
        "beta": beta,
        "gamma": gamma,
        "rho": alpha / beta if beta else None,
        "threshold": 2 / rule.lam - 1 if rule.lam > 0 else None,
        "past": rule.lam > 0 and alpha + gamma > 0 and 2 * beta - rule.lam * (alpha + beta) < -ZERO,
    }


def numbers(values: np.ndarray) -> list[float | None]:
    return [finite(value) for value in values.tolist()]


def whole(values: np.ndarray) -> list[int | None]:
    return [None if value != value else int(value) for value in values.tolist()]
