"""Several sources as one list of prompts, and, where they have weights, whose turn it is."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from fractions import Fraction
from math import lcm

from soundrl.fapo.records import Prompt


class Mixture(list[Prompt]):
    """The prompts of all sources in order. Without weights every prompt comes once an epoch; with them each source has epochs of its own,
    and `turn` says from which one a place of the stream is filled.

    `names`, `parts`: of the sources; `weights`: positive, or None.
    """

    def __init__(self, names: Sequence[str], parts: Sequence[list[Prompt]], weights: Sequence[Fraction] | None = None) -> None:
        super().__init__(prompt for part in parts for prompt in part)
        self.names, self.parts, self.weights = tuple(names), tuple(parts), None if weights is None else tuple(weights)
        self._which, self._place = array("H"), array("Q")
        self._taken, self._credit = [0] * len(parts), [0] * len(parts)
        self._first = [min((prompt.id for prompt in part), default="") for part in parts]

    def kept(self, keep: Callable[[Prompt], Prompt | None]) -> Mixture:
        """Of each prompt what `keep` makes of it; sources of which nothing is left are left out."""
        parts = [
            part.kept(keep) if isinstance(part, Mixture) else [new for prompt in part if (new := keep(prompt)) is not None]
            for part in self.parts
        ]
        left = [index for index, part in enumerate(parts) if part]
        weights = None if self.weights is None else [self.weights[index] for index in left]
        return Mixture([self.names[index] for index in left], [parts[index] for index in left], weights)

    @property
    def shares(self) -> list[int]:
        """The weights as whole numbers, by source."""
        assert self.weights is not None
        whole = lcm(*(weight.denominator for weight in self.weights))
        return [int(weight * whole) for weight in self.weights]

    def turn(self, place: int) -> tuple[int, int]:
        """Index of the source that fills a place ≥ 0 of the stream, and how many places it has filled before.

        Smooth weighted round robin, in whole numbers: each source gains its share a place, the richest is taken and pays for all. So each
        has had its share of the places, at any of them, but for one or so; and it is the same however the sources are ordered, which are
        told apart by their first id where two are equally rich.

        >>> made = [Prompt(id=id, text="?", answer="1") for id in "abc"]
        >>> mixture = Mixture(["a", "bc"], [made[:1], made[1:]], [Fraction("0.7"), Fraction("0.3")])
        >>> "".join("ab"[mixture.turn(place)[0]] for place in range(10)), mixture.turn(9)
        ('abaaabaaba', (0, 6))
        """
        shares = self.shares if place >= len(self._which) else []
        while place >= len(self._which):
            for index, share in enumerate(shares):
                self._credit[index] += share
            richest = max(self._credit)
            which = min((i for i, credit in enumerate(self._credit) if credit == richest), key=lambda i: self._first[i])
            self._credit[which] -= sum(shares)
            self._which.append(which)
            self._place.append(self._taken[which])
            self._taken[which] += 1
        return self._which[place], self._place[place]
