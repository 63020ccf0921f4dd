"""Problem files and generated problems → `Prompt`s; also the worked solutions of GSM8K → warm-start targets."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from soundrl.fapo.puzzles import PREFIX, load_puzzles
from soundrl.fapo.records import Prompt
from soundrl.fapo.rows import DataError, read_rows, shown, shown_path
from soundrl.fapo.verify.answer import asked_form

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
"""The sentence that most open math models were tuned on."""

MAX_TOTAL_CHARS = 1 << 31
"""All texts of a data set together; run-length coding lets a small Parquet file ask for any amount of memory."""

COLUMNS = ("id", "problem", "answer", "solution", "data_source", "prompt", "reward_model", "extra_info")
ROLES = ("system", "developer", "user", "assistant", "tool")


def load_prompts(source: str | os.PathLike[str], *, instruction: str = INSTRUCTION, max_rows: int | None = None) -> list[Prompt]:
    """The prompts of a `.jsonl`, `.json` or `.parquet` file or of a generated data set (`rg:chain_sum?size=200&seed=7`, see `puzzles.py`).

    A file's rows have one of two forms; the first row decides, and a row of the other form is an error:

    * plain: `{"problem", "answer", "solution"?}`: `messages` is one user message, the problem, a blank line and the `instruction`;
    * chat: `{"prompt": [{"role", "content"}, …], "reward_model": {"ground_truth"}, "extra_info"?}`: `messages` are taken as they are,
      and `text` is `extra_info.question` or else the content of the last user message.

    An answer is a text or a whole number. `data_source` names the `source`, else the file's stem does. Other fields are not read, and a
    null field counts as absent. `id` is `<file name>:<row>`, rows counted from 1; a row's own `id`, where there is one, must be unique.

    `max_rows` takes the first rows only: later ones are neither returned nor checked. Nothing else is ever left out: the first row that is
    not as described raises `DataError` (a `ValueError`), one line that says `file:row: field: what was found; cure`.

    Example: the line `{"problem": "1+1?", "answer": 2}` in `sums.jsonl` becomes `Prompt(id="sums.jsonl:1", text="1+1?", answer="2",
    source="sums", messages=({"role": "user", "content": "1+1?\\n\\nPlease reason …"},))`.
    """
    if max_rows is not None and max_rows < 1:
        raise DataError(f"max_rows={max_rows}; use 1 or more, or None for all rows")
    if isinstance(source, str) and source.startswith(PREFIX):
        return [
            _prompt(item.id, _ask(item.question, instruction), text=item.question, answer=item.answer, source=item.source)
            for item in load_puzzles(source, max_rows)
        ]
    name, file = shown_path(source), Path(source)
    prompts: list[Prompt] = []
    rows_by_id: dict[str, int] = {}
    chat, total = False, 0
    for row, fields in read_rows(source, COLUMNS):
        where = f"{name}:{row}"
        if not prompts:
            chat = _is_chat(fields, where)
        elif chat != _is_chat(fields, where):
            forms = ("chat", "plain") if chat else ("plain", "chat")
            raise DataError(f"{where}: a row of the {forms[1]} form in a file that began with the {forms[0]} form; split the file")
        if fields.get("id") is not None:
            own = _answer(where, "id", fields["id"])
            if own in rows_by_id:
                raise DataError(f"{where}: id: {shown(own)} already stands in row {rows_by_id[own]}; make ids unique or leave them out")
            rows_by_id[own] = row
        make = _chat_prompt if chat else _plain_prompt
        prompt = make(where, fields, f"{shown_path(file.name)}:{row}", _optional(where, "data_source", fields) or file.stem, instruction)
        total += len(prompt.text) + len(prompt.answer) + sum(len(message["content"]) for message in prompt.messages or ())
        if total > MAX_TOTAL_CHARS:
            raise DataError(f"{where}: the file's texts exceed {MAX_TOTAL_CHARS} characters; split the file")
        prompts.append(prompt)
        if len(prompts) == max_rows:
            break
    return prompts


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


def _is_chat(fields: dict[str, object], where: str) -> bool:
    """True for the chat form, false for the plain one."""
    plain, chat = fields.get("problem") is not None, fields.get("prompt") is not None
    if plain and chat:
        raise DataError(f"{where}: problem and prompt: both are there; keep one")
    if not plain and not chat:
        found = ", ".join(map(shown, list(fields)[:8])) or "none"
        raise DataError(f"{where}: problem: missing (fields: {found}); write problem and answer, or prompt and reward_model")
    return chat


def _plain_prompt(where: str, fields: dict[str, object], id: str, source: str, instruction: str) -> Prompt:
    text = _text(where, "problem", fields.get("problem"))
    answer = _answer(where, "answer", fields.get("answer"))
    solution = _optional(where, "solution", fields)
    return _prompt(id, _ask(text, instruction), text=text, answer=answer, source=source, solution=solution)


def _chat_prompt(where: str, fields: dict[str, object], id: str, source: str, instruction: str) -> Prompt:
    messages = fields["prompt"]
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: prompt: {shown(messages)} where chat messages are expected; write a list of role and content")
    kept = tuple(_message(where, f"prompt[{index}]", message) for index, message in enumerate(messages))
    asked = [message["content"] for message in kept if message["role"] == "user"]
    if not asked:
        raise DataError(f"{where}: prompt: no message with the role 'user'; add the problem as one")
    question = _optional(where, "extra_info.question", _object(where, "extra_info", fields.get("extra_info") or {}), "question")
    answer = _answer(where, "reward_model.ground_truth", _object(where, "reward_model", fields.get("reward_model")).get("ground_truth"))
    return _prompt(id, kept, text=question or asked[-1], answer=answer, source=source)


def _message(where: str, field: str, value: object) -> dict[str, str]:
    present = {key: part for key, part in _object(where, field, value).items() if part is not None}
    for key, part in present.items():
        if not isinstance(part, str):
            raise DataError(
                f"{where}: {field}.{key if key.isprintable() else ascii(key)}: {shown(part)} where a text is expected; write a string"
            )
    role = present.get("role")
    if role not in ROLES:
        raise DataError(f"{where}: {field}.role: {shown(role)}; use one of {', '.join(ROLES)}")
    if role == "user" or "content" not in present:
        _text(where, f"{field}.content", present.get("content"))
    return {key: _encodable(where, f"{field}.{key}", part) for key, part in present.items() if isinstance(part, str)}


def _object(where: str, field: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: {field}: {shown(value)} where an object is expected; write one")
    return value


def _text(where: str, field: str, value: object) -> str:
    if value is None:
        raise DataError(f"{where}: {field}: missing; every row needs it")
    if not isinstance(value, str):
        raise DataError(f"{where}: {field}: {shown(value)} where a text is expected; write a string")
    if not value.strip():
        raise DataError(f"{where}: {field}: empty; write a text")
    return _encodable(where, field, value)


def _encodable(where: str, field: str, value: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {field}: half of a surrogate pair at character {error.start + 1}; write whole characters") from None
    return value


def _answer(where: str, field: str, value: object) -> str:
    # Not floats: 0.1 + 0.2 or 1e3 has many spellings, and the one in the file is lost.
    if isinstance(value, (bool, float)):
        raise DataError(f"{where}: {field}: {shown(value)} where a text or a whole number is expected; write it as a string")
    return str(value) if isinstance(value, int) else _text(where, field, value)


def _optional(where: str, field: str, fields: dict[str, object], key: str | None = None) -> str | None:
    value = fields.get(key or field)
    return None if value is None else _text(where, field, value)
