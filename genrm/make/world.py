"""What a GenRM is made about: problems, whether a solution's final answer is right, and how a solution splits into steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

from soundrl.fapo.data.columns import Columns
from soundrl.fapo.data.files import load_prompts
from soundrl.fapo.data.left_out import load_rows
from soundrl.fapo.data.rows import RowError
from soundrl.fapo.named import is_named, named
from soundrl.fapo.records import Outcome, Prompt
from soundrl.fapo.verify.verifier import Verifier
from soundrl.genrm.critic_data.labelled import load_labelled, problem_of, words
from soundrl.genrm.prompts import split_paragraphs

COLUMNS = Columns(("problem", "question", "prompt", "extra_info.question"))
LEAST_WORDS = 8
"""A shorter text is the same problem only where it is all of it: `what is the value of x` stands in many."""


@dataclass(frozen=True)
class World:
    """Of a problem file, or what a function `module:name` returns that is called with `(max_problems, seed)`."""

    problems: list[Prompt]
    check: Callable[[Prompt, str], Outcome]
    """Of a solution that ended by itself."""
    split: Callable[[str], Sequence[str]] = split_paragraphs


@contextmanager
def world_of(source: str, max_problems: int, seed: int, exclude: Sequence[str] = ()) -> Iterator[tuple[World, int]]:
    """The world without the problems of the files (or functions that make labelled rows) `exclude`, and how many these were."""
    known = Known(text for other in exclude for text in problems_of(other))
    if is_named(source):
        world = named(source)(max_problems or None, seed)
        yield _without(world, known)
        return
    prompts = load_prompts(source, max_rows=max_problems or None)
    with Verifier() as verifier:
        yield _without(World(prompts, lambda prompt, text: verifier.verify(text, prompt.answer, prompt.form)), known)


def _without(world: World, known: Known) -> tuple[World, int]:
    left = [prompt for prompt in world.problems if prompt.text not in known]
    return replace(world, problems=left), len(world.problems) - len(left)


class Known:
    """Texts of problems; another `in` it holds all words of one, in their order: a problem in a sentence that asks for it is known too.

    >>> "Solve this. What is the sum of all primes below 10? Box it." in Known(["What is the sum of all primes below 10?"])
    True
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.whole = {said for text in texts if (said := words(text))}
        self.begin: dict[tuple[str, ...], list[list[str]]] = defaultdict(list)
        for text in self.whole:
            said = text.split()
            if len(said) >= LEAST_WORDS:
                self.begin[tuple(said[:LEAST_WORDS])].append(said)

    def __contains__(self, text: str) -> bool:
        said = (all_of := words(text)).split()
        places = range(len(said) - LEAST_WORDS + 1) if self.begin else ()
        found = ((place, other) for place in places for other in self.begin.get(tuple(said[place : place + LEAST_WORDS]), ()))
        return all_of in self.whole or any(said[place : place + len(other)] == other for place, other in found)


def problems_of(source: str) -> list[str]:
    """Texts of the problems of a file in any form that is known here: problems with or without answers, ProcessBench, FAPO-Critic; or of
    the rows that a function makes."""
    if is_named(source):
        return [row.problem for row in load_labelled(source)]
    return load_rows(source, COLUMNS, _problem)


def _problem(id: str, fields: dict[str, Any]) -> str:
    fields = COLUMNS.ours(fields)
    extra, prompt = fields.get("extra_info"), fields.get("prompt")
    question = extra.get("question") if isinstance(extra, dict) else None
    if isinstance(prompt, list):
        asked = [m.get("content") for m in cast(list[Any], prompt) if isinstance(m, dict) and m.get("role") == "user"]
        prompt = problem_of(asked[-1]) if asked and isinstance(asked[-1], str) else None
    for text in (fields.get("problem"), fields.get("question"), question, prompt):
        if isinstance(text, str) and text.strip():
            return text
    raise RowError("missing; a text problem, question or prompt is expected: write one", "problem", id)
