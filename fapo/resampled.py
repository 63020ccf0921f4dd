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
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DRAWS = 2000
FLIPS = 9999
Z = 1.959964  # 95 %
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


def drawn_sums(values_PM: Floats, ids: Sequence[str], draws: int = DRAWS) -> Floats:
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


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of n, which is one at 0 and at 1 too.

    >>> tuple(round(end, 3) for end in wilson(1.0, 30))
    (0.886, 1.0)
    """
    z2 = Z**2 / n
    middle, spread = share + z2 / 2, Z * math.sqrt(max(share * (1 - share), 0.0) / n + z2 / 4 / n)
    return max(0.0, (middle - spread) / (1 + z2)), min(1.0, (middle + spread) / (1 + z2))


def intervals(part_PM: Floats, whole_PM: Floats, ids: Sequence[str], signed: bool = False) -> list[Interval]:
    """Of M ratios Σ part ÷ Σ whole; of a mean over problems `whole` is 1. No sum of `whole` is 0. `signed`: parts are differences, −whole …
    whole.

    Each draw b gives t_b = (ratio_b − ratio) ÷ se_b, and the interval is ratio − se · t at both ends of the middle 95 % of t. It is cut to
    what problems in 0 … 1 can leave open (`widest`), which is all there is where they say the same, of which no draw says otherwise.
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
        drawn_BM, drawn_se_BM = of(drawn_sums(columns, ids))
        t_BM = np.clip((drawn_BM - ratio_M) / drawn_se_BM, -1e9, 1e9)  # no end to it where a draw's problems say the same
    out = []
    for m, (ratio, se) in enumerate(zip(ratio_M.tolist(), se_M.tolist(), strict=True)):
        said = t_BM[:, m][~np.isnan(t_BM[:, m])]
        first, last = np.quantile(said, (0.025, 0.975)).tolist() if len(said) and se else (-math.inf, math.inf)
        low, high = widest(part_PM[:, m], whole_PM[:, m], signed)
        ends = (low, high) if not se else (max(low, ratio - se * last), min(high, ratio - se * first))
        out.append(Interval(min(ratio, ends[0]), max(ratio, ends[1]), se if count > 1 else math.nan))
    return out


def widest(part_P: Floats, whole_P: Floats, signed: bool) -> tuple[float, float]:
    """The interval were every problem wholly one or the other, of the mean that these have: Wilson's; of differences those of the gains and
    of the losses, squared and added (Newcombe, Stat. Med. 17, 1998). Of what is no share, as tokens, the least and the greatest problem."""
    if (np.abs(part_P) > whole_P * (1 + 1e-12)).any():
        each = part_P[whole_P > 0] / whole_P[whole_P > 0]
        return float(each.min()), float(each.max())
    total, n = float(whole_P.sum()), float(whole_P.sum() ** 2 / (whole_P**2).sum())
    gain, loss = float(part_P.clip(0).sum()) / total, float((-part_P).clip(0).sum()) / total
    low, high = wilson(gain, n)
    if not signed:
        return low, high
    least, most = wilson(loss, n)
    return gain - loss - math.hypot(gain - low, most - loss), gain - loss + math.hypot(high - gain, loss - least)


def flipped(differences_P: Floats, ids: Sequence[str]) -> float:
    """Two-sided p of the mean of paired differences: how often one as large comes of random signs, of all 2^P signs where P ≤ 13.

    >>> flipped(np.array([0.5, 0.25, 0.5, 0.75]), list("abcd"))
    0.125
    """
    problems = len(differences_P)
    if exact := problems <= 13:
        signs = 1 - 2 * (np.arange(1 << problems)[:, None] >> np.arange(problems) & 1)
    else:
        signs = np.random.default_rng(seed_of(ids)).integers(0, 2, (FLIPS, problems), np.int8) * np.int8(2) - np.int8(1)
    as_large = int((np.abs(signs @ differences_P) >= abs(differences_P.sum()) * (1 - 1e-9) - 1e-15).sum())
    return as_large / len(signs) if exact else (as_large + 1) / (FLIPS + 1)
