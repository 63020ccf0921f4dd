r"""The judge's reply becomes a three-valued verdict. What is not clearly a verdict is `unknown`, never "sound" (fails neither open
nor closed: the rollout leaves its group)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from soundrl.fapo.records import Verdict
from soundrl.fapo.verify.box import boxed_answer

# What the reply says.
NO_BOX = "no_box"  # no complete box after the reasoning
BAD_INDEX = "bad_index"  # the box holds something else than one plain integer
OUT_OF_RANGE = "out_of_range"  # an integer, but neither -1 nor the index of a paragraph
SEVERAL = "several"  # more than one index, or more boxes than an honest critique has
CUT_OFF = "cut_off"  # the reply did not end by itself (`finish_reason` other than `stop`): its last box may be a passing thought
EMPTY = "empty"  # nothing was said
TOO_LONG = "too_long"  # the engine that is asked has no room for question and critique

# How the request went (`genrm/pool/endpoint.py`, `genrm/pool/judge.py`).
TIMEOUT = "timeout"
UNREACHABLE = "unreachable"
HTTP_4XX = "http_4xx"
HTTP_5XX = "http_5xx"
BAD_REPLY = "bad_reply"
CLOSED = "closed"

# How several votes went.
SPLIT = "split"  # the votes do not agree as far as they must

UNASKED = frozenset({TIMEOUT, UNREACHABLE, HTTP_4XX, HTTP_5XX, BAD_REPLY, CLOSED})
"""Reasons that say nothing about the solution: another try may bring a verdict, so no file keeps them for one."""
REASONS = UNASKED | {NO_BOX, BAD_INDEX, OUT_OF_RANGE, SEVERAL, CUT_OFF, EMPTY, TOO_LONG, SPLIT}
"""The closed set of reasons of an unknown verdict; counters and metrics have these names."""


@dataclass(frozen=True)
class Place:
    """One token of a reply, where the server tells more than its text."""

    token: str
    shares: Mapping[str, float]
    """Probabilities of the likeliest tokens there, by their text."""


@dataclass(frozen=True)
class Reply:
    """What the model said."""

    text: str
    finish_reason: str  # `stop` or `length`, however the server spells them; else in its own words
    tokens: int | None = None  # completion tokens, as the server counts them (`usage`)
    worker: str = ""  # address of the endpoint that gave it, where several might have
    places: tuple[Place, ...] = ()  # its tokens, where their probabilities were asked for
    token_ids: tuple[int, ...] = ()  # the same by number, where that was asked for (vLLM's `return_token_ids`)


MAX_BOXES = 16  # a critique quotes the solution's box and gives its own; a reply with more than this many is a loop, not a verdict

_BOX = "\\boxed"
# ASCII digits only: `int` would also take "１", "1_0", "+1" and " 1 ".
_INDEX = re.compile(r"-?(?:0|[1-9][0-9]*)")
_OUTCOME = re.compile(r"(?:\\text\{ *)?(?:true|false)(?: *\})?", re.IGNORECASE)
_CANDIDATE = re.compile(r"(?<![\w.+-])-?[0-9]+(?![\w.])")


def parse_verdict(reply: str, finish_reason: str, n_paragraphs: int) -> Verdict:
    r"""Verdict of one reply about a solution of `n_paragraphs` paragraphs (arXiv 2510.22543, appendix F: -1 = no error found).

    The last `\boxed{}` after any `</think>` speaks. It must hold one plain integer, −1 or an index in 0 … n−1; a neighbouring box
    that says something else makes it `several`. Raises `ValueError` for `n_paragraphs < 1`.

    Examples, n = 4: `\boxed{-1}` → sound; `\boxed{2}` → flawed(2); `\boxed{4}` → unknown(out_of_range); `\boxed{-1 or 2}` →
    unknown(several); `\boxed{+1}` → unknown(bad_index); any reply with finish reason `length` → unknown(cut_off).
    """
    if n_paragraphs < 1:
        raise ValueError(f"n_paragraphs must be at least 1, got {n_paragraphs}")
    box, reason = last_box(reply, finish_reason)
    if reason:
        return Verdict.unknown(reason)
    if len(_CANDIDATE.findall(box)) > 1:
        return Verdict.unknown(SEVERAL)
    if not _INDEX.fullmatch(box) or box == "-0":
        return Verdict.unknown(BAD_INDEX)
    if len(box) > 9 or not -1 <= int(box) < n_paragraphs:
        return Verdict.unknown(OUT_OF_RANGE)
    return Verdict.sound() if box == "-1" else Verdict.flawed(int(box))


def parse_outcome(reply: str, finish_reason: str, n_paragraphs: int = 1) -> Verdict:
    r"""Verdict of a judge that says whether, and not where: `\boxed{True}` → sound, `\boxed{False}` → flawed(None); otherwise as
    `parse_verdict`. Case and a `\text{}` around the word do not matter; any other word is `bad_index`."""
    box, reason = last_box(reply, finish_reason)
    if reason:
        return Verdict.unknown(reason)
    words = [word.lower() for word in re.findall(r"\b(?:true|false)\b", box, re.IGNORECASE)]
    if len(words) > 1:
        return Verdict.unknown(SEVERAL)
    if not _OUTCOME.fullmatch(box):
        return Verdict.unknown(BAD_INDEX)
    return Verdict.sound() if words == ["true"] else Verdict.flawed(None)


def last_box(reply: str, finish_reason: str) -> tuple[str, str]:
    r"""What the last `\boxed{}` of a reply holds, and why it holds no verdict (else empty)."""
    if finish_reason != "stop":
        return "", CUT_OFF
    if not reply.strip():
        return "", EMPTY
    said = reply.rpartition("</think>")[2]
    # Reasoning that was opened and never closed holds no verdict, whatever boxes it passes by.
    if "<think>" in said or _BOX not in said:
        return "", NO_BOX
    if said.count(_BOX) > MAX_BOXES:
        return "", SEVERAL
    start = said.rindex(_BOX)
    box = boxed_answer(said[start:])
    if box is None:
        return "", NO_BOX
    box = box.strip(" \n\t")
    return box, SEVERAL if _contradicted(said[:start], box) else ""


def majority(votes: Sequence[Verdict]) -> Verdict:
    """The verdict of several: sound or flawed where more than half of all votes say so, else unknown; the step that most of the flawed
    votes name, the earliest of those that tie; none where no vote names one.

    Examples: flawed(2), flawed(1), flawed(2) → flawed(2); flawed(3), flawed(1), sound → flawed(1); sound, flawed(0) → unknown(split);
    sound, unknown(no_box), unknown(no_box) → unknown(no_box); a vote that did not come gives its reason where it might have decided: sound,
    flawed(0), unknown(timeout) → unknown(timeout); one vote → that vote.
    """
    kinds = Counter(vote.kind for vote in votes)
    kind, count = kinds.most_common(1)[0]
    missing = next((vote for vote in votes if vote.reason in UNASKED), None)
    if kind == "unknown" and missing is not None or 2 * count <= len(votes):
        return missing or Verdict.unknown(SPLIT)
    if kind == "flawed":
        steps = Counter(vote.step for vote in votes if vote.step is not None)
        return Verdict.flawed(min((step for step in steps if steps[step] == max(steps.values())), default=None))
    return next(vote for vote in votes if vote.kind == kind)


def unanimous(votes: Sequence[Verdict]) -> Verdict:
    """The verdict on which all votes agree, its step included; otherwise unknown: of the first vote that is unknown, else split.

    Example: flawed(2), flawed(2), flawed(1) → unknown(split).
    """
    if all(vote == votes[0] for vote in votes):
        return votes[0]
    return next((vote for vote in votes if vote.kind == "unknown"), Verdict.unknown(SPLIT))


def _contradicted(before: str, box: str) -> bool:
    r"""Whether the box just before (as in `\boxed{-1} or \boxed{2}`) says something else. A box further away is a quotation."""
    start = before.rfind(_BOX)
    if start < 0:
        return False
    other = boxed_answer(before[start:])
    if other is None:
        return False
    between = before[start + len(_BOX) + len(other) + 2 :]
    return len(between.strip(" \n\t")) <= 12 and "\n\n" not in between and other.strip(" \n\t") != box
