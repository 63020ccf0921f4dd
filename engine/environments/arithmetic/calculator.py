"""The calculator of the world with a tool, and how a rollout of several turns is written down.

The policy's turn ends after a call; the calculator says the result, or `?` where it cannot compute:

    58+26?          the policy's turn
    > 84            the calculator's; `>` is in nobody's alphabet, so no policy can write a reply itself
    84-4=80         the policy's next turn
    #0
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from soundrl.engine.environments.arithmetic.chains import NUMBER, OPERATIONS
from soundrl.fapo.records import Reply, Turn

NAME, REFUSED, BROKEN, LARGEST = "calculator", "?", "7", 99
SAID = "> "
"""Stands before a reply."""
FORGED = re.compile(rf"^{SAID}", re.MULTILINE)
CALL = re.compile(rf"{NUMBER}([+\-*]){NUMBER}\?", re.ASCII)

Sum = tuple[int, str, int]
"""Left operand, sign, right operand."""


def asked(line: str) -> Sum | None:
    """The sum of a call; None where it is no call.

    >>> asked("58+26?"), asked("58+?"), asked("58+26=84")
    ((58, '+', 26), None, None)
    """
    return (int(match[1]), match[2], int(match[3])) if (match := CALL.fullmatch(line)) else None


def answer(line: str) -> str:
    """What it shows: the result, or `?` for what is no sum, for numbers outside 0…99, and where its key 7, which is broken, is needed.

    >>> [answer(call) for call in ("58+26?", "58-26?", "58+37?", "58+82?", "26-58?", "58+?")]
    ['84', '32', '?', '?', '?', '?']
    """
    if (found := asked(line)) is None or BROKEN in line:
        return REFUSED
    left, sign, right = found
    result = OPERATIONS[sign](left, right)
    return str(result) if max(left, right, result) <= LARGEST and result >= 0 else REFUSED


def reply(text: str) -> Reply | None:
    """To a turn of the policy's whose last line is a call, well formed or not; None: the turn calls nothing.

    >>> reply("64-6=58\\n58+26?"), reply("84-4=80\\n#0\\n")
    (Reply(text='84\\n', tool='calculator', failed=False), None)
    """
    *_, last = text.rstrip("\n").split("\n")
    if not last.endswith("?"):
        return None
    said = answer(last)
    return Reply(text=f"{said}\n", tool=NAME, failed=said == REFUSED)


def transcript(turns: Iterable[Turn]) -> str:
    """The turns in one text, a step a line. Where a policy with other characters than this world's writes a reply itself, it is none.

    >>> transcript([Turn(text="58+26?", own=True), Turn(text="84\\n", own=False), Turn(text="> 9\\n#4\\n", own=True)])
    '58+26?\\n> 84\\n>9\\n#4\\n'
    """
    said = (FORGED.sub(">", turn.text) if turn.own else SAID + turn.text for turn in turns)
    return "".join(text.rstrip("\n") + "\n" for text in said)
