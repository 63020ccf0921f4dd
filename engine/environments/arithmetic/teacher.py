"""What `soundrl.genrm.make` takes of the embedded world: its problems, and a teacher who is careful but not perfect."""

from __future__ import annotations

import random
from collections.abc import Sequence

from soundrl.engine.environments.arithmetic import chains
from soundrl.fapo.records import Verdict
from soundrl.genrm.make.world import World

PROBLEMS = 1000
"""Where no number is given."""
SLIPS = 0.1
"""Share of the teacher's votes that are wrong."""


def world(rows: int | None, seed: int) -> World:
    """The first `rows` training problems of the seed."""
    source = chains.ArithSource(seed)
    prompts = [source.prompt(index) for index in range(rows or PROBLEMS)]
    return World(prompts, lambda prompt, text: chains.verify(prompt.answer, text, True), chains.steps)


def teacher(problem: str, steps: Sequence[str], reference: str | None, seed: str) -> Verdict:
    """One vote: the oracle's verdict, but that in `SLIPS` of all it is any other one. Several votes that must agree are worth more."""
    label, rng = truth(problem, steps), random.Random(seed)
    if rng.random() < SLIPS:
        label = rng.choice([other for other in range(-1, len(steps)) if other != label])
    return Verdict.sound() if label < 0 else Verdict.flawed(label)


def truth(problem: str, steps: Sequence[str]) -> int:
    """The oracle's first wrong step, −1 = none."""
    flaw = chains.first_flaw(chains.parse(problem), chains.written(steps[:-1], steps[-1].removeprefix("#")))
    return -1 if flaw is None else flaw[0]
