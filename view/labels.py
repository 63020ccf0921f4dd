"""What a person has said of verdicts, from and into the run's `labels.jsonl`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from soundrl.view.tail import object_of


class LabelFile:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "labels.jsonl"
        self.stamp: tuple[int, int] = (0, 0)
        self.held: dict[str, int] = {}

    def of(self, id: str) -> int | None:
        """The index of the first wrong paragraph, -1 = none; None = not labelled."""
        return self.all().get(id)

    def all(self) -> dict[str, int]:
        try:
            said = self.path.stat()
        except OSError:
            return {}
        if (said.st_mtime_ns, said.st_size) != self.stamp:
            rows = [object_of(line) for line in self.path.read_bytes().split(b"\n") if line]
            self.held = {
                row["id"]: row["label"] for row in rows if row and isinstance(row.get("id"), str) and isinstance(row.get("label"), int)
            }
            self.stamp = (said.st_mtime_ns, said.st_size)
        return self.held


def put(run: Any, said: Any) -> dict[str, int | None]:
    raise ValueError("labels are not written yet")
