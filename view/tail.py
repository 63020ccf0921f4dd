"""Files to which lines are appended while somebody reads: each call reads what has come since."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from soundrl.view.plain import one_fault

CHUNK = 4 << 20  # bytes held at a time
LONGEST = 16 << 20  # of a line; what is longer is no line of a run


class Tail:
    """Hands each new whole line to `take(offset, line)`, and begins again, after `reset()`, where the file has become another one: shorter,
    or with another inode. A line that is not finished waits."""

    def __init__(self, path: Path, take: Callable[[int, bytes], None], reset: Callable[[], None]) -> None:
        self.path, self.take, self.reset = path, take, reset
        self.at = 0
        """Bytes that have been taken"""
        self.inode = 0
        self.edge = b""
        """The last bytes before `at`: another file that is longer has others there"""
        self.lock = threading.Lock()

    def read(self, most: int | None = None) -> bool:
        """Take what is new, `most` bytes of it; whether all has been taken. OSError where the file is there and cannot be read."""
        with self.lock:
            try:
                file = self.path.open("rb")
            except FileNotFoundError:
                self._begin(0)
                return True
            with file:
                said = os.fstat(file.fileno())
                file.seek(max(self.at - len(self.edge), 0))
                if said.st_ino != self.inode or said.st_size < self.at or file.read(len(self.edge)) != self.edge:
                    self._begin(said.st_ino)
                file.seek(self.at)
                return self._take(file, most)

    def whole(self) -> str:
        """Take all that is new; why that could not be, in a line, else empty."""
        try:
            self.read()
        except (OSError, ValueError) as error:
            return one_fault(error)
        return ""

    def _begin(self, inode: int) -> None:
        if self.at:
            self.reset()
        self.at, self.inode, self.edge = 0, inode, b""

    def _take(self, file: Any, most: int | None) -> bool:
        rest, taken = b"", 0
        while most is None or taken < most:
            chunk = file.read(CHUNK)
            if not chunk:
                return True
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self.take(self.at, line)
                self.at += len(line) + 1
                self.edge = (self.edge + line + b"\n")[-64:]
            taken += len(chunk)
            if len(rest) > LONGEST:
                raise ValueError(f"{self.path}: a line of more than {LONGEST >> 20} MiB; restore the file")
        return False


def object_of(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None where it holds none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
