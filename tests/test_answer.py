r"""Where a response's answer stands, in each form that prompts ask for, and where its thinking ends."""

import json
from types import SimpleNamespace

import pytest

from soundrl.fapo.data.files import load_prompts
from soundrl.fapo.records import Outcome
from soundrl.fapo.verify.answer import FORMS, asked_form, final_answer
from soundrl.fapo.verify.box import Box
from soundrl.fapo.verify.rule import rule
from soundrl.fapo.verify.thinking import Thoughts, answer_part, opens

RIGHT = {
    "answer_line": [
        "Each hen has 2 legs.\n\nAnswer: 34",
        "2*17 = 34.\nAnswer: $34$",
        "x\n**Answer:** 34",
        "x\n**Answer: 34**",
        "Answer: **34**",
        "Answer: \\boxed{34}",
        "**Answer:** $\\boxed{34}$",
        "so. Answer: 34.",
        "ANSWER: 34",
        "Final Answer: 34",
        "Answer:\n34",
        "**Answer:**\n\n$$\n34\n$$",
        "Answer：34",
        "### Final Answer\n\n34",
        "\\textbf{Answer:} 34",
        "\\textbf{Answer: 34}",
        "Answer: \\(34\\)",
        "Answer: x = 34",
        "Answer: 34 cm",
        "> Answer: 34",
        "I will end in Answer: $Answer.\n\nAnswer: 34",
        "Answer: 12\n\nAnswer: 34",
        "so \\boxed{34}",
        "Answer: 34\n\nSo \\boxed{34}.",
        "Answer: `34`",
        "Answer: 34.0\n\\boxed{34}",
        "The answer is: 34",
        "- **Answer**: 34",
        "Answer: \\[34\\]",
        "Answer: 34\n\nLet me know if it helps!",
    ],
    "hashes": [
        "x\n#### 34",
        "#### Step 1\nadd\n#### 34",
        "#### $34$",
        "####34",
        "#### \\boxed{34}",
        "x\n\n#### 34.",
        "#### Final Answer\n34\n",
        "x #### 34",
        "#### Answer: 34",
        "#### 34\n\n#### Explanation\nTwo each.",
        "so \\boxed{34}",
    ],
    "tag": [
        "<answer>34</answer>",
        "<answer> $34$ </answer>",
        "<answer>so \\boxed{34}</answer>",
        "<think>a</think><answer>\n34\n</answer>",
        "\\boxed{34}",
        "<answer>12</answer>\n\n<answer>34</answer>",
        "<Answer>34</Answer>",
        "<answer>34.</answer>",
        "<answer>The answer is 34.</answer>",
    ],
    "phrase": [
        "The final answer is 34.",
        "The answer is: 34",
        "the answer is $34$. I hope it is correct.",
        "So the final answer is **34**.",
        "\\boxed{34}",
        "The final answer is $\\boxed{34}$.",
        "The answer is 34, since 2*17=34.",
        "Final Answer: The final answer is $34$. I hope it is correct.",
    ],
    "box": ["\\boxed{34}", "\\boxed{34.0}, that is \\boxed{34}"],
}
NOT_RIGHT = {
    "answer_line": [
        "Answer: 34\nAnswer: 35",
        "Answer: 35\nAnswer: 34",
        "Answer: 34 or 35",
        "Answer: 34, Answer: 35",
        "Answer: not 34",
        "Answer: either 34",
        "Answer: approximately 34",
        "Answer: 34?",
        "Answer: 34 (or 35)",
        "Answer: 34\nso \\boxed{35}",
        "Answer: 34\n\n\\boxed{35}",
        "Answer: 34 \\boxed{",
        "Answer: 30+4",
        "Answer: 34 and 35",
        "Answer: 34\\ne 35",
        "Answer: less than 34",
        "Answer: probably 34",
        "Answer: 34 is wrong",
        "Answer: 34, not 35",
        "Answer: \\boxed{34} or \\boxed{35}",
        "Answer: 35 = 34",
        "answer: 34. Answer: 35",
        "Answer: 34 5",
        "Answer: maybe 34",
        "Answer:\n\n",
        "the 34",
        "Answer: 34!",
        "Answer: $34$ $35$",
        "Answer: \\boxed{34",
        "<think>Answer: 34",
    ],
    "hashes": ["#### 34 #### 35", "#### 35\n#### 34", "#### 34 or 35", "34", "#### not 34", "#### 3\n4", "#### 34 \\boxed{35}"],
    "tag": [
        "<answer>34</answer><answer>35</answer>",
        "<answer>34</answer> or <answer>35</answer>",
        "<answer>34",
        "<answer>35</answer> \\boxed{34}",
        "<answer>34</answer>\n\n<answer>3",
        "<answer>34 or 35</answer>",
        "<answer>\\boxed{34} or \\boxed{35}</answer>",
        "<answer></answer>",
    ],
    "phrase": [
        "The answer is not 34.",
        "The answer is 34. The answer is 35.",
        "The answer is 34 or 35.",
        "The answer is either 34.",
        "The answer is 34? No",
        "The answer is less than 34.",
        "The answer isn't 34",
        "The answer is probably 34",
        "The answer 34 is wrong",
        "The answer is no more than 34",
        "The answer is 34, so not 35? it is \\boxed{35}",
    ],
    "box": [
        "Answer: 34",
        "#### 34",
        "<answer>34</answer>",
        "The answer is 34.",
        "\\boxed{35} = \\boxed{34}",
        "34",
    ],
}


