r"""The strict rule in front of math-verify: it decides the clear cases and refuses what math-verify 0.9.0 accepts wrongly.

`rule(gold, answer)` compares two answers (box contents, not responses) and says correct, wrong, unparseable, or undecided; only undecided
pairs go to math-verify. It evaluates nothing and is linear in the length of the text.

A number must be given as a number. Where the reference is one (integer, decimal, fraction, mixed number, scientific notation) the answer
must be one too, and the two are compared as `fractions.Fraction`:

* `042`, `42.`, `1,000` = `1{,}000` = `1 000` = `1000`, `\frac12` = `0.5` = `2/4`, `2\frac12` = `5/2`, `0.\overline{3}` = `1/3` are equal.
* `3+4`, `\sqrt{49}`, `5!`, `10 \bmod 7`, `84/12` are not carried out and are wrong for 7, 120, 3, 7: a policy would otherwise learn to box
  the question. (`3/3` and `7/1` leave nothing to carry out.) Where the reference itself is such an expression, math-verify decides.
* `0.333333` is not 1/3: rounded answers are wrong. A decimal of 12 or more significant digits, all of them true, is what a program prints,
  and counts: 0.0833333333333333 for 1/12, 4.123105625617661 for `\sqrt{17}`. An exact form may be followed by its approximation, if that is
  true to its last digit: `\frac13 \approx 0.333` is 1/3.
* `1.000` is one, not a thousand. The answer `2,74` is 2.74 where the reference is a number; the reference `1,22` is a list.

Styles and signs with one meaning change nothing (`plain`). Names are dropped, equations are not, chains are wrong (`names`). A unit may be
left out, and is read over where the reference has none; where both have one they must agree, and no unit is converted. Words that change a
value, or that are nobody's unit, must stand in the reference too (`units`). `28` and `0.28` count for `28\%`, and `28\%` counts for a
reference 28, as problems that ask for a percentage have it; it does not for 0.28. A base may be left out (`204` for `204_5`), not added.
`(1,2)`, `[1,2]` and `\{1,2\}` differ; a bare list is a set without braces, in any order, and may also stand for a tuple in the tuple's
order, as a tuple may for `x=1, y=2`. An interval may stand for an inequality, an inequality for no interval.

Signs of inexactness or congruence (`\approx`, `\bmod`, `\neq`) and operators that are not carried out (`!`, `\sum`, …) must stand in the
reference to be allowed in the answer. Text must be the same words; a choice letter may be followed by its choice (`C) 12`), yes or no by a
reason. Letters keep their case.

`tests/test_strict.py` lists the false accepts of math-verify 0.9.0 that this is made against, found by measurement;
`tests/test_real_outputs.py` holds what it costs on real answers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from soundrl.fapo.records import Outcome
from soundrl.fapo.verify.box import reference_part
from soundrl.fapo.verify.names import drop_names
from soundrl.fapo.verify.plain import MAX_LENGTH, Refused, normalise, squeeze
from soundrl.fapo.verify.units import cut_unit
from soundrl.fapo.verify.value import Group, Node, Opaque, Scalar, exact_decimals, prints, read, read_decimal_comma


@dataclass(frozen=True)
class Ruling:
    """What the rule says of one pair."""

    outcome: Outcome | None  # None = undecided: `gold` and `answer` are to be compared by math-verify
    reason: str  # a few words, for counting
    gold: str = ""
    answer: str = ""


# Each must stand in the reference to be allowed in an answer.
_MUST_BE_SHARED = {
    "relation": re.compile(
        r"\\(?:neq|approx|sim(?:eq)?|cong|equiv|pmod|bmod|p?mod|propto|not|doteq|thickapprox|approxeq)(?![a-zA-Z])|\bmod\b|~=|=~"
    ),
    "not carried out": re.compile(
        r"!|\\binom\s*(?!\{[^{}]*[A-Za-z])|\\(?:sum|prod|i+nt|oint|lim|max|min|sup|inf|gcd|lcm|det|deg|lfloor|lceil|lvert|operatorname)(?![a-zA-Z])"
        r"|\bgcd\b|\blcm\b"
    ),
    "unfinished": re.compile(r"\\[lcdv]?dots|\.\.+|\?"),
}
# math-verify reads X^T as X, and dy/dx as dx/dy: such answers are compared by their form alone.
_FORM_ONLY = re.compile(
    r"\\frac\s*\{\s*(?:d|\\partial)[^{}]*\}\s*\{\s*(?:d|\\partial)|[A-Z)}]\s*\^\s*\{?\s*(?:T|\\top|\\intercal|\\dagger|\\ast|\*)(?![A-Za-z])"
)
_TOWER = re.compile(r"\^\s*(?:\{[^{}]*\^|\S\s*\^)|\}\s*\^")
_HUGE = re.compile(r"\^\s*\{?\s*[-+]?\s*\d{5,}|\d{101,}")
_BASED = re.compile(r"(?<![A-Za-z0-9\\])(\d[0-9A-Z]*)_\s*\{?\s*\(?(\d+|\\text\{[^{}]*\}|[a-z]+)\)?\s*\}?")
_MANY = re.compile(r"\\[pm][mp](?![a-z])|\\(?:in|cup|cap|leq|geq|neq|setminus)(?![a-z])|[<>=,;]")
_PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![a-z])")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_WORDS = re.compile(r"\(?[A-Za-z](?:[A-Za-z' .,;:]|(?<=[a-z]{2})-(?=[A-Za-z]{2}))*\)?")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_CHOICE = re.compile(r"(?i:(?:the )?(?:correct )?(?:option|choice)(?: is)?)?[\s:]*(?:\(([A-J])\)|([A-J])(?:[).:]|\Z))(.*)", re.DOTALL)
_OTHERS = re.compile(r"(?<![A-Za-z\\])[A-J](?![A-Za-z])|\b(?i:not|wrong|incorrect|except|or|but|maybe|neither|nor|yes|no|true|false)\b")
_CLAUSE = re.compile(r"(?i:(yes|no|true|false)(?:\s*[,.;:]|\s+(?:because|since|as)\b))(.*)", re.DOTALL)
_BASE_WORDS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()


@lru_cache(maxsize=4096)
def plain_gold(gold: str) -> str:
    """A reference in plain form (`normalise`), its boxes taken off; whether the parser can read it, `Verifier.check_golds` says.
    `ValueError` where it is empty, too long, or holds characters or commands that are never read; the message shows it."""
    try:
        plain = normalise(reference_part(gold) if len(gold) <= MAX_LENGTH else gold)
        if not plain:
            raise Refused("it is empty, or holds nothing but layout")
        read(plain)
    except Refused as error:
        raise ValueError(f"the reference answer {gold[:200]!r} cannot be used: {error}") from error
    return plain


def parsed_part(gold: str) -> str | None:
    """What the parser reads of a reference where it has to compare it; None where it never has to: numbers, words, forms. `ValueError` as
    `plain_gold`."""
    plain = plain_gold(gold)
    if _FORM_ONLY.search(plain) or _words(plain) is not None:
        return None
    plain = plain.replace(r"\%", " ").strip()
    if not (";" in plain and "=" in plain):
        plain = cut_unit(drop_names(plain, plain)[0])[0]
    nodes = [read(plain)]
    for node in nodes:
        nodes += node.items if isinstance(node, Group) else ()
    # A fault here (a chain, a unit alone) means that nothing but the same text is ever equal to it, and nothing is parsed.
    return exact_decimals(plain) if plain and any(isinstance(node, Opaque) for node in nodes) else None


@lru_cache(maxsize=4096)
def list_length(gold: str) -> int:
    """Elements of a reference that is a bare list: 2 for `1, 2`, and 1 for `7`, `1,000`, `(1, 2)`. `ValueError` as `plain_gold`."""
    node = read(plain_gold(gold))
    return len(node.items) if isinstance(node, Group) and node.kind == "list" else 1


def rule(gold: str, answer: str) -> Ruling:
    """Compares the content of a box with the reference, with or without a box or dollars around it; `ValueError` as `plain_gold`."""
    reference = plain_gold(gold)
    if answer.strip() == gold.strip():
        return Ruling(Outcome.CORRECT, "same text")
    try:
        plain = normalise(answer)
        return _compare(reference, plain) if plain else Ruling(Outcome.UNPARSEABLE, "nothing but layout")
    except Refused as error:
        return Ruling(Outcome.UNPARSEABLE, str(error))


def _compare(gold: str, answer: str) -> Ruling:
    if squeeze(gold) == squeeze(answer):
        return Ruling(Outcome.CORRECT, "same form")
    if "approx" in answer and "approx" not in gold:
        return _compare_approximated(gold, answer)
    for name, pattern in _MUST_BE_SHARED.items():
        if pattern.search(answer) and not pattern.search(gold):
            return _wrong(name)
    if _FORM_ONLY.search(gold) or _FORM_ONLY.search(answer):
        return _wrong("other form")
    if _bases(answer) not in ([], _bases(gold)):
        return _wrong("base")
    gold, answer = _BASED.sub(r"\1", gold), _BASED.sub(r"\1", answer)
    if (words := _compare_words(gold, answer)) is not None:
        return words

    gold_percents, answer_percents = gold.count(r"\%"), answer.count(r"\%")
    if answer_percents > max(gold_percents, 1) or 0 < answer_percents < gold_percents or (re.search("%.*=", answer) and "=" not in gold):
        return _wrong("percent")
    gold, answer = gold.replace(r"\%", " ").strip(), answer.replace(r"\%", " ").strip()

    if ";" in gold and "," in gold and "=" in gold and "=" not in answer:
        return _undecided(gold, answer)  # `p=5, q=2; p=7, q=2`: a list of assignments, which math-verify reads as tuples
    gold, answer, fault = drop_names(gold, answer)
    if fault:
        return _wrong(fault)
    (gold, gold_unit), (answer, answer_unit) = map(cut_unit, (gold, answer))
    if not gold or not answer:
        return _wrong("text")
    if gold_unit != answer_unit and (gold_unit and answer_unit or gold_unit.startswith("!") or answer_unit.startswith(("!", "?"))):
        return _wrong("unit")
    if gold_percents != answer_percents and (gold_unit or answer_unit):
        return _wrong("unit")
    if _texts(answer) not in ([], _texts(gold)):
        return _wrong("text")

    gold_node, answer_node = read(gold), read(answer)
    if gold_percents != answer_percents and isinstance(gold_node, Scalar) and isinstance(answer_node, Scalar):
        if answer_percents and gold_node.value <= 1:
            return _wrong("percent")
        if gold_percents and 100 * answer_node.value == gold_node.value:
            return Ruling(Outcome.CORRECT, "percent")
    elif answer_percents > gold_percents:
        return _wrong("percent")
    if isinstance(gold_node, Scalar) and isinstance(answer_node, Group):
        if gold_node.grouped:
            gold_node = read(gold, inside=True)
        elif read_decimal_comma(answer) == gold_node.value:
            return Ruling(Outcome.CORRECT, "decimal comma")
    if (equal := _equal(gold_node, answer_node)) is not None:
        return Ruling(Outcome.CORRECT, "equal") if equal else _wrong("different")
    if _letters(gold) != _letters(answer) and _letters(gold.lower()) == _letters(answer.lower()):
        return _wrong("letter case")
    if gold.count("'") != answer.count("'"):
        return _wrong("prime")  # math-verify reads A' as A
    # Costs of the parser behind: refused before it sees them, unless the reference is of the same kind.
    for pattern, what in ((_TOWER, "tower of powers"), (_HUGE, "huge number")):
        if pattern.search(answer) and not pattern.search(gold.replace(r"\exp", "e^{^")):
            return Ruling(Outcome.UNPARSEABLE, what)
    return _undecided(gold, answer)


def _compare_approximated(gold: str, answer: str) -> Ruling:
    r"""`\frac13 \approx 0.333` is \frac13, as the approximation is true; `x \approx 7` and `\frac13 \approx 1.3` are wrong."""
    exact, _, decimal = (part.strip() for part in answer.partition(r"\approx"))
    if not exact or not re.fullmatch(r"[-+]?\d*\.\d+", decimal):
        return _wrong("relation")
    ruling = _compare(gold, exact)
    if ruling.outcome is Outcome.CORRECT:
        value = cut_unit(drop_names(gold, "0")[0])[0]
        if not isinstance(node := read(value), Opaque):
            return ruling if isinstance(node, Scalar) and prints(decimal, node.value, digits=1) else _wrong("relation")
        ruling = _undecided(value, value)
    return ruling if ruling.outcome else replace(ruling, answer=rf"{ruling.answer} \approx {decimal}")


def _undecided(gold: str, answer: str) -> Ruling:
    return Ruling(None, "undecided", exact_decimals(gold), exact_decimals(answer))


def _wrong(reason: str) -> Ruling:
    return Ruling(Outcome.WRONG, reason)


def _equal(gold: Node, answer: Node) -> bool | None:
    """Equality of two readings; None where it takes the parser."""
    if isinstance(gold, Scalar):
        if not isinstance(answer, Scalar):
            # What a program printed for the root of 17 may be answered with the root of 17; the parser behind compares the digits.
            return None if isinstance(answer, Opaque) and prints(gold.decimal, gold.value) else False
        if gold.value != answer.value:
            is_exact = not (answer.decimal or answer.whole_division)
            return prints(answer.decimal, gold.value) or (is_exact and prints(gold.decimal, answer.value))
        return gold.whole_division or not answer.whole_division
    if isinstance(gold, Group) and isinstance(answer, Group):
        return _equal_groups(gold, answer)
    if isinstance(gold, Group):
        return False if isinstance(answer, Scalar) else None
    if isinstance(answer, Group) and not _MANY.search(gold.text):
        return False
    return True if isinstance(answer, Opaque) and squeeze(gold.text) == squeeze(answer.text) else None


def _equal_groups(gold: Group, answer: Group) -> bool | None:
    unordered = gold.kind in ("list", "set")
    if answer.kind not in (("list", "set") if unordered else (gold.kind, "list")):
        return False
    if unordered and len(set(gold.items)) == len(gold.items):
        # A solution that is named twice is still that solution; a reference with repeats counts multiplicities.
        answer = Group(answer.kind, tuple(dict.fromkeys(answer.items)))
    if len(gold.items) != len(answer.items):
        opaque = [item.text for item in gold.items + answer.items if isinstance(item, Opaque)]
        return None if any(_PLUS_MINUS.search(text) for text in opaque) else False
    if not unordered:
        results = [_equal(*pair) for pair in zip(gold.items, answer.items, strict=True)]
        return False if False in results else None if None in results else True
    # Each element of the answer needs a partner that is not known to differ. Quadratic, in at most 512 elements.
    remaining = list(gold.items)
    certain = True
    for item in answer.items:
        results = [_equal(other, item) for other in remaining]
        if True in results:
            remaining.pop(results.index(True))
        elif None in results:
            certain = False
        else:
            return False
    return True if certain else None


def _bases(text: str) -> list[tuple[str, str]]:
    """Numbers with a base subscript; `x_1` is a name and `\\log_2` a function."""
    found = ((digits.lstrip("0").upper(), re.sub(r"\\text|[{}\s]", "", base)) for digits, base in _BASED.findall(text))
    return sorted((digits, str(_BASE_WORDS.index(base)) if base in _BASE_WORDS else base) for digits, base in found)


def _compare_words(gold: str, answer: str) -> Ruling | None:
    """Decides where the reference is text: words, or one word, or a choice letter with or without parentheses."""
    gold_words, answer_words = _words(gold), _words(answer)
    if gold_words is None:
        return None
    if answer_words is not None and gold_words == answer_words:
        return Ruling(Outcome.CORRECT, "same words")
    flat = " ".join(_TEXT.sub(r" \1 ", answer).split())
    for pattern in (_CHOICE, _CLAUSE):
        if match := pattern.fullmatch(flat):
            *said, rest = match.groups(default="")
            if "".join(said).casefold() == gold_words.casefold() and not _OTHERS.search(rest):
                return Ruling(Outcome.CORRECT, "choice")
    if len(gold_words) > 1 and (_TEXT.search(gold) or len(gold_words) > 3) or (answer_words is not None and len(answer_words) > 3):
        return _wrong("different words")
    # A letter is a choice or a variable; either way it is compared as it is.
    return _wrong("different letters") if answer_words is not None and len(gold_words) == 1 == len(answer_words) else None


def _words(text: str) -> str | None:
    text = _TEXT.sub(r" \1 ", text)
    text = " ".join(text.replace("\\ ", " ").split()).strip(" .")
    if not _WORDS.fullmatch(text):
        return None
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    text = " ".join(re.sub("[.,;:]", " ", text).split())
    return text if len(text) == 1 else text.casefold()


def _texts(text: str) -> list[str]:
    return sorted(" ".join(match.split()).casefold() for match in _TEXT.findall(text) if match.strip())


def _letters(text: str) -> set[str]:
    return set(re.findall("[A-Za-z]", _COMMAND.sub(" ", _TEXT.sub(" ", text))))
