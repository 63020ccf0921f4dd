"""Which named recipe a run began with, and how it differs. The folder does not say: it is the one whose settings are nearest."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from typing import Any

from soundrl.engine.files.older_config import of_today
from soundrl.engine.recipes import RECIPES

NEAR = 25  # settings, above which a run is of no recipe
OWN = ("run.name", "run.folder")


@cache
def recipes() -> dict[str, dict[str, Any]]:
    """By name, as config.json has them, `group.name` → value."""
    return {name: flat(json.loads(json.dumps(dataclasses.asdict(make())))) for name, make in RECIPES.items()}


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """
    >>> flat({"format": 2, "run": {"steps": 8}})
    {'run.steps': 8}
    """
    return {f"{group}.{name}": value for group, own in config.items() if isinstance(own, dict) for name, value in own.items()}


def nearest(config: dict[str, Any]) -> tuple[str, list[list[Any]]] | None:
    """Its name, and [setting, the recipe's, the run's]; None where none is near."""
    own = flat(of_today(config))
    if not own:
        return None
    found = [(differs(of, own), name) for name, of in recipes().items()]
    rows, name = min(found, key=lambda each: (len(each[0]), each[1]))
    return (name, rows) if len(rows) <= NEAR else None


def differs(recipe: dict[str, Any], own: dict[str, Any]) -> list[list[Any]]:
    """A setting that the run's version did not have yet is no difference."""
    return [[name, recipe.get(name), own[name]] for name in sorted({*own} - {*OWN}) if recipe.get(name) != own[name]]
