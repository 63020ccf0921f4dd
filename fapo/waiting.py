"""What a run may have to wait for says so by name, and how much has come: a hang is seen by it and explained by it."""

from __future__ import annotations

import weakref
from typing import Protocol

GIVEN_UP = "given up"  # said of a wait that has an end of its own


class Waiting(Protocol):
    """Something that others wait for; both are asked from another thread, at any time."""

    @property
    def answered(self) -> int:
        """Grows with everything that comes."""
        ...

    def waits(self) -> list[str]:
        """What is missing, a line each, the first of which is waited for first."""
        ...


_ALL: list[weakref.ref[Waiting]] = []


def announce(waiting: Waiting) -> None:
    """Ask it, as long as it lives."""
    _ALL.append(weakref.ref(waiting, _ALL.remove))


def announced() -> list[Waiting]:
    """The youngest first."""
    return [waiting for reference in reversed(_ALL.copy()) if (waiting := reference()) is not None]
