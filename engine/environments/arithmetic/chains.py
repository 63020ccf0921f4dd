"""The embedded world: chains of arithmetic with an exact oracle for the first wrong step. Needs no download.

A problem is a start value, k ∈ {3, 4} operations to be done strictly left to right, and the digit that is asked for
(p = 1 units, p = 2 tens). A sound solution states one equation a line, then the digit:

    71+2-2-5+2?1        prompt
    71+2=73
    73-2=71
    71-5=66
    66+2=68
    #8                  answer: the units digit of 68

With p = 1 a lost carry (`58+7=55`) leaves the asked digit right: flawed positives arise by themselves. The oracle finds
the first flaw exactly, so it measures policies and judges alike.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from soundrl.fapo.records import Outcome, Prompt, Rollout, Turn, Verdict

ALPHABET = "0123456789+-*=?#\n"
PAD, END = "<pad>", "<end>"

NUMBER = r"(0|[1-9]\d{0,3})"  # plain decimal, no padding
EQUATION = re.compile(rf"{NUMBER}([+\-*]){NUMBER}={NUMBER}", re.ASCII)
OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}

Response = str | tuple[Turn, ...]

P_MULTIPLY_FIRST, P_TENS = 0.3, 0.1
HELD_OUT_OF_256 = 16  # share of all problems that only evaluation sees, decided by a hash of the problem's text

# Shares of planted errors in demonstrations (calibrated so that the warm-started policy is 25–45 % flawed among correct).
SLOPPY, SKIP, GUESS, GUESS_RIGHT = 0.10, 0.06, 0.08, 0.6
STEP_TENS, STEP_UNITS, FINAL_DIGIT = 0.03, 0.05, 0.04


@dataclass(frozen=True)
class Problem:
    """`start` and `operations` ((sign, operand), …); `place` 1 asks for the units digit of the result, 2 for the tens."""

    start: int
    operations: tuple[tuple[str, int], ...]
    place: int

    @property
    def text(self) -> str:
        return f"{self.start}{''.join(f'{sign}{operand}' for sign, operand in self.operations)}?{self.place}\n"

    @property
    def values(self) -> list[int]:
        """Start value and the true result after each operation."""
        values = [self.start]
        for sign, operand in self.operations:
            values.append(OPERATIONS[sign](values[-1], operand))
        return values

    @property
    def answer(self) -> str:
        return digit(self.values[-1], self.place)


def digit(value: int, place: int) -> str:
    """`digit(68, 1) == "8"`, `digit(68, 2) == "6"`, `digit(5, 2) == "0"`."""
    return str(value // 10 ** (place - 1) % 10)


def held_out(problem: Problem) -> bool:
    return hashlib.blake2b(problem.text.encode(), digest_size=1).digest()[0] < HELD_OUT_OF_256


def draw(rng: random.Random, place: int | None = None) -> Problem:
    """A random problem whose intermediate values all lie in 0…99; `place` None draws it (p = 2 with 0.1).

    Signs are drawn once and the numbers until they fit: rejecting whole problems would leave products at 7 % instead of 30 %, too few
    to learn their tens digit, and groups in which every rollout is flawed have no signal.
    """
    signs = [rng.choice("+-") for _ in range(rng.choice((3, 4)))]
    if rng.random() < P_MULTIPLY_FIRST:
        signs[0] = "*"
    place = place or (2 if rng.random() < P_TENS else 1)
    while True:
        problem = Problem(rng.randint(11, 99), tuple((sign, rng.randint(2, 9)) for sign in signs), place)
        if all(0 <= value <= 99 for value in problem.values):
            return problem


def without_carry(left: int, sign: str, right: int) -> int:
    """The lost carry: the units digit is right, the tens are not touched by it.

    >>> without_carry(58, "+", 7), without_carry(52, "-", 7), without_carry(14, "*", 6), without_carry(58, "+", 37)
    (55, 55, 64, 85)
    """
    units = OPERATIONS[sign](left % 10, right) % 10
    tens = left // 10 * right if sign == "*" else OPERATIONS[sign](left // 10, right // 10)
    return 10 * tens + units


def written(lines: Sequence[str], answer: str) -> str:
    """`written(["71+2=73"], "3") == "71+2=73\\n#3\\n"`."""
    return "".join(f"{line}\n" for line in [*lines, f"#{answer}"])


def demonstration(problem: Problem, rng: random.Random, planted: bool, rate: float = 1.0) -> str:
    """A worked solution; with `planted`, one with the flaws of a careless student (errors propagate), `rate` times as many."""
    sloppy = planted and rng.random() < rate * SLOPPY
    skip = guess = None
    if planted and rng.random() < rate * SKIP:
        skip = rng.randrange(len(problem.operations))
    elif planted and rng.random() < rate * GUESS:
        guess = rng.randint(1, len(problem.operations) - 1)
    lines, value = [], problem.start
    for i, (sign, operand) in enumerate(problem.operations):
        if i == guess:
            return written(lines, problem.answer if rng.random() < GUESS_RIGHT else str(rng.randrange(10)))
        result = without_carry(value, sign, operand) if sloppy else OPERATIONS[sign](value, operand)
        if planted and rng.random() < rate * STEP_TENS:
            result += rng.choice((-10, 10))
        if planted and rng.random() < rate * STEP_UNITS:
            result = result // 10 * 10 + rng.randrange(10)
        result = min(max(result, 0), 99)
        if i != skip:
            lines.append(f"{value}{sign}{operand}={result}")
        value = result
    final = digit(value, problem.place)
    if planted and rng.random() < rate * FINAL_DIGIT:
        final = str(rng.randrange(10))
    return written(lines, final)


def parse(text: str) -> Problem:
    """The problem of a prompt's text. ValueError where it is none."""
    match = re.fullmatch(r"(\d+)((?:[+\-*]\d+)+)\?([12])\n", text, re.ASCII)
    if match is None:
        raise ValueError(f"{text!r} is no problem of the embedded world; expected the form '71+2-2-5+2?1\\n'")
    operations = re.findall(r"([+\-*])(\d+)", match[2], re.ASCII)
    return Problem(int(match[1]), tuple((sign, int(operand)) for sign, operand in operations), int(match[3]))


