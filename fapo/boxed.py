r"""Finds the final answer of a response: the content of its last `\boxed{…}`, after any thinking part.

The rules, in order:

1. Text up to the last `</think>` is thinking and is not read. A `<think>` that is still open means that there is no answer.
2. A box is `\boxed{…}` or `\fbox{…}` with matching braces (`\{` and `\}` do not count). TeX's braceless `\boxed 7` boxes one token, so
   `\boxed 72` is a 7; which of the two a model means is a guess, and it is not a box here.
3. The last box decides, wherever it stands: in a code fence, in display mathematics, or before 10,000 characters of other text. Boxes
   in a quoted problem are therefore overruled by any box that follows in a paragraph of its own.
4. A box that is opened after the last closed one and never closed (a response cut at its token limit) means that there is no answer.
5. Boxes of the last box's paragraph which are joined by nothing but connectives (`,`, `;`, `and`, `or`, mathematics delimiters, spaces)
   form one answer, a list: `\boxed{-2}` and `\boxed{1}` is `-2, 1`. So `\boxed{7} or \boxed{8}` is the list `7, 8`, which is not 7.
6. Other boxes of that paragraph must repeat the answer. Where one says something else the answer is hedged, and a hedged answer is wrong.
   Boxes in earlier paragraphs are intermediate results.
7. An empty box is no answer. Boxes within a box are unwrapped.

Everything is one pass over the text: 1 MB of unclosed boxes takes well under a second.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_THINK = re.compile(r"</?think(?:ing)?>")
# The alternatives are exclusive in their first characters, so scanning is linear.
_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BOX_COMMAND = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_PARAGRAPH = re.compile(r"\n[ \t\r]*\n")
_CONNECTIVE = re.compile(
    r"(?:[\s,;&~$]|\\[,;:!\[\]() \\]|\\q?quad(?![a-zA-Z])|\\(?:text|mathrm|textrm|mbox)\s*\{[\s,]*(?:and|or)?[\s,]*\}|\b(?:and|or)\b)*+"
)
_FILLER = re.compile(r"\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|\\[,;:! ]|\s+")


@dataclass(frozen=True)
class Box:
    """The final answer of a response."""

    text: str
    """Content of the box, or the contents of joined boxes with `, ` between them."""
    hedged: bool = False
    """True = the same paragraph boxes something else as well."""


def answer_part(text: str) -> str | None:
    """Returns what follows the thinking part, or None where thinking never ends."""
    tags = list(_THINK.finditer(text))
    if not tags:
        return text
    return text[tags[-1].end() :] if tags[-1].group().startswith("</") else None


def final_box(text: str) -> Box | None:
    """Finds the final answer by the rules of this module.

    Args:
        text: A whole response; any characters are allowed, NUL and lone surrogates included.

    Returns:
        The answer, or None where there is none.
    """
    part = answer_part(text)
    if part is None:
        return None
    boxes = _top_level_boxes(part)
    if not boxes:
        return None
    paragraph = 0
    for match in _PARAGRAPH.finditer(part, 0, boxes[-1][0]):
        paragraph = match.end()
    boxes = [box for box in boxes if box[0] >= paragraph]

    runs: list[list[str]] = []
    previous_end = -1
    for start, inner, end in boxes:
        content = _unwrap(part[inner : end - 1])
        if runs and _CONNECTIVE.fullmatch(part, previous_end, start):
            runs[-1].append(content)
        else:
            runs.append([content])
        previous_end = end
    answers = [_join(run) for run in runs]
    answer = answers[-1]
    if not answer:
        return None
    return Box(answer, hedged=any(_plain(other) != _plain(answer) for other in answers))


def boxed_answer(text: str) -> str | None:
    r"""Returns the content of the last `\boxed{…}` of a response; None where there is none, or where it is hedged.

    `final_box` tells the two apart.
    """
    box = final_box(text)
    return None if box is None or box.hedged else box.text


def _top_level_boxes(text: str) -> list[tuple[int, int, int]]:
    """The closed boxes that lie in no other closed box: (start of the command, start of the content, end after the brace)."""
    closed: list[tuple[int, int, int]] = []
    stack: list[tuple[int, int] | None] = []
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token[-1] == "{" and len(token) > 2:
            stack.append((match.start(), match.end()))
        elif token == "{":
            stack.append(None)
        elif token == "}" and stack:
            opened = stack.pop()
            if opened is not None:
                # Boxes close from the inside out: those that started later are inside this one.
                while closed and closed[-1][0] > opened[0]:
                    closed.pop()
                closed.append((opened[0], opened[1], match.end()))
    last_end = closed[-1][2] if closed else 0
    if any(opened is not None and opened[0] >= last_end for opened in stack):
        return []
    return closed


def _unwrap(content: str) -> str:
    # Most contents hold no box: the search is a cheap way out.
    return _BOX_COMMAND.sub("", content).strip() if "box" in content else content.strip()


def _join(contents: list[str]) -> str:
    kept = [content for content in contents if content]
    if len({_plain(content) for content in kept}) == 1:
        return kept[0]
    return ", ".join(kept)


def _plain(content: str) -> str:
    return _FILLER.sub("", content)
