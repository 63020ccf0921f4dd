r"""Compares numbers: integers, decimals, fractions, percentages, with thousands separators, exactly or within a tolerance.

What `rule` says of two numbers holds (`1,000` = `1000`, `\frac12` = `0.5`, nothing rounded, nothing left to carry out), and what is no
number is wrong. Where the row gives a `tolerance` (a number, or a text like `1%` of the reference) an answer that is near enough is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from soundrl.fapo.records import Outcome
from soundrl.fapo.verify.names import drop_names
from soundrl.fapo.verify.plain import Refused, normalise
from soundrl.fapo.verify.rule import rule
from soundrl.fapo.verify.units import cut_unit
from soundrl.fapo.verify.value import read_number


def number_of(text: str) -> Fraction | None:
    r"""The number that a text says, without name and unit; None where it says none.

    >>> [number_of(text) for text in ("x = 1,250", r"\frac{3}{4}", "2.5%", "12 cm", "1e-3", "about 3", "3/0")]
    [Fraction(1250, 1), Fraction(3, 4), Fraction(1, 40), Fraction(12, 1), Fraction(1, 1000), None, None]
    """
    try:
        plain = normalise(text)
        if percent := plain.endswith(r"\%"):
            plain = plain.removesuffix(r"\%").strip()
        number = read_number(plain) or read_number(cut_unit(drop_names(plain, "1")[0])[0])
    except (Refused, ValueError):
        return None
    return None if number is None else number.value / (100 if percent else 1)


def tolerance_of(row: Mapping[str, Any], reference: Fraction) -> Fraction:
    """How far an answer may be off; 0 where the row does not say. ValueError where it says no number of at least 0.

    >>> tolerance_of({"tolerance": 0.5}, Fraction(200)), tolerance_of({"tolerance": "1%"}, Fraction(200))
    (Fraction(1, 2), Fraction(2, 1))
    """
    given = str(row.get("tolerance") or 0).strip()
    try:
        part = Fraction(given.removesuffix("%"))
    except (ValueError, ZeroDivisionError):
        part = Fraction(-1)
    if part < 0:
        raise ValueError(f"the tolerance {given[:40]!r} is no number of at least 0, nor a percentage like 1%")
    return abs(reference) * part / 100 if given.endswith("%") else part


def compare_numbers(reference: str, answer: str, row: Mapping[str, Any]) -> Outcome:
    """Whether the answer is the number that the reference is. ValueError where the reference is none."""
    if (expected := number_of(reference)) is None:
        raise ValueError(f"the reference answer {reference[:200]!r} is no number")
    allowed = tolerance_of(row, expected)
    if rule(reference, answer).outcome is Outcome.CORRECT:
        return Outcome.CORRECT
    said = number_of(answer) if allowed else None
    return Outcome.CORRECT if said is not None and abs(said - expected) <= allowed else Outcome.WRONG
