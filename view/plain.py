"""Answers as JSON that every browser reads: what is not finite is null, and what a page cannot have is a fault of one line."""

from __future__ import annotations

import json
import math
import re
from typing import Any

UNSAFE = re.compile(rb"[^A-Za-z0-9._-]")


class NotThere(ValueError):
    """What was asked for is not in the run's folder; one line, what and the cure."""


def finite(value: float | None) -> float | None:
    """
    >>> finite(0.5), finite(float("nan")), finite(None)
    (0.5, None, None)
    """
    return value if value is not None and math.isfinite(value) else None


def cleaned(value: Any) -> Any:
    """The same with null for numbers that are not finite, at any depth that JSON itself was read from."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): cleaned(each) for name, each in value.items()}
    return [cleaned(each) for each in value] if isinstance(value, list | tuple) else value


def depth(value: Any) -> int:
    """Of lists and objects in each other; told without recursion, whatever it was read from.

    >>> depth(1), depth([]), depth({"a": [1]})
    (0, 1, 2)
    """
    level, found = [value], 0
    while level := [each for each in level if isinstance(each, dict | list)]:
        found += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return found


def encoded(answer: Any) -> bytes:
    r"""Bytes of a JSON file; ASCII, so that half a surrogate pair, which a damaged text may hold, is still JSON.

    >>> encoded({"a": "\ud800", "b": float("inf")})
    b'{"a":"\\ud800","b":null}'
    """
    try:
        text = json.dumps(answer, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(cleaned(answer), allow_nan=False, separators=(",", ":"))
    return text.encode("ascii")


def one_fault(error: Exception) -> str:
    """An error in one line of at most 300 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


def key_of(path: str) -> str:
    """A run's path below the root as one safe part of an address.

    >>> key_of("sweep/a b"), key_of(".hidden"), key_of("über")
    ('sweep=2Fa=20b', '=2Ehidden', '=C3=BCber')
    """
    raw = path.encode("utf-8", "surrogateescape")
    safe = UNSAFE.sub(lambda found: b"=%02X" % found[0][0], raw).decode("ascii")
    return "=2E" + safe[1:] if safe.startswith(".") else safe
