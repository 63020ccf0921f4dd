"""The scores that reasoning-gym's own data sets give to answers, in a process of the pool.

The id of a problem says all of it (`fapo.data.puzzles`), so that the process makes it again: what its scorer needs may be any Python
object, and is never sent.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from soundrl.fapo.data.puzzles import DEFAULT_SIZE, data_set
from soundrl.fapo.verify.answer import FORMS, final_answer
from soundrl.fapo.verify.box import Box, paragraph_of
from soundrl.fapo.verify.thinking import answer_part


def puzzle_answer(response: str, form: str | None, thinks: bool) -> Box | None:
    """The answer of a response; in tags as it is written, lines, signs and all, since a scorer may read each of them."""
    if form != "tag":
        return final_answer(response, form="box" if form == "choice" else form, thinks=thinks)
    if (text := answer_part(response, thinks)) is None or not (said := FORMS["tag"](text)):
        return None
    start, last = said[-1]
    others = [value for place, value in said[:-1] if place >= paragraph_of(text, start) and value.split() != last.split()]
    return Box(last.strip("\r\n"), tuple(others)) if last.strip() else None


@lru_cache(maxsize=32)
def _data_set(stem: str, size: int) -> Any:
    return data_set(stem, size)


class Puzzles:
    """The work of scoring, on ids and answers."""

    says = "reasoning-gym"

    def __init__(self) -> None:
        import reasoning_gym  # noqa: F401 — takes seconds; a fork inherits it

    def read(self, id: str, answer: str) -> bool:
        stem, _, index = id.rpartition(":")
        # Of a few sizes only, so that neighbours share their data set.
        self.problems = _data_set(stem, max(DEFAULT_SIZE, 1 << int(index).bit_length()))
        self.problem = self.problems[int(index)]
        return True

    def answer(self, id: str, answer: str) -> list[Any]:
        try:
            score = float(self.problems.score_answer(answer, self.problem))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 — some scorers raise what they like on answers that they cannot read
            return ["number", 0.0, re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:200]]
        return ["number", min(max(score, 0.0), 1.0), ""]
