"""A person's labels of a run's rollouts: `labels.jsonl` in its folder, a line a label in ProcessBench's form, which `genrm.probe` and
`soundrl.genrm.evaluate` read like any other file, and a run under way at its next probe:

    {"id": "12/gsm8k.jsonl:17/3", "problem": …, "steps": […], "label": -1, "final_answer_correct": true, "answer": "72"}

The id is step, prompt and sample (`id_of`); `label` the index of the first wrong paragraph, -1 where all are sound.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from soundrl.fapo.printable import one_line


def id_of(step: int, prompt_id: str, sample: int) -> str:
    """
    >>> id_of(12, "gsm8k.jsonl:17", 3)
    '12/gsm8k.jsonl:17/3'
    """
    return f"{step}/{prompt_id}/{sample}"


class Labels:
    """Those of a run; `ValueError`, which names the line, where a file of it is damaged."""

    def __init__(self, run: Path) -> None:
        self.path, self.source = run / "labels.jsonl", run / "disagreements.jsonl"
        self.rows = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        return {str(row["id"]): row for row in rows_of(self.path)} if self.path.is_file() else {}

    @cached_property
    def open(self) -> dict[str, dict[str, Any]]:
        """What two judges disagree about, by id. Read where it is asked for: who labels by `row` needs none of it."""
        asked = rows_of(self.source, cut=True) if self.source.is_file() else ()
        return {id_of(row["step"], row["prompt_id"], row["sample"]): row for row in asked}

    @property
    def left(self) -> list[str]:
        return [id for id in self.open if id not in self.rows]

    def of(self, id: str) -> int | None:
        """The label of a rollout, None where it has none."""
        return self.rows[id]["label"] if id in self.rows else None

    def set(self, id: str, label: int | None, row: Mapping[str, Any] | None = None) -> None:
        """Label a rollout; None takes its label back. `row`: `problem`, `paragraphs` (as the judge saw them) and `reference` of one about
        which no two judges disagree; else those of the disagreement. ValueError for a label that is no paragraph's, and without `row` for
        an id that is no disagreement's."""
        if label is None:
            with self._alone():
                if self.rows.pop(id, None) is not None:
                    self._write()
            return
        row = row or self.open.get(id)
        if row is None:
            raise ValueError(f"--set {one_line(id)}: no such disagreement in {self.path.parent}; --list shows them")
        count = len(row["paragraphs"])
        if not -1 <= label < count:
            raise ValueError(f"{label} is no paragraph of the {count} of {one_line(id)}; give -1 (all sound) or 0 … {count - 1}")
        own = {"id": id, "problem": row["problem"], "steps": list(row["paragraphs"]), "label": label, "final_answer_correct": True}
        with self._alone():
            self.rows[id] = own | {"answer": row["reference"]}
            self._write()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else writes meanwhile, and what others have written since is in `rows`. It is the folder itself that is locked, which no
        run does."""
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            self.rows = self._read()
            yield
        finally:
            os.close(folder)

    def _write(self) -> None:
        """Beside, and renamed at once: a run under way may be reading. No label is no file, as a file without rows is none of solutions."""
        if not self.rows:
            self.path.unlink(missing_ok=True)
            return
        beside = self.path.with_name(self.path.name + ".new")
        beside.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in self.rows.values()), encoding="utf-8")
        beside.replace(self.path)


def rows_of(file: Path, cut: bool = False) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; ValueError with the line that is none. `cut`: the last line may be being written."""
    lines = file.read_text("utf-8").split("\n")
    for number, line in enumerate(lines[: -1 if cut else None], 1):
        if line:
            try:
                yield dict(json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{file}:{number}: no JSON object ({error}); restore it, or remove that line") from None
