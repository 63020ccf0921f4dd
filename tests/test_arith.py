"""The embedded world: problems, demonstrations and the oracle."""

import random

import pytest

from soundrl.engine.environments.arithmetic.chains import (
    ArithSource,
    Problem,
    demonstration,
    digit,
    draw,
    first_flaw,
    held_out,
    oracle,
    parse,
    verify,
    without_carry,
)
from soundrl.fapo.records import Outcome, Prompt, Rollout, Verdict

PROBLEM = Problem(71, (("+", 2), ("-", 2), ("-", 5), ("+", 2)), 1)
SOUND = "71+2=73\n73-2=71\n71-5=66\n66+2=68\n#8\n"


def test_the_specified_example():
    assert PROBLEM.text == "71+2-2-5+2?1\n"
    assert parse(PROBLEM.text) == PROBLEM
    assert PROBLEM.answer == "8"
    assert demonstration(PROBLEM, random.Random(0), planted=False) == SOUND
    assert first_flaw(PROBLEM, SOUND) is None


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        ("71+2=73\nhm\n71-5=66\n66+2=68\n#8\n", (1, "form")),
        (SOUND.replace("#8", "68+1=69\n#8"), (4, "extra")),
        ("71+2=73\n73-5=68\n68+2=70\n#8\n", (1, "skip")),
        ("71+2=73\n72-2=70\n70-5=65\n65+2=67\n#8\n", (1, "operand")),
        ("71+2=83\n83-2=81\n81-5=76\n76+2=78\n#8\n", (0, "false")),
        ("71+2=73\n73-2=71\n#8\n", (2, "guess")),
        ("#8\n", (0, "guess")),
        (SOUND.replace("#8", "#7"), (4, "final")),
        (SOUND.replace("66+2=68", "66+02=68"), (3, "form")),  # plain decimal, no padding
        ("٧1+2=73\n#8\n", (0, "form")),  # digits of other scripts are no digits here
    ],
)
def test_the_oracle_names_the_first_failure(text, flaw):
    assert first_flaw(PROBLEM, text) == flaw


def test_a_lost_carry_keeps_the_units_digit_but_not_the_tens():
    assert without_carry(58, "+", 7) == 55 and 58 + 7 == 65
    assert without_carry(52, "-", 7) == 55 and 52 - 7 == 45
    assert without_carry(14, "*", 6) == 64 and 14 * 6 == 84
    assert [digit(68, 1), digit(68, 2), digit(5, 2)] == ["8", "6", "0"]


@pytest.mark.parametrize(
    ("text", "finished", "outcome"),
    [
        ("#8\n", True, Outcome.CORRECT),
        ("#8", True, Outcome.CORRECT),
        ("#7#8\n", True, Outcome.CORRECT),  # the last one counts
        ("#8#7\n", True, Outcome.WRONG),
        ("8\n", True, Outcome.NO_ANSWER),
        ("#8\n", False, Outcome.NO_ANSWER),  # cut off before the end mark
        ("#\n", True, Outcome.UNPARSEABLE),
        ("#88\n", True, Outcome.UNPARSEABLE),
    ],
)
def test_the_rule(text, finished, outcome):
    assert verify("8", text, finished) is outcome


def test_problems_follow_the_specification():
    rng = random.Random(1)
    problems = [draw(rng) for _ in range(4000)]
    assert all(0 <= v <= 99 for p in problems for v in p.values)
    assert {len(p.operations) for p in problems} == {3, 4}
    share = sum(p.place == 2 for p in problems) / len(problems)
    assert 0.08 < share < 0.12
    assert all(sign != "*" for p in problems for sign, _ in p.operations[1:])


def test_training_and_test_problems_are_disjoint_and_reproducible():
    train, test = ArithSource(0), ArithSource(0, "test")
    assert not any(held_out(train.problem(i)) for i in range(500))
    assert all(held_out(test.problem(i)) for i in range(100))
    assert train.prompt(7) == ArithSource(0).prompt(7) != ArithSource(1).prompt(7)
    assert all(ArithSource(0, "test", place=2).problem(i).place == 2 for i in range(50))


def test_planted_demonstrations_have_the_calibrated_shares():
    source, correct, flawed = ArithSource(0), 0, 0
    for i in range(3000):
        prompt, text = source.demonstration(i, planted=True)
        if verify(prompt.answer, text, True) is Outcome.CORRECT:
            correct += 1
            flawed += first_flaw(parse(prompt.text), text) is not None
    assert 0.77 < correct / 3000 < 0.84
    assert 0.24 < flawed / correct < 0.31
    assert all(first_flaw(source.problem(i), source.demonstration(i, planted=False)[1]) is None for i in range(300))


def test_the_oracle_judges_rollouts():
    prompt = Prompt(id="x", text=PROBLEM.text, answer="8")

    def judged(text: str) -> Verdict:
        return oracle(
            prompt,
            Rollout(prompt_id="x", sample=0, prompt_tokens=(), tokens=(), logprobs=(), text=text, finish_reason="stop", policy_version=0),
        )

    assert judged(SOUND) == Verdict.sound()
    assert judged("#8\n") == Verdict.flawed(0, "guess")


def test_a_text_that_is_no_problem_is_refused():
    with pytest.raises(ValueError, match=r"'1\+1' is no problem of the embedded world"):
        parse("1+1")
