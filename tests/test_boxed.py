r"""The final answer of a response: which `\boxed{…}` counts, and which does not."""

import time

import pytest

from soundrl.fapo.verify.box import Box, boxed_answer, final_box, reference_part


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


@pytest.mark.parametrize(
    ("text", "parts", "answer"),
    [
        (r"\boxed{A} for part (a) and \boxed{B}", 2, "A, B"),
        (r"$x = \boxed{1}$ and then $y_2 = \boxed{2}$.", 2, "x = 1, y_2 = 2"),
        (r"It is \boxed{1}, then \boxed{2}, then \boxed{3}.", 3, "1, 2, 3"),
        (r"\boxed{1} or \boxed{2}, then \boxed{3}.", 3, "1, 2, 3"),
        ("\\boxed{9}\n\n\\boxed{1} for a, \\boxed{2} for b", 2, "1, 2"),
        (r"\boxed{A} for part (a) and \boxed{B}", 1, None),
        (r"\boxed{A} for part (a) and \boxed{B}", 3, None),
        (r"\boxed{A} for part (a) and \boxed{}", 2, None),
        (r"\boxed{1}. Wait, no: \boxed{2}", 2, None),
        (r"\boxed{1}, or perhaps it is \boxed{2}", 2, None),
        (r"it is \boxed{1}, it isn't \boxed{2}", 2, None),
        (r"\boxed{1} for a, \boxed{2} for b. That was wrong.", 2, None),
        ("\\boxed{1} for a\n\n\\boxed{2} for b", 2, "2"),
    ],
)
def test_a_list_of_boxes(text, parts, answer):
    box = final_box(text, parts=parts)
    assert (None if box is None or box.hedged else box.text) == answer


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("7", "7"),
        (r"x \in \boxed{[0,7)}.", r"x \in \boxed{[0,7)}."),
        (r"\boxed{1} papers and \boxed{2} bins", "1, 2"),
        (r"\boxed{35 cm} ++++++ \boxed{4}", "35 cm, 4"),
        (r"\boxed{2} + \boxed{3}", r"\boxed{2} + \boxed{3}"),
        (r"\boxed{1} no no no \boxed{2}", "2"),
        (r"\boxed{1} or \boxed{2}", "1, 2"),
        (r"so \boxed{\frac{1}{2}", r"\frac{1}{2}"),
        (r"\boxed{1} and \boxed{2", "1, 2"),
        ("a toolbox", "a toolbox"),
    ],
)
def test_boxes_of_a_reference(text, read):
    assert reference_part(text) == read


def test_a_paragraph_of_its_own_is_not_a_hedge():
    assert final_box("\\boxed{8}\n\nhence \\boxed{7}") == Box("7")


@pytest.mark.parametrize(
    "unit", ["\\boxed{", "\\boxed{}", "{", "}", "\\", "\\boxed{1},", "\\boxed{1} x ", "<think>", "\n\n\\boxed{1}", "\\boxed{1}" + " " * 50]
)
def test_linear_time(unit):
    """Ten times the text may not take a hundred times as long: quadratic code takes minutes at this size."""
    start = time.process_time()  # of this process alone, whatever else runs
    text = unit * (1_000_000 // len(unit))
    final_box(text)
    final_box(text, parts=text.count("\\boxed{1}"))
    assert time.process_time() - start < 60
