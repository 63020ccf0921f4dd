r"""Finds the answer that a text boxes: the content of its last `\boxed{…}`. `answer` reads responses, `thinking` cuts off what is thought.

The rules, in order:

1. A box is `\boxed{…}` or `\fbox{…}` with matching braces (`\{` and `\}` do not count). TeX's braceless `\boxed 7` boxes one token, so
   `\boxed 72` is a 7; which of the two a model means is a guess, and it is not a box here.
2. The last box decides, wherever it stands: in a code fence, in display mathematics, or before 10,000 characters of other text. Boxes
   in a quoted problem are therefore overruled by any box that follows in a paragraph of its own.
3. A box that is opened after the last closed one and never closed (a response cut at its token limit) means that there is no answer.
4. Boxes of the last box's paragraph which are joined by nothing but connectives (`,`, `;`, `and`, `or`, mathematics delimiters, spaces)
   form one answer, a list: `\boxed{-2}` and `\boxed{1}` is `-2, 1`. So `\boxed{7} or \boxed{8}` is the list `7, 8`, which is not 7.
5. Where the reference is a list, as many boxes of that paragraph as it has elements form a list too, with any words between them that take
   nothing back: `\boxed{3} papers and \boxed{2} bins` is `3, 2`. Each of them has to be right, so that nothing is gained by hedging.
6. Other boxes of that paragraph must repeat the answer, or be empty. Where one says something else (`others`; `answer` says whether it
   is another spelling) the answer is hedged, and a hedged answer is wrong. Boxes in earlier paragraphs are intermediate results.
7. An empty box is no answer. Boxes within a box are unwrapped.

Everything is one pass over the text: 1 MB of unclosed boxes takes well under a second.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from soundrl.fapo.verify.thinking import answer_part

# The alternatives are exclusive in their first characters, so scanning is linear.
_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BOX_COMMAND = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_PARAGRAPH = re.compile(r"\n[ \t\r]*\n")
_CONNECTIVE = re.compile(
    r"(?:[\s,;&~$]|\\[,;:!\[\]() \\]|\\q?quad(?![a-zA-Z])|\\(?:text|mathrm|textrm|mbox)\s*\{[\s,]*(?:and|or)?[\s,]*\}|\b(?:and|or)\b)*+"
)
_OPERATOR = re.compile(r"\s*(?:[-+*/^]|\\(?:pm|mp|cdot|times|div))\s*")
# Words of a writer who changes his mind, or does not know it.
_TAKEN_BACK = re.compile(
    r"\b(?:not|no|nor|neither|either|never|wait|actually|instead|rather|perhaps|maybe|might|but|wrong|incorrect|mistake|check|recheck|correct(?:ion|ed)?|"
    r"sorry|oops|hmm|or|else|alternatively|could)\b|n't\b|\?",
    re.IGNORECASE,
)
_NAMED = re.compile(r"(?<![A-Za-z\\])([A-Za-z](?:_(?:\{\w{1,9}\}|\w))?)\s{0,9}=\s{0,9}\Z")
_FILLER = re.compile(r"\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|\\[,;:! ]|\s+")


@dataclass(frozen=True)
class Box:
    """The final answer of a response."""

    text: str  # content of the box, or the contents of joined boxes with `, ` between them
    others: tuple[str, ...] = ()
    """What else the same paragraph boxes, in other words than `text`."""
    start: int = field(default=0, compare=False)
    """Where the answer's paragraph begins in the text."""

    @property
    def hedged(self) -> bool:
        return bool(self.others)


def final_box(text: str, *, parts: int = 1) -> Box | None:
    """The final answer of a response without its thinking part, of any characters; None where there is none. `parts`: length of the
    reference where that is a list (rule 5)."""
    boxes = _top_level_boxes(text)
    if not boxes:
        return None
    paragraph = paragraph_of(text, boxes[-1][0])
    boxes = [box for box in boxes if box[0] >= paragraph]
    runs: list[list[str]] = []
    for words, (_, content, _) in zip(["", *_between(text, boxes)], boxes, strict=True):
        if runs and _CONNECTIVE.fullmatch(words):
            runs[-1].append(content)
        else:
            runs.append([content])
    if 1 < parts == len(boxes) and len(runs) > 1 and (listed := _listed(text, paragraph, boxes)):
        return Box(listed, start=paragraph)
    *others, answer = map(_join, runs)
    if not answer:
        return None
    return Box(answer, tuple(other for other in others if other and plain(other) != plain(answer)), paragraph)


