"""At which steps a prompt was sampled: an index that grows with every step that is looked at, and with every search."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence

MOST = 250_000  # groups in the index, some 50 MB; the steps of a longer run that are seen later are left out of it

Place = tuple[int, str, int]


class Prompts:
    """Of one run: prompt id → [(step, kind, g)]."""

    def __init__(self) -> None:
        self.places: dict[str, list[Place]] = {}
        self.seen: dict[tuple[int, str], Hashable] = {}
        self.lock = threading.Lock()
        self.count = 0

    def add(self, step: int, kind: str, stamp: Hashable, ids: Sequence[str]) -> None:
        """The groups of a step in their order; a step whose files have changed is taken anew."""
        with self.lock:
            if self.seen.get((step, kind)) == stamp or self.count + len(ids) > MOST:
                return
            if (step, kind) in self.seen:
                for places in self.places.values():
                    places[:] = [place for place in places if place[:2] != (step, kind)]
            self.seen[step, kind] = stamp
            for g, id in enumerate(ids):
                self.places.setdefault(id, []).append((step, kind, g))
            self.count += len(ids)

    def of(self, id: str) -> list[Place]:
        with self.lock:
            return sorted(self.places.get(id, ()))

    def elsewhere(self, id: str, here: Place) -> list[Place]:
        return [place for place in self.of(id) if place != here]
