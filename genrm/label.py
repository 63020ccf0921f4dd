"""A person's word on rollouts of which two judges say different things; labels join the probe of the run.

    python -m soundrl.genrm.label runs/fapo-7b                        # one after the other, in the terminal
    python -m soundrl.genrm.label runs/fapo-7b --list                 # what has no label yet
    python -m soundrl.genrm.label runs/fapo-7b --set 12/gsm8k.jsonl:17/3 -1

Reads `runs/<name>/disagreements.jsonl` and writes `labels.jsonl` beside it (`soundrl.genrm.labels`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from soundrl.fapo.printable import one_line, printable
from soundrl.genrm.evaluate import command
from soundrl.genrm.labels import Labels

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
    if not labels.source.is_file():
        raise ValueError(f"{labels.source} is not there: no second opinion of this run has disagreed (genrm.second)")
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
