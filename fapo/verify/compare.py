r"""Compares two answers by math-verify, in a process of its own (`worker`).

Only math-verify's LaTeX route is used. Its other route hands text to sympy's `parse_expr`, which evaluates Python.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from soundrl.fapo.verify.value import prints

WARM_UP = (
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"), (r"\{1, \pi\}", r"\{\pi, 1\}"), (r"1, \sqrt{3}", r"\sqrt{3}, 1"),
    (r"x^{2} - 1", r"(x-1)(x+1)"), (r"\frac{x+2}{7} - 3y", r"\frac{x}{7} + \frac{2}{7}"), (r"(3, \frac{\pi}{2})", r"(3, \pi/2)"),
    (r"[0, 1) \cup (2, \infty)", r"(2, \infty) \cup [0, 1)"), (r"x \in (-\infty, 1]", r"(-\infty, 1]"), (r"x \leq 5", r"5 \geq x"),
    (r"1 < x < 2", r"(1, 2)"), (r"y = 2x + 1", r"2x - y + 1 = 0"), (r"\sin^2 x + \cos(2x) - \tan x", r"1 - \cos^2 x"),
    (r"e^{2x} \ln x", r"\log_2 8 \cdot |x|"), (r"1 \pm \sqrt{19}", r"1 + \sqrt{19}, 1 - \sqrt{19}"),
    (r"\begin{pmatrix} 1 & \frac{1}{2} \\ 3 & -4 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"),
    (r"\frac{1}{2} e^{i \theta} + 3i", r"\sqrt[3]{2} \times 10^{-3} n!"),
    (r"f(x) = x^{2} - \alpha_{1} \beta", r"\left(\frac{3}{4}\right)^{n+1} - a_n"), (r"\mathbb{R} \setminus \{0\}", r"\overline{AB}"),
    (r"\sum_{k=1}^{n} k^{2}", r"\binom{n}{2} + \lfloor x \rfloor"), (r"\int_0^1 x \, dx", r"\lim_{x \to 0} \frac{\sin x}{x}"),
)  # fmt: skip
"""Compared once before any fork: the parser builds its tables as it goes, and a fork inherits them."""
_DECIMAL = re.compile(r"[-+]?\d*\.\d+")


class Comparison:
    """The work of comparing, on pairs of reference and answer."""

    says = ""

    def __init__(self) -> None:
        for gold, answer in WARM_UP:
            compare(gold, answer)

    def read(self, gold: str, answer: str) -> bool:
        return bool(parse_answer(gold))

    def answer(self, gold: str, answer: str) -> str:
        return compare(gold, answer)


@lru_cache(maxsize=256)
def parse_answer(text: str) -> tuple[Any, ...]:
    """Parses the content of a box; empty where math-verify cannot."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    # units off: it strips the last letter of `f(x) = c` and `m^n - m`. Units are cut before, by `units`.
    normalisation = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last", equations=False)
    try:
        # first_match: otherwise a part of an unreadable answer is read in its place.
        return tuple(
            parse(
                "\\boxed{" + text + "}",
                [LatexExtractionConfig(boxed_match_priority=0, normalization_config=normalisation)],
                fallback_mode="no_fallback",
                extraction_mode="first_match",
                parsing_timeout=None,  # type: ignore[arg-type]  # 0.9.0 documents None, but annotates int
                raise_on_error=True,
            )
        )
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - antlr and sympy raise anything, RecursionError included, and all of it means the same
        return ()


def compare(gold: str, answer: str) -> str:
    """Says `equal`, `different`, `gold` or `answer` (what could not be parsed), or `incomparable`."""
    from math_verify import verify

    answer, approximated, decimal = answer.partition(r"\approx") if r"\approx" not in gold else (answer, "", "")
    golds = parse_answer(gold)
    answers = parse_answer(answer) if golds else ()
    if not answers:
        return "answer" if golds else "gold"
    try:
        if approximated:
            exact = _exact_number(golds[0])
            return "equal" if exact is not None and prints(decimal, exact, digits=1) and compare(gold, answer) == "equal" else "different"
        for printed, other in ((answer, golds[0]), (gold, answers[0])):
            exact = _exact_number(other) if _DECIMAL.fullmatch(printed) else None
            if exact is not None:
                return "equal" if prints(printed, exact) else "different"
        if _differ_as_numbers(golds[0], answers[0]):
            return "different"
        return "equal" if verify(list(golds), list(answers), timeout_seconds=None, raise_on_error=True) else "different"
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - as above
        return "incomparable"


def _exact_number(parsed: Any) -> Fraction | None:
    """The number that was parsed, to 60 digits; None where it is none."""
    from sympy import Expr, Float, Rational

    if not isinstance(parsed, Expr) or parsed.free_symbols or not parsed.is_real:
        return None
    number = parsed.evalf(60)
    # The exact fraction of e^{10^9} fills the memory.
    if not isinstance(number, (Float, Rational)) or not number.is_finite or not Float("1e-99") < abs(number) < Float("1e99"):
        return None
    exact: Any = Rational(number)
    return Fraction(int(exact.p), int(exact.q))


def _differ_as_numbers(gold: Any, answer: Any) -> bool:
    """math-verify compares numbers to 15 places after the point, so that 2^{-99} equals 2^{-98}; this compares leading digits."""
    from sympy import Expr, Float, Rational, oo, zoo

    if not isinstance(gold, Expr) or not isinstance(answer, Expr) or gold.free_symbols or answer.free_symbols:
        return False
    if oo in (gold, answer, -gold, -answer) or zoo in (gold, answer):
        return gold != answer
    # n=20: enough to see 1e-14, and evalf raises its working precision by itself where digits cancel.
    first, second = gold.evalf(20), answer.evalf(20)
    gap = abs(first - second)
    if not (first.is_number and second.is_number and gap.is_comparable):
        return False
    return bool(gap > Float(Rational(1, 10**14)) * abs(first))
