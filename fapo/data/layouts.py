"""A row of a public data set → a `Prompt`: which columns hold the problem and its reference, by their names alone.

Rows hold a text (`problem`, `question` or `prompt`), or chat messages in `prompt`; with them a reference (`answer`, `final_answer`,
`reward_model.ground_truth`, else what a `solution` ends in); or a question with options (GPQA's columns; `options` or `choices`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from soundrl.fapo.data.columns import TEXTS, found
from soundrl.fapo.data.options import asked, letter_of, lists, shuffled_options, with_options
from soundrl.fapo.data.reference import plain_reference
from soundrl.fapo.data.rows import Fields, RowError, shown
from soundrl.fapo.records import Prompt
from soundrl.fapo.verify.answer import asked_form
from soundrl.fapo.verify.choice import LETTERS, options_of
from soundrl.fapo.verify.verifiers import COLUMNS, row_verifier

ROLES = ("system", "developer", "user", "assistant", "tool")
PARTS = ("role", "content", "name", "reasoning_content", "thinking", "tool_call_id", "tool_calls")
"""Keys of a message that chat templates read; others are not looked at."""
SAYING = ("reward_model.ground_truth", "reward_model.style", "extra_info.question", "data_source", "answer", "final_answer", "solution")
SAYING += ("verifier", *COLUMNS)
"""What is kept of a row of chat messages beside these."""
NO_ANSWER = ("proof", "notfound", "not found")
"""What NuminaMath writes where there is no answer to compare with."""
MAX_KEPT = 1 << 16  # characters of a row, as JSON, that are kept for a verifier of one's own

Messages = tuple[dict[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a row says, under our names."""

    text: str
    messages: Messages
    answer: str
    solution: str | None = None
    form: str | None = None
    verifier: str = ""
    row: Mapping[str, Any] = field(default_factory=dict)


def prompt_of(id: str, fields: Fields, source: str, instruction: str, any_answer: bool = False) -> Prompt:
    """`fields` under our names (`Columns.ours`); `source`: where the row names none. `any_answer`: a verifier of one's own reads it, so
    that it may be missing or anything. RowError where something is missing or is not what it should be."""
    named = _optional("data_source", fields.get("data_source"))
    if is_chat(fields):
        said = _chat(fields, any_answer)
    elif fields.get("correct answer") is not None:
        said = _gpqa(fields)
    elif options := next((value for key in ("options", "choices") if (value := fields.get(key))), None):
        said = _choice(fields, options)
    else:
        said = _plain(fields, instruction, any_answer)
    reward = fields.get("reward_model")
    style = (_optional("reward_model.style", reward.get("style")) if isinstance(reward, dict) else None) or ""
    style = "rule" if style.startswith("rule") else style  # DAPO-Math-17k's is rule-lighteval/MATH_v2
    verifier = said.verifier or row_verifier(style, _optional("verifier", fields.get("verifier")) or "", named or "")
    return Prompt(
        id=id,
        messages=said.messages,
        text=said.text,
        answer=said.answer,
        source=named or source,
        form=said.form or asked_form(message["content"] for message in said.messages),
        verifier="" if any_answer else verifier,
        row=said.row or kept_row({key: fields[key] for key in COLUMNS if fields.get(key) is not None}),
        solution=said.solution,
    )


def ask(problem: str, instruction: str) -> Messages:
    """One user message: the problem, a blank line and the instruction."""
    return ({"role": "user", "content": f"{problem}\n\n{instruction}" if instruction else problem},)


def is_chat(fields: Fields) -> bool:
    """True for the chat form, false for the plain one."""
    prompt = fields.get("prompt")
    if prompt is not None and fields.get("problem") is not None:
        raise RowError("both are there; keep one, or name it: --data.columns problem=…", "problem and prompt")
    return prompt is not None and not isinstance(prompt, str)


def said_by(fields: Fields, row: Fields) -> bytes:
    """All that is kept of a row of chat messages, beside its id: rows of which this is the same are one problem."""
    said = [fields["prompt"], *(found(fields, name)[1] for name in SAYING), row]
    return json.dumps(said, default=str, skipkeys=True).encode()


def _question(fields: Fields) -> tuple[str, str]:
    """The name and the text of a row's problem."""
    key = next((key for key in TEXTS if fields.get(key) is not None), "question")
    text = text_of(key, fields.get(key))
    if re.match(r"""\[\s*\{\s*["'](?:role|content)["']""", text):
        raise RowError(f"{shown(text)} is a list of messages, written as a text; write it as a list", key)
    context = _optional("context", fields.get("context")) if "final_answer" in fields else None  # OlympiadBench's
    return key, f"{context}\n\n{text}" if context else text


def _plain(fields: Fields, instruction: str, any_answer: bool) -> Said:
    key, text = _question(fields)
    solution = _solution(fields.get("solution"))
    where, answer = _reference(fields)
    if answer is None and solution is not None:
        where, answer = "solution", solution
    if solution is None and isinstance(answer, str) and "\n####" in answer:
        solution = answer
    kept = answer_of(where, answer, any_answer)
    if solution == kept or (key == "prompt" and where == "solution"):
        solution = None
    # A problem may speak of boxes and answers by itself; but where it wants a letter, the letter is to be boxed.
    form = own if (own := asked_form([text])) == "choice" else asked_form([instruction]) or own
    return Said(text=text, messages=ask(text, instruction), answer=kept, solution=solution, form=form)


