"""What a problem's n samples say of k: pass@k and maj@k, each the mean over all C(n, k) subsets of k samples, by counting.

A random subset of independent samples is k independent samples, so both are unbiased of a policy that is asked k times.

Shapes: P problems; T counts of right votes, Q points of integration.
"""

from __future__ import annotations

from functools import lru_cache
from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray


def check_k(k: int, n: int, who: str) -> None:
    """ValueError, which names the problem (`who`), where k samples cannot be taken of its n."""
    if not 1 <= k <= n:
        raise ValueError(f"k = {k}, but {who} has {n} samples that are scored: k is 1 … {n}; sample more, or ask for fewer")


def powers(n: int) -> list[int]:
    """The k that are shown of n samples.

    >>> powers(12), powers(1), powers(0)
    ([1, 2, 4, 8, 12], [1], [])
    """
    return sorted({1 << bit for bit in range(n.bit_length())} | {n}) if n else []


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> NDArray[np.float64]:
    """[P]: 1 − C(n−c, k) ÷ C(n, k) of n [P] samples, c [P] of them right (Chen et al., arXiv 2107.03374 Eq. 1). The plug-in 1 − (1 − c/n)^k
    is too low. ValueError where k is below 1 or above some n.

    >>> pass_at_k([32, 32, 4], [1, 0, 4], 4)
    array([0.125, 0.   , 1.   ])
    """
    n_P, c_P = np.broadcast_arrays(np.asarray(n, np.int64), np.asarray(c, np.int64))
    if (c_P < 0).any() or (c_P > n_P).any():
        raise ValueError("of n samples 0 … n are right")
    check_k(k, int(n_P.min(initial=max(k, 1))), "a problem")
    none_P = np.ones(n_P.shape)
    for drawn in range(k):  # none of the k is right
        none_P *= np.maximum(n_P - c_P - drawn, 0) / (n_P - drawn)
    return 1.0 - none_P


@lru_cache(maxsize=1 << 16)
def maj_at_k(right: int, wrong: tuple[int, ...], silent: int, k: int) -> float:
    """Probability that most of k of a problem's samples, drawn without replacement, give the right answer: `right` of them do, the numbers
    in `wrong` agree on a wrong one each, `silent` ones give none and vote for nothing. Answers with as many votes share the win evenly.

    With t right votes it is ∫ Π_i (Σ_{s<t} C(a_i, s) x^s + C(a_i, t) x^t y) dy over y in 0 … 1, at x^(k−t): each wrong answer that ties
    brings a y, and ∫ y^j dy = 1 ÷ (1 + j). Gauss's rule is exact of it. C(a, s) is weighed by a power of q = k/n that cancels, so that no
    sum is large.

    >>> maj_at_k(2, (2,), 0, 4), maj_at_k(1, (1, 1), 1, 2), maj_at_k(3, (2,), 0, 5)
    (0.5, 0.3333333333333333, 1.0)
    """
    n = right + sum(wrong) + silent
    check_k(k, n, "a problem")
    if not (most := min(right, k)):
        return 0.0
    if k == n:
        return (right >= max(wrong, default=0)) / (1 + wrong.count(right))

    def drawn(of: int) -> list[float]:
        """[s]: that s of them are among those drawn, were each drawn by itself with probability k/n."""
        return [comb(of, s) * k**s * (n - k) ** (of - s) / n**of for s in range(min(of, k) + 1)]

    points, weights = np.polynomial.legendre.leggauss(min(len(wrong), k - 1) // 2 + 1)
    y_Q = (points + 1) / 2
    votes_TQK = np.zeros((most, len(y_Q), k + 1))  # row t − 1; by votes drawn so far
    votes_TQK[:, :] = np.pad(chance := drawn(silent), (0, k + 1 - len(chance)))
    for agree in wrong:
        before, votes_TQK = votes_TQK, np.zeros_like(votes_TQK)
        for s, p in enumerate(drawn(agree)[: most + 1]):
            votes_TQK[s:, :, s:] += p * before[s:, :, : k + 1 - s]
            if s:
                votes_TQK[s - 1, :, s:] += p * y_Q[:, None] * before[s - 1, :, : k + 1 - s]
    won = sum(p * (votes_TQK[t - 1, :, k - t] @ weights) / 2 for t, p in enumerate(drawn(right)) if t)
    return float(won / drawn(n)[k])
