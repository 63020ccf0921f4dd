"""Who checks a response: verifiers by name, a row's own choice among them, and a user's function by its path.

| name | a response is right where its answer | the reference is |
|---|---|---|
| `math` | equals the reference (`verifier`) | LaTeX or plain text |
| `choice` | is the letter of the same option (`choice`) | an option's letter, or its text |
| `number` | is the same number, within the row's `tolerance` where it has one (`number`) | a number |
| `exact` | is the same text, spaces at its ends apart | any text |
| `reasoning-gym` | has a score of at least `data.reward`'s threshold, of its data set's own scorer (`puzzle`) | a row of `rg:…` |
| a path, `my_checks.py:score` | earns at least that of the user's function (`own`) | whatever the function reads |

A row gets the verifier of `data.verifier`; else the one that it names itself (`row_verifier`); else `choice` where its prompt asks for an
option's letter; else `math`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any

import numpy as np

from soundrl.fapo.data.rows import DataError, RowError, shown
from soundrl.fapo.named import is_named
from soundrl.fapo.pending import done, then
from soundrl.fapo.records import Check, Outcome, Prompt, Rollout, Said
from soundrl.fapo.verify.answer import final_answer, written
from soundrl.fapo.verify.box import Box
from soundrl.fapo.verify.choice import UNCLEAR, final_choice, letter_of, options_of
from soundrl.fapo.verify.number import compare_numbers, number_of, tolerance_of
from soundrl.fapo.verify.own import Own, absolute, meaning, question
from soundrl.fapo.verify.pool import Broken, WorkerPool
from soundrl.fapo.verify.puzzle import puzzle_answer
from soundrl.fapo.verify.thinking import answer_part
from soundrl.fapo.verify.verifier import Verifier

OWN_MEMORY = 2 << 30
"""Bytes of a process that runs a user's function or a puzzle's scorer, beyond its imports."""
_STYLES = {"": "", "rule": ""}
"""verl's `reward_model.style`: `rule` says that a function of the data set checks, which the form of the answer decides here."""

logger = logging.getLogger(__name__)


def row_verifier(style: str = "", column: str = "", source: str = "") -> str:
    """The verifier that a row names: its `verifier` column, `reward_model.style` or `data_source`, in this order; empty = it names none.
    RowError where the first two name one that is not known.

    >>> row_verifier(column="number"), row_verifier(style="rule", source="openai/gsm8k"), row_verifier(source="choice")
    ('number', '', 'choice')
    """
    for field, name in (("verifier", column), ("reward_model.style", style)):
        if name and name not in _STYLES and name not in VERIFIERS:
            known = ", ".join([*VERIFIERS, "rule"] if field != "verifier" else VERIFIERS)
            raise RowError(f"{shown(name)} is no verifier; use one of {known}, or set data.verifier for all rows", field)
        if name in VERIFIERS:
            return name
    return source if source in VERIFIERS else ""


def verifier_of(prompt: Prompt, asked: str = "") -> str:
    """Name or path of who checks its responses; `asked`: `data.verifier`."""
    return asked or prompt.verifier or ("choice" if prompt.form == "choice" else "math")


def is_verifier(asked: str) -> bool:
    """Whether `data.verifier` can be `asked`: one by name, one's own, or empty; else `KNOWN` says what can."""
    return not asked or asked in VERIFIERS or is_named(asked)


def needs_row(asked: str) -> bool:
    """Whether prompts need all other columns of their rows (`Prompt.row`): `data.verifier` is a function of one's own."""
    return is_named(asked)


COLUMNS = ("options", "choices", "tolerance")
"""Columns that our own verifiers read of a row (`Prompt.row`), where it has them."""


