"""Replies become verdicts; whatever is not clearly one is unknown, never sound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundrl.fapo.records import Verdict
from soundrl.genrm.verdict import BAD_INDEX, CUT_OFF, EMPTY, NO_BOX, OUT_OF_RANGE, REASONS, SEVERAL, parse_verdict

SOUND = [
    r"\boxed{-1}",
    r"All fine. \boxed{ -1 }.",
    "Fine.\n\\boxed{-1\n}",
    r"The solution ends in \boxed{72}, which is right." + "\n\n" + r"\boxed{-1}",
    r"Their answer \boxed{5} agrees with the reference, so the index is \boxed{-1}",
    r"<think>Is it \boxed{3}? No.</think> \boxed{-1}",
    r"reasoning without its opening tag \boxed{2}</think>\boxed{-1}",
    r"\boxed{-1} or, said again, \boxed{-1}",
]
FLAWED = [
    (r"\boxed{0}", 0),
    (r"\boxed{3}", 3),
    (r"First I thought \boxed{-1} but paragraph two is wrong: \boxed{2}", 2),
    (r"<think>\boxed{-1}</think> Paragraph 1 is wrong. \boxed{1}", 1),
    (r"\boxed{\boxed{1}}", 1),
]
UNKNOWN = [
    ("", EMPTY),
    (" \n", EMPTY),
    ("The index is -1.", NO_BOX),
    (r"\boxed{-1", NO_BOX),
    (r"\boxed{-1} and finally \boxed{", NO_BOX),
    (r"\boxed", NO_BOX),
    (r"<think>no end \boxed{-1}", NO_BOX),
    (r"<think>\boxed{-1}</think> I am done.", NO_BOX),
    (r"\boxed{-1}</think><think>\boxed{-1}", NO_BOX),
    (r"\boxed{}", NO_BOX),
    (r"\boxed{none}", BAD_INDEX),
    (r"\boxed{+1}", BAD_INDEX),
    (r"\boxed{1.0}", BAD_INDEX),
    (r"\boxed{1e0}", BAD_INDEX),
    (r"\boxed{0x1}", BAD_INDEX),
    (r"\boxed{1_0}", BAD_INDEX),
    (r"\boxed{01}", BAD_INDEX),
    (r"\boxed{-0}", BAD_INDEX),
    (r"\boxed{- 1}", BAD_INDEX),
    (r"\boxed{--1}", BAD_INDEX),
    ("\\boxed{\uff11}", BAD_INDEX),
    ("\\boxed{\u0661}", BAD_INDEX),
    ("\\boxed{\u22121}", BAD_INDEX),
    (r"\boxed{True}", BAD_INDEX),
    (r"\boxed{__import__('os').getpid()}", BAD_INDEX),
    (r"\boxed{4}", OUT_OF_RANGE),
    (r"\boxed{-2}", OUT_OF_RANGE),
    (r"\boxed{" + "9" * 100_000 + "}", OUT_OF_RANGE),
    (r"\boxed{-1 or 2}", SEVERAL),
    (r"\boxed{0, 3}", SEVERAL),
    (r"\boxed{[1, 2]}", SEVERAL),
    (r"\boxed{-1} or \boxed{2}", SEVERAL),
    (r"\boxed{2}, \boxed{-1}", SEVERAL),
    (r"\boxed{-1}" * 1000, SEVERAL),
    ("\n\n".join([r"\boxed{-1}"] * 1000), SEVERAL),
]


@pytest.mark.parametrize("reply", SOUND)
def test_sound(reply: str):
    assert parse_verdict(reply, "stop", 4) == Verdict.sound()


@pytest.mark.parametrize(("reply", "step"), FLAWED)
def test_flawed(reply: str, step: int):
    assert parse_verdict(reply, "stop", 4) == Verdict.flawed(step)


@pytest.mark.parametrize(("reply", "reason"), UNKNOWN, ids=[f"{reason}-{i}" for i, (_, reason) in enumerate(UNKNOWN)])
def test_unknown(reply: str, reason: str):
    assert parse_verdict(reply, "stop", 4) == Verdict.unknown(reason)
    assert reason in REASONS


@pytest.mark.parametrize("finish_reason", ["length", "abort", "content_filter", "", "STOP"])
def test_a_reply_that_did_not_end_by_itself_is_no_verdict(finish_reason: str):
    for reply in [*SOUND, *(reply for reply, _ in FLAWED), ""]:
        assert parse_verdict(reply, finish_reason, 4) == Verdict.unknown(CUT_OFF)


def test_range_follows_the_solution():
    for n in range(1, 6):
        verdicts = [parse_verdict(f"\\boxed{{{i}}}", "stop", n) for i in range(6)]
        assert verdicts == [Verdict.flawed(i) if i < n else Verdict.unknown(OUT_OF_RANGE) for i in range(6)]
    with pytest.raises(ValueError, match="at least 1"):
        parse_verdict("", "stop", 0)


BITS = ["\\boxed{", "}", "{", "-1", "0", "7", " or ", "</think>", "<think>", "\n", "1.5", "\\boxed"]


@given(st.lists(st.sampled_from(BITS) | st.text(max_size=4), max_size=12).map("".join), st.integers(1, 3))
def test_any_reply_ends_in_one_of_three(reply: str, n: int):
    verdict = parse_verdict(reply, "stop", n)
    assert verdict.kind in ("sound", "flawed", "unknown")
    if verdict.kind == "sound":
        assert "\\boxed{-1" in reply.replace(" ", "").replace("\n", "").replace("\t", "")
    if verdict.kind == "flawed":
        assert verdict.step in range(n)
    if verdict.kind == "unknown":
        assert verdict.reason in REASONS
