r"""Sums that a text states, as `48/2 = 24`, checked exactly: an oracle for one kind of flaw in solutions of word problems.

What it calls false is false: numbers on both sides, worked out in fractions, off by a unit of the last digit that is written or more.
What it does not see: a sum that is right and not the one that the problem needs, skipped and guessed steps, sums in words, with units
between the numbers or with %, with letters, and what stands in a chain before another sign (`2+3 = 5+1 = 6`). Left alone is what may be
meant otherwise: `4 / 1/2`, and a result that is off by a power of ten or 60 (`$1/2 = 50`, cents). So the share of solutions with a false
sum is a lower bound on the share of flawed ones.

>>> [s.false for s in stated("Half is 48/2 = 24, 10/3 = 3.3, $1,000*2 = $2,100, (2+3) x 4 = 20 and 20% of 50 = 11.")]
[False, False, True, False]
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

NUMBER = r"(?:\d{1,3}(?:,\d{3}){1,5}|\d{1,18})(?:\.\d{1,18})?|\.\d{1,18}"
SIGN = r"[-+*/×÷−–]|x(?=[\s$(]*[\d.])"
# Atomic and bounded: what is no sum is given up in time that grows with its length alone.
TERM = rf"(?>(?:\(\s?+){{0,8}}+(?:\$\s?+)?+(?:{NUMBER})(?:\s?+\)){{0,8}}+)"
LEFT = rf"{TERM}(?>\s{{0,9}}+(?:{SIGN})\s{{0,9}}+{TERM}){{1,30}}+"
SUM = re.compile(rf"(?<![\d.,])(?P<left>{LEFT})\s*+=\s*+(?:\$\s?+)?+(?P<right>-?(?:{NUMBER}))")
BEHIND = re.compile(rf"\s*(?:{SIGN}|[%^(])|[.,]?\w|\s*\\")
BEFORE = frozenset("+-*/×÷−–^(%x0123456789")
UNCLEAR = re.compile(r"[/÷][^-+*×x−–]*[/÷]")
LATEX = ((r"\\times|\\cdot", "×"), (r"\\div", "÷"), (r"\\\$", "$"), (r"\\[()\[\]]|\\[,;! ]", " "))
UNITS = frozenset(Fraction(unit) ** sign for unit in (10, 100, 1000, 10**6, 60, 3600) for sign in (1, -1))
TOKEN = re.compile(rf"{NUMBER}|[-+*/()]")


@dataclass(frozen=True)
class Stated:
    text: str
    false: bool


def stated(text: str) -> Iterator[Stated]:
    """The sums of a text of which it is clear what they say, in their order."""
    for written, plain in LATEX:
        text = re.sub(written, plain, text)
    for match in SUM.finditer(text):
        before, behind = text[: match.start()], text[match.end() :]
        if BEHIND.match(behind) or before[-1:].isalnum() or before.rstrip()[-1:] in BEFORE or UNCLEAR.search(match["left"]):
            continue
        said = Fraction(match["right"].replace(",", ""))
        value = worked_out(match["left"])
        if value is None or (value and said / value in UNITS):
            continue
        yield Stated(match[0], abs(value - said) >= Fraction(1, 10 ** len(match["right"].partition(".")[2])))


def first_false(steps: Sequence[str]) -> int:
    """Index of the first step that states a false sum; −1 where none does.

    >>> first_false(["48/2 = 24.", "48+24 = 75.", "So 75."])
    1
    """
    return next((i for i, step in enumerate(steps) if any(one.false for one in stated(step))), -1)


def worked_out(text: str) -> Fraction | None:
    """Value of an expression in numbers, the four signs and brackets; None where it has none (unbalanced, divided by 0).

    >>> worked_out("(2+3)*4-6/3"), worked_out("1/0"), worked_out("2-3-4")
    (Fraction(18, 1), None, Fraction(-5, 1))
    """
    plain = re.sub("[−–]", "-", re.sub("[×x]", "*", text.replace("÷", "/").replace("$", "")))
    tokens = TOKEN.findall(plain)[::-1]  # taken from the end
    try:
        value = _sum(tokens)
    except (IndexError, ValueError, ZeroDivisionError):
        return None
    return None if tokens else value


def _sum(tokens: list[str]) -> Fraction:
    value = _product(tokens)
    while tokens and tokens[-1] in "+-":
        value += _product(tokens) if tokens.pop() == "+" else -_product(tokens)
    return value


def _product(tokens: list[str]) -> Fraction:
    value = _one(tokens)
    while tokens and tokens[-1] in "*/":
        value = value * _one(tokens) if tokens.pop() == "*" else value / _one(tokens)
    return value


def _one(tokens: list[str]) -> Fraction:
    """IndexError where nothing is left, ValueError where a sign stands in place of a number."""
    token = tokens.pop()
    if token != "(":
        return Fraction(token.replace(",", ""))
    value = _sum(tokens)
    if tokens.pop() != ")":
        raise ValueError("a bracket is not closed")
    return value
