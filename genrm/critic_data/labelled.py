"""Solutions whose first wrong step is known: what judges are measured on, and critics are trained on.

Read from ProcessBench's files (arXiv 2412.06559), rows of FAPO-Critic (arXiv 2510.22543 §4.1), and functions that make rows, named
by their import path; written in FAPO-Critic's schema:

    {"data_source": "fapo_critic", "prompt": [{"role": "user", "content": …}], "ability": "math_critic",
     "reward_model": {"style": "rule", "ground_truth": 2}, "extra_info": {"question_index": 7, "split": "train", "total_steps": 5}}

and, of planted flaws, `extra_info.critique`: what a careful critic says before its box, the target of a warm start. One object a line,
every field of one type in all rows, so that `datasets` and pyarrow read it as it is.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from soundrl.fapo.data.columns import Columns
from soundrl.fapo.data.files import load_prompts
from soundrl.fapo.data.left_out import LeftOut, load_rows
from soundrl.fapo.data.rows import RowError, shown
from soundrl.fapo.named import is_named, named
from soundrl.fapo.records import Prompt
from soundrl.genrm.prompts import PROMPTS, JudgePrompt, taken_apart

FIELDS = ("id", "problem", "steps", "label", "final_answer_correct", "answer", "prompt")
COLUMNS = Columns((*FIELDS, "reward_model.ground_truth", "extra_info.total_steps", "extra_info.critique"))


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One solution, cut into steps, and the index of the first wrong one."""

    id: str
    problem: str
    steps: tuple[str, ...]
    label: int
    """−1 = no wrong step."""
    right: bool = True
    """Whether the final answer is right; FlawedPositiveBench is the rows where it is."""
    answer: str | None = None
    """Reference answer, where it is known."""


@dataclass(frozen=True, kw_only=True)
class Critiqued(Labelled):
    """One of which it is known what a critic should say."""

    critique: str
    """Up to its box, which follows from label and prompt."""

    def said(self, prompt: JudgePrompt) -> str:
        """The whole critique, in the box's language: an index, or True and False."""
        return f"{self.critique}\n\\boxed{{{self.label if prompt.locates else self.label < 0}}}"


def load_labelled(source: str, *, max_rows: int | None = None, seed: int = 1, split: str = "test") -> list[Labelled]:
    """Rows of a ProcessBench file, of a FAPO-Critic file, or of a function `module:name` that is called with `(max_rows, seed, split)`.

    Raises `DataError`, one line `file:row: field: what was found; cure`.
    """
    return named(source)(max_rows, seed, split) if is_named(source) else load_rows(source, COLUMNS, _labelled, max_rows)


def _labelled(id: str, fields: dict[str, Any]) -> Labelled:
    return (_processbench if fields.get("prompt") is None else _critic)(id, fields)


def with_references(rows: list[Labelled], path: str | os.PathLike[str]) -> list[Labelled]:
    """`rows` with the answers of a problem file (`load_prompts`), matched by what the problem says, spaces and dollars apart; rows it does
    not hold keep theirs, and so do those of a problem that the file answers in two ways."""
    answers: dict[str, set[str]] = {}
    for prompt in load_prompts(path):
        answers.setdefault(_said(prompt.text), set()).add(prompt.answer)
    known = {said: next(iter(found)) for said, found in answers.items() if len(found) == 1}
    return [replace(row, answer=known.get(_said(row.problem), row.answer)) for row in rows]


def _said(text: str) -> str:
    r"""Signs count: `x-1` is another problem than `x+1`.

    >>> _said("What is $x - 1$?") == _said("what is \(x-1\)?") != _said("What is x + 1?")
    True
    """
    return re.sub(r"[\s$]|\\[()\[\] ,;!]", "", text).lower()


def words(text: str) -> str:
    """By which a problem is known again, however it is written: `"What is $x$?"` → `"what is x"`."""
    return re.sub(r"\W+", " ", text).strip().lower()


def _expect(good: object, field: str, value: object, what: str) -> None:
    if not good:
        raise RowError(f"{shown(value)} where {what}", field)


def _whole(value: object, least: int, end: float = float("inf")) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < end


def _label(field: str, value: Any, steps: int) -> int:
    if not _whole(value, -1, steps):
        raise RowError(f"{shown(value)} is no step of the {steps}; write −1 (no error) or 0 … {steps - 1}", field)
    return value


