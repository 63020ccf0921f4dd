"""Chains with one operation too hard for the head, for which there is a calculator: problems, demonstrations, and the oracle over turns.

A problem has three operations on a start value. One of them, anywhere, has an operand of two digits, and may carry; the others do not.
Asked for that sum, the calculator says it or refuses (`calculator.answer`); then it is done by hand, tens first:

    64-4+26-2?1        prompt                         54+4+37-4?1
    64-4=60                                           54+4=58
    60+26?             a call ends the turn           58+37?
    > 86               the calculator                 > ?
    86-2=84                                           58+30=88
    #4                                                88+7=95
                                                      95-4=91
                                                      #1

As everywhere in this world a lost carry leaves the units digit right. A sum done in the head without it, another result than the calculator
has said, a call for another sum and a guess where it refuses are flawed positives then.
"""

from __future__ import annotations

import random

from soundrl.engine.environments.arithmetic import calculator, chains
from soundrl.engine.environments.arithmetic.chains import EQUATION, OPERATIONS, Problem, digit
from soundrl.fapo.records import Prompt, Rollout, Turn, Verdict

LENGTH, HARDEST = 3, 49
"""Operations of a problem, and the largest operand."""

# Shares of planted errors in demonstrations (calibrated as those of `chains`). The first four are of the hard operation.
HEAD, OTHER, IGNORE, GUESS_REFUSED = 0.20, 0.08, 0.16, 0.60
SKIP, GUESS, GUESS_RIGHT = 0.04, 0.06, 0.6
STEP_TENS, STEP_UNITS, FINAL_DIGIT = 0.03, 0.05, 0.04

KINDS = (*chains.KINDS, "tool_asked", "tool_ignored", "tool_guessed")
"""Of flaws; the last three are misuse of the tool."""

Operation = tuple[str, int]


def draw(rng: random.Random, place: int | None = None) -> Problem:
    """A random problem whose intermediate values all lie in 0…99; `place` None draws it, as `chains.draw` does."""
    signs, hard = [rng.choice("+-") for _ in range(LENGTH)], rng.randrange(LENGTH)
    place = place or (2 if rng.random() < chains.P_TENS else 1)
    while True:
        operands = [rng.randint(11, HARDEST) if i == hard else rng.randint(1, 9) for i in range(LENGTH)]
        problem = Problem(rng.randint(11, 99), tuple(zip(signs, operands, strict=True)), place)
        steps = list(zip(problem.values, problem.operations, strict=False))
        if all(0 <= value <= 99 for value in problem.values) and not any(carries(*step) for i, step in enumerate(steps) if i != hard):
            return problem


def carries(value: int, operation: Operation) -> bool:
    """Whether the tens digit is touched by the units.

    >>> carries(58, ("+", 7)), carries(52, ("+", 7)), carries(52, ("-", 17)), carries(58, ("-", 17))
    (True, False, True, False)
    """
    sign, operand = operation
    return not 0 <= OPERATIONS[sign](value % 10, operand % 10) <= 9


