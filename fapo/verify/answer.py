r"""Finds the final answer of a response, in the form that its prompt asked for. `thinking` says which part is read, `box` reads boxes.

| form | a response ends in | asked for by |
|---|---|---|
| `box` | `\boxed{34}` | our own instruction, most sets |
| `answer_line` | `Answer: 34`, also `**Answer:** $34$` or with the value in the next line | DAPO-Math-17k |
| `hashes` | `#### 34` | verl's GSM8K |
| `tag` | `<answer>34</answer>` | TinyZero, open-r1 |
| `phrase` | `The final answer is 34.` | Minerva's and few-shot prompts |

What holds for boxes holds for all forms: the last answer counts; another one in its paragraph must be another spelling of it, or the
answer is hedged, and wrong; answers in earlier paragraphs are intermediate results. A box within the form is unwrapped. A box beside it,
in the same paragraph or later, must say the same; where the form is missing altogether a box counts, and one that is open is no answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from soundrl.fapo.records import Outcome
from soundrl.fapo.verify.box import Box, final_box, paragraph_of, plain
from soundrl.fapo.verify.rule import rule
from soundrl.fapo.verify.thinking import answer_part

_ASKED = {
    "box": re.compile(r"\\?\b[bf]?boxed\b|\\fbox", re.IGNORECASE),
    "tag": re.compile(r"<\s*answer\s*>", re.IGNORECASE),
    "hashes": re.compile(r"(?<!#)####(?!#)"),
    # Not at the end: there it is the response that follows.
    "answer_line": re.compile(r"\banswer[\s*_\"'”]*[:：](?!\s*\Z)", re.IGNORECASE),
    "phrase": re.compile(r"\banswer is\b", re.IGNORECASE),
}
_COLON = r"[ \t]*[}*_]*[ \t]*[:：][ \t]*[}*_]*"
_ANSWER_LINE = re.compile(
    rf"(?<![A-Za-z0-9])answer(?:[ \t]+is)?{_COLON}|^[ \t]*(?:#+|\*\*|__)[ \t]*(?:the[ \t]+)?(?:final[ \t]+)?answer[ \t*_#]*$",
    re.IGNORECASE | re.MULTILINE,
)
_PHRASE = re.compile(
    rf"(?<![A-Za-z0-9])answer(?:[ \t]+(?:is|equals|must be|would be))?(?:{_COLON}|(?<=[a-z])[ \t]+(?!is\b))", re.IGNORECASE
)
_SENTENCE = re.compile(r"\.(?=\s|\Z)|,?\s(?:because|since|which|so)\b")
_HASHES = re.compile(r"(?<!#)####(?!#)")
_HEADING = re.compile(
    r"[\s*_]*(?:\d+[.)]\s*)?(?:step|part|case|explanation|solution|verification|check|note|conclusion|analysis|summary|reasoning|given|approach|"
    r"calculation|problem|understand)\w*\b",
    re.IGNORECASE,
)
_TAG = re.compile(r"<(/?)\s*answer\s*>", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"[\s\W_]*(?:(?:your|the|final|numerical)\s+)*(?:answer|result)?[\s\W_]*", re.IGNORECASE)
_SPELLINGS = 8  # who writes an answer in more ways than these is hedging, and would make the comparison slow
_NO_VALUE = re.compile(r"[ \t*_]*(?:(?:final[ \t]+)?answer[ \t*_:]*)?", re.IGNORECASE)
_LEAD = re.compile(
    r"\A(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+)?(?:final\s+|correct\s+)?answer(?:\s+is)?\s*[:：]?[\s*_]*(?=\S)", re.IGNORECASE
)
_FENCE = re.compile(r"\A(?:\$\$|\\\[|```\w*)\s*\n")


def asked_form(texts: Iterable[str]) -> str | None:
    """The form that a prompt asks for, from the texts of its messages; None where it asks for none that is known."""
    text = "\n".join(texts)
    return next((form for form, pattern in _ASKED.items() if pattern.search(text)), None)


def final_answer(response: str, *, form: str | None = "box", parts: int = 1, thinks: bool = False) -> Box | None:
    """The final answer of a whole response of any characters, `hedged` where its paragraph says something else as well; None where there
    is none. `form`: one of `FORMS`, None = a box; `parts`: see `final_box`; `thinks`: the prompt has opened a thinking part."""
    text = answer_part(response, thinks)
    if text is None:
        return None
    box = final_box(text, parts=parts)
    said = FORMS[form](text) if form in FORMS else []
    if not said:
        return box and _settled(box)
    start, last = said[-1]
    if box is None and re.search(r"\\[bf]box(?:ed)?\s*\{", text[start:]):
        return None
    paragraph = paragraph_of(text, start)
    if (answer := _content(last, parts)) is None:
        return None
    others = [other.text for place, value in said[:-1] if place >= paragraph and (other := _content(value, parts))]
    others += [box.text, *box.others] if box and box.start >= paragraph else []
    return _settled(Box(answer.text, (*answer.others, *others)))


def _settled(box: Box) -> Box:
    r"""Without the others where they are mere spellings of the answer, as in `\boxed{\frac12} = \boxed{0.5}`."""
    others = {plain(other): other for other in box.others if plain(other) != plain(box.text)}
    differ = len(others) > _SPELLINGS or not all(_same(other, box.text) for other in others.values())
    return box if differ else Box(box.text)


def _same(one: str, other: str) -> bool:
    try:
        return Outcome.CORRECT in (rule(one, other).outcome, rule(other, one).outcome)
    except ValueError:
        return False


def _content(value: str, parts: int) -> Box | None:
    """What a form holds, without Markdown; of a box in it the content."""
    if box := final_box(value, parts=parts):
        return box
    value = _LEAD.sub("", value.strip(" \t\r\n*_`"), count=1)
    if value.count("}") > value.count("{"):  # \textbf{Answer: 34}
        value = value[: value.rindex("}")]
    return Box(value) if value else None


def _first_line(text: str, start: int, end: int) -> str:
    """The rest of the line; where that is empty, the next line that is not, behind the opening of a display or a fence."""
    value = text[start:end]
    if _NO_VALUE.fullmatch(value.partition("\n")[0]):
        value = _FENCE.sub("", value.partition("\n")[2].lstrip(), count=1)
    return value.partition("\n")[0]


def _after(pattern: re.Pattern[str], text: str, cut: Callable[[str], str] = lambda value: value) -> list[tuple[int, str]]:
    """(place, value) behind each match, up to the next; no placeholders, as in `Answer: $Answer`."""
    matches = list(pattern.finditer(text))
    ends = [*(match.start() for match in matches[1:]), len(text)]
    found = [(match.start(), cut(_first_line(text, match.end(), end))) for match, end in zip(matches, ends, strict=False)]
    return [(place, value) for place, value in found if re.search("[^\\x00-\\x7f]", value) or not _PLACEHOLDER.fullmatch(value)]


def _hashes(text: str) -> list[tuple[int, str]]:
    # The same signs begin a heading of Markdown.
    return [(place, value) for place, value in _after(_HASHES, text) if not _HEADING.match(value)]


def _tags(text: str) -> list[tuple[int, str]]:
    """What stands in closed tags; one that is open after all of them is an empty answer."""
    found: list[tuple[int, str]] = []
    opened: re.Match[str] | None = None
    for match in _TAG.finditer(text):
        if match[1] and opened:
            found.append((opened.start(), text[opened.end() : match.start()]))
        opened = None if match[1] else match
    return [*found, (opened.start(), "")] if opened else found


FORMS: dict[str | None, Callable[[str], list[tuple[int, str]]]] = {
    "box": lambda text: [],
    "answer_line": lambda text: _after(_ANSWER_LINE, text),
    "hashes": _hashes,
    "tag": _tags,
    "phrase": lambda text: _after(_PHRASE, text, lambda value: _SENTENCE.split(value)[0]),
}
"""Where an answer may stand → (place, text) of each that a response gives in that form, in order. Boxes are read in any case."""
