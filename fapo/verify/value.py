r"""Reads a plain form as a number, as several elements, or leaves it as text for the parser behind.

Numbers become `fractions.Fraction`; text is matched by expressions that are linear in its length.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction

from soundrl.fapo.verify.plain import Refused, closing, marks

PRINTED_DIGITS = 12
"""So many significant digits make a decimal what a program prints for an exact value; fewer are a rounded answer, which is wrong."""


@dataclass(frozen=True)
class Scalar:
    """A number, exactly."""

    value: Fraction
    grouped: bool = False  # True = written with thousands separators, so `100,200` may also have been meant as a list
    whole_division: bool = False
    r"""True = a division that comes out whole but is not carried out, as `84/12` and `\frac{6}{2}`; `3/3` and `7/1` need none."""
    decimal: str = field(default="", compare=False)
    """As it is written, where it is a decimal."""


@dataclass(frozen=True)
class Group:
    """Several elements: `kind` is `list` (bare), `set`, or the pair of delimiters, such as `()` or `[)`."""

    kind: str
    items: tuple[Node, ...]


@dataclass(frozen=True)
class Opaque:
    """Anything else."""

    text: str


Node = Scalar | Group | Opaque

# No group of thousands begins with 0: `0,111` is no 111.
_NUMBER = r"(?:[1-9]\d{0,2}(?:[,' ]\d{3})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)"
_PLAIN = re.compile(rf"([-+]?)\s*({_NUMBER})")
_DECIMAL_COMMA = re.compile(r"([-+]?\d+),(\d+)")
_SCIENTIFIC = re.compile(rf"([-+]?)\s*(?:({_NUMBER})\s*(?:\\times|\\cdot|\*)\s*)?10\^(?:\{{\s*([-+]?\d{{1,3}})\s*\}}|(\d))")
_E_NOTATION = re.compile(r"[-+]?\d+(?:\.\d+)?[eE][-+]?\d{1,3}")
_FRAC = re.compile(r"\s*\\frac\s*(?:\{\s*([-+]?\d+(?:\.\d+)?)\s*\}|(\d))\s*(?:\{\s*([-+]?\d+(?:\.\d+)?)\s*\}|(\d))")
_DIVISION = re.compile(r"([-+]?)\s*(?:(\d+) )?\(?([-+]?\d[\d,]*(?:\.\d+)?)\)?\s*/\s*\(?([-+]?\d[\d,]*(?:\.\d+)?)\)?")
_REPEATING = re.compile(r"([-+]?)(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{?\s*(\d+)\s*\}?")
_ENCLOSED = re.compile(r"(\\\{|[(\[\]])(.+)(\\\}|[)\]])", re.DOTALL)
_DECIMAL = re.compile(r"[-+]?(\d*)\.(\d+)")


def read_number(text: str) -> Scalar | None:
    """Reads a number: integer, decimal, fraction, mixed number, scientific notation or repeating decimal; None where it is not one. Raises
    `Refused` for a denominator of 0."""
    if match := _PLAIN.fullmatch(text):
        digits = re.sub("[,' ]", "", match[2])
        value = _signed(match[1], Fraction(digits + "0" if digits.endswith(".") else digits))
        return Scalar(value, grouped="," in match[2], decimal=match[1] + digits)
    if re.fullmatch(r"[-+]?0,\d{3,}", text):
        # As a list it would be written with a space; `0,1` and `1,22` may be lists, as `2,16` is.
        return Scalar(Fraction(text.replace(",", ".")))
    # `2\frac{1}{2}` is `2 1/(2)`.
    if match := _DIVISION.fullmatch(_FRAC.sub(r" \1\2/(\3\4)", text).strip()):
        return _division(match[1], match[2], match[3].replace(",", ""), match[4].replace(",", ""))
    if match := _SCIENTIFIC.fullmatch(text):
        factor = Fraction(re.sub("[,' ]", "", match[2]).rstrip(".")) if match[2] else Fraction(1)
        return Scalar(_signed(match[1], factor * Fraction(10) ** int(match[3] or match[4])))
    if _E_NOTATION.fullmatch(text):
        return Scalar(Fraction(text))
    if match := _REPEATING.fullmatch(text):
        start = Fraction(int(match[2] + match[3] or "0"), 10 ** len(match[3]))
        return Scalar(_signed(match[1], start + Fraction(int(match[4]), (10 ** len(match[4]) - 1) * 10 ** len(match[3]))))
    return None


def read_decimal_comma(text: str) -> Fraction | None:
    """Reads `2,74` as 2.74; not `1,000`, which is a thousand. To be used only where a list cannot be meant."""
    match = _DECIMAL_COMMA.fullmatch(text)
    return Fraction(f"{match[1]}.{match[2]}") if match and len(match[2]) != 3 else None


def prints(text: str, exact: Fraction, digits: int = PRINTED_DIGITS) -> bool:
    """Whether a decimal of at least so many significant digits is the exact value, rounded or cut off, or the nearest double.

    >>> prints("0.0833333333333333", Fraction(1, 12)), prints("0.0833", Fraction(1, 12)), prints("0.0833", Fraction(1, 12), digits=1)
    (True, False, True)
    """
    match = _DECIMAL.fullmatch(text.strip())
    if not match or len((match[1] + match[2]).lstrip("0")) < digits:
        return False
    value, places = Fraction(text.strip()), len(match[2])
    gap = abs(exact - value)
    true = value == round(exact, places) or (0 < abs(value) < abs(exact) and gap * 10**places < 1)
    if digits < PRINTED_DIGITS:
        return true
    # Off by 1e-9 it is another number, however many digits it has. A double's last digit may be one more, as in 1.4142135623730951.
    return gap < Fraction(1, 10**9) and (true or (abs(exact) < 10**20 and value == Fraction(repr(float(exact)))))


def read(text: str, *, inside: bool = False) -> Node:
    """Reads a plain form as number, group or text. Within a group (`inside`) a comma always separates. `Refused` as `read_number`."""
    text = text.strip()
    parts = split(text, ",;")
    if not inside or len(parts) == 1:
        number = read_number(text)
        if number:
            return number
    if len(parts) > 1:
        return Group("list", tuple(read(part, inside=True) for part in parts))
    match = _ENCLOSED.fullmatch(text)
    if match and (match[1] == "\\{") == (match[3] == "\\}") and closing(text, 0) == match.start(3):
        inner = match[2].strip()
        if inner.startswith("\\begin"):
            return Opaque(text)
        parts, kind = split(inner, ",;"), match[1] + match[3]
        if len(parts) == 1 and kind == "()":
            return read(inner, inside=True)
        return Group("set" if match[1] == "\\{" else kind, tuple(read(part, inside=True) for part in parts))
    return Opaque(text)


def split(text: str, separators: str) -> list[str]:
    """Cuts at separators that stand outside all delimiters."""
    parts, depth, start = [], 0, 0
    for place, sign in marks(text):
        if sign in separators and depth <= 0:
            parts.append(text[start:place].strip())
            start = place + 1
        depth += (sign[-1] in "{([") - (sign[-1] in "})]")
    parts.append(text[start:].strip())
    return [part for part in parts if part] or [""]


def exact_decimals(text: str) -> str:
    """Writes decimals as fractions, so that the parser behind compares them exactly; a printed one alone stays as it is."""
    if _DECIMAL.fullmatch(text) and prints(text, Fraction(text)):
        return text
    return re.sub(
        r"(?<![\d.])(\d*)\.(\d+)(?![\d.])", lambda match: rf"(\frac{{{int(match[1] + match[2])}}}{{{10 ** len(match[2])}}})", text
    )


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value


def _division(sign: str, whole: str | None, numerator: str, denominator: str) -> Scalar | None:
    below = Fraction(denominator)
    if below == 0:
        raise Refused("division by zero")
    value = Fraction(numerator) / below
    if whole is None:
        return Scalar(_signed(sign, value), whole_division=value.denominator == 1 and below != 1 and abs(value) not in (0, 1))
    if not 0 < value < 1:
        return None
    return Scalar(_signed(sign, int(whole) + value))
