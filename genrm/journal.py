"""A file of results, appended as they come and read again after an interruption."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class Journal:
    """A record a line, under a first line that says what all of them were made from; `known` holds them by their `id`.

    A killed run leaves half a line, which is dropped. `ValueError` (`refusal`) where the file was made from something else.

    >>> Journal(Path("labels.jsonl"), {"seed": 0}, "remove it").add({"id": "row 1", "verdict": "sound"})
    """

    def __init__(self, path: Path, made_from: dict[str, Any], refusal: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        if lines and json.loads(lines[0]) != made_from:
            raise ValueError(f"{path} {refusal}")
        records = (json.loads(line) for line in lines[1:] if line.endswith("\n"))
        self.known: dict[str, dict[str, Any]] = {record["id"]: record for record in records}
        beside = path.with_name(path.name + ".part")
        beside.write_text("".join(json.dumps(line) + "\n" for line in [made_from, *self.known.values()]))
        beside.replace(path)
        self.sink = path.open("a")

    def add(self, record: dict[str, Any]) -> None:
        self.known[record["id"]] = record
        self.sink.write(json.dumps(record) + "\n")
        self.sink.flush()


def counted(items: Iterable[T], of: int, what: str) -> Iterator[T]:
    """`items` as they come; says on the way how many of how many were `what`, twenty lines in all."""
    for number, item in enumerate(items, 1):
        yield item
        if number % max(1, of // 20) == 0 or number == of:
            print(f"{number}/{of} {what}", file=sys.stderr, flush=True)