def by_hand(operation: Operation) -> list[Operation]:
    """The same in steps that a head can do, tens first.

    >>> by_hand(("+", 37)), by_hand(("-", 30)), by_hand(("-", 6))
    ([('+', 30), ('+', 7)], [('-', 30)], [('-', 6)])
    """
    sign, operand = operation
    return [(sign, part) for part in (operand // 10 * 10, operand % 10) if part]


def left_of(operation: Operation, done: Operation) -> list[Operation] | None:
    """What remains of an operation after a step: nothing, or the units after its tens; None where the step is none of it.

    >>> left_of(("+", 37), ("+", 37)), left_of(("+", 37), ("+", 30)), left_of(("+", 37), ("+", 7))
    ([], [('+', 7)], None)
    """
    if done == operation:
        return []
    first, *rest = by_hand(operation)
    return rest if done == first else None


class Student:
    """Works out a demonstration: turns as the policy is to write them, the calculator's between; with `planted` carelessly."""

    def __init__(self, problem: Problem, rng: random.Random, planted: bool) -> None:
        self.problem, self.rng, self.planted = problem, rng, planted
        self.turns, self.text, self.value = list[Turn](), "", problem.start

    def slips(self, rate: float) -> bool:
        return self.planted and self.rng.random() < rate

    def ask(self, operation: Operation) -> int | None:
        """What the calculator says of the sum; None: it refuses."""
        self.turns.append(Turn(text=f"{self.text}{self.value}{operation[0]}{operation[1]}?", own=True))
        said = calculator.reply(self.turns[-1].text)
        assert said is not None
        self.turns.append(Turn(text=said.text, own=False, tool=said.tool, failed=said.failed))
        self.text = ""
        return None if said.failed else int(said.text)

    def head(self, operation: Operation, carry: bool = True) -> int:
        """The result that comes to mind."""
        sign, operand = operation
        return OPERATIONS[sign](self.value, operand) if carry else chains.without_carry(self.value, sign, operand)

    def state(self, operation: Operation, result: int, written: bool = True) -> None:
        """A line; what goes wrong in any."""
        if self.slips(STEP_TENS):
            result += self.rng.choice((-10, 10))
        if self.slips(STEP_UNITS):
            result = result // 10 * 10 + self.rng.randrange(10)
        result = min(max(result, 0), 99)
        if written:
            self.text += f"{self.value}{operation[0]}{operation[1]}={result}\n"
        self.value = result

    def call(self, operation: Operation) -> None:
        """The operation that the calculator is for, with what goes wrong there."""
        sign, operand = asked = operation
        if self.slips(HEAD):
            return self.state(operation, self.head(operation, carry=False))
        if self.slips(OTHER):
            asked = sign, self.rng.choice([tens + operand % 10 for tens in range(10, HARDEST, 10) if tens != operand // 10 * 10])
        if (said := self.ask(asked)) is not None:
            self.value = min(max(said + self.rng.choice((-10, 10)), 0), 99) if self.slips(IGNORE) else said
            return None
        if self.slips(GUESS_REFUSED):
            return self.state(operation, self.head(operation, carry=False))
        for part in by_hand(operation):
            self.state(part, self.head(part))
        return None

    def work(self) -> tuple[Turn, ...]:
        """The demonstration."""
        operations, rng = self.problem.operations, self.rng
        skip = rng.randrange(len(operations)) if self.slips(SKIP) else None
        guess = rng.randint(1, len(operations) - 1) if skip is None and self.slips(GUESS) else None
        for i, operation in enumerate(operations):
            if i == guess:
                return self._end(self.problem.answer if rng.random() < GUESS_RIGHT else str(rng.randrange(10)))
            if operation[1] > 9 and i != skip:
                self.call(operation)
            else:
                self.state(operation, self.head(operation), written=i != skip)
        return self._end(str(rng.randrange(10)) if self.slips(FINAL_DIGIT) else digit(self.value, self.problem.place))

    def _end(self, final: str) -> tuple[Turn, ...]:
        return (*self.turns, Turn(text=f"{self.text}#{final}\n", own=True))


def first_flaw(problem: Problem, text: str) -> tuple[int, str] | None:
    """Index and kind of the first failure of a finished transcript (`calculator.transcript`), or None where every step is sound.

    Steps are lines, the calculator's replies among them. What it says of the next operation stands for that step; an equation may say it
    again. Kinds are those of `chains.first_flaw` and three more: `tool_asked` (a call for anything but the next operation),
    `tool_ignored` (what follows states or uses another result than it has said), `tool_guessed` (a false equation of the sum that it has
    refused, or an answer at once after that).

    >>> first_flaw(chains.parse("64-6+26-4?1\\n"), "64-6=58\\n58+26?\\n> 84\\n74-4=70\\n#0\\n")
    (3, 'tool_ignored')
    """
    body, _, final = text.rpartition("#")
    lines = [line for line in body.split("\n") if line]
    work, refused = _Work(problem), set[calculator.Sum]()
    for i, (line, after) in enumerate(zip(lines, [*lines, ""][1:], strict=True)):
        if line.startswith(calculator.SAID):
            continue
        called, match = after.startswith(calculator.SAID), EQUATION.fullmatch(line)
        if called:
            step = calculator.asked(line)
        else:
            step = (int(match[1]), match[2], int(match[3])) if match else None
        if step is None:
            return i, "tool_asked" if called else "form"
        work.goes_on(step)
        if (kind := work.misses(step)) is not None:
            return i, "tool_asked" if called and kind != "tool_ignored" else kind
        if called and after == calculator.SAID + calculator.REFUSED:
            refused.add(step)
        elif called:
            work.told = step, int(after.removeprefix(calculator.SAID))
        elif match is not None and OPERATIONS[step[1]](step[0], step[2]) != int(match[4]):
            return i, "tool_ignored" if work.told else "tool_guessed" if step in refused else "false"
        elif match is not None:
            work.takes(step, int(match[4]), False)
    work.goes_on(None)
    if work.rest:
        return len(lines), "tool_guessed" if lines and lines[-1] == calculator.SAID + calculator.REFUSED else "guess"
    if final.strip("\n") != digit(work.stated, problem.place):
        return len(lines), "tool_ignored" if work.by_tool else "final"
    return None


class _Work:
    """How far a solution has come."""

    def __init__(self, problem: Problem) -> None:
        self.rest, self.stated, self.by_tool = list(problem.operations), problem.start, False
        self.told: tuple[calculator.Sum, int] | None = None
        """What the calculator has just said, of which sum"""

    def takes(self, step: calculator.Sum, result: int, by_tool: bool) -> None:
        self.rest[:1] = left_of(self.rest[0], step[1:]) or []
        self.stated, self.by_tool, self.told = result, by_tool, None

    def goes_on(self, step: calculator.Sum | None) -> None:
        """Before `step`, which may be what has just been told, once more."""
        if self.told is not None and self.told[0] != step:
            self.takes(*self.told, True)

    def misses(self, step: calculator.Sum) -> str | None:
        """Why the step is not the next one."""
        if not self.rest:
            return "extra"
        if left_of(self.rest[0], step[1:]) is None:
            return "skip"
        return None if step[0] == self.stated else "tool_ignored" if self.by_tool else "operand"


def oracle(prompt: Prompt, rollout: Rollout) -> Verdict:
    """The exact judge of this world."""
    text = calculator.transcript(rollout.turns or (Turn(text=rollout.text, own=True),))
    flaw = first_flaw(chains.parse(prompt.text), text)
    return Verdict.sound() if flaw is None else Verdict.flawed(*flaw)


class CalledSource(chains.ArithSource):
    """As `ArithSource`, of these problems; its demonstrations have turns."""

    world = "arith-tools"

    def draw(self, rng: random.Random) -> Problem:
        return draw(rng, self.place)

    def work(self, problem: Problem, rng: random.Random, planted: bool) -> tuple[Turn, ...]:
        return Student(problem, rng, planted).work()
