"""The long tail of sampling: what is expected to be long is sampled first, so that no engine works at the end on one long response alone.

Nothing that is sampled changes by it: seeds follow from ids. Lengths are in tokens; everything here is the same on every rank.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

MOST_KNOWN = 1_000_000  # prompts whose lengths are remembered; of an endless source none comes again


class ExpectedLengths:
    """Of responses: a prompt's own mean when it was sampled last; before that, as much per token of the prompt as others needed."""

    def __init__(self) -> None:
        self.known: dict[str, float] = {}
        self.response, self.prompt = 0.0, 0.0

    def __call__(self, prompt_id: str, prompt_length: int) -> float:
        """
        >>> expected = ExpectedLengths()
        >>> expected.learn("a", 10, [20, 40])
        >>> expected("a", 10), expected("b", 5)
        (30.0, 15.0)
        """
        return self.known.get(prompt_id, prompt_length * (self.response / self.prompt if self.prompt else 1.0))

    def state(self) -> list[Any]:
        """Plain JSON."""
        return [self.known, self.response, self.prompt]

    def restore(self, state: list[Any]) -> None:
        self.known, self.response, self.prompt = state

    def learn(self, prompt_id: str, prompt_length: int, lengths: Sequence[float]) -> None:
        """The prompt's responses had so many tokens each."""
        if not lengths:
            return
        self.known.pop(prompt_id, None)
        self.known[prompt_id] = mean = sum(lengths) / len(lengths)
        self.response, self.prompt = self.response + mean, self.prompt + prompt_length
        if len(self.known) > MOST_KNOWN:
            del self.known[next(iter(self.known))]


def rounds_of_decoding(engines: Sequence[Sequence[int]], slots: int) -> int:
    """Tokens until the last engine is done, where each samples `slots` responses at once, the others in order as places come free.

    >>> rounds_of_decoding([[1, 1, 8]], 2), rounds_of_decoding([[8, 1, 1]], 2)
    (9, 8)
    """
    last = 0
    for lengths in engines:
        busy = [0] * slots
        for length in lengths:
            heapq.heapreplace(busy, busy[0] + length)
        last = max(last, *busy)
    return last
