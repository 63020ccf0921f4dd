"""Verifiers by name: which a row gets, numbers with tolerances, exact texts, and reasoning-gym's own scorers."""

from dataclasses import replace

import pytest

from soundrl.engine.recipes import RECIPES
from soundrl.fapo.data.files import TAGGED, load_prompts
from soundrl.fapo.data.rows import RowError
from soundrl.fapo.records import Check, Outcome, Prompt, Rollout
from soundrl.fapo.verify.answer import written
from soundrl.fapo.verify.verifiers import VERIFIERS, Verifiers, row_verifier, verifier_of

RIGHT, WRONG, NONE = Outcome.CORRECT, Outcome.WRONG, Outcome.NO_ANSWER


@pytest.fixture(scope="module")
def verifiers():
    with Verifiers(workers=1, cpu_limit=5.0) as made:
        yield made


def check(of: Verifiers, prompt: Prompt, response: str):
    same = {"prompt_tokens": (7,), "tokens": (1,), "logprobs": (0,), "finish_reason": "stop", "policy_version": 0}
    return of.submit(prompt, Rollout(prompt_id=prompt.id, sample=0, text=response, **same), response).result()  # type: ignore[arg-type]


def test_a_row_gets_the_verifier_that_is_asked_for_or_its_own_or_that_of_its_form():
    row = Prompt(id="a", text="?", answer="C", form="choice", verifier="exact")
    assert [verifier_of(each, asked) for each, asked in ((row, "number"), (row, ""), (replace(row, verifier=""), ""))] == [
        "number", "exact", "choice",
    ]  # fmt: skip
    assert verifier_of(replace(row, verifier="", form="box")) == "math"
    assert [row_verifier("rule", "", "gsm8k"), row_verifier("number"), row_verifier("rule", "exact"), row_verifier("", "", "choice")] == [
        "", "number", "exact", "choice",
    ]  # fmt: skip
    for given, message in ((("model",), "reward_model.style: 'model' is no verifier"), (("", "maths"), "verifier: 'maths' is no verifier")):
        with pytest.raises(RowError, match=f"^{message}; use one of math, choice, number, exact, reasoning-gym"):
            row_verifier(*given)


def test_what_was_found_is_told(verifiers):
    row = Prompt(id="a", text="?", answer="1/2")
    assert check(verifiers, row, r"so \boxed{0.5}") == Check(outcome=RIGHT, extracted="0.5")
    assert check(verifiers, row, r"so \boxed{0.6}") == Check(outcome=WRONG, extracted="0.6")
    assert check(verifiers, row, "so") == Check(outcome=NONE)
    assert check(verifiers, replace(row, answer=r"\sqrt2"), r"\boxed{2^{1/2}}") == Check(outcome=RIGHT, extracted="2^{1/2}")


@pytest.mark.parametrize(
    ("reference", "answer", "tolerance", "outcome"),
    [
        ("1000", "1,000", None, RIGHT), ("0.5", r"\frac12", None, RIGHT), ("0.5", "50%", None, WRONG), ("50%", "0.5", None, RIGHT),
        ("3.14159", "3.14", None, WRONG), ("3.14159", "3.14", 0.01, RIGHT), ("3.14159", "3.2", 0.01, WRONG), ("200", "198", "1%", RIGHT),
        ("200", "197.9", "1%", WRONG), ("-5", "5", 1, WRONG), ("7", "3+4", None, WRONG), ("7", "seven", 10, WRONG),
        ("7", "x = 7", None, RIGHT), ("12", "12 cm", None, RIGHT), ("1/3", "0.333", "0.001", RIGHT),
        ("1/3", "0.333", None, WRONG), ("0", "1e-9", 1e-6, RIGHT),
        ("7", r"\sqrt{49}", None, WRONG), ("2.5%", "0.025", 0.001, RIGHT), ("1e3", "1000", None, RIGHT), ("7", "7 or 8", 1, WRONG),
    ],
)  # fmt: skip
def test_numbers(verifiers, reference, answer, tolerance, outcome):
    row = Prompt(id="a", text="?", answer=reference, verifier="number", row={"tolerance": tolerance})
    assert verifiers.unusable([row]) == [None]
    assert check(verifiers, row, rf"\boxed{{{answer}}}") == Check(outcome=outcome, extracted=answer)


