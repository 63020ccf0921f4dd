r"""Brings an answer into one plain form and reads it as a number or a list of numbers where it is one.

No evaluation takes place here: text is matched by expressions that are linear in its length, numbers become `fractions.Fraction`.
What is neither a number nor a list stays text (`Opaque`), for the parser behind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction

from soundrl.fapo.verify.printed import SIGNIFICANT_DIGITS, Printed, read_printed

MAX_LENGTH = 1024
"""Longer answers are refused. The longest reference of MATH-500, AIME, GSM8K and DeepMath has under 200 characters."""
MAX_DEPTH = 32


class Refused(ValueError):
    """The text is not an answer in the alphabet, size or commands that are read; the message says why."""


@dataclass(frozen=True)
class Scalar:
    """A number, exactly."""

    value: Fraction
    grouped: bool = False
    """True = written with thousands separators, so `100,200` may also have been meant as a list."""
    whole_division: bool = False
    r"""True = a division that comes out whole but is not carried out, as `84/12` and `\frac{6}{2}`; `3/3` and `7/1` need none."""
    printed: Printed | None = field(default=None, compare=False)
    """A decimal that is long enough to stand for an exact value, see `printed`."""


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

# Signs with one meaning only. Digits and letters of other alphabets are absent on purpose: they are look-alikes.
_SIGNS = str.maketrans(
    {
        "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ",
        "≥": r"\ge ", "≠": r"\neq ", "≈": r"\approx ", "≡": r"\equiv ", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ",
        "°": r"^\circ ", "∅": r"\emptyset ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ", "φ": r"\phi ",
        "’": "'", "′": "'", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
        "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u2007": " ", "\t": " ", "\n": " ", "\r": " ",
    }
)  # fmt: skip
_FORM_FEED = re.compile(r"\\?\x0crac(?![a-zA-Z])")
_ROOT = re.compile(r"√\s*(\d+|[a-z]|\([^()√]*\))")
_UNIT_POWER = re.compile(r"(?<=[A-Za-z}])([²³])")
_STRANGE = re.compile(r"[^ -~€£]")
_COMMANDS = re.compile(
    r"\\(?:def|edef|gdef|xdef|let|input|include|write\d*|read|openin|openout|immediate|newcommand|renewcommand|providecommand|catcode|csname|"
    r"expandafter|usepackage|require|href|url|special|loop|repeat|if[a-z]*|verb|lstinline|directlua|html[A-Z]\w*|__?)(?![a-zA-Z])"
)
_LAYOUT = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits|mathstrut|phantom\{\}|boxed|fbox)(?![a-zA-Z])|(?<!\\)\\[()\[\]]|\$"
)
_SPACE = re.compile(r"(?<!\\)\\(?:[,;:!> ]|q?quad(?![a-zA-Z])|(?:thin|med|thick|neg)?space(?![a-zA-Z]))|~")
_FRAC = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_TEXT = re.compile(r"\\(?:textbf|textrm|textnormal|textit|texttt|textsf|mathrm|mathbf|mathit|mathsf|mbox|hbox|operatorname\*?|text)\s*\{")
_LETTER = re.compile(r"\\text\{\s*([A-Za-z])\s*\}")
# The first alternative passes over words that only begin with a conjunction, or hold one.
_CONJUNCTION = re.compile(
    r"(\\text\{(?![\s,]*(?:and|or)[\s,]*\})[^{}]*\})"
    r"|,?\s*(?:\\text\{[\s,]*(?:and|or)[\s,]*\}|(?<![A-Za-z\\])(?:and|or)(?![a-z]))\s*,?"
)
_PERCENT = re.compile(r"\\text\{\s*(?:percent|percentage|pct|\\?%)\s*\}|\\%|(?<=[\d\s}])(?:percentage|percent|pct)\b")
_RELATIONS = (
    (r"\\neq ", re.compile(r"\\(?:neq?|not\s*=)(?![a-zA-Z])|!=")),
    (r"\\leq ", re.compile(r"\\(?:leq?|leqslant)(?![a-zA-Z])|<=")),
    (r"\\geq ", re.compile(r"\\(?:geq?|geqslant)(?![a-zA-Z])|>=")),
    ("<", re.compile(r"\\lt(?![a-zA-Z])")),
    (">", re.compile(r"\\gt(?![a-zA-Z])")),
)
_SINGLE = re.compile(r"([_^])\s*\{([A-Za-z0-9])\}")


def normalise(text: str) -> str:
    """Returns the plain form: one spelling for fractions, spaces, styles, percent signs and conjunctions.

    Raises:
        Refused: too long, too deep, unbalanced, characters of other alphabets, or commands that define or read something.
    """
    if len(text) > MAX_LENGTH:
        raise Refused(f"longer than {MAX_LENGTH} characters")
    # A string literal in which `\frac` was not escaped holds a form feed.
    text = _ROOT.sub(r"\\sqrt{\1}", _FORM_FEED.sub(r"\\frac", text))
    text = _UNIT_POWER.sub(lambda match: "^2" if match.group() == "²" else "^3", text).translate(_SIGNS)
    strange = _STRANGE.search(text)
    if strange:
        raise Refused(f"character U+{ord(strange.group()):04X}")
    if _COMMANDS.search(text):
        raise Refused("a TeX command that is not mathematics")
    _check_braces(text)

    text = re.sub(r"(?<=\d)\s*\{,\s*\}\s*(?=\d{3})", ",", text)
    text = re.sub(r"(?<=\d),\s*\\!\s*(?=\d{3}(?!\d))", ",", text)
    text = text.replace(r"\$", "\x01")
    text = _LAYOUT.sub(" ", text).replace("\x01", r"\$")
    text = _FRAC.sub(r"\\frac", _SPACE.sub(" ", text))
    text = _LETTER.sub(_unwrap_letter, _TEXT.sub(r"\\text{", text))
    text = re.sub(r"(?<!\\)%", r"\\%", text)
    text = _PERCENT.sub(r"\\% ", text)
    text = _CONJUNCTION.sub(lambda match: match[1] or ", ", text)
    for sign, spelling in _RELATIONS:
        text = spelling.sub(sign, text)
    text = " ".join(text.split()).rstrip(".,; ").lstrip(",; ")
    while text.startswith("{") and _closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def squeeze(text: str) -> str:
    """Drops the spaces and braces that mean nothing, and keeps spaces between two words or numbers."""
    text = re.sub(r"(\\[A-Za-z]+) (?=[^A-Za-z])", r"\1", text)
    return re.sub(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])", "", _SINGLE.sub(r"\1\2", text))


# No group of thousands begins with 0: `0,111` is no 111.
_NUMBER = r"(?:[1-9]\d{0,2}(?:[,' ]\d{3})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)"
_POWER = r"\^(?:\{\s*([-+]?\d{1,3})\s*\}|(\d))"
_PLAIN = re.compile(rf"([-+]?)\s*({_NUMBER})")
_DECIMAL_COMMA = re.compile(r"([-+]?)(0|\d+),(\d+)")
_CERTAIN_DECIMAL_COMMA = re.compile(r"[-+]?0,\d{3,}")
_SCIENTIFIC = re.compile(rf"([-+]?)\s*(?:({_NUMBER})\s*(?:\\times|\\cdot|\*)\s*)?10{_POWER}")
_E_NOTATION = re.compile(r"([-+]?)(\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})")
_FRACTION = re.compile(
    r"([-+]?)\s*(?:(\d+)\s*)?(?:\\frac\s*(?:\{\s*([-+]?\d+(?:\.\d+)?)\s*\}|(\d))\s*(?:\{\s*([-+]?\d+(?:\.\d+)?)\s*\}|(\d)))"
)
_SLASH = re.compile(r"([-+]?)\s*(?:(\d+) )?\(?([-+]?\d[\d,]*(?:\.\d+)?)\)?\s*/\s*\(?([-+]?\d[\d,]*(?:\.\d+)?)\)?")
_REPEATING = re.compile(r"([-+]?)(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{?\s*(\d+)\s*\}?")


def read_number(text: str) -> Scalar | None:
    """Reads a number: integer, decimal, fraction, mixed number, scientific notation or repeating decimal; None where it is not one.

    Raises:
        Refused: the denominator is 0.
    """
    match = _PLAIN.fullmatch(text)
    if match:
        digits = re.sub("[,' ]", "", match[2])
        value = _signed(match[1], Fraction(digits + "0" if digits.endswith(".") else digits))
        printed = read_printed(match[1] + digits) if len(digits) > SIGNIFICANT_DIGITS else None
        return Scalar(value, grouped="," in match[2], printed=printed if printed and printed.is_long else None)
    match = _FRACTION.fullmatch(text)
    if match:
        return _division(match[1], match[2], match[3] or match[4], match[5] or match[6])
    match = _SLASH.fullmatch(text)
    if match:
        return _division(match[1], match[2], match[3].replace(",", ""), match[4].replace(",", ""))
    match = _SCIENTIFIC.fullmatch(text)
    if match:
        factor = Fraction(re.sub("[,' ]", "", match[2]).rstrip(".")) if match[2] else Fraction(1)
        return Scalar(_signed(match[1], factor * Fraction(10) ** int(match[3] or match[4])))
    match = _E_NOTATION.fullmatch(text)
    if match:
        return Scalar(_signed(match[1], Fraction(match[2]) * Fraction(10) ** int(match[3])))
    match = _REPEATING.fullmatch(text)
    if match:
        start = Fraction(int(match[2] + match[3] or "0"), 10 ** len(match[3]))
        return Scalar(_signed(match[1], start + Fraction(int(match[4]), (10 ** len(match[4]) - 1) * 10 ** len(match[3]))))
    return None


def read_decimal_comma(text: str) -> Fraction | None:
    """Reads `2,74` as 2.74; not `1,000`, which is a thousand. To be used only where a list cannot be meant."""
    match = _DECIMAL_COMMA.fullmatch(text)
    if not match or (len(match[3]) == 3 and match[2] != "0"):
        return None
    return _signed(match[1], Fraction(f"{match[2]}.{match[3]}"))


def is_certain_decimal_comma(text: str) -> bool:
    """`0,111` is 0.111: as a list it would be written with a space. `0,1` and `1,22` may be lists, as `2,16` is."""
    return _CERTAIN_DECIMAL_COMMA.fullmatch(text) is not None


def read(text: str, *, inside: bool = False) -> Node:
    """Reads a plain form as number, group or text. Within a group (`inside`) a comma always separates.

    Raises:
        Refused: a denominator is 0.
    """
    text = text.strip()
    while text.startswith("{") and _closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    parts = split(text, ",;")
    if not inside or len(parts) == 1:
        number = read_number(text)
        if number:
            return number
    if len(parts) > 1:
        return Group("list", tuple(read(part, inside=True) for part in parts))
    for opening, width in (("\\{", 2), ("(", 1), ("[", 1), ("]", 1)):
        if text.startswith(opening) and text.endswith((")", "]", "[", "\\}")) and len(text) > 2 * width:
            tail = 2 if text.endswith("\\}") else 1
            if (opening == "\\{") != (tail == 2) or _closing(text, 0) != len(text) - tail:
                continue
            inner = text[width:-tail].strip()
            if inner.startswith("\\begin"):
                return Opaque(text)
            parts = split(inner, ",;")
            kind = "set" if width == 2 else opening + text[-1]
            if len(parts) == 1 and kind == "()":
                return read(inner, inside=True)
            return Group(kind, tuple(read(part, inside=True) for part in parts))
    return Opaque(text)


def split(text: str, separators: str) -> list[str]:
    """Cuts at separators that stand outside all delimiters; `=` is cut only where it is no part of another sign."""
    parts, depth, start = [], 0, 0
    index = 0
    while index < len(text):
        char = text[index]
        if char == "\\":
            depth += {"{": 1, "}": -1}.get(text[index + 1 : index + 2], 0)
            index += 2
            continue
        if char in "{([":
            depth += 1
        elif char in "})]":
            depth -= 1
        elif char in separators and depth <= 0:
            parts.append(text[start:index].strip())
            start = index + 1
        index += 1
    parts.append(text[start:].strip())
    return [part for part in parts if part] or [""]


def exact_decimals(text: str) -> str:
    """Writes decimals as fractions, so that the parser behind compares them exactly."""
    return re.sub(
        r"(?<![\d.])(\d*)\.(\d+)(?![\d.])", lambda match: rf"(\frac{{{int(match[1] + match[2])}}}{{{10 ** len(match[2])}}})", text
    )


def _unwrap_letter(match: re.Match[str]) -> str:
    r"""`\mathrm{e}` is e, but `7\text{ m}` keeps its unit."""
    before = match.string[: match.start()].rstrip()[-1:]
    return match.group() if before and before in "0123456789})" and match[1] not in "ei" else match[1] + " "


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


def _closing(text: str, start: int) -> int:
    """Index of the delimiter (its first character) that closes the one at `start`; half-open intervals mix `(` with `]`. -1 = none."""
    depth, index = 0, start
    while index < len(text):
        char, width = text[index], 1
        if char == "\\":
            width, char = 2, text[index + 1 : index + 2] if text[index + 1 : index + 2] in ("{", "}") else ""
        if char and char in "{([" or (index == start and char == "]"):
            depth += 1
        elif char and char in "})]" or (depth == 1 and char == "[" and text[start] == "]"):
            depth -= 1
            if depth == 0:
                return index
        index += width
    return -1


def _check_braces(text: str) -> None:
    depth = deepest = braces = 0
    for char in re.sub(r"\\.", lambda match: {"\\{": "(", "\\}": ")"}.get(match.group(), ""), text):
        if char in "{([":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "})]":
            depth -= 1
        braces += {"{": 1, "}": -1}.get(char, 0)
        if braces < 0:
            raise Refused("unbalanced braces")
    if braces:
        raise Refused("unbalanced braces")
    if deepest > MAX_DEPTH:
        raise Refused(f"nested deeper than {MAX_DEPTH}")
