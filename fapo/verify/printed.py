r"""Printed decimals: which numbers a decimal with so many digits may stand for.

`0.0833333333333333` is what a program prints for 1/12. It has 15 digits, all of them true, and nobody finds them without the exact value;
`0.0833` is a rounded answer, and rounded answers are wrong. The line is drawn at 12 significant digits.

    >>> read_printed("0.0833333333333333").stands_for(Fraction(1, 12)), read_printed("0.0833").stands_for(Fraction(1, 12))
    (True, False)
    >>> read_printed("0.0833").true_of(Fraction(1, 12)), read_printed("0.0834").true_of(Fraction(1, 12))
    (True, False)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

SIGNIFICANT_DIGITS = 12
LARGEST_GAP = Fraction(1, 10**9)
"""Exclusive: a decimal that is off by this much is another number, however many digits it has."""
_MAX_LENGTH = 64
# The second spelling is that of `answer_form.exact_decimals`, in which decimals reach the parser behind.
_DECIMAL = re.compile(r"([-+]?)\s*(?:(\d*)\.(\d+)|\(\\frac\{(\d+)\}\{1(0+)\}\))")


_APPROXIMATELY = re.compile(r"\\approx(?![a-zA-Z])")


@dataclass(frozen=True)
class Printed:
    """A decimal as it is written: `0.50` is 1/2 to 2 places."""

    value: Fraction
    places: int

    @property
    def digits(self) -> int:
        """What it is without its point: 50 for 0.50."""
        return self.value.numerator * (10**self.places // self.value.denominator)

    @property
    def is_long(self) -> bool:
        """Whether it has enough significant digits to stand for an exact value; zeros at either end do not count."""
        return len(str(abs(self.digits)).rstrip("0")) >= SIGNIFICANT_DIGITS

    def __str__(self) -> str:
        return rf"{'-' if self.value < 0 else ''}(\frac{{{abs(self.digits)}}}{{{10**self.places}}})"

    def true_of(self, exact: Fraction) -> bool:
        """Whether it is `exact`, rounded or cut off after its last digit: 0.67 and 0.66 are true of 2/3, 0.65 and 0.68 are not."""
        gap = abs(exact - self.value) * 10**self.places
        return self.value != 0 and (2 * gap <= 1 or (gap < 1 and abs(self.value) < abs(exact)))

    def stands_for(self, exact: Fraction) -> bool:
        """Whether it is an answer where `exact` is asked for: long, and true of it or the double that is nearest to it."""
        if abs(exact - self.value) >= LARGEST_GAP or not self.is_long:
            return False
        # A double has 53 bits: its last printed digit may be one more than that of the exact value, as in 1.4142135623730951.
        return self.true_of(exact) or (float(exact) == float(self.value) and Fraction(repr(float(self.value))) == self.value)


def split_approximation(text: str) -> tuple[str, Printed] | None:
    r"""Cuts `\frac13 \approx 0.333` in two; None unless something stands before the only such sign, and a decimal behind it."""
    parts = _APPROXIMATELY.split(text)
    decimal = read_printed(parts[1]) if len(parts) == 2 and parts[0].strip() else None
    return (parts[0].strip(), decimal) if decimal else None


def read_printed(text: str) -> Printed | None:
    """Reads a decimal with a point; None for anything else, integers and overlong decimals included."""
    match = _DECIMAL.fullmatch(text.strip()) if len(text) <= _MAX_LENGTH else None
    if not match:
        return None
    places = len(match[3] or match[5])
    digits = int(match[4] or match[2] + match[3])
    return Printed(Fraction(-digits if match[1] == "-" else digits, 10**places), places)
