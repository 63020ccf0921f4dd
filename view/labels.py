"""What a person has said of verdicts, from and into the run's `labels.jsonl`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundrl.genrm.labels import Labels, id_of
from soundrl.view.paragraphs import paragraphs_of
from soundrl.view.tail import object_of

if TYPE_CHECKING:
    from soundrl.view.run import Run

COLUMNS = ("prompt_id", "sample", "text", "prompt", "answer", "verdict", "paragraphs", "turns")
MOST = 64 << 20  # bytes of a file of labels


class LabelFile:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "labels.jsonl"
        self.stamp: tuple[int, int] = (0, 0)
        self.held: dict[str, int] = {}

    def of(self, id: str) -> int | None:
        """The index of the first wrong paragraph, -1 = none; None = not labelled."""
        return self.all().get(id)

    def all(self) -> dict[str, int]:
        """Empty where there is no file of labels, or none that can be read."""
        try:
            said = self.path.stat()
            stamp = (said.st_mtime_ns, said.st_size)
            if stamp != self.stamp and said.st_size < MOST:
                rows = [object_of(line) for line in self.path.read_bytes().split(b"\n") if line]
                self.held = {row["id"]: row["label"] for row in rows if row is not None and is_label(row)}
                self.stamp = stamp
        except OSError:
            return {}
        return self.held


def is_label(row: dict[str, Any]) -> bool:
    return isinstance(row.get("id"), str) and type(row.get("label")) is int


def put(run: Run, said: Any) -> dict[str, int | None]:
    """`POST <key>/labels`: write a person's label of a rollout, or take it back; ValueError for what is no label of one."""
    names = ("step", "g", "sample", "label")
    if not isinstance(said, dict) or set(said) != {*names, "kind"}:
        raise ValueError(f"a label is an object with kind, {', '.join(names)}, and nothing else")
    numbers = [said[name] for name in names]
    if any(type(value) is not int for value in numbers[:3]) or not (said["label"] is None or type(said["label"]) is int):
        raise ValueError("step, g, sample and label are whole numbers; label may be null")
    step, g, sample, label = numbers
    held = run.step(step, said["kind"]) if isinstance(said["kind"], str) else None
    if held is None:
        raise ValueError("kind is a word: train, eval or replaced")
    row = held.row(g, sample)
    read = held.read(slice(row, row + 1), COLUMNS)[0]
    if (read["verdict"] or {}).get("kind") is None:
        raise ValueError("this rollout has not been judged: there is no verdict to label")
    asked = {"problem": read["prompt"] or "", "paragraphs": list(paragraphs_of(run, read)), "reference": read["answer"] or ""}
    run.check(run.path / "labels.jsonl")
    try:
        Labels(run.path).set(id_of(step, read["prompt_id"] or "", read["sample"] or 0), label, asked)
    except OSError as error:
        raise ValueError(f"labels.jsonl cannot be written ({error.strerror}); make the run's folder writable") from None
    return {"label": label}
