"""What each rollout of a step is, in one letter, and what follows from rewards: signal, flips, ρ and the shift.

Shapes: N rollouts, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from soundrl.fapo.flips import ZERO
from soundrl.view.plain import finite
from soundrl.view.step import Step

LETTERS = "sfwunr"
"""sound, flawed, wrong, unknown, no answer, right and not judged"""
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


class Scored:
    """What follows from a step's rewards, of all its rollouts at once (N) or by group (G)."""

    def __init__(self, step: Step, rule: Rule) -> None:
        outcome, verdict, reward = (step.columns[name] for name in ("outcome", "verdict", "reward"))
        self.rule, self.number = rule, len(step.heads)
        self.flawed = verdict == FLAWED
        unknown, leaves, right = verdict == UNKNOWN, (outcome == FAILED) | (outcome == UNSCORED), outcome == CORRECT
        self.kept, self.kept_zero = ~leaves & ~(unknown & rule.drop_unknown), ~leaves
        # What has been written holds a user's own reward and the length penalty too.
        base = np.where(self.flawed, reward + rule.lam * self.flawed, reward)
        with np.errstate(invalid="ignore"):  # a damaged file's
            exact = np.round(base)
            self.base = np.where(np.abs(base - exact) < 1e-12, exact, base)
        self.groups = np.repeat(np.arange(self.number), [head.size for head in step.heads])
        self.known = self._sums(~np.isfinite(reward)) == 0
        """[G] whether it has rewards: an evaluation has none"""
        now = self.kept if rule.lam > 0 else self.kept_zero
        self.gamma = self._sums(now & right & self.flawed)
        self.alpha = self._sums(now & right) - self.gamma
        self.beta = self._sums(now & ~right)
        advantage = np.nan_to_num(step.columns["advantage"], posinf=0.0, neginf=0.0)
        self.signal = self._sums(advantage != 0) > 0
        self.flipped = (signs(advantage) != signs(self._zero())) & self.known[self.groups]
        """[N] whether the advantage has another sign than with λ = 0"""

    def _sums(self, values: np.ndarray) -> np.ndarray:
        """[G] of numbers or flags."""
        sums = np.bincount(self.groups, weights=values, minlength=self.number)
        return sums if values.dtype.kind == "f" else sums.astype(np.int64)

    def _zero(self) -> np.ndarray:
        """[N] advantages with λ = 0 (`fapo.rewards`)."""
        kept, known = self.kept_zero, self.known[self.groups]
        base = np.where(kept & known, self.base, 0.0)
        count = np.maximum(self._sums(kept), 1)
        off = np.where(kept & known, base - (self._sums(base) / count)[self.groups], 0.0)
        if not self.rule.normalize_std:
            return off
        spread = np.sqrt(self._sums(off * off) / np.maximum(count - 1, 1))
        return np.where(np.abs(off) < 1e-12, 0.0, off / (spread + EPSILON)[self.groups])

    def of(self, g: int, rows: slice) -> dict[str, Any] | None:
        """What a group's rewards and advantages follow from at any λ; None where it has none (an evaluation, a damaged file)."""
        if not self.known[g]:
            return None
        arrays = {"base": self.base, "flawed": self.flawed, "kept": self.kept, "kept_zero": self.kept_zero}
        return {"lam": self.rule.lam, "normalize_std": self.rule.normalize_std} | {name: values[rows] for name, values in arrays.items()}

    def mix(self, g: int) -> dict[str, Any]:
        """α, β, γ of what stays in the group, ρ and the threshold above which flawed rollouts are pushed down (arXiv 2510.22543 App. A)."""
        alpha, beta, gamma, lam = int(self.alpha[g]), int(self.beta[g]), int(self.gamma[g]), self.rule.lam
        return {
            "alpha": alpha,
            "beta": beta,
            "gamma": gamma,
            "rho": alpha / beta if beta else None,
            "threshold": 2 / lam - 1 if lam > 0 else None,
            "past": lam > 0 and alpha + gamma > 0 and 2 * beta - lam * (alpha + beta) < -ZERO,
        }


def signs(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) < ZERO, 0, np.sign(values))


def numbers(values: np.ndarray) -> list[float | None]:
    return [finite(value) for value in values.tolist()]


def whole(values: np.ndarray) -> list[int | None]:
    return [None if value != value else int(value) for value in values.tolist()]
