"""Problem files and generated problems → `Prompt`s; also the worked solutions of GSM8K → warm-start targets."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, replace
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path

from soundrl.fapo.data.columns import Columns
from soundrl.fapo.data.layouts import answer_of, ask, is_chat, kept_row, prompt_of, said_by
from soundrl.fapo.data.left_out import LeftOut, load_rows
from soundrl.fapo.data.puzzles import PREFIX, load_puzzles
from soundrl.fapo.data.rows import DataError, Fields, RowError, shown, shown_path
from soundrl.fapo.records import Prompt
from soundrl.fapo.verify.answer import asked_form

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
"""The sentence that most open math models were tuned on."""

TAGGED = "Please reason step by step, and put your final answer within <answer> </answer> tags."
SCORER = "reasoning-gym"
"""Verifier of generated problems."""

MAX_TOTAL_CHARS = 1 << 31  # all texts of a data set together; run-length coding lets a small Parquet file ask for any amount of memory


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How rows are read, beside their instruction."""

    columns: tuple[str, ...] = ()
    """`data.columns`: ours=theirs."""
    form: str = ""
    """Where answers will stand in all of them; empty = as each prompt asks for."""
    rows: bool = False
    """A verifier of one's own reads them: rows are kept, and references may be anything, or missing."""
    difficulty: str = ""
    """The column that says how hard a row is, `-name`: how easy."""


def load_prompts(
    source: str | os.PathLike[str],
    *,
    instruction: str = INSTRUCTION,
    max_rows: int | None = None,
    left_out: LeftOut | None = None,
    reading: Reading | None = None,
) -> list[Prompt]:
    """The prompts of a source: a `.jsonl`, `.json`, `.csv` or `.parquet` file, a folder or a name (`sources.py`), or a generated data set
    (`rg:chain_sum?size=200&seed=7`, see `puzzles.py`).

    What a row's columns mean follows from their names, in any case (`columns.py`, `layouts.py`), or from `reading.columns`. `messages`
    are one user message, the problem, a blank line and the `instruction`; chat messages are taken as they are, and so are the words that
    ask for an option's letter. An answer is a text or a number, unwrapped by `plain_reference`; a worked solution is kept for the warm
    start. `data_source` names the `source`, else the file's stem does. Other fields are not read, and a null field counts as absent.

    `id` is `<path as given, normalised>:<row>`, rows counted from 1; a row's own `id`, where there is one, must be unique. A row of
    chat messages that repeats another in all that is kept of it is left out, and counted in `left_out.repeated`: DAPO-Math-17k holds each
    of its problems a hundred times.

    `max_rows` takes the first rows only: later ones are neither returned nor checked. Nothing is left out without a word: rows that are
    not as described are told to `left_out`, or raise one `DataError` (a `ValueError`) for all of them, see `load_rows`.

    Example: the line `{"problem": "1+1?", "answer": 2}` in `sums.jsonl` becomes `Prompt(id="sums.jsonl:1", text="1+1?", answer="2",
    source="sums", messages=({"role": "user", "content": "1+1?\\n\\nPlease reason …"},))`.
    """
    if max_rows is not None and max_rows < 1:
        raise DataError(f"max_rows={max_rows}; use 1 or more, or None for all rows")
    reading = reading or Reading()
    if isinstance(source, str) and source.startswith(PREFIX):
        return [_generated(found, source.partition("?")[0], instruction, reading) for found in load_puzzles(source, max_rows)]
    stem, hard = Path(source).stem, reading.difficulty.removeprefix("-")
    columns = Columns.of(reading.columns, hard, reading.rows)
    rows_by_id: dict[str, str] = {}
    seen: dict[bytes, str] = {}
    total = 0

    def make(id: str, row: Fields) -> Prompt | None:
        nonlocal total
        fields = columns.ours(row)
        if is_chat(fields):  # before anything is made of it, as it may come a hundred times
            said = said_by(fields, row if reading.rows else {})
            total += len(said)
            if seen.setdefault(blake2b(said, digest_size=16).digest(), id) != id:
                return None
        prompt = prompt_of(id, fields, stem, instruction, reading.rows)
        total += len(prompt.answer) + sum(len(message["content"]) for message in prompt.messages or ())
        if total > MAX_TOTAL_CHARS:
            raise DataError(f"{shown_path(source)}: the file's texts exceed {MAX_TOTAL_CHARS} characters; split the file")
        prompt = replace(
            prompt,
            form=reading.form or prompt.form,
            row=kept_row(row, columns.unread) if reading.rows else prompt.row,
            difficulty=_difficulty(reading.difficulty, fields.get("difficulty")),
        )
        if fields.get("id") is not None:
            own = answer_of("id", fields["id"])
            if (first := rows_by_id.setdefault(own, id)) != id:
                file, _, number = first.rpartition(":")
                place = f"row {number}" if file == id.rpartition(":")[0] else first
                raise RowError(f"{shown(own)} already stands in {place}; make ids unique or leave them out", "id")
        return prompt

    prompts = load_rows(source, columns, make, max_rows, left_out)
    if hard and prompts and all(prompt.difficulty is None for prompt in prompts):
        raise DataError(f"{shown_path(source)}: data.difficulty {reading.difficulty}: no row has a number there; name another column")
    return prompts