class Verifiers:
    """All that check the responses of a run, each started when it is first needed; usable as a context manager.

    `asked`, `reward`: settings `data.verifier` and `data.reward`. `limits` are `WorkerPool`'s. ValueError where `asked` is none.
    """

    def __init__(self, asked: str = "", reward: tuple[str, float] = ("pool", 1.0), **limits: Any) -> None:
        if not is_verifier(asked):
            raise ValueError(f"data.verifier is {shown(asked)}; {KNOWN}")
        self.asked, (self.where, self.threshold), self.limits = asked, reward, limits
        self.own_limits: dict[str, Any] = {"cpu_limit": 10.0, "stall_limit": 120.0, "memory_limit": OWN_MEMORY, **limits}
        self.counts: Counter[str] = Counter()
        """Responses of which nothing is known, by reason (`own.REASONS`)."""
        self._lock = threading.Lock()

    @cached_property
    def math(self) -> Verifier:
        return Verifier(**self.limits)

    @cached_property
    def own(self) -> WorkerPool:
        """Of the user's function: as many processes as this rank's share of the processors."""
        share = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return WorkerPool(**{"work": absolute(self.asked), "workers": min(max(share, 2), 8), **self.own_limits})

    @cached_property
    def here(self) -> Own:
        """The user's function in this process."""
        return Own(absolute(self.asked))

    @cached_property
    def puzzles(self) -> WorkerPool:
        return WorkerPool(work="reasoning-gym", **self.own_limits)

    def submit(self, prompt: Prompt, rollout: Rollout, response: str, thinks: bool = False) -> Future[Said]:
        """What is to be said of a response: `response` is the policy's last turn with all marks of thinking; `thinks`: the prompt has
        opened a thinking part already."""
        name = verifier_of(prompt, self.asked)
        if name in VERIFIERS:
            return VERIFIERS[name](self, prompt, response, thinks)
        return then(self._asked_own(question(prompt, rollout, response)), lambda result: self._meaning(prompt, result))

    def _asked_own(self, asked: dict[str, Any]) -> Future[Any]:
        """The result of the user's function; never an exception of its own."""
        if self.where == "here":
            try:
                return done(self.here.answer(asked))
            except MemoryError:
                return done("memory")
            except DataError as error:
                return done(["fault", "broken", str(error), True])
        result: Future[Any] = Future()
        result.set_running_or_notify_cancel()

        def finish(pooled: Future[Any]) -> None:
            error = pooled.exception()
            if isinstance(error, Broken):
                result.set_result(["fault", "broken", str(error), True])
            else:
                result.set_exception(error) if error else result.set_result(pooled.result())

        self.own.submit(asked).add_done_callback(finish)
        return result

    def _meaning(self, prompt: Prompt, result: Any) -> Said:
        """The first fault of each kind is told in one line; all are counted."""
        said, told = meaning(result, self.threshold)
        if said.outcome is Outcome.UNKNOWN and said.reason:
            with self._lock:
                self.counts[said.reason] += 1
                first = self.counts[said.reason] == 1
            if first:
                what = told or self._ended(said.reason)
                logger.warning(
                    "data.verifier %s, asked of %s: %s; the rollout leaves its group, and more of this kind are counted in verify/%s alone",
                    *(self.asked, prompt.id, what, said.reason),
                )
        return said

    def _ended(self, reason: str) -> str:
        return _ENDED[reason].format(**self.own_limits)

    def unusable(self, rows: Sequence[Prompt]) -> list[str | None]:
        """Why a row's reference cannot be compared with, each; None = it can."""
        names = [verifier_of(row, self.asked) for row in rows]
        golds = [row.answer for row, name in zip(rows, names, strict=True) if name == "math"]
        of_math = iter(self.math.check_golds(golds) if golds else ())
        return [next(of_math) if name == "math" else _fault(name, row) for row, name in zip(rows, names, strict=True)]

    def ready(self, row: Prompt) -> list[str]:
        """What there is to say of a user's function before the first step: its signature, and what the reference of a row earns. ValueError
        where it cannot be loaded, or could reward no row: it lacks a module, a name or a column."""
        if not is_named(self.asked):
            return []
        response = written(row.answer, row.form)
        nothing = np.empty(0, np.int32)
        same: dict[str, Any] = dict.fromkeys(("prompt_tokens", "tokens", "logprobs"), nothing)
        asked = Rollout(prompt_id=row.id, sample=0, text=response, finish_reason="stop", policy_version=0, **same)
        name = f"data.verifier {self.asked}"
        result = self._asked_own(question(row, asked, response)).result()
        fault = result[0] == "fault" if isinstance(result, list) else False
        if fault and result[3]:
            raise ValueError(f"{name}: {result[2]}" if result[1] != "broken" else f"data.verifier {result[2]}")
        says = self.here.says if self.where == "here" else self.own.says
        said, told = meaning(result, self.threshold)
        earned = said.outcome.value if said.reward is None else f"{said.reward:g}"
        found = f"gave nothing: {told or self._ended(said.reason)}" if said.outcome is Outcome.UNKNOWN else f"earns {earned}"
        return [f"{name} is read as {says}; the reference of {row.id}, written as {shown(response)}, {found}"]

    def close(self) -> None:
        """Ends all processes."""
        for name in ("math", "own", "puzzles"):
            if name in vars(self):
                getattr(self, name).close()

    def __enter__(self) -> Verifiers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_ENDED = {
    "cpu": "it took more than {cpu_limit:g} CPU seconds",
    "memory": "it took more than {memory_limit:,} bytes of memory beyond its imports",
    "exit": "it ended its process",
    "forks": "it made too many processes",
    "crash": "it brought its process down",
    "killed": "its process was killed, twice",
    "stuck": "it stood still for {stall_limit:g} seconds or more",
    "broken": "it cannot be loaded",
}


