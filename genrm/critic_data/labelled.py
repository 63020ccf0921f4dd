"""Solutions whose first wrong step is known: what judges are measured on, and critics are trained on.

Sources: ProcessBench's files (arXiv 2412.06559), rows of FAPO-Critic (arXiv 2510.22543 §4.1), and functions that make rows, named
by their import path.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import Any

from soundrl.fapo.data.files import load_prompts
from soundrl.fapo.data.left_out import LeftOut, load_rows
from soundrl.fapo.data.rows import RowError, shown
from soundrl.fapo.named import is_named, named
from soundrl.fapo.records import Prompt
from soundrl.genrm.prompts import critique_messages

COLUMNS = ("id", "problem", "steps", "label", "final_answer_correct", "answer", "prompt")
COLUMNS += ("reward_model.ground_truth", "extra_info.total_steps")


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


def load_labelled(source: str, *, max_rows: int | None = None, seed: int = 1, split: str = "test") -> list[Labelled]:
    """Rows of a ProcessBench file, of a FAPO-Critic file, or of a function `module:name` that is called with `(max_rows, seed, split)`.

    Raises `DataError`, one line `file:row: field: what was found; cure`.
    """
    return named(source)(max_rows, seed, split) if is_named(source) else load_rows(source, COLUMNS, _labelled, max_rows)


def _labelled(id: str, fields: dict[str, Any]) -> Labelled:
    return (_critic if _is_critic(fields) else _processbench)(id, fields)


def with_references(rows: list[Labelled], path: str | os.PathLike[str]) -> list[Labelled]:
    """`rows` with the answers of a problem file (`load_prompts`), matched by the problem's words; rows it does not hold keep theirs."""
    answers = {_words(prompt.text): prompt.answer for prompt in load_prompts(path)}
    return [replace(row, answer=answers.get(_words(row.problem), row.answer)) for row in rows]


def _words(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip().lower()


def _processbench(id: str, fields: dict[str, Any]) -> Labelled:
    problem, steps, label, right = (fields.get(key) for key in ("problem", "steps", "label", "final_answer_correct"))
    if not isinstance(problem, str) or not problem.strip():
        raise RowError(f"{shown(problem)} where a text is expected; write ProcessBench's fields", "problem")
    if not isinstance(steps, list) or not steps or not all(isinstance(step, str) for step in steps):
        raise RowError(f"a list of one or more texts is expected, found {shown(steps)}; cut the solution into steps", "steps")
    if not isinstance(right, bool):
        raise RowError(f"{shown(right)} where true or false is expected; write one", "final_answer_correct")
    answer = fields.get("answer")
    if answer is not None and not isinstance(answer, str):
        raise RowError(f"{shown(answer)} where a text is expected; write it as a string or leave it out", "answer")
    own = fields.get("id")
    return Labelled(
        id=own if isinstance(own, str) else id,
        problem=problem,
        steps=tuple(steps),
        label=_label("label", label, len(steps)),
        right=right,
        answer=answer,
    )


def _label(field: str, value: object, steps: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value < steps:
        raise RowError(f"{shown(value)} is no step of the {steps}; write −1 (no error) or 0 … {steps - 1}", field)
    return value


# A tag of FAPO-Critic's, at the beginning of a line.
_PARAGRAPH = re.compile(r"^<paragraph_(\d+)>\n(.*?)\n</paragraph_\1>$", re.MULTILINE | re.DOTALL)
_SECTION = re.compile(r"^\[(Math Problem|Problem|Ground Truth|Reference answer|AI Solution|Solution)\]$", re.MULTILINE)


def labelled_prompt(row: Labelled, source: str) -> Prompt:
    """A labelled solution as a prompt of the critic task: the judge's own prompt."""
    messages = critique_messages(row.problem, row.steps, row.answer)
    return Prompt(
        id=row.id, messages=tuple(messages), text=messages[0]["content"], answer=str(row.label), steps=len(row.steps), source=source
    )


def load_critic(path: str, *, max_rows: int | None = None, left_out: LeftOut | None = None) -> list[Prompt]:
    """The prompts of a FAPO-Critic or ProcessBench file, `.jsonl`, `.json` or `.parquet`, all in our judge's words: a critic is trained on
    the very text that a judge is asked with. Unusable rows as in `soundrl.fapo.data.files.load_prompts`."""

    def make(id: str, fields: dict[str, Any]) -> Prompt:
        # Not the row's own id, which files share.
        return labelled_prompt(replace(_labelled(id, fields), id=id), "critic" if _is_critic(fields) else "processbench")

    return load_rows(path, COLUMNS, make, max_rows, left_out)


def _is_critic(fields: dict[str, Any]) -> bool:
    return fields.get("prompt") is not None


def _critic(id: str, fields: dict[str, Any]) -> Labelled:
    """A row of FAPO-Critic's schema, its problem, reference and paragraphs taken out of the critique prompt again.

    `{"prompt": [{"role": "user", "content"}], "reward_model": {"ground_truth": int}, "extra_info": {"total_steps": int}}`
    """
    messages, model, extra = fields.get("prompt"), fields.get("reward_model"), fields.get("extra_info")
    if not isinstance(messages, list) or len(messages) != 1 or not isinstance(messages[0], dict) or messages[0].get("role") != "user":
        raise RowError(f"one user message is expected, found {shown(messages)}; write the critique prompt as one", "prompt")
    content = messages[0].get("content")
    if not isinstance(content, str) or not content.strip():
        raise RowError(f"{shown(content)} where a text is expected; write the critique prompt", "prompt[0].content")
    total = extra.get("total_steps") if isinstance(extra, dict) else None
    if isinstance(total, bool) or not isinstance(total, int) or total < 1:
        raise RowError(f"{shown(total)} where a count of 1 or more is expected; write the number of paragraphs", "extra_info.total_steps")
    label = _label("reward_model.ground_truth", model.get("ground_truth") if isinstance(model, dict) else None, total)
    marks = list(_SECTION.finditer(content))
    parts = {
        mark[1]: content[mark.end() : after.start() if after else len(content)].strip()
        for mark, after in zip(marks, [*marks[1:], None], strict=True)
    }
    problem = parts.get("Math Problem") or parts.get("Problem")
    steps = tuple(text for _, text in _PARAGRAPH.findall(parts.get("AI Solution") or parts.get("Solution") or ""))
    if not problem or len(steps) != total:
        raise RowError(f"{len(steps)} tagged paragraphs, but extra_info.total_steps is {total}; tag as FAPO-Critic does", "prompt")
    return Labelled(id=id, problem=problem, steps=steps, label=label, answer=parts.get("Ground Truth") or parts.get("Reference answer"))
