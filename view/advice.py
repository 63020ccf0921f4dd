"""What a person should know of a run first, and do: alarms, then advice; each by a threshold with its reason."""

from __future__ import annotations

from typing import Any

from soundrl.view.run import Run

Json = dict[str, Any]


def alarms_of(run: Run) -> list[list[Any]]:
    """[step, text] of the judge's watch, oldest first."""
    return []


def standing(run: Run) -> list[str]:
    return []
