"""Questions with options: their text, the letter of the right one, and a seeded order where the set itself has none (GPQA)."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from soundrl.fapo.data.rows import RowError, shown
from soundrl.fapo.verify import choice
from soundrl.fapo.verify.choice import LETTERS, options_of

TEMPLATE = (
    "Answer the following multiple choice question. The last line of your response should be of the following format: 'Answer: $LETTER' "
    "(without quotes) where LETTER is one of {letters}. Think step by step before answering.\n\n{question}"
)
"""The words of openai/simple-evals, by which GPQA is usually measured."""


def shuffled_options(question: str, right: str, wrong: Sequence[str], seed: int = 0) -> tuple[list[str], str]:
    """The options in the order of a hash of (seed, question, all options, option), and the letter of the right one. The order follows
    from the content alone: no other row, machine or order of the wrong ones changes it. RowError where two options are the same.

    >>> shuffled_options("2+1?", "3", ["1", "2", "4"])
    (['3', '4', '1', '2'], 'A')
    """
    options = [right, *wrong]
    if len(set(options)) < len(options):
        twice = next(option for option in options if options.count(option) > 1)
        raise RowError(f"{shown(twice)} is two of its options; write different ones", "options")

    def key(option: str) -> bytes:
        parts = "\0".join((str(seed), question, *sorted(options), "", option))
        return blake2b(parts.encode("utf-8", "surrogatepass"), digest_size=16).digest()

    options.sort(key=key)
    return options, LETTERS[options.index(right)]


def with_options(question: str, options: Sequence[str]) -> str:
    r"""A question and its options as they are read.

    >>> with_options("1+1?", ["2", "3"])
    '1+1?\n\nA) 2\nB) 3'
    """
    return f"{question}\n\n" + "\n".join(f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))


def asked(question: str, options: Sequence[str]) -> str:
    """The whole prompt: `TEMPLATE`, filled in; of a question that lists its options itself without a second list."""
    given = "" if lists(question, options) else with_options("", options)
    return TEMPLATE.format(letters=LETTERS[: len(options)], question=question) + given


def lists(question: str, options: Sequence[str]) -> bool:
    """Whether a question's own text ends in its options."""
    return options_of({}, question) == tuple(options)


def letter_of(answer: object, options: Sequence[str], labels: Sequence[str] = ()) -> str:
    """The letter of the option that `answer` names: by its number from 0 (as MMLU), its label (as ARC), its letter (as MMLU-Pro), or its
    text. RowError where it names none.

    >>> [letter_of(answer, ["Oslo", "Rome"], ["1", "2"]) for answer in (1, "1", "B", "Rome")]
    ['B', 'A', 'B', 'B']
    """
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
        return LETTERS[answer]
    text = answer.strip() if isinstance(answer, str) else ""
    letter = LETTERS[labels.index(text)] if text in labels else choice.letter_of(text, options) if text else None
    if letter is None:
        raise RowError(
            f"{shown(answer)} names none of the {len(options)} options; write its letter, its number from 0 or its text", "answer"
        )
    return letter
