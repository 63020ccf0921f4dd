"""Problem files and generated problems → `Prompt`s; also the worked solutions of GSM8K → warm-start targets."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from soundrl.fapo.data.left_out import LeftOut, load_rows
from soundrl.fapo.data.puzzles import PREFIX, load_puzzles
from soundrl.fapo.data.reference import plain_reference
from soundrl.fapo.data.rows import DataError, Fields, RowError, shown, shown_path
from soundrl.fapo.records import Prompt
from soundrl.fapo.verify.answer import asked_form

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
"""The sentence that most open math models were tuned on."""

TAGGED = "Please reason step by step, and put your final answer within <answer> </answer> tags."
SCORER = "reasoning-gym"
"""Verifier of generated problems."""

MAX_TOTAL_CHARS = 1 << 31  # all texts of a data set together; run-length coding lets a small Parquet file ask for any amount of memory

COLUMNS = ("id", "problem", "question", "answer", "solution", "data_source", "prompt", "reward_model.ground_truth", "extra_info.question")
ROLES = ("system", "developer", "user", "assistant", "tool")
PARTS = ("role", "content", "name", "reasoning_content", "thinking", "tool_call_id", "tool_calls")
"""Keys of a message that chat templates read; others are not looked at."""


def load_prompts(
    source: str | os.PathLike[str], *, instruction: str = INSTRUCTION, max_rows: int | None = None, left_out: LeftOut | None = None
) -> list[Prompt]:
    """The prompts of a `.jsonl`, `.json` or `.parquet` file or of a generated data set (`rg:chain_sum?size=200&seed=7`, see `puzzles.py`).

    A row has one of two forms:

    * plain: a text `problem`, `question` or `prompt`, and an `answer`, `reward_model.ground_truth` or, beside a text `prompt`, `solution`
      (as DAPO-Math-17k-Processed has it): `messages` is one user message, the problem, a blank line and the `instruction`. A `solution`
      is kept for the warm start, and so is an answer that is a worked solution in GSM8K's notation;
    * chat: `{"prompt": [{"role", "content"}, …], "reward_model": {"ground_truth"}, "extra_info"?}`: `messages` are taken as they are,
      and `text` is `extra_info.question` or else the content of the last user message.

    An answer is a text or a number, unwrapped by `plain_reference`. `data_source` names the `source`, else the file's stem does. Other
    fields are not read, and a null field counts as absent. `id` is `<path as given, normalised>:<row>`, rows counted from 1; a row's own
    `id`, where there is one, must be unique.

    `max_rows` takes the first rows only: later ones are neither returned nor checked. Nothing is left out without a word: rows that are
    not as described are told to `left_out`, or raise one `DataError` (a `ValueError`) for all of them, see `load_rows`.

    Example: the line `{"problem": "1+1?", "answer": 2}` in `sums.jsonl` becomes `Prompt(id="sums.jsonl:1", text="1+1?", answer="2",
    source="sums", messages=({"role": "user", "content": "1+1?\\n\\nPlease reason …"},))`.
    """
    if max_rows is not None and max_rows < 1:
        raise DataError(f"max_rows={max_rows}; use 1 or more, or None for all rows")
    if isinstance(source, str) and source.startswith(PREFIX):
        kind = source.partition("?")[0]
        found = load_puzzles(source, max_rows)
        # What has several lines, or could be anything, is easier told in tags than in a box.
        asks = {True: instruction, False: TAGGED if instruction == INSTRUCTION else instruction}
        return [
            _prompt(id, _ask(text, asks[len(answer.strip().splitlines()) == 1]), text=text, answer=answer, source=kind, verifier=SCORER)
            for id, text, answer in found
        ]
    stem = Path(source).stem
    rows_by_id: dict[str, str] = {}
    total = 0

    def make(id: str, fields: Fields) -> Prompt:
        nonlocal total
        if fields.get("id") is not None:
            own = _answer("id", fields["id"])
            first = rows_by_id.setdefault(own, id)
            if first != id:
                raise RowError(f"{shown(own)} already stands in row {first.rpartition(':')[2]}; make ids unique or leave them out", "id")
        form = _chat_prompt if _is_chat(fields) else _plain_prompt
        prompt = form(id, fields, _optional("data_source", fields.get("data_source")) or stem, instruction)
        total += len(prompt.answer) + sum(len(message["content"]) for message in prompt.messages or ())
        if total > MAX_TOTAL_CHARS:
            raise DataError(f"{shown_path(source)}: the file's texts exceed {MAX_TOTAL_CHARS} characters; split the file")
        return prompt

    return load_rows(source, COLUMNS, make, max_rows, left_out)


def boxed_solution(solution: str, answer: str) -> str:
    """A worked solution in GSM8K's notation as the target of a warm start: calculation marks removed, a step a line, the answer boxed.

    Blank lines are removed, and so is a last line `#### n`, whose n must be the answer. Raises `ValueError` where it is not, where a mark
    is not closed, and where no step is left.

    >>> boxed_solution("Half is 48/2 = <<48/2=24>>24.\\n\\nThe sum is 48+24 = <<48+24=72>>72.\\n#### 72", "72").split("\\n")
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
    return "\n".join([*steps, f"\\boxed{{{answer.strip()}}}"])


