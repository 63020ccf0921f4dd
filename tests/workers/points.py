"""Points of our own code at which a test kills, by module and name."""

from importlib import import_module
from typing import Any


def found(place: str) -> tuple[Any, str]:
    """Who has the function at a point, and its name there. AttributeError where it is no more."""
    module, _, names = place.removesuffix("+").partition(":")
    owner: Any = import_module(f"soundrl.{module}")
    *path, name = names.split(".")
    for part in path:
        owner = getattr(owner, part)
    getattr(owner, name)
    return owner, name
