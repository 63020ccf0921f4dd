"""At which steps a prompt was sampled: an index that grows with every step that is looked at, and with every search."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from soundrl.view.cells import LETTERS

MOST = 2_000_000  # groups in the index: some 200 MB of a run that nobody has; beyond, older steps are read again


class Prompts:
    """Of one run: prompt id → [(step, kind, g, cells)]."""

    def __init__(self) -> None:
        self.places: dict[str, list[tuple[int, str, int, str]]] = {}
        self.seen: dict[tuple[int, str], Any] = {}
        self.lock = threading.Lock()
        self.count = 0

    def add(self, step: int, kind: str, stamp: Any, groups: list[tuple[str, str]]) -> None:
        """The groups of a step, (id, cells) in their order; a step whose files have changed is taken anew."""
        with self.lock:
            if self.seen.get((step, kind)) == stamp:
                return
            if (step, kind) in self.seen:
                for places in self.places.values():
                    places[:] = [place for place in places if place[:2] != (step, kind)]
            if self.count + len(groups) > MOST:
                return
            self.seen[step, kind] = stamp
            for g, (id, cells) in enumerate(groups):
                self.places.setdefault(id, []).append((step, kind, g, cells))
            self.count += len(groups)

    def of(self, id: str) -> list[tuple[int, str, int, str]]:
        with self.lock:
            return sorted(self.places.get(id, ()))

    def elsewhere(self, id: str, here: tuple[int, str, int]) -> list[list[Any]]:
        return [list(place[:3]) for place in self.of(id) if place[:3] != here]