def _processbench(id: str, fields: dict[str, Any]) -> Labelled:
    own, problem, steps, label, right, answer = (fields.get(key) for key in FIELDS[:6])
    _expect(isinstance(problem, str) and problem.strip(), "problem", problem, "a text is expected; write ProcessBench's fields")
    texts = isinstance(steps, list) and steps and all(isinstance(step, str) for step in steps)
    _expect(texts, "steps", steps, "a list of one or more texts is expected; cut the solution into steps")
    _expect(isinstance(right, bool), "final_answer_correct", right, "true or false is expected; write one")
    _expect(isinstance(answer, str | None), "answer", answer, "a text is expected; write it as a string or leave it out")
    id, steps = own if isinstance(own, str) else id, tuple(cast(list[str], steps))
    return Labelled(id=id, problem=str(problem), steps=steps, label=_label("label", label, len(steps)), right=right is True, answer=answer)


def labelled_prompt(row: Labelled, source: str, prompt: str = "own") -> Prompt:
    """A labelled solution as a prompt of the critic task: the very words that a judge is asked with by the name `prompt`."""
    asked = PROMPTS[prompt]
    messages = tuple(asked.messages(row.problem, row.steps, row.answer))
    said = row.said(asked) if isinstance(row, Critiqued) else None
    text, label, steps = messages[0]["content"], str(row.label), len(row.steps)
    return Prompt(id=row.id, messages=messages, text=text, answer=label, steps=steps, source=source, solution=said)


def load_critic(path: str, *, max_rows: int | None = None, left_out: LeftOut | None = None, prompt: str = "own") -> list[Prompt]:
    """The prompts of a FAPO-Critic or ProcessBench file, `.jsonl`, `.json` or `.parquet`, all in the words of `prompt`, whichever the file
    has: a critic is trained on the very text that a judge is asked with. Unusable rows as in `soundrl.fapo.data.files.load_prompts`."""

    def make(id: str, fields: dict[str, Any]) -> Prompt:
        # Not the row's own id, which files share.
        return labelled_prompt(replace(_labelled(id, fields), id=id), Path(path).stem, prompt)

    return load_rows(path, COLUMNS, make, max_rows, left_out)


def problem_of(content: str) -> str:
    """The problem that a critique prompt is about; of another text, all of it."""
    parts = taken_apart(content)
    return parts[0] if parts else content


def _critic(id: str, fields: dict[str, Any]) -> Labelled:
    """A row of FAPO-Critic's schema, its problem, reference and paragraphs taken out of the critique prompt again."""
    messages, model, extra = fields.get("prompt"), fields.get("reward_model"), fields.get("extra_info")
    alone = isinstance(messages, list) and len(messages) == 1 and isinstance(messages[0], dict) and messages[0].get("role") == "user"
    _expect(alone, "prompt", messages, "one user message is expected; write the critique prompt as one")
    content: Any = cast(list[dict[str, Any]], messages)[0].get("content")
    _expect(isinstance(content, str) and content.strip(), "prompt[0].content", content, "a text is expected; write the critique prompt")
    total = extra.get("total_steps") if isinstance(extra, dict) else None
    _expect(_whole(total, 1), "extra_info.total_steps", total, "a count of 1 or more is expected; write the number of paragraphs")
    label = _label("reward_model.ground_truth", model.get("ground_truth") if isinstance(model, dict) else None, cast(int, total))
    problem, steps, answer = taken_apart(content) or ("", [], None)
    if len(steps) != total:
        raise RowError(f"{len(steps)} tagged paragraphs, but extra_info.total_steps is {total}; tag as FAPO-Critic does", "prompt")
    row = Labelled(id=id, problem=problem, steps=tuple(steps), label=label, answer=answer)
    said = cast(dict[str, Any], extra).get("critique")
    _expect(isinstance(said, str | None), "extra_info.critique", said, "a text is expected; write the critique without its box")
    return Critiqued(**vars(row), critique=said) if said else row


def to_row(row: Labelled, question: int, split: str) -> dict[str, Any]:
    """A labelled solution in FAPO-Critic's schema, in the words of `own`; whoever reads it asks in those that are wanted."""
    return {
        "data_source": "fapo_critic",
        "prompt": PROMPTS["own"].messages(row.problem, row.steps, row.answer),
        "ability": "math_critic",
        "reward_model": {"style": "rule", "ground_truth": row.label},
        "extra_info": {"question_index": question, "split": split, "total_steps": len(row.steps)}
        | ({"critique": row.critique} if isinstance(row, Critiqued) else {}),
    }


def write_rows(path: Path, rows: Sequence[Labelled], split: str) -> None:
    """Written beside and renamed at once; questions are numbered in the order in which they first come."""
    numbers: dict[str, int] = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    with beside.open("w", encoding="utf-8") as file:
        for row in rows:
            number = numbers.setdefault(row.problem, len(numbers))
            file.write(json.dumps(to_row(row, number, split), ensure_ascii=False) + "\n")
    beside.replace(path)