def paragraph_of(text: str, place: int) -> int:
    """Where the paragraph begins that holds `place`."""
    return max((match.end() for match in _PARAGRAPH.finditer(text, 0, place)), default=0)


def boxed_answer(text: str) -> str | None:
    r"""The content of the last `\boxed{…}` of a response after its thinking part; None where there is none, or where it is hedged."""
    part = answer_part(text)
    box = None if part is None else final_box(part)
    return None if box is None or box.hedged else box.text


def reference_part(text: str) -> str:
    r"""What a reference says where it has boxes of its own; references are trusted.

    Several boxes are a list (`\boxed{1} papers and \boxed{2} bins` is `1, 2`), or one expression where operators join them
    (`\boxed{2} + \boxed{3}` stays as it is). Where the words between take something back, the last counts. A box that is never closed
    reaches to the end.
    """
    if "box" not in text:
        return text
    boxes = _top_level_boxes(text, to_end=True)
    is_open = bool(boxes) and boxes[-1][2] > len(text)
    between = _between(text, boxes)
    if not is_open and all(_OPERATOR.fullmatch(words) for words in between):
        return text
    contents = [content for _, content, _ in boxes]
    return contents[-1] if _is_taken_back(between) else _join(contents)


def _listed(text: str, start: int, boxes: list[tuple[int, str, int]]) -> str:
    """The boxes as a list, with the names in front of them where each has one; empty where the words around them take something back."""
    between = _between(text, boxes)
    if _is_taken_back([*between, text[boxes[-1][2] :]]):
        return ""
    contents = [content for _, content, _ in boxes]
    names = [_NAMED.search(words[-40:]) for words in (text[start : boxes[0][0]], *between)]
    if all(names):
        contents = [f"{name[1]} = {content}" for name, content in zip(names, contents, strict=True) if name]
    return ", ".join(contents) if all(contents) else ""


def _between(text: str, boxes: list[tuple[int, str, int]]) -> list[str]:
    return [text[left[2] : right[0]] for left, right in zip(boxes, boxes[1:], strict=False)]


def _is_taken_back(parts: list[str]) -> bool:
    return any(_TAKEN_BACK.search(words) and not _CONNECTIVE.fullmatch(words) for words in parts)


def _top_level_boxes(text: str, *, to_end: bool = False) -> list[tuple[int, str, int]]:
    """The closed boxes that lie in no other closed box: (start of the command, content, end after the brace).

    None at all where a box is opened after the last closed one and never closed, unless such a box reaches `to_end`.
    """
    closed: list[tuple[int, int, int]] = []
    stack: list[tuple[int, int] | None] = []
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token[-1] == "{" and token != r"\{":
            stack.append(match.span() if len(token) > 1 else None)
        elif token == "}" and stack and (opened := stack.pop()):
            # Boxes close from the inside out: those that started later are inside this one.
            while closed and closed[-1][0] > opened[0]:
                closed.pop()
            closed.append((*opened, match.end()))
    last_end = closed[-1][2] if closed else 0
    if unclosed := next((opened for opened in stack if opened and opened[0] >= last_end), None):
        closed = [*closed, (*unclosed, len(text) + 1)] if to_end else []
    return [(start, _BOX_COMMAND.sub("", text[inner : end - 1]).strip(), end) for start, inner, end in closed]


def _join(contents: list[str]) -> str:
    kept = [content for content in contents if content]
    return kept[0] if len(set(map(plain, kept))) == 1 else ", ".join(kept)


def plain(content: str) -> str:
    """Without spaces and layout: what two boxes are compared by."""
    return _FILLER.sub("", content)
