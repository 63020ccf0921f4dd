"""Critic rows of the embedded world: solutions with a right final answer, and the oracle's index of the first wrong step.

What a critic trains on are the flaws of the world's careless student (`chains.demonstration`: lost carries, skipped steps, guesses, …).
Four kinds of flaw are planted on purpose and never trained on, to see what a critic makes of new ones (`UNSEEN`).

The critic that it imitates in its warm start is careless as well: it often counts steps from one, as untrained judges do. Its verdict
is right all the same, so that a reward for the verdict alone leaves the habit, and R_process has something to teach.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from soundrl.engine.environments.arithmetic import chains
from soundrl.fapo.records import Outcome, Prompt
from soundrl.genrm.critic_data.labelled import Labelled, labelled_prompt
from soundrl.genrm.prompts import PROMPTS

ROWS = 400
"""Of a test set, where no number is given."""
UNSEEN = ("repair", "operand", "swap", "extra")


@dataclass(frozen=True, kw_only=True)
class CriticRow(Labelled):
    chain: chains.Problem
    kind: str
    """`sound`, `student` or one of `UNSEEN`."""


def plant(problem: chains.Problem, kind: str, rng: random.Random) -> str:
    """A solution with a right final answer and one planted flaw at a random step; every other step is as it should be.

    * `repair`: a wrong result (any digits) that the next step, or the answer, ignores: `71+2=75 / 73-2=71`.
    * `operand`: a left side that is not the result before, though the step's own result is right: `71+2=73 / 63-2=71`.
    * `swap`: the operand of another operation, with the result that the right one has: `71+2=73` written as `71+5=73`.
    * `extra`: a line too many, itself true: `66+2=68 / 68-0=68`.
    """
    values = problem.values
    lines = [f"{values[i]}{sign}{operand}={values[i + 1]}" for i, (sign, operand) in enumerate(problem.operations)]
    at = rng.randrange(len(lines))
    sign, operand = problem.operations[at]

    def other(value: int, low: int, high: int) -> int:
        return rng.choice([n for n in range(low, high) if n != value])

    if kind == "repair":
        lines[at] = f"{values[at]}{sign}{operand}={other(values[at + 1], 0, 100)}"
    elif kind == "operand":
        lines[at] = f"{other(values[at], 0, 100)}{sign}{operand}={values[at + 1]}"
    elif kind == "swap":
        lines[at] = f"{values[at]}{sign}{other(operand, 2, 10)}={values[at + 1]}"
    else:
        assert kind == "extra"
        lines.append(f"{values[-1]}-0={values[-1]}")
    return chains.written(lines, problem.answer)


class ArithCriticSource:
    """An endless source of critic prompts: number `index` follows from (seed, index) alone; every second row is flawed.

    `split` is `train` or `test`, which share no problem. Flaws are a student's own, or with `unseen` all of the kinds of `UNSEEN`.
    `prompt` is asked by (`soundrl.genrm.prompts`), and answered in the box.
    """

    def __init__(self, seed: int, split: str = "train", unseen: bool = False, prompt: str = "own") -> None:
        self.seed, self.unseen, self.asked = seed, unseen, PROMPTS[prompt]
        self.problems = chains.ArithSource(seed, split)
        self.name = f"arith-critic-{split}" + ("-unseen" if unseen else "")

    def _id(self, index: int) -> str:
        return f"{self.name}:{self.seed}:{index}"

    def row(self, index: int) -> CriticRow:
        rng = random.Random(f"{self.name}/{self.seed}/{index}")
        flawed = rng.random() < 0.5
        while True:
            problem = self.problems.drawn(rng)
            kind = "sound" if not flawed else rng.choice(UNSEEN) if self.unseen else "student"
            text = plant(problem, kind, rng) if kind in UNSEEN else chains.demonstration(problem, rng, flawed)
            row = labelled(self._id(index), problem, text, kind)
            if (row.label >= 0) == flawed and chains.verify(problem.answer, text, True) is Outcome.CORRECT:
                return row

    def prompt(self, index: int) -> Prompt:
        return self._prompt(self.row(index))

    def _prompt(self, row: CriticRow) -> Prompt:
        return labelled_prompt(row, f"{self.name}/{row.kind}", self.asked.name)

    def _said(self, row: CriticRow, named: int | None = None, to_the_end: bool = False) -> str:
        """The critique in the box's own language: an index, or True and False."""
        said = critique(row.chain, row.steps, row.label, named, to_the_end)
        return said if self.asked.locates else f"{said[: said.rindex('{')]}{{{row.label < 0}}}"

    def demonstration(self, index: int, planted: bool) -> tuple[Prompt, str]:
        """For the warm start: a prompt and its critique. First (not `planted`) drills, in which six results of ten are wrong and every one
        is judged: sums and comparisons form there, and not in rows that are mostly right, where copying what is stated pays. Then whole
        solutions, most of them of a student three times as careless, whether or not the answer is right."""
        rng = random.Random(f"{self.name}/{self.seed}/{index}/demonstration")
        problem = self.problems.problem(index)
        if not planted:
            row = drill(self._id(index), problem, rng)
            return self._prompt(row), self._said(row, to_the_end=True)
        row = self.row(index)
        if rng.random() < CARELESS_SHARE:
            row = labelled(row.id, problem, chains.demonstration(problem, rng, True, CARELESS), "careless")
        # The last step has none after it: that index would be no verdict at all.
        miscounts = 0 <= row.label < len(row.steps) - 1 and rng.random() < MISCOUNT
        return self._prompt(row), self._said(row, row.label + miscounts)


