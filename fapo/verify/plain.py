r"""Brings an answer into one plain form: signs, styles, spaces, braces, percent signs and conjunctions in one spelling.

Nothing is evaluated, and nothing that bears meaning is dropped: `\mathbb{R}`, `\mathcal{N}`, `\vec v`, `\overline{AB}`, `\cancel 7` stay.

>>> normalise(r"\textcolor{red}{\mathbf{\dfrac{3}{4}}}"), normalise(r"\text{12 hours.}"), normalise("x＝1，2")
('\\frac{3}{4}', '12 \\text{hours}', 'x=1,2')
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

MAX_LENGTH = 1024  # longer answers are refused. The longest reference of MATH-500, AIME, GSM8K and DeepMath has under 200 characters.
MAX_DEPTH = 32


class Refused(ValueError):
    """The text is not an answer in the alphabet, size or commands that are read; the message says why."""


# Signs with one meaning only. Digits and letters of other alphabets are absent on purpose: they are look-alikes.
_SPELLINGS = {
    "-": "−–‐‑‒", r"\times ": "×✕", r"\cdot ": "·⋅∙", "/": "÷⁄∕", ":": "∶", ",": "、", ".": "。", "'": "’′", "¥": "￥", r"\mu ": "µ",
    " ": "\t\n\r\u00a0\u202f\u205f\u3000", "": "“”\u200b\u200c\u200d\u2060\ufeff\u00ad", r"^\circ ": "°º", r"\infty ": "∞", r"\le ": "≤⩽≦",
    r"\ge ": "≥⩾≧", r"\neq ": "≠", r"\approx ": "≈", r"\equiv ": "≡", r"\pm ": "±", r"\mp ": "∓", r"\cup ": "∪", r"\cap ": "∩",
    r"\in ": "∈", r"\subset ": "⊂", r"\subseteq ": "⊆", r"\setminus ": "∖", r"\emptyset ": "∅", r"\angle ": "∠", r"\triangle ": "△",
    r"\to ": "→", r"\dots ": "…",
}  # fmt: skip
_LETTERS = (
    "αalpha βbeta γgamma δdelta εepsilon ζzeta ηeta θtheta ιiota κkappa λlambda μmu νnu ξxi πpi ρrho σsigma τtau φphi ϕphi χchi ψpsi "
    "ωomega ΓGamma ΔDelta ΘTheta ΛLambda ΞXi ΠPi ΣSigma ΦPhi ΨPsi ΩOmega"
)
_SIGNS = str.maketrans(
    {sign: spelling for spelling, signs in _SPELLINGS.items() for sign in signs}
    | {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    | {chr(code): " " for code in range(0x2000, 0x200B)}
    | {word[0]: f"\\{word[1:]} " for word in _LETTERS.split()}
    | {letter: rf"\mathbb{{{unicodedata.normalize('NFKC', letter)}}}" for letter in "ℝℤℕℚℂ"}
    | {sign: r"\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", sign).split("⁄")) for sign in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"}
)
# Without a base in front such a sign has no meaning, and is refused.
_RAISED = re.compile(r"(?<=[\w)}\]°])(?:[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+|[₀₁₂₃₄₅₆₇₈₉₊₋ₙ]+)")
_FORM_FEED = re.compile(r"\\?\x0crac(?![a-zA-Z])")
_ROOT = re.compile(r"√\s*(\d+(?:\.\d+)?|[A-Za-zπ]|\([^()√]*\))")
_MARKDOWN = re.compile(r"(?<![\w)}*])(?<![\w)}] )(\*{1,3}|__?|`)(?=\S)([^*`]+?)(?<=\S)\1(?![\w*])")
_HTML = re.compile(r"<(b|i|u|em|strong)>([^<>]*)</\1>")
_STRANGE = re.compile(r"[^ -~€£¥]")
_COMMANDS = re.compile(
    r"\\(?:def|edef|gdef|xdef|let|input|include|write\d*|read|openin|openout|immediate|newcommand|renewcommand|providecommand|catcode|csname|"
    r"expandafter|usepackage|require|href|url|special|loop|repeat|if[a-z]*|verb|lstinline|directlua|html[A-Z]\w*|__?)(?![a-zA-Z])|~~[^~\s]+~~"
)
_COLOUR = re.compile(
    r"\\(?:(?:text)?color|colorbox|fcolorbox\s*\{[^{}]*\}|style|class|cssId|scalebox|[hv]space\*?)(?![a-zA-Z])\s*(?:\[[^][]*\]\s*)?\{[^{}]*\}"
)
# A style says nothing of the value, so its command goes; its braces go with all braces that group nothing.
_LAYOUT = re.compile(
    r"\\(?:left|right|middle|[bB]igg?[lrm]?|(?:display|text|script|scriptscript)style|limits|mathstrut|phantom\{\}|boxed|fbox|mathbf|boldsymbol|bm|"
    r"pmb|bold|mathnormal|ensuremath|underline|uline|tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE|huge|Huge|bf|it|rm|sf|tt|sl|"
    r"sc|em|bfseries|itshape|mdseries|upshape|rmfamily|sffamily|ttfamily|boldmath|normalfont|framebox|mathop|bbox\[[^][]*\])(?![a-zA-Z])|"
    r"\\(?:text(?:bf|it|rm)?|emph|mathrm)(?=\s*\d)|(?<!\\)\\[()\[\]]|\$"
)
_SPACE = re.compile(r"(?<!\\)\\(?:[,;:!> ]|(?=\d)|q?quad(?![a-zA-Z])|(?:thin|med|thick|neg)?space(?![a-zA-Z]))|~")
_FRAC = re.compile(r"\\[dtc](frac|binom)(?![a-zA-Z])")
_OVER = re.compile(r"\{([^{}]*)\\(over|choose)(?![a-zA-Z])([^{}]*)\}")
_TEXT = re.compile(r"\\(?:text(?:bf|rm|normal|it|tt|sf|up|sc|md|sl)?|emph|math(?:rm|it|sf|tt)|[mh]box|operatorname\*?)\s*\{")
_WORDS = re.compile(r"(\\text\{[^{}]*\}|\\[A-Za-z]+)|[A-Za-z](?:[A-Za-z' .,;:]|[-/](?=[A-Za-z]))*")
# The first alternative passes over words that only begin with a conjunction, or hold one.
_CONJUNCTION = re.compile(
    r"(\\text\{(?![\s,]*(?:and|or)[\s,]*\})[^{}]*\})"
    r"|,?\s*(?:\\text\{[\s,]*(?:and|or)[\s,]*\}|(?<![A-Za-z\\])(?:and|or)(?![a-z]))\s*,?"
)
_PERCENT = re.compile(r"\\text\{\s*(?:percent|percentage|per cent|pct)\s*\}|\\%|(?<=[\d\s}])(?:percentage|per ?cent|pct)\b")
_ANSWER = re.compile(r"\A(?i:(?:\\text\{)?(?:the )?(?:final )?answer(?: is)?\b\}?\s*[:=]?\s*)(?=\S)")
_RELATION = re.compile(r"\\(neq?|not\s*=|leq?|leqslant|lt|geq?|geqslant|gt)(?![a-zA-Z])|([!<>])=")
_RELATIONS = {"n": r"\neq ", "!": r"\neq ", "l": r"\leq ", "<": r"\leq ", "g": r"\geq ", ">": r"\geq ", "lt": "<", "gt": ">"}
_ARGUMENT = re.compile(r"(?:\\[A-Za-z]+\s*\w?|[\^_]|(?<!\\)[}\]])\s*\Z")
_MARK = re.compile(r"\\.|[^\\]", re.DOTALL)
_SINGLE = re.compile(r"([_^])\s*\{([A-Za-z0-9])\}")


def normalise(text: str) -> str:
    """The plain form. Raises `Refused` for a text too long, too deep or unbalanced, for characters of other alphabets, and for commands
    that define or read something."""
    if len(text) > MAX_LENGTH:
        raise Refused(f"longer than {MAX_LENGTH} characters")
    # A string literal in which `\frac` was not escaped holds a form feed.
    text = _ROOT.sub(r"\\sqrt{\1}", _FORM_FEED.sub(r"\\frac", _HTML.sub(r"\2", _MARKDOWN.sub(r"\2", text))))
    text = _RAISED.sub(_raise, text).translate(_SIGNS)
    if strange := _STRANGE.search(text):
        raise Refused(f"character U+{ord(strange.group()):04X}")
    if _COMMANDS.search(text):
        raise Refused("a command that is not mathematics")
    _check_braces(text)

    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z()\[\]])", r"\\", text)  # escaped once too often
    text = re.sub(r"(?<=\d)\s*\{,\s*\}\s*(?=\d{3})|(?<=\d),\s*\\!\s*(?=\d{3}(?!\d))", ",", text)
    text = _COLOUR.sub(" ", text.replace(r"\$", "\x01"))
    text = _LAYOUT.sub(lambda match: "" if match.group()[-1].isalpha() else " ", text).replace("\x01", r"\$")
    text = _FRAC.sub(r"\\\1", _SPACE.sub(" ", text))
    text = _OVER.sub(lambda match: rf"\{'frac' if match[2] == 'over' else 'binom'}{{{match[1]}}}{{{match[3]}}}", text)
    for match in reversed(list(_TEXT.finditer(text))):
        end = closing(text, match.end() - 1)
        text = text[: match.start()] + _unwrap(text[match.end() : end], text[: match.start()].rstrip()[-1:]) + text[end + 1 :]
    text = re.sub(r"(?<!\\)%", r"\\%", _drop_braces(text.replace("{}", "")))
    text = _PERCENT.sub(r"\\% ", text)
    text = _CONJUNCTION.sub(lambda match: match[1] or ", ", text)
    text = _RELATION.sub(lambda match: _RELATIONS.get(match[1]) or _RELATIONS[(match[1] or match[2])[0]], text)
    return _ANSWER.sub("", " ".join(text.split())).rstrip(".,;:\\ ").lstrip(",; ")


def squeeze(text: str) -> str:
    """Drops the spaces and braces that mean nothing, and keeps spaces between two words or numbers."""
    text = re.sub(r"(\\[A-Za-z]+) (?=[^A-Za-z])", r"\1", text)
    return re.sub(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])", "", _SINGLE.sub(r"\1\2", text))


def marks(text: str) -> Iterator[tuple[int, str]]:
    r"""Place and sign of every character that no backslash stands before; `\{` and `\}` count as one sign each."""
    return ((match.start(), match.group()) for match in _MARK.finditer(text) if len(match.group()) == 1 or match.group()[1] in "{}")


def closing(text: str, start: int) -> int:
    """Index of the delimiter (its first character) that closes the one at `start`; half-open intervals mix `(` with `]`. -1 = none."""
    depth = 0
    for place, sign in marks(text[start:]):
        if sign[-1] in "{([" or (place == 0 and sign == "]"):
            depth += 1
        elif sign[-1] in "})]":
            depth -= 1
            if depth == 0:
                return start + place
    return -1


def _raise(match: re.Match[str]) -> str:
    digits = unicodedata.normalize("NFKC", match.group()).replace("−", "-")
    return f"{'_' if match.group()[0] in '₀₁₂₃₄₅₆₇₈₉₊₋ₙ' else '^'}{{{digits}}}"


def _unwrap(content: str, before: str) -> str:
    r"""What a text command says: its words stay text, its numbers and signs are as if they stood outside. `7\text{ m}` keeps its unit."""

    def word(match: re.Match[str]) -> str:
        run = match.group()
        if match[1]:
            return run
        words = run.rstrip(" .,;:")
        is_unit = before and before in "0123456789})" and not content[: match.start()].strip() and words in "mgshklLNWVJKFCAMBT"
        is_word = is_unit or re.search("[A-Za-z]{2}", words)
        return (rf"\text{{{words}}}" if is_word else words) + run[len(words) :]

    return (" " if before.isalpha() else "") + _WORDS.sub(word, content)


def _drop_braces(text: str) -> str:
    """Without the braces that group nothing: those behind no command, no `^` or `_` and no other argument."""
    kept: list[bool] = []
    out = ""
    for piece in _MARK.findall(text):
        if piece == "{":
            kept.append(_ARGUMENT.search(out[-40:]) is not None)
            piece = piece if kept[-1] else ""
        elif piece == "}" and not (kept.pop() if kept else True):
            piece = ""
        out += piece
    return out


def _check_braces(text: str) -> None:
    depth = deepest = braces = 0
    for _, sign in marks(text):
        depth += (sign[-1] in "{([") - (sign[-1] in "})]")
        deepest = max(deepest, depth)
        braces += (sign == "{") - (sign == "}")
        if braces < 0:
            break
    if braces or deepest > MAX_DEPTH:
        raise Refused("unbalanced braces" if braces else f"nested deeper than {MAX_DEPTH}")