def _generated(found: tuple[str, str, str], kind: str, instruction: str, reading: Reading) -> Prompt:
    id, text, answer = found
    # What has several lines, or could be anything, is easier told in tags than in a box.
    several = instruction == INSTRUCTION and len(answer.strip().splitlines()) != 1
    asks = TAGGED if several else instruction
    # The problem may speak of boxes and letters too.
    form = reading.form or asked_form([asks]) or asked_form([text])
    return Prompt(id=id, messages=ask(text, asks), text=text, answer=answer, source=kind, form=form, verifier=SCORER)


def _difficulty(setting: str, value: object) -> float | None:
    """As a number that grows with how hard a row is; None where it has none.

    >>> _difficulty("level", "Level 5"), _difficulty("-solve_rate", 0.25), _difficulty("level", None)
    (5.0, -0.25, None)
    """
    if isinstance(value, str):
        value = number[0] if (number := re.search(r"-?\d+(?:\.\d+)?", value)) else None
    elif not (value is None or (isinstance(value, int | float | Decimal) and not isinstance(value, bool))):
        raise RowError(f"{shown(value)} where a number is expected; name another column by data.difficulty", setting.removeprefix("-"))
    number = math.nan if value is None else float(value)
    return None if not math.isfinite(number) else -number if setting.startswith("-") else number


def boxed_solution(solution: str, answer: str) -> str:
    """A worked solution in GSM8K's notation as the target of a warm start: calculation marks removed, a step a paragraph, which is what a
    judge numbers, the answer boxed.

    Blank lines are removed, and so is a last line `#### n`, whose n must be the answer. Raises `ValueError` where it is not, where a mark
    is not closed, and where no step is left.

    >>> boxed_solution("Half is 48/2 = <<48/2=24>>24.\\nThe sum is 48+24 = <<48+24=72>>72.\\n#### 72", "72").split("\\n\\n")
    ['Half is 48/2 = 24.', 'The sum is 48+24 = 72.', '\\\\boxed{72}']
    """
    text = re.sub(r"<<[^<>\n]*>>", "", solution)
    if "<<" in text or ">>" in text:
        raise ValueError(f"calculation mark not closed in {shown(solution, 200)}; write <<48/2=24>>")
    steps = [line.strip() for line in text.split("\n") if line.strip()]
    if steps and steps[-1].startswith("####"):
        last = steps.pop().removeprefix("####").strip()
        if last.replace(",", "") != answer.strip().replace(",", ""):
            raise ValueError(f"the solution ends in {shown(last)} but the answer is {shown(answer)}; correct one of them")
    if not steps:
        raise ValueError(f"no step in {shown(solution)}; a warm start needs worked solutions")
    return "\n\n".join([*steps, f"\\boxed{{{answer.strip()}}}"])
