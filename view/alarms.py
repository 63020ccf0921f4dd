"""`alarms.jsonl`: the alarms of the judge's watch, a line where those that stand change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from soundrl.view.tail import Tail, object_of

MOST = 1000  # lines that are kept


class AlarmFile:
    """Of one run, read on while it goes on."""

    def __init__(self, folder: Path) -> None:
        self.tail = Tail(folder / "alarms.jsonl", self._take, self._reset)
        self._reset()

    def _reset(self) -> None:
        self.rows: list[tuple[int, dict[str, str]]] = []
        self.bad = 0

    def _take(self, _: int, line: bytes) -> None:
        row = object_of(line) if line else None
        step, standing = (None, None) if row is None else (row.get("step"), row.get("alarms"))
        if not isinstance(step, int) or not isinstance(standing, dict) or len(self.rows) >= MOST:
            self.bad += bool(line)
            return
        self.rows.append((step, {str(name)[:100]: str(text)[:500] for name, text in standing.items()}))

    def standing(self) -> dict[str, str]:
        """Text by name, now."""
        self.tail.whole()  # a file that cannot be read has no alarms: the metrics hold their number
        return self.rows[-1][1] if self.rows else {}

    def told(self) -> list[list[Any]]:
        """[step, text] when each began."""
        self.tail.whole()  # a file that cannot be read has no alarms: the metrics hold their number
        out, before = [], dict[str, str]()
        for step, now in self.rows:
            out += [[step, text] for name, text in now.items() if name not in before]
            before = now
        return out
