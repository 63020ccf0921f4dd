"""A file of results, appended as they come and read again after an interruption: solutions, labels, verdicts."""

from __future__ import annotations

import fcntl
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

FORMAT = 2
T = TypeVar("T")


class Journal(AbstractContextManager["Journal"]):
    """A record a line, under a first line that says what all of them were made from; `known` holds them by their `id`. What they were made
    from is said by its content (`digest`), not by the name of a file.

    The half line that a killed run leaves is dropped. `ValueError`, one line, where the file was made from something else (`refusal`, and
    what differs), by another version, is damaged, or is being written by another process.

    >>> with Journal(Path("labels.jsonl"), {"seed": 0}, "remove it") as journal:
    ...     journal.add({"id": "row 1", "verdict": "sound"})
    """

    def __init__(self, path: Path, made_from: dict[str, Any], refusal: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.known: dict[str, dict[str, Any]] = {}
        self.sink = path.open("a+b")
        try:
            # Of the open file: it ends with the process, in whatever way.
            fcntl.flock(self.sink, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.sink.seek(0)
            content = self.sink.read()
            whole = content[: content.rfind(b"\n") + 1]
            self.sink.truncate(len(whole))
            lines = whole.split(b"\n")[:-1]
            if lines:
                self._check(path, lines[0], json.loads(json.dumps(made_from)), refusal)
            for number, line in enumerate(lines[1:], 2):
                record = _object(line)
                if not isinstance(record.get("id"), str):
                    raise ValueError(f"{path}:{number}: is damaged ({line[:60]!r}); delete the line, and it is asked for again")
                self.known[record["id"]] = record
            if not lines:
                self._write({"format": FORMAT, "made_from": made_from})
        except BlockingIOError:
            self.close()
            raise ValueError(f"{path} is being written by another process; wait for it, end it, or name another --out") from None
        except ValueError:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, record: dict[str, Any]) -> None:
        self.known[record["id"]] = record
        self._write(record)

    def close(self) -> None:
        """May be called twice."""
        self.sink.close()

    def _write(self, record: dict[str, Any]) -> None:
        self.sink.write(json.dumps(record).encode() + b"\n")
        self.sink.flush()

    @staticmethod
    def _check(path: Path, head: bytes, made_from: dict[str, Any], refusal: str) -> None:
        first = _object(head)
        known = first.get("made_from")
        if first.get("format") != FORMAT or not isinstance(known, dict):
            raise ValueError(f"{path} was begun by another version of soundrl, or is no work file; remove it, or name another --out")
        if others := sorted(name for name in known.keys() | made_from.keys() if known.get(name) != made_from.get(name)):
            raise ValueError(f"{path} {refusal} (another {', '.join(others)})")


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:  # no JSON, or no UTF-8
        return {}
    return found if isinstance(found, dict) else {}


def digest(what: Any) -> str:
    """SHA-256 of what can be written as JSON, in whatever order its names stand."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def counted(items: Iterable[T], of: int, what: str) -> Iterator[T]:
    """`items` as they come; says on the way how many of how many were `what`, twenty lines in all."""
    for number, item in enumerate(items, 1):
        yield item
        if number % max(1, of // 20) == 0 or number == of:
            print(f"{number}/{of} {what}", file=sys.stderr, flush=True)
