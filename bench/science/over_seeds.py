"""Statistics over seeds: paired t intervals, the exact sign-flip test, Holm's correction. A seed is one independent repetition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

MOST = 20
"""Seeds whose signs can all be tried."""


@dataclass(frozen=True)
class Mean:
    """Of n values, with its 95 % t interval: infinite where n is 1."""

    value: float
    low: float
    high: float
    n: int


def mean(values: Sequence[float]) -> Mean:
    """With its interval. ValueError for none.

    >>> found = mean([0.1, 0.2, 0.3])
    >>> round(found.value, 3), round(found.high - found.value, 3)
    (0.2, 0.248)
    """
    if not values:
        raise ValueError("a mean of no seeds")
    n, middle = len(values), math.fsum(values) / len(values)
    half = math.inf if n == 1 else float(stats.t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Mean(middle, middle - half, middle + half, n)


def t_test(values: Sequence[float]) -> float:
    """Two-sided p of a mean of 0; 1 for fewer than two values, or where all are 0."""
    if len(values) < 2 or not any(values):
        return 1.0
    return 0.0 if len({*values}) == 1 else float(np.asarray(stats.ttest_1samp(values, 0.0))[1])


def sign_flip(values: Sequence[float]) -> float:
    """Exact two-sided p of a symmetric distribution about 0: the share of all 2^n choices of signs whose sum is as far from 0. At n = 8 it
    cannot be below 2 ÷ 256; at n = 1 it is 1.

    >>> sign_flip([1.0, 2.0, 3.0]), sign_flip([1.0, -1.0])
    (0.25, 1.0)
    """
    if len(values) > MOST:
        raise ValueError(f"{len(values)} seeds have too many signs to try all; use at most {MOST}")
    signs = 1.0 - 2.0 * (np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1)
    return float(np.mean(np.abs(signs @ np.asarray(values, np.float64)) >= abs(math.fsum(values)) - 1e-12))


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p of each, in the order given.

    >>> [round(p, 9) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    out, least = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = max(least, min(1.0, (len(ps) - rank) * ps[i]))
        out[i] = least
    return out


def rises(series: Sequence[float | None]) -> float:
    """Kendall's τ-b of a series against its steps, −1 … 1; steps without a value are left out, and 0 where all are equal.

    >>> rises([1, None, 2, 3]), rises([2, 2])
    (1.0, 0.0)
    """
    told = [(step, value) for step, value in enumerate(series) if value is not None]
    return float(np.asarray(stats.kendalltau(*zip(*told, strict=True)))[0]) if len({value for _, value in told}) > 1 else 0.0
