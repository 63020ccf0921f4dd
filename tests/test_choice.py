"""Options by letter: 250 written answers, options in rows and prompts, references as letters and texts; and the form JSON."""

import json

import pytest
from choice_answers import ANSWERS, LONG, OPTIONS

from soundrl.fapo.records import Outcome, Prompt, Rollout
from soundrl.fapo.verify.answer import asked_form, final_answer, written
from soundrl.fapo.verify.choice import LETTERS, final_choice, letter_of, options_of
from soundrl.fapo.verify.verifiers import Verifiers

ROLLOUT = Rollout(prompt_id="a", sample=0, prompt_tokens=(7,), tokens=(1,), logprobs=(0,), text="", finish_reason="stop", policy_version=0)


def outcome(response: str, answer: str, options: tuple[str, ...], **fields) -> Outcome:
    prompt = Prompt(id="a", text="Which?", answer=answer, form="choice", row={"options": list(options)}, **fields)
    return Verifiers().submit(prompt, ROLLOUT, response).result().outcome


def test_two_hundred_written_answers():
    """Each against every option as the reference: right for its own alone. 0 false accepts, and at most 1 % false rejects."""
    false_accepts, false_rejects, count = [], [], 0
    for style, answers in ANSWERS.items():
        options = LONG if style == "long options" else OPTIONS
        for truth, response in answers:
            count += truth != "-"
            for letter in LETTERS[: len(options)]:
                right = outcome(response, letter, options) is Outcome.CORRECT
                if right and letter != truth:
                    false_accepts.append((style, response, letter))
                if not right and letter == truth:
                    false_rejects.append((style, response, letter))
    assert sum(map(len, ANSWERS.values())) >= 200 and len(ANSWERS) >= 12 and count >= 150
    assert not false_accepts and len(false_rejects) <= count // 100, false_rejects


def test_without_known_options_no_letter_is_taken_for_another():
    """The options' texts help to find answers, and to refuse letters with another's text; letters alone are read without them."""
    for style, answers in ANSWERS.items():
        if style in ("another option's text", "long options"):
            continue
        for truth, response in answers:
            found = None if "<think>" in response else final_choice(response)
            if found is not None and not found.hedged and truth != "-":
                assert found.text == truth, (style, response)


def test_references_are_letters_or_texts():
    assert [outcome("Answer: C", answer, OPTIONS) for answer in ("C", "c", "(C)", "C) 5 m/s", "5 m/s", "$5$ m/s.")] == [Outcome.CORRECT] * 6
    assert outcome("Answer: C", "3 m/s", OPTIONS) is Outcome.WRONG and outcome("Answer: E", "C", OPTIONS) is Outcome.WRONG
    assert letter_of("7 m/s", OPTIONS) is None and letter_of("E", OPTIONS) is None and letter_of("E") == "E"
    rows = [Prompt(id="a", text="?", answer=answer, form="choice", row={"options": list(OPTIONS)}) for answer in ("C", "7 m/s", "E")]
    rows.append(Prompt(id="a", text="Which?", answer="many", form="choice"))
    assert Verifiers().unusable(rows) == [
        None,
        "the reference answer '7 m/s' is none of the 4 options, nor a letter of theirs",
        "the reference answer 'E' is none of the 4 options, nor a letter of theirs",
        "the reference answer 'many' is no letter of an option, A to J",
    ]


@pytest.mark.parametrize(
    ("row", "text", "options"),
    [
        ({"options": ["3", "4"]}, "", ("3", "4")),
        ({"choices": {"text": ["3", "4"], "label": ["A", "B"]}}, "", ("3", "4")),
        ({"options": {"A": "3", "B": "4", "C": "5"}}, "", ("3", "4", "5")),
        ({"options": ["A) 3", "B) 4"]}, "", ("3", "4")),
        ({}, "2+2?\n\nA) 3\nB) 4\nC) 5\nD) 6\n\nAnswer with the letter.", ("3", "4", "5", "6")),
        ({}, "2+2? (A) 3 (B) 4 (C) 5", ("3", "4", "5")),
        ({}, "2+2?\nA. three\nB. four", ("three", "four")),
        ({}, "Plan A) is old.\n\nA) 3\nB) 4", ("3", "4")),
        ({}, "Let A, B and C be points.", ()),
        ({"options": "3, 4"}, "Which?", ()),
    ],
)
def test_options_stand_in_the_row_or_in_the_prompt(row, text, options):
    assert options_of(row, text) == options


GPQA = (
    "Answer the following multiple choice question. The last line of your response should be of the following format: 'Answer: $LETTER' "
    "(without quotes) where LETTER is one of ABCD. Think step by step before answering.\n\nWhich?\n\nA) 1\nB) 2\nC) 3\nD) 4"
)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (GPQA, "choice"),
        ("Which?\n(A) 1\n(B) 2\nAnswer with the letter of the correct option.", "choice"),
        ("Which? Put the letter of your choice within \\boxed{}.", "choice"),
        ("Respond with only the letter (A, B, C, or D).", "choice"),
        ("2+2? Respond in JSON with the key answer.", "json"),
        ('Give {"answer": ...}.', "json"),
        ("How many letters has the word? Put your answer within \\boxed{}.", "box"),
        ("Points A, B, C and D lie on a line. Finish with 'The answer is X.'", "phrase"),
        ("Write a letter to the editor.", None),
    ],
)
def test_what_prompts_ask_for(text, form):
    assert asked_form([text]) == form


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ('{"answer": "34"}', "34"),
        ('So:\n```json\n{\n  "reasoning": "two {each}",\n  "answer": 34\n}\n```', "34"),
        ('{"answer": 3.50}', "3.50"),
        ('{"answer": "\\frac{1}{2}"}', r"\frac{1}{2}"),
        (json.dumps({"answer": r"\frac{1}{2}"}), r"\frac{1}{2}"),
        ('{"a": {"answer": "1"}, "Answer": "34"}', "34"),
        ('{"answer": "1"}\n\n{"answer": "34"}', "34"),
        ('{"final_answer": -34}', "-34"),
        ('{"answer": ["1", "2"]}', "1, 2"),
        ("\\boxed{34}", "34"),
    ],
)
def test_answers_in_json(response, text):
    answer = final_answer(response, form="json")
    assert answer is not None and (answer.text, answer.hedged) == (text, False)


@pytest.mark.parametrize(
    "response", ['{"answer": "34"', '{"answer": null}', '{"answer": {}}', "{34}", '{"ans": "34"}', "34", '{"answer": ""}']
)
def test_no_answers_in_json(response):
    assert final_answer(response, form="json") is None


def test_two_objects_of_a_paragraph_hedge():
    assert final_answer('{"answer": "34"} {"answer": "35"}', form="json").hedged  # type: ignore[union-attr]
    assert not final_answer('{"answer": "34"} {"answer": "34.0"}', form="json").hedged  # type: ignore[union-attr]


@pytest.mark.parametrize("form", ["box", "answer_line", "hashes", "tag", "phrase", "json", "choice"])
def test_what_is_written_in_a_form_is_read_in_it(form):
    answer = final_answer(written("B", form), form=form)
    assert answer is not None and answer.text == "B" and not answer.hedged


def test_any_text_is_read_in_linear_time():
    """Quadratic code takes hours at this size, and ends the suite."""
    for unit in ("Answer: C\n", "<answer>", "the answer is C. ", "answer ", " ", "\n", '{"answer": ', "(A) ", "\\boxed{", "Option A is "):
        text = "answer" + unit * (50_000 // len(unit))
        final_choice(text, OPTIONS)
        options_of({}, text)
        final_answer(text, form="json")