def verify(answer: str, text: str, finished: bool) -> Outcome:
    """The rule: the text after the last `#` is the true digit. No end mark or no `#` is no answer."""
    if not finished or "#" not in text:
        return Outcome.NO_ANSWER
    if not re.fullmatch(r"\d", final := after_mark(text), re.ASCII):
        return Outcome.UNPARSEABLE
    return Outcome.CORRECT if final == answer else Outcome.WRONG


def after_mark(text: str) -> str:
    """What stands after the last `#`; the whole text where there is none."""
    return text.rsplit("#", 1)[-1].strip("\n")


KINDS = ("form", "extra", "skip", "operand", "false", "guess", "final")
"""Of flaws."""


def first_flaw(problem: Problem, text: str) -> tuple[int, str] | None:
    """Index and kind of the first failure of a finished solution, or None where every step is sound.

    Kinds, the first that applies to a line wins: `form` (no equation), `extra` (a line too many), `skip` (not the
    problem's i-th operation), `operand` (left side is not the previous stated result), `false` (the equation does not
    hold); then `guess` (too few lines), `final` (not digit p of the last stated result).

    >>> first_flaw(parse("58+7-2+3?1\\n"), "58+7=55\\n55-2=53\\n53+3=56\\n#6\\n")
    (0, 'false')
    """
    body, _, final = text.rpartition("#")
    lines = [line for line in body.split("\n") if line]
    stated = problem.start
    for i, line in enumerate(lines):
        match = EQUATION.fullmatch(line)
        if match is None:
            return i, "form"
        if i >= len(problem.operations):
            return i, "extra"
        left, sign, right, result = int(match[1]), match[2], int(match[3]), int(match[4])
        if (sign, right) != problem.operations[i]:
            return i, "skip"
        if left != stated:
            return i, "operand"
        if OPERATIONS[sign](left, right) != result:
            return i, "false"
        stated = result
    if len(lines) < len(problem.operations):
        return len(lines), "guess"
    if final.strip("\n") != digit(stated, problem.place):
        return len(lines), "final"
    return None


def steps(text: str) -> tuple[str, ...]:
    """The steps of a solution, as `first_flaw` numbers them: an equation a line, the answer last. Never empty.

    >>> steps("58+7=65\\n65-2=63\\n#3\\n")
    ('58+7=65', '65-2=63', '#3')
    """
    body, mark, final = text.rpartition("#")
    return (*(line for line in body.split("\n") if line), mark + final.strip("\n"))


def oracle(prompt: Prompt, rollout: Rollout) -> Verdict:
    """The exact judge of this world (same interface as any judge, and never `unknown`)."""
    flaw = first_flaw(parse(prompt.text), rollout.text)
    return Verdict.sound() if flaw is None else Verdict.flawed(*flaw)


class ArithSource:
    """An endless source of problems: number `index` follows from (seed, index) alone.

    `split` is `train` or `test`; the two share no problem. `place` fixes the asked digit (2 = the tens-digit set).
    """

    world = "arith"

    def __init__(self, seed: int, split: str = "train", place: int | None = None) -> None:
        self.seed, self.split, self.place = seed, split, place
        self.name = f"{self.world}-{split}" + (f"-p{place}" if place else "")

    def problem(self, index: int) -> Problem:
        return self.drawn(random.Random(f"{self.name}/{self.seed}/{index}"))  # a string seeds through SHA-512: the same on every platform

    def drawn(self, rng: random.Random) -> Problem:
        """One of the split."""
        while held_out(problem := self.draw(rng)) != (self.split == "test"):
            pass
        return problem

    def draw(self, rng: random.Random) -> Problem:
        return draw(rng, self.place)

    def work(self, problem: Problem, rng: random.Random, planted: bool) -> Response:
        return demonstration(problem, rng, planted)

    def prompt(self, index: int) -> Prompt:
        return self._prompt(index, self.problem(index))

    def _prompt(self, index: int, problem: Problem) -> Prompt:
        return Prompt(id=f"{self.name}:{self.seed}:{index}", text=problem.text, answer=problem.answer, source=self.name)

    def demonstration(self, index: int, planted: bool) -> tuple[Prompt, Response]:
        """A prompt and its worked solution for the warm start."""
        rng = random.Random(f"{self.name}/{self.seed}/{index}/demonstration")
        problem = self.problem(index)
        return self._prompt(index, problem), self.work(problem, rng, planted)