def is_right(response: str, form: str | None, gold: str = "34") -> bool:
    answer = final_answer(response, form=form)
    return answer is not None and not answer.hedged and rule(gold, answer.text).outcome is Outcome.CORRECT


@pytest.mark.parametrize(("form", "response"), [(form, text) for form, texts in RIGHT.items() for text in texts])
def test_right(form, response):
    assert is_right(response, form)


@pytest.mark.parametrize(("form", "response"), [(form, text) for form, texts in NOT_RIGHT.items() for text in texts])
def test_never_right(form, response):
    assert not is_right(response, form)


@pytest.mark.parametrize(
    ("form", "response", "gold"),
    [
        ("phrase", "The answer is (A).", "A"),
        ("answer_line", "Answer: (B)", "B"),
        ("tag", "<answer>B</answer>", "B"),
        ("hashes", "#### 1,234", "1234"),
        ("answer_line", "Answer: \\frac{1}{2}", "1/2"),
        ("answer_line", "Answer: 1, 2", "1,2"),
        ("answer_line", "Answer: -5", "-5"),
        ("hashes", "#### -12", "-12"),
        ("answer_line", "Answer: ∞", "\\infty"),
        ("answer_line", "Answer: $18", "18"),
        ("phrase", "The answer is 3.5.", "3.5"),
        ("box", r"\boxed{\frac12} = \boxed{0.5}", "1/2"),
        ("answer_line", "Answer: Monday", r"\text{Monday}"),
        ("phrase", "The answer is $\\frac{1}{2}.$", "1/2"),
    ],
)
def test_other_values(form, response, gold):
    assert is_right(response, form, gold)


def test_linear_time_and_any_text():
    """Quadratic code takes minutes at this size."""
    for unit in (
        "Answer: 7\n",
        "#### 7\n",
        "<answer>7</answer>",
        "<answer>",
        "the answer is 7. ",
        "answer",
        "\\boxed{7} ",
        "<think>",
        "</think>",
        "Answer: \\boxed{7}\n\n",
    ):
        for form in FORMS:
            final_answer(unit * (100_000 // len(unit)), form=form)
    assert final_answer("\x00\ud800 Answer: 7\udcff", form="answer_line") == Box("7\udcff")


DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: $Answer (without quotes) "
    'where $Answer is the answer to the problem.\n\nLegs of 17 hens?\n\nRemember to put your answer on its own line after "Answer:".'
)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (DAPO, "answer_line"),
        ("17 hens?\nPlease reason step by step, and put your final answer within \\boxed{}.", "box"),
        ('17 hens? Let\'s think step by step and output the final answer after "####".', "hashes"),
        ("Return the final answer in <answer> </answer> tags, for example <answer> 34 </answer>.", "tag"),
        ("17 hens? Finish with 'The final answer is X.'", "phrase"),
        ("Your last line is Answer: \\boxed{your answer}.", "box"),
        ("17 hens?", None),
        ("Question: 17 hens?\nAnswer:", None),
    ],
)
def test_the_form_is_what_the_prompt_asks_for(tmp_path, text, form):
    assert asked_form([text]) == form
    row = {"prompt": [{"role": "user", "content": text}], "reward_model": {"ground_truth": "34"}}
    (tmp_path / "chat.jsonl").write_text(json.dumps(row) + "\n")
    assert [prompt.form for prompt in load_prompts(tmp_path / "chat.jsonl")] == [form]
    (tmp_path / "plain.jsonl").write_text(json.dumps({"problem": "17 hens?", "answer": "34"}) + "\n")
    assert [prompt.form for prompt in load_prompts(tmp_path / "plain.jsonl", instruction=text)] == [form]
    assert [prompt.form for prompt in load_prompts(tmp_path / "plain.jsonl")] == ["box"]


