"""What other problems would have said: intervals, standard errors and p of means over problems.

Problems are drawn with replacement, each with the samples that it has. Those of a problem are drawn *without* replacement, that is, all of
them: the spread of the problems' means holds the noise of sampling already, and samples drawn with replacement as well would count it twice
(Davison and Hinkley, Bootstrap Methods, 1997, §3.8; Field and Welsh, J. R. Stat. Soc. B 69, 2007). The interval is the studentised one,
which follows the skew of easy and hard sets (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, §12.5). `docs/evaluation.md` has
the coverage.

Shapes: P problems, M measures, B draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DRAWS = 2000
FLIPS = 9999
CELLS = 1 << 22  # numbers in memory at once


class Interval(NamedTuple):
    low: float
    high: float
    """95 %, for other problems of the same kind, each sampled as often."""
    se: float
    """Standard error over problems, NaN of one."""


def seed_of(ids: Sequence[str]) -> int:
    """The same problems are drawn alike, whatever is measured and whoever solves them."""
    return int.from_bytes(blake2b("\n".join(ids).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def drawn_sums(values_PM: Floats, ids: Sequence[str], draws: int) -> Floats:
    """[B, M]: sums over as many problems, drawn with replacement."""
    problems = len(values_PM)
    rng, rows = np.random.default_rng(seed_of(ids)), max(1, CELLS // problems)
    out = np.empty((draws, values_PM.shape[1]))
    for start in range(0, draws, rows):
        count = min(rows, draws - start)
        chosen = rng.integers(problems, size=(count, problems)) + problems * np.arange(count)[:, None]
        times = np.bincount(chosen.ravel(), minlength=count * problems)
        out[start : start + count] = times.reshape(count, problems).astype(np.float64) @ values_PM
    return out


def below(x: float, a: float, b: float) -> float:
    """Share of the Beta distribution below x: the continued fraction DLMF 8.17.22, from its far end."""
    if x > (a + 1) / (a + b + 2):
        return 1.0 - below(1.0 - x, b, a) if x < 1.0 else 1.0
    if x <= 0.0:
        return 0.0
    tail = 1.0
    for m in range(20 + 2 * math.isqrt(int(a + b)), 0, -1):
        tail = 1.0 + m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)) / tail
        tail = 1.0 - (a + m - 1) * (a + b + m - 1) * x / ((a + 2 * m - 2) * (a + 2 * m - 1)) / tail
    return density(x, a, b) * x * (1 - x) / a / tail


def density(x: float, a: float, b: float) -> float:
    """Of the Beta distribution, 0 < x < 1."""
    return math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + (a - 1) * math.log(x) + (b - 1) * math.log1p(-x))


@lru_cache(maxsize=1 << 12)
def exact_low(share: float, n: float, least: float = 0.0) -> float:
    """Lower end of the 95 % interval of a share of n which is too short for no truth (Clopper and Pearson, Biometrika 26, 1934), or `least`
    where that is higher. The upper end is 1 − that of the others.

    >>> round(exact_low(29 / 30, 30), 4), round(1 - exact_low(1 / 30, 30), 4), exact_low(0.0, 30), exact_low(0.5, 30, 0.45)
    (0.8278, 0.9992, 0.0, 0.45)
    """
    a, b = share * n, n - share * n + 1
    if a < 1e-9:
        return 0.0
    low, high = max(least, 0.0), share
    if low >= high or below(low, a, b) >= 0.025:
        return low
    x = (low + high) / 2
    for _ in range(60):  # Newton's steps, halves where they leave what is known to hold the end
        over = below(x, a, b) - 0.025
        low, high = (low, x) if over > 0 else (x, high)
        step = x - over / max(density(x, a, b), 1e-300)
        if abs(step - x) < 1e-15:
            break
        x = step if low < step < high else (low + high) / 2
    return x


def intervals(part_PM: Floats, whole_PM: Floats, ids: Sequence[str], signed: bool = False) -> list[Interval]:
    """Of M ratios Σ part ÷ Σ whole; of a mean over problems `whole` is 1. No sum of `whole` is 0. `signed`: parts are differences, −whole …
    whole.

    Each draw b gives t_b = (ratio_b − ratio) ÷ se_b, and the interval is ratio − se · t at both ends of the middle 95 % of t. It is cut to
    what problems in 0 … 1 can leave open (`cut`), which is all there is where they say the same, of which no draw says otherwise.
    """
    count, measures = part_PM.shape
    columns = np.concatenate((part_PM, whole_PM, part_PM**2, part_PM * whole_PM, whole_PM**2), axis=1)

    def of(sums: Floats) -> tuple[Floats, Floats]:
        """[…, M] ratios and their standard errors; of a draw without any `whole` neither is a number."""
        a, w, aa, aw, ww = np.moveaxis(sums.reshape(*sums.shape[:-1], 5, measures), -2, 0)
        ratio = a / w
        spread = np.maximum(aa - 2 * ratio * aw + ratio**2 * ww, 0.0) * (count / max(count - 1, 1))
        return ratio, np.sqrt(np.where(spread > 1e-12 * aa, spread, 0.0)) / w

    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_M, se_M = of(columns.sum(0))
        drawn_BM, drawn_se_BM = of(drawn_sums(columns, ids, DRAWS))
        t_BM = np.clip((drawn_BM - ratio_M) / drawn_se_BM, -1e9, 1e9)  # no end to it where a draw's problems say the same
    out = []
    for m, (ratio, se) in enumerate(zip(ratio_M.tolist(), se_M.tolist(), strict=True)):
        said = t_BM[:, m][~np.isnan(t_BM[:, m])]
        first, last = np.quantile(said, (0.025, 0.975)).tolist() if len(said) and se else (-math.inf, math.inf)
        ends = (ratio - se * last, ratio - se * first) if se else (-math.inf, math.inf)
        low, high = cut(part_PM[:, m], whole_PM[:, m], ends, signed)
        out.append(Interval(min(ratio, low), max(ratio, high), se if count > 1 else math.nan))
    return out


def cut(part_P: Floats, whole_P: Floats, ends: tuple[float, float], signed: bool) -> tuple[float, float]:
    """`ends`, not beyond the interval that problems would leave which are wholly one or the other: the exact one of their mean; of
    differences those of gains and of losses, squared and added (Newcombe, Stat. Med. 17, 1998). Of what is no share, as tokens, not beyond
    the least and the greatest problem."""
    if (np.abs(part_P) > whole_P * (1 + 1e-12)).any():
        each = part_P[whole_P > 0] / whole_P[whole_P > 0]
        return max(ends[0], float(each.min())), min(ends[1], float(each.max()))
    total, n = float(whole_P.sum()), float(whole_P.sum() ** 2 / (whole_P**2).sum())
    gain, loss = float(part_P.clip(0).sum()) / total, float((-part_P).clip(0).sum()) / total
    if not signed:
        return exact_low(gain, n, ends[0]), 1 - exact_low(1 - gain, n, 1 - ends[1])
    down = math.hypot(gain - exact_low(gain, n), 1 - exact_low(1 - loss, n) - loss)
    up = math.hypot(1 - exact_low(1 - gain, n) - gain, loss - exact_low(loss, n))
    return max(ends[0], gain - loss - down), min(ends[1], gain - loss + up)


def flipped(differences_PM: Floats, ids: Sequence[str]) -> list[float]:
    """Two-sided p of M means of paired differences: how often one as large comes of random signs, of all 2^P signs where P ≤ 13.

    >>> flipped(np.array([[0.5], [0.25], [0.5], [0.75]]), list("abcd"))
    [0.125]
    """
    problems = len(differences_PM)
    every, rng = problems <= 13, np.random.default_rng(seed_of(ids))
    count, least = 1 << problems if every else FLIPS, np.abs(differences_PM.sum(0)) * (1 - 1e-9) - 1e-15
    as_large, rows = np.zeros(differences_PM.shape[1]), max(1, CELLS // problems)
    for start in range(0, count, rows):
        numbers = np.arange(start, min(start + rows, count))
        bits = numbers[:, None] >> np.arange(problems) & 1 if every else rng.integers(0, 2, (len(numbers), problems), np.int8)
        as_large += (np.abs((1.0 - 2.0 * bits) @ differences_PM) >= least).sum(0)
    return (as_large / count if every else (as_large + 1) / (count + 1)).tolist()
