r"""Names in answers: takes `x =` off `x = 7`, refuses the equations and chains in which a right number may hide.

>>> drop_names("7", "x = 7"), drop_names("7", "8 = 7"), drop_names("7", "|x| = 7")
(('7', '7', ''), ('7', '8 = 7', 'equation'), ('7', '|x| = 7', 'equation'))
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from soundrl.fapo.verify.plain import squeeze
from soundrl.fapo.verify.units import CHANGES_THE_VALUE
from soundrl.fapo.verify.value import Group, read, read_number, split

_MEMBER = re.compile(r"([^=<>]+?)\\in(?![a-zA-Z])(.+)")
_FUNCTION = re.compile(r"([A-Za-z])\s*\(\s*([A-Za-z])\s*\)")
_GREEK = (
    r"\\(?:alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|(?:var)?theta|iota|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau|upsilon|(?:var)?phi|chi|psi|"
    r"omega|Gamma|Delta|Theta|Lambda|Sigma|Phi|Psi|Omega|ell)(?![a-zA-Z])"
)
_INDEX = r"(?:_\s*(?:\{[^{}]*\}|\w))?"
_POINTS = rf"[A-Z]'?{_INDEX}(?:\s*[A-Z]'?{_INDEX})*"
# The argument may hold no sum or product, or a product such as `n(n+1)` would be a function.
_ARGUMENT = r"\(\s*(?:-?\d+(?:\.\d+)?|[A-Za-z]|\\\w+)(?:\s*,\s*(?:-?\d+|[A-Za-z]))*\s*\)"
_NAME = re.compile(
    rf"(?:(?:[A-Za-z]|{_GREEK}){_INDEX}"  # x, x_1, \theta
    rf"|(?:[f-hpquvyA-Z]|{_GREEK}){_INDEX}'*(?:\^\{{?\(?-?[\d]\)?\}}?)?\s*{_ARGUMENT}|[a-z]\([a-z]\)"  # f(2), f'(1), f^{{-1}}(3), x(t)
    r"|P\s*\(.+\)"
    rf"|(?:m\s*)?(?:\\(?:m?angle|triangle|overline|widehat|vec)(?![a-z]))?\s*\{{?{_POINTS}\}}?"  # AB, \angle ABC
    rf"|\[{_POINTS}\]|\|\s*(?:\\overline\s*)?\{{?{_POINTS}\}}?\s*\||{_POINTS}\s*[:/]\s*{_POINTS}|\\frac\s*\{{{_POINTS}\}}\s*\{{{_POINTS}\}}"
    r"|(?:(?:[Tt]he|of|in|is|per|for|[A-Z][a-z]{2,}|[a-z]{5,}|area|cost|time|mean|mode|sum)\s*)+"  # area of the square
    rf"|\((?:\s*(?:[A-Za-z]|{_GREEK}){_INDEX}\s*,?)+\))"  # (p, q)
)
_SAID = frozenset("the value values of so thus then therefore hence answer final is solution minimum maximum largest smallest".split())
_TEXT = re.compile(r"\\text\{([^{}]*)\}")


def drop_names(gold: str, answer: str) -> tuple[str, str, str]:
    r"""Both without `x =` or `x \in` in front, and what is wrong where the answer is a chain or an equation and the reference is not."""
    is_list = _is_list(gold) or _is_list(answer)
    gold_items, answer_items = (split(text, ",;") if is_list else [text] for text in (gold, answer))
    gold_sides, answer_sides = list(map(sides, gold_items)), list(map(sides, answer_items))
    if not _are_named(gold_sides):
        for parts in answer_sides:
            if len(parts) > 2 or (len(parts) == 2 and not _is_name(parts[0])):
                return gold, answer, "chain" if len(parts) > 2 else "equation"
        return gold, _values(answer_items) if _are_named(answer_sides) else answer, ""
    if is_list:
        if not _are_named(answer_sides):
            return *_without_names(gold_items, answer_items, answer), ""
        if (function := _constant_function(gold_sides)) and function == _constant_function(answer_sides):
            return _values(gold_items), _values(answer_items), ""
        return gold, answer, ""
    (gold_parts,), (answer_parts,) = gold_sides, answer_sides
    if len(answer_parts) > 2 and answer_parts != gold_parts:
        return gold, answer, "chain"
    if len(gold_parts) == 2 and len(answer_parts) == 1:
        return _values([gold]), answer, "" if _is_name(gold_parts[0]) else "no equation"
    if len(gold_parts) == len(answer_parts) == 2:
        if squeeze(gold_parts[0]) == squeeze(answer_parts[0]):
            return gold_parts[1], answer_parts[1], ""
        if read_number(gold_parts[1]) and read_number(answer_parts[1]) and _is_name(gold_parts[0]) and "(" not in gold_parts[0]:
            return gold, answer, "other name"
    return gold, answer, ""


def _is_list(text: str) -> bool:
    """`1, 2` and `x = 1, y = 2`, but not `1,000` or `x = 1,000`."""
    parts = sides(text)
    return len(split(text, ",;")) > 1 and (len(parts) > 2 or read_number(parts[-1]) is None)


def _without_names(golds: list[str], answers: list[str], answer: str) -> tuple[str, str]:
    """A list with names and one without: `3, 2` is not `x = 2, y = 3`, but the solutions `x_1 = 2, x_2 = 3` may come in any order."""
    letters = {name.strip()[:1] for name, *_ in map(sides, golds) if re.match(r"\s*[A-Za-z](?![A-Za-z])", name)}
    if len(letters) < len(golds) or not all(len(sides(item)) == 2 for item in golds):
        return _values(golds), answer
    whole = read(answer)
    return f"({_values(golds)})", answer if isinstance(whole, Group) and whole.kind == "()" else f"({', '.join(answers)})"


def _are_named(items: Iterable[list[str]]) -> bool:
    return any(len(parts) > 1 for parts in items)


def _values(items: list[str]) -> str:
    both = [sides(item) for item in items]
    return ", ".join(parts[1] if len(parts) == 2 and _is_name(parts[0]) else item for parts, item in zip(both, items, strict=True))


def _constant_function(items: list[list[str]]) -> str:
    """`W` of `W(n) = 1, W(n) = -1`: the variable n or x says nothing where no value has a letter. Empty = no such list."""
    names = set()
    for name, *values in items:
        match = _FUNCTION.fullmatch(name)
        names.add(match.groups() if match and len(values) == 1 and not re.search("[A-Za-z]", values[0]) else ("", ""))
    return names.pop()[0] if len(names) == 1 else ""


def sides(text: str) -> list[str]:
    r"""What stands on either side of `=` or `\in`: `x = 7` is `x`, `7`."""
    parts = split(text, "=")
    if len(parts) == 1:
        match = _MEMBER.fullmatch(text)
        if match and not re.fullmatch(r"\\mathbb.*", match[2]):
            return [match[1], match[2]]
    return parts


def _is_name(text: str) -> bool:
    r"""`x`, `x_1`, `f(2)`, `|AB|`, `A:B`, `\frac{NO}{BO}`, `(p, q)`, words; not `8`, `2x`, `xy`, `|x|`, `\log x`, `\text{twice }x`."""
    words = " ".join(_TEXT.findall(text)).lower().split()
    if CHANGES_THE_VALUE.search(" ".join(words)):
        return False
    # `\text{the square of } x` and its like are no name of x.
    if words and re.fullmatch(rf"\s*(?:[a-z]|{_GREEK})\s*", _TEXT.sub(" ", text)) and not _SAID.issuperset(words):
        return False
    rest = " ".join(_TEXT.sub(" ", text).split()).strip(" .,:")
    return bool(_NAME.fullmatch(rest)) if rest else bool(words)
