r"""Finds the final answer of a response, in the form that its prompt asked for. `thinking` says which part is read, `box` reads boxes.

| form | a response ends in | asked for by |
|---|---|---|
| `box` | `\boxed{34}` | our own instruction, most sets |
| `answer_line` | `Answer: 34`, also `**Answer:** $34$` or with the value in the next line | DAPO-Math-17k |
| `hashes` | `#### 34` | verl's GSM8K |
| `tag` | `<answer>34</answer>` | TinyZero, open-r1 |
| `phrase` | `The final answer is 34.` | Minerva's and few-shot prompts |
| `json` | `{"answer": "34"}`, also in a fence and with other keys | chat sets |
| `choice` | an option's letter, see `choice` | GPQA, MMLU |

What holds for boxes holds for all forms: the last answer counts; another one in its paragraph must be another spelling of it, or the
answer is hedged, and wrong; answers in earlier paragraphs are intermediate results. A box within the form is unwrapped. A box beside it,
in the same paragraph or later, must say the same; where the form is missing altogether a box counts, and one that is open is no answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable

from soundrl.fapo.data.reference import KEYS
from soundrl.fapo.records import Outcome
from soundrl.fapo.verify.box import Box, final_box, paragraph_of, plain
from soundrl.fapo.verify.choice import final_choice, options_of
from soundrl.fapo.verify.rule import rule
from soundrl.fapo.verify.thinking import answer_part

_ASKED = {
    "choice": re.compile(
        r"\$?\bLETTER\b|(?i:\bwith (?:only |just )?(?:the|a|its) (?:single |option |corresponding |capital )?letter\b|"
        r"\b(?:option|choice|answer)(?:'s)? letter\b|"
        r"\bletters? (?:of|for|corresponding|that corresponds|\(A|from) ?(?:to )?(?:the |your |each )?"
        r"(?:correct|right|best|chosen|option|answer|choice|[A,\s]*B)|"
        r"\bonly the letter\b|\bmultiple[- ]choice\b)|\bone of ABCD|\b(?:answer|option|choice)s? \(?A, B, C,? or D\b|\(A, B, C,? or D\)"
    ),
    "box": re.compile(r"\\?\b[bf]?boxed\b|\\fbox", re.IGNORECASE),
    "tag": re.compile(r"<\s*answer\s*>", re.IGNORECASE),
    "json": re.compile(r"""\bjson\b.{0,200}\banswer\b|\banswer\b.{0,200}\bjson\b|\{\s*"answer"\s*:""", re.IGNORECASE | re.DOTALL),
    "hashes": re.compile(r"(?<!#)####(?!#)"),
    # Not at the end: there it is the response that follows.
    "answer_line": re.compile(r"\banswer[\s*_\"'”]*[:：](?!\s*\Z)", re.IGNORECASE),
    "phrase": re.compile(r"\banswer is\b", re.IGNORECASE),
}
_LETTER = re.compile(
    r"\bLETTER\b|\bone of ABCD|\(A, B, C,? or D\)|"
    r"(?i:\bonly the letter\b|"
    r"\bletter (?:of|for|corresponding to) (?:the |your )(?:correct |right |best |chosen )?(?:option|answer|choice)\b)"
)
"""Words that ask for a letter, whatever is listed."""
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
# The first key tells an object from a set; JSON's own escapes stay, TeX's become texts.
_OBJECT = re.compile(r"""\{\s{0,99}"(?=[^"\n]{1,99}"\s{0,9}:)""")
_OBJECTS, _LONGEST_OBJECT = 20, 20_000
_ESCAPE = re.compile(r"""\\(["\\/]|n(?![a-z])|u[0-9a-fA-F]{4})?""")
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
_FENCE = re.compile(r"\A(?:\$\$|\\\[|```\w*)\s*\n")


def asked_form(texts: Iterable[str]) -> str | None:
    """The form that a prompt asks for, from the texts of its messages; None where it asks for none that is known."""
    text = "\n".join(texts)
    asked = (form for form, pattern in _ASKED.items() if pattern.search(text))
    # Otherwise a sum about a multiple-choice test, or about words with the letter A, is no question with options.
    return next((form for form in asked if form != "choice" or _LETTER.search(text) or options_of({}, text)), None)


def final_answer(response: str, *, form: str | None = "box", parts: int = 1, thinks: bool = False) -> Box | None:
    """The final answer of a whole response of any characters, `hedged` where its paragraph says something else as well; None where there
    is none. `form`: one of `FORMS`, None = a box; `parts`: see `final_box`; `thinks`: the prompt has opened a thinking part."""
    text = answer_part(response, thinks)
    if text is None:
        return None
    if form == "choice":
        return final_choice(text)
    box = final_box(text, parts=parts)
    said = FORMS[form](text) if form in FORMS else []
    if not said:
        return box and _settled(box)
    start, last = said[-1]
    if box is None and re.search(r"\\(?:boxed|fbox)\s*\{", text[start:]):
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


def _objects(text: str) -> list[tuple[int, str]]:
    """What the last JSON objects hold under a name of answers; numbers as they are written. What cannot be read holds nothing."""
    found: list[tuple[int, str]] = []
    end = 0
    for match in [*_OBJECT.finditer(text)][-_OBJECTS:]:
        if match.start() < end:  # within the one before
            continue
        part = text[match.start() : match.start() + _LONGEST_OBJECT]
        part = _ESCAPE.sub(lambda escape: escape.group() if escape[1] else r"\\", part)
        try:
            value, length = _DECODER.raw_decode(part)
        except (ValueError, RecursionError):
            continue
        end = match.start() + min(length, len(part))
        names = {str(name).lower(): held for name, held in value.items()}
        held = next((names[key] for key in KEYS if key in names), None)
        if isinstance(held, (str, bool)):
            found.append((match.start(), str(held)))
        elif isinstance(held, list) and all(isinstance(part, str) for part in held):
            found.append((match.start(), ", ".join(held)))
    return found


FORMS: dict[str | None, Callable[[str], list[tuple[int, str]]]] = {
    "box": lambda text: [],
    "answer_line": lambda text: _after(_ANSWER_LINE, text),
    "hashes": _hashes,
    "tag": _tags,
    "json": _objects,
    "choice": lambda text: [(choice.start, choice.text)] if (choice := final_choice(text)) else [],
    "phrase": lambda text: _after(_PHRASE, text, lambda value: _SENTENCE.split(value)[0]),
}
"""Where an answer may stand → (place, text) of each that a response gives in that form, in order. Boxes are read in any case."""
_WRITTEN = {
    "answer_line": "Answer: {}", "choice": "Answer: {}", "hashes": "#### {}", "tag": "<answer>{}</answer>",
    "phrase": "The final answer is {}.",
}  # fmt: skip


def written(answer: str, form: str | None) -> str:
    r"""A response of nothing but an answer, in a form.

    >>> written("34", "hashes"), written("34", None), written("34", "json"), written("34", "phrase")
    ('#### 34', '\\boxed{34}', '{"answer": "34"}', 'The final answer is 34.')
    """
    if form == "json":
        return json.dumps({"answer": answer}, ensure_ascii=False)
    return _WRITTEN.get(form or "", r"\boxed{{{}}}").format(answer)
