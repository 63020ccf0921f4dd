"""Who checks a response: verifiers by name, a row's own choice among them, and a user's function by its path.

| name | a response is right where its answer | the reference is |
|---|---|---|
| `math` | equals the reference (`verifier`) | LaTeX or plain text |
| `choice` | is the letter of the same option (`choice`) | an option's letter, or its text |
| `number` | is the same number, within the row's `tolerance` where it has one (`number`) | a number |
| `exact` | is the same text, spaces at its ends apart | any text |
| `reasoning-gym` | earns `data.reward`'s threshold of its data set's own scorer (`puzzle`) | a row of `rg:…` |
| a path, `my_checks.py:score` | earns that threshold of the user's function (`own`) | whatever the function reads |

A row gets the verifier of `data.verifier`; else the one that it names itself (`row_verifier`); else `choice` where its prompt asks for an
option's letter; else `math`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any

from soundrl.fapo.data.rows import RowError, shown
from soundrl.fapo.named import is_named
from soundrl.fapo.records import Prompt, Rollout, Said
from soundrl.fapo.verify.verifier import Verifier

_STYLES = {"": "", "rule": ""}
"""verl's `reward_model.style`: `rule` says that a function of the data set checks, which the form of the answer decides here."""


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


def needs_row(asked: str) -> bool:
    """Whether prompts need the other columns of their rows (`Prompt.row`): `data.verifier` is a function of one's own."""
    return is_named(asked)


class Verifiers:
    """All that check the responses of a run, each started when it is first needed; usable as a context manager.

    `asked`, `reward`: settings `data.verifier` and `data.reward`. `limits` are `WorkerPool`'s.
    """

    def __init__(self, asked: str = "", reward: tuple[str, float] = ("pool", 1.0), **limits: Any) -> None:
        self.asked, (self.where, self.threshold), self.limits = asked, reward, limits

    @cached_property
    def math(self) -> Verifier:
        return Verifier(**self.limits)

    def submit(self, prompt: Prompt, rollout: Rollout, response: str, thinks: bool = False) -> Future[Said]:
        """What is to be said of a response: `response` is the policy's last turn with all marks of thinking; `thinks`: the prompt has
        opened a thinking part already."""
        return VERIFIERS[verifier_of(prompt, self.asked)](self, prompt, response, thinks)

    def unusable(self, rows: Sequence[Prompt]) -> list[str | None]:
        """Why a row's reference cannot be compared with, each; None = it can."""
        return self.math.check_golds([row.answer for row in rows])

    def ready(self, row: Prompt) -> list[str]:
        """What there is to say of a verifier of one's own before the first step, tried on a row. ValueError where it cannot serve."""
        return []

    def close(self) -> None:
        """Ends all processes."""
        if "math" in vars(self):
            self.math.close()

    def __enter__(self) -> Verifiers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


Check = Callable[[Verifiers, Prompt, str, bool], Future[Any]]


def _math(of: Verifiers, prompt: Prompt, response: str, thinks: bool) -> Future[Any]:
    return of.math.submit(response, prompt.answer, prompt.form, thinks)


VERIFIERS: dict[str, Check] = {"math": _math, "choice": _math, "number": _math, "exact": _math, "reasoning-gym": _math}
