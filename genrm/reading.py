r"""A verdict that is read off a judge, not written by it: its turn is begun with a box, and the probabilities of the next tokens decide.

A hundredth of the work of a critique, for a judge whose first thought is worth something: no step is checked in writing. The probability
that counts is that of the verdict among verdicts: P(sound) against all indices together, so that doubt about *where* is no doubt about
*whether*.

Tokenizers cut `\boxed{-1}` and `\boxed{0}` differently (many have one token for `{-`). What is begun must end where both agree, else the
judge would be asked to go on in a way that it has never written: `common_beginning`, of the tokens that a server tells.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence

from soundrl.fapo.records import Verdict
from soundrl.genrm.verdict import NO_BOX, Place

BEGUN = "\\boxed{"
SAMPLING = {
    "max_tokens": 4,
    "logprobs": True,
    "top_logprobs": 20,  # vLLM's most
    "add_generation_prompt": False,
    "continue_final_message": True,
}
SPELLED = ("\\boxed{-1}", "\\boxed{0}", "\\boxed{True}", "\\boxed{False}")
"""Verdicts of which the beginning is common; of an outcome the last two."""
LEAST = 0.5
"""Probability of all verdicts together below which a judge has none on its tongue."""
TELL_SECONDS = 30.0
_DIGITS = re.compile(r"[0-9]+")

log = logging.getLogger(__name__)


def verdict(places: Sequence[Place], n_paragraphs: int, outcome: bool = False) -> Verdict:
    """Of the tokens that followed the begun box: sound where P(sound) ≥ ½ among verdicts, else flawed, at the step of the likeliest index
    where the tokens tell it (one that begins a longer index as well, and ends the reply, is none). `unknown(no_box)` where verdicts have
    less than `LEAST` together.

    Example, n = 3: first token `-` .7, `1` .2, `0` .1 → sound, critique "P(sound) 0.700".
    """
    shares: dict[str, float] = {}  # by the text after the brace
    path, of_path = "", 1.0
    for place in places:
        for token, share in place.shares.items():
            text = _inside(path + token)
            shares[text] = shares.get(text, 0.0) + of_path * share
        of_path *= place.shares.get(place.token, 0.0)
        path += place.token
        if _inside(path):
            break
        shares[""] = 0.0  # the brace alone: what followed it says
    sound = sum(share for text, share in shares.items() if _sound(text, outcome))
    flaws = {text: share for text, share in shares.items() if _flawed(text, n_paragraphs, outcome)}
    flawed = sum(flaws.values())
    if sound + flawed < LEAST:
        return Verdict.unknown(NO_BOX)
    said = f"P(sound) {sound / (sound + flawed):.3f}"
    if sound >= flawed:
        return Verdict("sound", critique=said)
    step = None if outcome else _step(max(flaws, key=lambda text: flaws[text]), "".join(place.token for place in places), n_paragraphs)
    return Verdict("flawed", step, critique=said)


def _inside(text: str) -> str:
    return text.lstrip().removeprefix("{").lstrip()


def _sound(text: str, outcome: bool) -> bool:
    return _begins(text, "true") if outcome else text.startswith("-") and "-1".startswith(text.rstrip("} "))


def _flawed(text: str, n_paragraphs: int, outcome: bool) -> bool:
    if outcome:
        return _begins(text, "false")
    digits = _DIGITS.match(text)
    return digits is not None and any(str(index).startswith(digits[0]) for index in range(n_paragraphs))


def _begins(text: str, word: str) -> bool:
    letters = text.rstrip("} ").lower()
    return letters != "" and word.startswith(letters)


def _step(likeliest: str, written: str, n_paragraphs: int) -> int | None:
    """The index that begins with the digits of the likeliest token: as the judge went on to write it, where it did."""
    written = _inside(written)
    text = written if written.startswith(likeliest) else likeliest
    digits = _DIGITS.match(text)
    assert digits is not None
    step, ended = int(digits[0]), len(digits[0]) < len(text)
    return step if step < n_paragraphs and (ended or step == 0 or step * 10 >= n_paragraphs) else None


async def beginning(pieces: Callable[[str], Awaitable[list[str]]], outcome: bool) -> str:
    """How the judge's turn is begun, by its tokenizer: `pieces` gives the tokens of a text, none where its server does not tell (then it is
    taken to spell the brace apart, and says so). ValueError where what all verdicts begin with is no beginning of a box."""
    spelled = SPELLED[2:] if outcome else SPELLED[:2]
    try:
        async with asyncio.timeout(TELL_SECONDS):
            tokens = [await pieces(text) for text in spelled]
    except TimeoutError:
        tokens = [[]]
    if not all(tokens):
        log.warning("the judge's server does not tell how it spells %s: its turn is begun with %s", spelled[0], BEGUN)
        return BEGUN
    if (begun := common_beginning(tokens)) is None:
        raise ValueError(
            f"genrm.prompt: the judge's tokenizer spells {' and '.join(spelled)} with no beginning in common, so no verdict can be read "
            "off; use the prompt without -read"
        )
    return begun


def common_beginning(spelled: Sequence[Sequence[str]]) -> str | None:
    r"""The text of the tokens that all begin with; None where that is no beginning of a box.

    >>> common_beginning([["\\", "boxed", "{-", "1", "}"], ["\\", "boxed", "{", "0", "}"]])
    '\\boxed'
    >>> common_beginning([["\\boxed{", "-", "1", "}"], ["\\boxed{", "0", "}"]])
    '\\boxed{'
    """
    same = []
    for tokens in zip(*spelled, strict=False):
        if len(set(tokens)) > 1:
            break
        same.append(tokens[0])
    text = "".join(same).lstrip("▁ ")
    return text if text in ("\\boxed", BEGUN) else None