def _reference(fields: Fields) -> tuple[str, object]:
    """The first there is of the columns that hold a reference alone, and its name."""
    reward = fields.get("reward_model")
    truth = reward.get("ground_truth") if isinstance(reward, dict) else None
    here = {"answer": fields.get("answer"), "final_answer": fields.get("final_answer"), "reward_model.ground_truth": truth}
    return next(((name, value) for name, value in here.items() if value is not None), ("answer", None))


def _chat(fields: Fields, any_answer: bool) -> Said:
    messages = fields["prompt"]
    if not isinstance(messages, list) or not messages:
        raise RowError(f"{shown(messages)} where chat messages are expected; write a list of role and content", "prompt")
    kept = tuple(_message(f"prompt[{index}]", message) for index, message in enumerate(messages))
    users = [message["content"] for message in kept if message["role"] == "user"]
    if not users:
        raise RowError("no message with the role 'user'; add the problem as one", "prompt")
    extra = fields.get("extra_info")
    question = _optional("extra_info.question", extra.get("question")) if isinstance(extra, dict) else None
    where, answer = _reference(fields)
    solution = _solution(fields.get("solution"))
    if answer is None and solution is not None:
        where, answer, solution = "solution", solution, None
    if answer is None and not any_answer:
        where, answer = "reward_model.ground_truth", _object("reward_model", fields.get("reward_model")).get("ground_truth")
    return Said(text=question or users[-1], messages=kept, answer=answer_of(where, answer, any_answer), solution=solution)


def _gpqa(fields: Fields) -> Said:
    question = text_of("question", fields.get("question")).strip()
    right, *wrong = (
        text_of(name, fields.get(name)).strip()
        for name in ("correct answer", *(f"incorrect answer {number}" for number in (1, 2, 3)))
    )  # fmt: skip
    options, letter = shuffled_options(question, right, wrong)
    return _with_options(question, options, letter)


def _choice(fields: Fields, options: object) -> Said:
    """`options` or `choices`: a list of texts (MMLU), two lists, `text` and `label` (ARC), or a text for each letter (MedQA)."""
    labels: object = []
    if isinstance(options, dict):
        options = {key: value for key, value in options.items() if value is not None}
        labels = options.get("label", [])
    texts = list(options_of({"options": options}, ""))
    if not texts or not isinstance(labels, list):
        raise RowError(f"{shown(options)} where a list of 2 to {len(LETTERS)} texts is expected; write one", "options")
    answer = next((value for key in ("answer", "answerkey") if (value := fields.get(key)) is not None), None)
    if answer is None:
        raise RowError("missing; every row needs it", "answer")
    return _with_options(_question(fields)[1], texts, letter_of(answer, texts, [str(label) for label in labels]))


def _with_options(question: str, options: list[str], letter: str) -> Said:
    text = question if lists(question, options) else with_options(question, options)
    row = {"options": options}
    return Said(text=text, messages=ask(asked(question, options), ""), answer=letter, form="choice", verifier="choice", row=row)


def kept_row(row: Fields, unread: tuple[str, ...] = ()) -> dict[str, Any]:
    """A row's columns as plain JSON, for a verifier of one's own: whole numbers and texts as they are, NaN and infinity null. RowError
    where one is no JSON, or all together are long."""
    kept = {name: _json(name, value, name) for name, value in row.items() if name not in unread}
    sizes = {name: len(json.dumps(value)) for name, value in kept.items()}
    if (size := sum(sizes.values())) > MAX_KEPT:
        longest = max(sizes, key=lambda name: sizes[name])
        raise RowError(f"{size:,} characters of row, which a verifier gets whole ({MAX_KEPT:,} at most); {_leave_out(longest)}", longest)
    return kept


def _leave_out(column: str) -> str:
    return f"leave it out by --data.columns {column}="


def _json(column: str, value: object, at: str) -> Any:
    if isinstance(value, dict):
        return {str(key): _json(column, inner, f"{at}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json(column, inner, f"{at}[{index}]") for index, inner in enumerate(value)]
    if isinstance(value, Decimal):
        value = float(value) if abs(value) <= Decimal("1e308") else math.inf
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    raise RowError(f"{shown(value)}, which is no JSON; {_leave_out(column)}", at)


def _message(field: str, value: object) -> dict[str, str]:
    present = {key: part for key, part in _object(field, value).items() if part is not None and key in PARTS}
    role = present.get("role")
    if role not in ROLES:
        raise RowError(f"{shown(role)}; use one of {', '.join(ROLES)}", f"{field}.role")
    present.setdefault("content", None)
    return {key: text_of(f"{field}.{key}", part, may_be_empty=(role, key) != ("user", "content")) for key, part in present.items()}


def _object(field: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise RowError(f"{shown(value)} where an object is expected; write one", field)
    return value


def text_of(field: str, value: object, may_be_empty: bool = False) -> str:
    """`value`, which must be a text."""
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


def answer_of(field: str, value: object, any_answer: bool = False) -> str:
    """The reference in a field's content (`plain_reference`)."""
    try:
        answer = text_of(field, plain_reference(value))
    except RowError as error:
        if any_answer:
            return "" if value is None else value if isinstance(value, str) else json.dumps(_json(field, value, field))
        error.field = field
        raise
    if answer.lower() in NO_ANSWER and not any_answer:
        raise RowError(f"{shown(answer)}, so there is none to compare with; go on without such rows by --data.skip-unusable", field)
    return answer


def _solution(value: object) -> str | None:
    """Of several, as OlympiadBench has them, the first."""
    return _optional("solution", value[0] if isinstance(value, list) and value and all(isinstance(one, str) for one in value) else value)


def _optional(field: str, value: object) -> str | None:
    """None also for an empty text, which many files write where they have nothing."""
    return None if value is None or (isinstance(value, str) and not value.strip()) else text_of(field, value)
