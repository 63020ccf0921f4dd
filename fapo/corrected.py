"""A share of flawed rollouts, corrected for the errors of the judge that found them, with the interval that those errors leave.

A judge with recall s and false alarms f calls a share q = p·s + (1 − p)·f of its rollouts flawed where a share p is, so p is estimated by
(q − f) ÷ (s − f) (Rogan and Gladen, Am. J. Epidemiol. 107, 1978). s and f are known from labelled solutions alone, some dozens of either
kind; what they leave open is in the interval.
"""

from __future__ import annotations

import math
from typing import NamedTuple

Z = 1.959964  # 95 %
PRIOR = 0.5  # Jeffreys': a judge without an error on 20 solutions is not one without errors


class Errors(NamedTuple):
    """A judge on labelled solutions whose final answer is right; of those that it gave no verdict for nothing is counted."""

    found: int
    """Flawed ones called flawed, of"""
    flawed: int
    alarms: int
    """Sound ones called flawed, of"""
    sound: int


class Share(NamedTuple):
    value: float
    low: float
    high: float


def corrected(flawed: float, told: float, errors: Errors, spread: float | None = None) -> Share | None:
    """The share of flawed ones among `told` rollouts, of which the judge calls `flawed` so, and the 95 % interval of what an oracle would
    say of *these* rollouts. That others would have been sampled is not in it, unless `spread` is the standard error of flawed ÷ told for
    other problems and rollouts. None where there is nothing to tell by.

    The interval is Fieller's: all p for which q − p·s − (1 − p)·f lies within 1.96 of its standard errors, which are those of the judge on
    these rollouts and of s and f on the labelled ones. Where s − f is not told from 0 it is [0, 1]: such a judge says nothing. So it is
    where no p in 0 … 1 explains q (six of six called flawed, by a judge that finds a third): it errs otherwise here than on those.

    >>> [round(x, 2) for x in corrected(30, 100, Errors(found=45, flawed=50, alarms=2, sound=50))]
    [0.3, 0.22, 0.38]
    >>> [round(x, 2) for x in corrected(30, 100, Errors(found=27, flawed=50, alarms=20, sound=50))]
    [0.0, 0.0, 1.0]
    >>> corrected(6, 6, Errors(found=18, flawed=50, alarms=1, sound=50))
    Share(value=1.0, low=0.0, high=1.0)
    """
    if told < 1 or errors.flawed < 1 or errors.sound < 1:
        return None
    q, labelled_flawed, labelled_sound = flawed / told, errors.flawed + 2 * PRIOR, errors.sound + 2 * PRIOR
    s, f = (errors.found + PRIOR) / labelled_flawed, (errors.alarms + PRIOR) / labelled_sound
    of_s, of_f, told_apart = s * (1 - s), f * (1 - f), s - f
    if told_apart <= 0:
        return Share(0.0, 0.0, 1.0) if q <= f else Share(1.0, 0.0, 1.0)
    value = min(max((q - f) / told_apart, 0.0), 1.0)
    # a·p² + b·p + c ≤ 0
    a = told_apart**2 - Z**2 * (of_s / labelled_flawed + of_f / labelled_sound)
    b = -2 * told_apart * (q - f) - Z**2 * ((of_s - of_f) / told - 2 * of_f / labelled_sound)
    c = (q - f) ** 2 - Z**2 * of_f * (1 / told + 1 / labelled_sound)
    between = _roots(a, b, c) if a > 0 else None
    if between is None or between[1] < 0 or between[0] > 1:
        return Share(value, 0.0, 1.0)
    ends = [value, *between]
    if spread is not None:  # the variance of q is known, and never taken for less than that of the judge on these rollouts
        b = -2 * told_apart * (q - f) + 2 * Z**2 * of_f / labelled_sound
        ends += _roots(a, b, (q - f) ** 2 - Z**2 * (spread**2 + of_f / labelled_sound)) or []
    return Share(value, *(min(max(end, 0.0), 1.0) for end in (min(ends), max(ends))))


def _roots(a: float, b: float, c: float) -> tuple[float, float] | None:
    """Of a·p² + b·p + c, a > 0, the lower first; None where there is none."""
    if (square := b * b - 4 * a * c) < 0:
        return None
    root = math.sqrt(square)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)
