"""A person's word on rollouts of which two judges say different things; labels join the probe of the run.

    python -m soundrl.genrm.label runs/fapo-7b                        # one after the other, in the terminal
    python -m soundrl.genrm.label runs/fapo-7b --list                 # what has no label yet
    python -m soundrl.genrm.label runs/fapo-7b --set 12/gsm8k.jsonl:17/3 -1

Reads `runs/<name>/disagreements.jsonl` and writes `labels.jsonl` beside it, a line a label in ProcessBench's form, which `genrm.probe` and
`soundrl.genrm.evaluate` read like any other file, and a run under way at its next probe:

    {"id": "12/gsm8k.jsonl:17/3", "problem": …, "steps": […], "label": -1, "final_answer_correct": true, "answer": "72"}

The id is step, prompt and sample; `label` the index of the first wrong paragraph, -1 where all are sound.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from soundrl.fapo.printable import one_line, printable
from soundrl.genrm.evaluate import command

SHOWN = 1500  # characters of a critique
ASK = "first wrong paragraph, -1 = all sound, s = skip, q = quit: "


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m soundrl.genrm.label`."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    list: bool = False
    """Only list what has no label yet."""
    set: tuple[str, int] | None = None
    """Label one without asking: its id and the index of the first wrong paragraph (-1 = none); an earlier label of it goes."""


class Labels:
    """Those of a run; `ValueError`, which names the line, where a file of it is damaged."""

    def __init__(self, run: Path) -> None:
        self.path = run / "labels.jsonl"
        source = run / "disagreements.jsonl"
        if not source.is_file():
            raise ValueError(f"{source} is not there: no second opinion of this run has disagreed (genrm.second)")
        self.open = {"{step}/{prompt_id}/{sample}".format_map(row): row for row in rows_of(source, cut=True)}
        """What can be labelled, by id"""
        self.rows = {str(row["id"]): row for row in rows_of(self.path)} if self.path.is_file() else {}

    @property
    def left(self) -> list[str]:
        return [id for id in self.open if id not in self.rows]

    def set(self, id: str, label: int) -> None:
        """Written beside and renamed at once: a run under way may be reading."""
        if id not in self.open:
            raise ValueError(f"--set {one_line(id)}: no such disagreement in {self.path.parent}; --list shows them")
        row = self.open[id]
        count = len(row["paragraphs"])
        if not -1 <= label < count:
            raise ValueError(f"{label} is no paragraph of the {count} of {one_line(id)}; give -1 (all sound) or 0 … {count - 1}")
        own = {"id": id, "problem": row["problem"], "steps": row["paragraphs"], "label": label, "final_answer_correct": True}
        self.rows[id] = own | {"answer": row["reference"]}
        beside = self.path.with_name(self.path.name + ".new")
        beside.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in self.rows.values()), encoding="utf-8")
        beside.replace(self.path)


def rows_of(file: Path, cut: bool = False) -> Iterator[dict[str, Any]]:
    """`cut`: the last line may be being written."""
    lines = file.read_text("utf-8").split("\n")
    for number, line in enumerate(lines[: -1 if cut else None], 1):
        if line:
            try:
                yield dict(json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{file}:{number}: no JSON object ({error}); restore it, or remove that line") from None


def shown(id: str, row: dict[str, Any]) -> str:
    """All that a person needs, harmless on a terminal."""
    said = [f"{who} judge: {verdict(row[key])}\n{row[key]['critique'][:SHOWN]}" for who, key in (("first", "first"), ("other", "second"))]
    paragraphs = [f"[{index}] {text}" for index, text in enumerate(row["paragraphs"])]
    parts = [f"── {id}", row["problem"].strip(), f"reference: {row['reference']}", *paragraphs, *said]
    return printable("\n\n".join(part.strip() for part in parts))


def verdict(said: dict[str, Any]) -> str:
    return said["kind"] if said["step"] is None else f"{said['kind']} {said['step']}"


def ask(labels: Labels, answer: Callable[[str], str] = input) -> None:
    """One after the other, until all are labelled or the person has enough."""
    left = labels.left
    for number, id in enumerate(left, 1):
        print(f"{shown(id, labels.open[id])}\n\n{number} of {len(left)}")
        while (said := answer(ASK).strip()) not in ("s", "q", ""):
            try:
                labels.set(id, int(said) if said.removeprefix("-").isdecimal() else -2)
                break
            except ValueError as error:
                print(one_line(str(error)))
        if said == "q":
            return


def main(arguments: Arguments) -> None:
    labels = Labels(arguments.run)
    if arguments.set is not None:
        labels.set(*arguments.set)
    elif arguments.list:
        for id in labels.left:
            row = labels.open[id]
            print(one_line(f"{id}  first: {verdict(row['first'])}, other: {verdict(row['second'])}"))
    else:
        try:
            ask(labels)
        except (EOFError, KeyboardInterrupt):
            print()
    print(f"{len(labels.rows)} labels in {labels.path}, {len(labels.left)} of {len(labels.open)} disagreements have none", file=sys.stderr)


def run(argv: Sequence[str] | None = None) -> None:
    command(main, Arguments, argv)


if __name__ == "__main__":
    run()