# Thinking

CUT = "Is it \\boxed{42}? Let me check whether"
MARKS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<think>", "</thinking>"),
    ("<Think>", "</Think>"),
    ("<THINKING>", "</THINKING>"),
    ("[THINK]", "[/THINK]"),
    ("<reasoning>", "</reasoning>"),
    ("<reason>", "</reason>"),
    ("<thought>", "</thought>"),
    ("<reflection>", "</reflection>"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("◁think▷", "◁/think▷"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<unused94>thought\n", "<unused95>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|think|>", "<|/think|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("analysis", "assistantfinal"),
]


@pytest.mark.parametrize(("start", "end"), MARKS)
def test_thinking_that_is_cut_has_no_answer(start, end):
    for form in FORMS:
        assert final_answer(start + CUT, form=form) is None
        assert final_answer(f"{start}Answer: 42 #### 42 <answer>42</answer> {CUT}", form=form) is None
    whole = final_answer(f"{start}{CUT}{end}\n\nSo \\boxed{{7}}.")
    assert whole == Box("7")
    assert final_answer(f"{start}{CUT}{end}") is None
    # The same where the prompt opened it: the response holds the closing mark alone.
    assert final_answer(CUT, thinks=True) is None
    assert final_answer(f"{CUT}{end}\n\nSo \\boxed{{7}}.", thinks=True) == Box("7")
    if start != "analysis":  # a prompt has its special tokens
        assert final_answer(f"{CUT}{end}{start}\\boxed{{7}}") is None
        assert opens(f"<|user|>Hm?<|assistant|>{start}") and opens(f"<|user|>Hm?<|assistant|>{start}\n")
        assert not opens(f"{start}{end}\n\n") and not opens(f"Write {start} and {end} around your thoughts.<|assistant|>\n")


@pytest.mark.parametrize(
    ("text", "thinks", "part"),
    [
        ("a <think> b </think>7", True, "7"),  # the tag of the prompt, once more
        ("<think>they want <reasoning> tags</think>7", False, "7"),
        ("<think>they want <think> tags</think>7", False, "7"),
        ("they want <reasoning></reasoning> tags. Is it 7", True, None),
        ("<think>a<reason>b</reason>c", False, None),
        ("<think>a</think>8<think>7", False, None),
        ("<think>a</think><reasoning>b</reasoning>7", False, "7"),
        ("a</think>7", False, "7"),
        ("analysis: we add. 7", False, "analysis: we add. 7"),
        ("assistantfinal 7", False, "assistantfinal 7"),
        ("x<|channel|>commentary<|message|>7", False, None),
    ],
)
def test_nested_and_mentioned_marks(text, thinks, part):
    assert answer_part(text, thinks) == part


def test_marks_that_are_special_tokens_are_read_from_the_tokens():
    """Magistral's and gpt-oss's marks are special: the text without special tokens shows neither where it begins nor where it ends."""
    words = ["[THINK]", "[/THINK]", "</s>", "Is it \\boxed{42}?", "So \\boxed{7}.", "<s>", "[INST] ? [/INST]"]

    def decode(tokens, skip_special_tokens):
        return "".join(words[token] for token in tokens if not (skip_special_tokens and token in (0, 1, 2, 5)))

    added = {i: SimpleNamespace(content=words[i], special=True) for i in (0, 1, 2, 5)}
    thoughts = Thoughts(SimpleNamespace(all_special_tokens=["<s>", "</s>"], added_tokens_decoder=added, decode=decode))
    for tokens, answer in (((0, 3, 1, 4, 2), "7"), ((0, 3), None), ((4, 2), "7")):
        text = thoughts.text(decode(tokens, True), tokens)
        assert final_answer(text) == (Box(answer) if answer else None) and "</s>" not in text
    assert thoughts.opened_by((5, 6, 0)) and not thoughts.opened_by((5, 6))
    del added[0], added[1]
    assert Thoughts(thoughts.tokenizer).text("as it is", (0, 3)) == "as it is"
