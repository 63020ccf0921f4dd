r"""The final answer of a response: which `\boxed{…}` counts, and which does not."""

import time

import pytest
from soundrl.fapo.boxed import Box, boxed_answer, final_box


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{7}.", "7"),
        (r"\boxed {7}", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{x : x > \frac{1}{2}\right\}}", r"\left\{x : x > \frac{1}{2}\right\}"),
        (r"\boxed{\text{a \} b}}", r"\text{a \} b}"),
        (r"\boxed{a \\}", r"a \\"),
        ("\\boxed{\n 7 \n}", "7"),
        (r"\boxed{\boxed{7}}", "{7}"),
        (r"\boxed{x = \boxed{7}}", "x = {7}"),
        ("first \\boxed{3}\n\nthen \\boxed{7}", "7"),
        ("> Give the answer as \\boxed{answer}.\n\nIt is \\boxed{7}.", "7"),
        ("```latex\n\\boxed{7}\n```", "7"),
        ("\\boxed{7}" + " and so on" * 1000, "7"),
        (r"\boxed{-1}", "-1"),
        ("a stray } brace, \\boxed{7}", "7"),
        ("a stray { brace, \\boxed{7}", "7"),
        ("cut \\boxed{3 off. Again:\n\n\\boxed{7}", "7"),
        ("\\boxed{7}\x00\ud800", "7"),
        ("\x00\udcff\\boxed{7\x00}", "7\x00"),
        (r"\boxed{7} \boxed{7}", "7"),
        (r"we get \boxed{7}, that is, \boxed{ 7 }", "7"),
        (r"$\boxed{-2} \quad \text{and} \quad \boxed{1}$", "-2, 1"),
        (r"\boxed{1},\boxed{2}", "1, 2"),
        (r"\(\boxed{1}\) and \(\boxed{-2}\)", "1, -2"),
        (r"\boxed{7} or \boxed{8}", "7, 8"),
    ],
)
def test_answer(text, answer):
    assert boxed_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "the answer is 7",
        r"\boxed{}",
        r"\boxed{  }",
        r"\boxed{\boxed}"[:8],
        r"\boxed{7",
        r"\boxed{\frac{1}{2}",
        r"\boxed{7\}",
        r"\boxed 7",
        r"\boxed",
        r"\boxedx{7}",
        r"\\boxed",
        "\\boxed{7}\n\nno, wait: \\boxed{8",
        "\\boxed{7}\n\n\\boxed{}",
    ],
)
def test_no_answer(text):
    assert final_box(text) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"<think>\boxed{7}</think> It is \boxed{8}.", "8"),
        (r"<think>\boxed{7}</think> I do not know.", None),
        (r"<think>\boxed{7}", None),
        (r"thinking \boxed{7} </think> so \boxed{8}", "8"),
        (r"<think>a</think>\boxed{8}<think>\boxed{7}", None),
        (r"<think>a</think>\boxed{8}<think>b</think>\boxed{7}", "7"),
        (r"\boxed{7}</think>", None),
    ],
)
def test_thinking_is_not_read(text, answer):
    assert boxed_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        r"It is \boxed{7}, or perhaps it is \boxed{8}.",
        r"\boxed{7}. Wait, no: \boxed{8}",
        r"\boxed{1} no no no \boxed{2}",
        "\\boxed{8}\nhence \\boxed{7}",
    ],
)
def test_hedged(text):
    box = final_box(text)
    assert box is not None
    assert box.hedged
    assert boxed_answer(text) is None


def test_a_paragraph_of_its_own_is_not_a_hedge():
    assert final_box("\\boxed{8}\n\nhence \\boxed{7}") == Box("7")


@pytest.mark.parametrize(
    "unit", ["\\boxed{", "\\boxed{}", "{", "}", "\\", "\\boxed{1},", "\\boxed{1} x ", "<think>", "\n\n\\boxed{1}", "\\boxed{1}" + " " * 50]
)
def test_linear_time(unit):
    """Ten times the text may not take a hundred times as long: quadratic code takes minutes at this size."""
    start = time.perf_counter()
    final_box(unit * (1_000_000 // len(unit)))
    assert time.perf_counter() - start < 10