def _ask(problem: str, instruction: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": f"{problem}\n\n{instruction}" if instruction else problem},)


def _prompt(id: str, messages: tuple[dict[str, str], ...], **fields: Any) -> Prompt:
    return Prompt(id=id, messages=messages, form=asked_form(message["content"] for message in messages), **fields)


def _is_chat(fields: Fields) -> bool:
    """True for the chat form, false for the plain one."""
    prompt = fields.get("prompt")
    chat = prompt is not None and not isinstance(prompt, str)
    if prompt is not None and fields.get("problem") is not None:
        raise RowError("both are there; keep one", "problem and prompt")
    if not chat and all(fields.get(key) is None for key in ("problem", "question", "prompt")):
        found = ", ".join(map(shown, list(fields)[:8])) or "none"
        raise RowError(f"missing (fields: {found}); write problem and answer, or prompt and reward_model", "problem")
    return chat


def _plain_prompt(id: str, fields: Fields, source: str, instruction: str) -> Prompt:
    key = next(key for key in ("problem", "question", "prompt") if fields.get(key) is not None)
    text = _text(key, fields[key])
    if key == "prompt" and re.match(r"""\[\s*\{\s*["'](?:role|content)["']""", text):
        raise RowError(f"{shown(text)} is a list of messages, written as a text; write it as a list", key)
    solution, reward = _optional("solution", fields.get("solution")), fields.get("reward_model")
    truth = reward.get("ground_truth") if isinstance(reward, dict) else None
    answers = {"answer": fields.get("answer"), "reward_model.ground_truth": truth, "solution": solution if key == "prompt" else None}
    field, answer = next(((field, answer) for field, answer in answers.items() if answer is not None), ("answer", None))
    if solution is None and isinstance(answer, str) and "\n####" in answer:
        solution = answer
    kept = _answer(field, answer)
    if key == "prompt" and (field == "solution" or solution == kept):
        solution = None
    return _prompt(id, _ask(text, instruction), text=text, answer=kept, source=source, solution=solution)


def _chat_prompt(id: str, fields: Fields, source: str, instruction: str) -> Prompt:
    messages = fields["prompt"]
    if not isinstance(messages, list) or not messages:
        raise RowError(f"{shown(messages)} where chat messages are expected; write a list of role and content", "prompt")
    kept = tuple(_message(f"prompt[{index}]", message) for index, message in enumerate(messages))
    asked = [message["content"] for message in kept if message["role"] == "user"]
    if not asked:
        raise RowError("no message with the role 'user'; add the problem as one", "prompt")
    extra = fields.get("extra_info")
    question = _optional("extra_info.question", extra.get("question")) if isinstance(extra, dict) else None
    answer = _answer("reward_model.ground_truth", _object("reward_model", fields.get("reward_model")).get("ground_truth"))
    return _prompt(id, kept, text=question or asked[-1], answer=answer, source=source)


def _message(field: str, value: object) -> dict[str, str]:
    present = {key: part for key, part in _object(field, value).items() if part is not None and key in PARTS}
    role = present.get("role")
    if role not in ROLES:
        raise RowError(f"{shown(role)}; use one of {', '.join(ROLES)}", f"{field}.role")
    present.setdefault("content", None)
    return {key: _text(f"{field}.{key}", part, may_be_empty=(role, key) != ("user", "content")) for key, part in present.items()}


def _object(field: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise RowError(f"{shown(value)} where an object is expected; write one", field)
    return value


def _text(field: str, value: object, may_be_empty: bool = False) -> str:
    if value is None:
        raise RowError("missing; every row needs it", field)
    if not isinstance(value, str):
        raise RowError(f"{shown(value)} where a text is expected; write a string", field)
    if not (may_be_empty or value.strip()):
        raise RowError("empty; write a text", field)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(f"half of a surrogate pair at character {error.start + 1}; write whole characters", field) from None
    return value


def _answer(field: str, value: object) -> str:
    try:
        return _text(field, plain_reference(value))
    except RowError as error:
        error.field = field
        raise


def _optional(field: str, value: object) -> str | None:
    """None also for an empty text, which many files write where they have nothing."""
    return None if value is None or (isinstance(value, str) and not value.strip()) else _text(field, value)