def arith(rows: int | None, seed: int, split: str, unseen: bool = False) -> list[Labelled]:
    """The first `rows` solutions (None: 400), for `soundrl.genrm.critic_data.labelled.load_labelled`."""
    source = ArithCriticSource(seed, split, unseen)
    return [source.row(i) for i in range(rows or ROWS)]


def arith_unseen(rows: int | None, seed: int, split: str) -> list[Labelled]:
    """The same with the kinds of flaw that no critic is trained on."""
    return arith(rows, seed, split, unseen=True)


CARELESS_SHARE, CARELESS, DRILL_WRONG, DRILL_ANY, MISCOUNT = 0.7, 3.0, 0.6, 0.6, 0.3


def labelled(id: str, problem: chains.Problem, text: str, kind: str) -> CriticRow:
    """A solution with the oracle's label."""
    label, _ = chains.first_flaw(problem, text) or (-1, "")
    return CriticRow(id=id, problem=problem.text, steps=chains.steps(text), label=label, answer=problem.answer, chain=problem, kind=kind)


def drill(id: str, problem: chains.Problem, rng: random.Random) -> CriticRow:
    """The problem's first operations, each result wrong with `DRILL_WRONG`: most are any number, others a carry lost, ten off, another
    digit. Mostly near misses would let the stated result stand for the sum."""
    problem = chains.Problem(problem.start, problem.operations[: rng.randint(1, len(problem.operations))], problem.place)
    lines, value = [], problem.start
    for sign, operand in problem.operations:
        result = chains.OPERATIONS[sign](value, operand)
        if rng.random() < DRILL_WRONG:
            near = (chains.without_carry(value, sign, operand), result + rng.choice((-10, 10)), result // 10 * 10 + rng.randrange(10))
            result = rng.randrange(100) if rng.random() < DRILL_ANY else rng.choice(near)
        result = min(max(result, 0), 99)  # from a wrong value the right result may leave 0 … 99
        lines.append(f"{value}{sign}{operand}={result}")
        value = result
    return labelled(id, problem, chains.written(lines, chains.digit(value, problem.place)), "drill")


def critique(problem: chains.Problem, steps: tuple[str, ...], label: int, named: int | None = None, to_the_end: bool = False) -> str:
    r"""What the world's critic says: each step as it stands, what it should come to, and a word on it, up to the first wrong step (or
    `to_the_end`); then the index, or the one `named` instead.

    What it should come to is worked out from the result *stated* before, so one careless step does not condemn those that follow it.

    >>> critique(chains.parse("58+7-2+3?1\n"), ("58+7=55", "55-2=53", "53+3=56", "#6"), 0)
    '58+7=55?65 wrong \\boxed{0}'
    >>> critique(chains.parse("58+7-2+3?1\n"), ("58+7=65", "65-2=63", "63+3=66", "#6"), -1)
    '58+7=65?65 ok 65-2=63?63 ok 63+3=66?66 ok #6?6 ok \\boxed{-1}'
    >>> critique(chains.parse("58+7-2?1\n"), ("58+7=55", "55-2=53", "#3"), 0, to_the_end=True)
    '58+7=55?65 wrong 55-2=53?53 ok #3?3 ok \\boxed{0}'
    """
    said, stated = [], problem.start
    for i in range(len(steps) if label < 0 or to_the_end else label + 1):
        if i < len(problem.operations):
            sign, operand = problem.operations[i]
            expected = str(chains.OPERATIONS[sign](stated, operand))
        else:
            expected = chains.digit(stated, problem.place)
        match = chains.EQUATION.fullmatch(steps[i])
        result = match[4] if match else steps[i].removeprefix("#")
        wrong = i == label or (0 <= label < i and result != expected)
        said += [f"{steps[i]}?{expected}", "wrong" if wrong else "ok"]
        stated = int(result) if match else stated
    return " ".join([*said, f"\\boxed{{{label if named is None else named}}}"])
