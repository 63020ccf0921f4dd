"""`disagreements.jsonl`: rollouts of which a second opinion says otherwise, by step, read on while the run writes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from soundrl.view.tail import Tail, object_of

Said = dict[str, Any]
Named = tuple[str, str, int]
"""Kind (`train` of those that were replaced too), prompt and sample"""


class Disagreements:
    """`by_step[12]["train", "arith:0:3", 5]` → (first, second), each `{"kind", "step"}`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "disagreements.jsonl"
        self.tail = Tail(self.path, self._take, self._reset)
        self.unread = ""
        """Why not all of it could be read"""
        self._reset()

    def _reset(self) -> None:
        self.by_step: dict[int, dict[Named, tuple[Said, Said]]] = {}
        self.distance: Counter[str] = Counter()
        self.bad = self.count = 0
        self.harsh = self.missed = 0
        """Sound by the second and flawed by the first; and the other way"""

    def _take(self, _: int, line: bytes) -> None:
        row = object_of(line) if line else None
        first, second = (said_of(row.get(who)) if row else None for who in ("first", "second"))
        if row is None or first is None or second is None or not isinstance(row.get("step"), int) or not isinstance(row.get("sample"), int):
            self.bad += bool(line)
            return
        self.by_step.setdefault(row["step"], {})["eval" if row.get("set") else "train", str(row.get("prompt_id")), row["sample"]] = (
            first,
            second,
        )
        self.count += 1
        kinds = first["kind"], second["kind"]
        self.harsh += kinds == ("flawed", "sound")
        self.missed += kinds == ("sound", "flawed")
        if kinds == ("flawed", "flawed") and first["step"] is not None and second["step"] is not None:
            self.distance[str(first["step"] - second["step"])] += 1

    def read(self) -> Disagreements:
        self.unread = self.tail.whole()
        return self

    def about(self, step: int, kind: str, prompt_id: str, sample: int | None) -> tuple[Said, Said] | None:
        """Of one rollout: what the first and the second judge say, where they disagree."""
        known = self.by_step.get(step)
        return None if known is None or sample is None else known.get(("eval" if kind == "eval" else "train", prompt_id, sample))

    def of(self, step: int) -> dict[Named, tuple[Said, Said]]:
        return self.by_step.get(step, {})

    @property
    def fault(self) -> str:
        if self.unread:
            return f"disagreements.jsonl: {self.unread}"
        return f"disagreements.jsonl: {self.bad} lines are none of a second opinion; they are left out" if self.bad else ""


def said_of(found: Any) -> Said | None:
    """
    >>> said_of({"kind": "flawed", "step": 2, "critique": "…"}), said_of([])
    ({'kind': 'flawed', 'step': 2}, None)
    """
    if not isinstance(found, dict) or not isinstance(found.get("kind"), str):
        return None
    step = found.get("step")
    return {"kind": found["kind"][:40], "step": step if isinstance(step, int) and not isinstance(step, bool) else None}