def _fault(name: str, row: Prompt) -> str | None:
    if name == "choice":
        options = options_of(row.row, row.text)
        if letter_of(row.answer, options) is None:
            among = f"none of the {len(options)} options, nor a letter of theirs" if options else "no letter of an option, A to J"
            return f"the reference answer {shown(row.answer)} is {among}"
    if name == "number":
        try:
            if (value := number_of(row.answer)) is None:
                return f"the reference answer {shown(row.answer)} is no number"
            tolerance_of(row.row, value)
        except ValueError as error:
            return str(error)
    return "no row of a generated data set" if name == "reasoning-gym" and not row.source.startswith("rg:") else None


def _said(answer: Box | None, outcome: Callable[[str], Outcome]) -> Future[Said]:
    """Of an answer that was found, what `outcome` says of it."""
    if answer is None:
        return done(Outcome.NO_ANSWER)
    extracted = None if answer.text == UNCLEAR else answer.text
    return done(Check(outcome=Outcome.WRONG if answer.hedged else outcome(answer.text), extracted=extracted))


def _math(of: Verifiers, prompt: Prompt, response: str, thinks: bool) -> Future[Any]:
    return of.math.check(response, prompt.answer, prompt.form, thinks)


def _choice(of: Verifiers, prompt: Prompt, response: str, thinks: bool) -> Future[Any]:
    options = options_of(prompt.row, prompt.text)
    right = letter_of(prompt.answer, options)
    if right is None:
        return done(Outcome.UNPARSEABLE)
    part = answer_part(response, thinks)
    found = None if part is None else final_choice(part, options)
    return _said(found, lambda letter: Outcome.CORRECT if letter == right else Outcome.WRONG)


def _number(of: Verifiers, prompt: Prompt, response: str, thinks: bool) -> Future[Any]:
    def outcome(answer: str) -> Outcome:
        try:
            return compare_numbers(prompt.answer, answer, prompt.row)
        except ValueError:
            return Outcome.UNPARSEABLE

    return _said(final_answer(response, form=prompt.form, thinks=thinks), outcome)


def _exact(of: Verifiers, prompt: Prompt, response: str, thinks: bool) -> Future[Any]:
    answer = final_answer(response, form=prompt.form, thinks=thinks)
    return _said(answer, lambda text: Outcome.CORRECT if text.strip() == prompt.answer.strip() else Outcome.WRONG)


def _reasoning_gym(of: Verifiers, prompt: Prompt, response: str, thinks: bool) -> Future[Any]:
    answer = puzzle_answer(response, prompt.form, thinks)
    if answer is None or answer.hedged:
        return done(Check(outcome=Outcome.WRONG if answer else Outcome.NO_ANSWER, reward=0.0, extracted=answer and answer.text))

    def said(result: Any) -> Said:
        check, _ = meaning([*result[:2], answer.text] if isinstance(result, list) else result, of.threshold)
        # What a scorer takes for an answer is the answer's own fault, but for the machine's.
        if check.outcome is Outcome.UNKNOWN and check.reason in ("cpu", "memory", "crash"):
            return Check(outcome=Outcome.UNPARSEABLE, reward=0.0, extracted=answer.text)
        return check

    return then(of.puzzles.submit(prompt.id, answer.text), said)


VERIFIERS: dict[str, Callable[[Verifiers, Prompt, str, bool], Future[Any]]] = {
    "math": _math, "choice": _choice, "number": _number, "exact": _exact, "reasoning-gym": _reasoning_gym,
}  # fmt: skip
KNOWN = f"use one of {', '.join(VERIFIERS)}, or a path like my_checks.py:score"