def test_numbers_that_are_none_and_exact_texts(verifiers):
    rows = [
        Prompt(id="a", text="?", answer=answer, verifier="number", row=row) for answer, row in (("x", {}), ("7", {"tolerance": "wide"}))
    ]
    rows += [Prompt(id="a", text="?", answer="any {", verifier="exact"), Prompt(id="a", text="?", answer="{", verifier="math")]
    number, tolerance, exact, math = verifiers.unusable(rows)
    assert number == "the reference answer 'x' is no number" and exact is None and "unbalanced braces" in (math or "")
    assert tolerance == "the tolerance 'wide' is no number of at least 0, nor a percentage like 1%"
    row = Prompt(id="a", text="?", answer="Évry", form="tag", verifier="exact")
    texts = ("<answer> Évry </answer>", "<answer>évry</answer>", "<answer>Évry</answer><answer>Paris</answer>", "Évry")
    assert [check(verifiers, row, text).outcome for text in texts] == [RIGHT, WRONG, WRONG, NONE]


@pytest.mark.parametrize(
    ("name", "garbage"),
    [("chain_sum", 0.0), ("countdown", 0.01), ("tower_of_hanoi", 0.0), ("n_queens", 0.0), ("acre", 0.5), ("word_ladder", 0.0)],
)
def test_generated_problems_have_their_own_scorers(verifiers, name, garbage):
    """Also those with many right answers, and with answers of several lines, which come in tags."""
    rows = load_prompts(f"rg:{name}?size=2&seed=2")
    assert all(row.verifier == "reasoning-gym" and verifiers.unusable([row]) == [None] for row in rows)
    for row in rows:
        assert row.messages is not None and (row.form == "tag") == ("\n" in row.answer) == row.messages[0]["content"].endswith(TAGGED)
        right, wrong = (check(verifiers, row, written(text, row.form)) for text in (row.answer, "none of it"))
        assert (right.outcome, right.reward, right.extracted) == (RIGHT, 1.0, row.answer) and wrong.outcome is WRONG
        assert 0.0 <= wrong.reward <= garbage
        assert check(verifiers, row, "I do not know") == Check(outcome=NONE, reward=0.0)
    assert check(verifiers, rows[0], written("1", rows[0].form) + written("2", rows[0].form)).outcome is WRONG


def test_another_right_answer_than_the_reference_is_right(verifiers):
    """4 and 6 make 10 in two ways; math would call one of them wrong."""
    (row,) = load_prompts("rg:countdown?size=1&seed=2&min_numbers=2&max_numbers=2")
    left, sign, right = row.answer.split()
    other = {"+": f"{right} + {left}", "*": f"{right} * {left}", "-": f"-{right} + {left}", "/": f"({left}) / {right}"}[sign]
    assert check(verifiers, row, written(other, row.form)).reward == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"verifier": "maths"}, "data.verifier is maths; use one of math, choice"),
        ({"form": "boxed"}, "data.form is boxed; use one of box, answer_line"),
        ({"verifier": "reasoning-gym"}, "data.verifier reasoning-gym scores its own problems alone"),
        ({"reward": ("here", 1.0)}, "data.reward here is for a verifier of one's own, but data.verifier is empty"),
        ({"reward": ("pool", 0.5)}, "data.reward pool 0.5 is a threshold for rewards that are numbers"),
        ({"reward": ("pool", float("nan")), "verifier": "a.py:b"}, "data.reward pool nan is no reward"),
        (
            {"train": ("arith",), "verifier": "number"},
            "data.verifier number is for problem files and data sets, but arith checks by itself",
        ),
    ],
)
def test_settings_that_would_change_nothing_are_conflicts(settings, message):
    config = RECIPES["smollm2-gsm8k"]()
    with pytest.raises(ValueError, match=message):
        replace(config, data=replace(config.data, **settings))
    assert set(VERIFIERS) == {"math", "choice", "number", "exact", "reasoning-gym"}
