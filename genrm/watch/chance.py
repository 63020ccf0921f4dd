"""How likely chance alone would be so bad: exact tests, no normal approximation, for counts however small."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

ALPHA = 1e-6
"""An alarm is raised where chance would do as much less often. A run of 200 steps makes some thousand such tests: one false alarm in
hundreds of runs, at most."""


def at_least(bad: int, of: int, share: float) -> float:
    """P(X ≥ bad) of a binomial X of `of` trials.

    >>> round(at_least(2, 2, 0.5), 6), at_least(0, 7, 0.1), at_least(3, 2, 0.5)
    (0.25, 1.0, 0.0)
    """
    if bad <= 0:
        return 1.0
    if share <= 0.0 or share >= 1.0 or bad > of:
        return float(share >= 1.0 and bad <= of)
    ways = (math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1) for k in range(bad, of + 1))
    each = (way + k * math.log(share) + (of - k) * math.log1p(-share) for k, way in enumerate(ways, bad))
    return min(1.0, sum(map(math.exp, each)))


def fallen(rows: Iterable[Sequence[bool]]) -> float:
    """P that the first answers are right as often as they were, where each row's answers (the first one, then later ones) came in an order
    that chance has chosen: whether the judge has grown worse on the very rows that it was asked at the start.

    A row that is answered alike each time says nothing. With one later answer this is McNemar's exact test.

    >>> fallen([(True, False)] * 3 + [(True, True)] * 9)
    0.125
    """
    spread, firsts = np.ones(1), 0
    for first, *later in rows:
        share = (first + sum(later)) / (1 + len(later))
        if 0.0 < share < 1.0:
            spread, firsts = np.convolve(spread, (1.0 - share, share)), firsts + first
    return float(spread[firsts:].sum())


def kappa(both_sound: float, flawed_second: float, flawed_first: float, both_flawed: float) -> float | None:
    """Cohen's κ of two judges' sound and flawed: agreement beyond that of two who guess with their own frequencies. None where these
    agree always, as where everything is sound to both.

    >>> kappa(40, 0, 0, 10), kappa(25, 25, 25, 25), kappa(50, 0, 0, 0)
    (1.0, 0.0, None)
    """
    whole = both_sound + flawed_second + flawed_first + both_flawed
    first, second = flawed_first + both_flawed, flawed_second + both_flawed
    by_chance = first * second + (whole - first) * (whole - second)
    if by_chance == whole * whole:
        return None
    return (whole * (both_sound + both_flawed) - by_chance) / (whole * whole - by_chance)
