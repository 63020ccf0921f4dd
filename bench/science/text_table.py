"""The tables of docs/science.md on real text, from the rows of `real_text.py`: nobody types an interval.

    python bench/science/text_table.py            # rewrites what stands between <!-- text --> and <!-- /text -->
    python bench/science/text_table.py --check    # says whether it is up to date: status 0 or 1

Of each preset the newest row of each stage.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from page import Table, md_table
from readme_table import renew

from soundrl.engine.files.run_reader import read_lines

ROOT = Path(__file__).resolve().parents[2]
SETS = {"processbench": "ProcessBench", "planted": "planted"}
MEASURES = ("f1", "flawed_f1", "precision", "recall", "coverage")
SHARES = {
    "right": "right, of the policy's samples",
    "coverage": "with a verdict, of right ones",
    "flawed, raw": "flawed by the judge, of these",
    "flawed, corrected by processbench": "the same, corrected for its errors on ProcessBench",
    "flawed, corrected by planted": "the same, corrected for its errors on planted flaws",
    "false sum, of right": "state a false sum, of right ones",
    "false sum, of wrong": "state a false sum, of wrong ones",
    "called flawed, of right with a false sum": "flawed by the judge, of right ones that state a false sum",
}


@dataclass(frozen=True)
class Arguments:
    rows: Path = ROOT / "bench" / "results" / "real_text.jsonl"
    """What the stages have found, a JSON object a line."""
    pages: tuple[Path, ...] = (ROOT / "docs" / "science.md",)
    """Where the block stands, once in each."""
    check: bool = False
    """Change nothing; end with status 1 where a page is not up to date."""


def per_cent(ends: Sequence[float] | None, sign: str = "") -> str:
    """
    >>> per_cent([0.5, 0.25, 0.75]), per_cent([0.05, -0.1, 0.2], "+"), per_cent(None)
    ('50.0 [25.0, 75.0]', '+5.0 [-10.0, +20.0]', '–')
    """
    if ends is None:
        return "–"
    value, low, high = (f"{100 * end:{sign}.1f}" for end in ends)
    return f"{value} [{low}, {high}]"


def benchmark(found: Mapping[str, Any]) -> str:
    rows = []
    for name, called in SETS.items():
        for how in ("standard", "assisted"):
            for who in ("before", "after"):
                part = found[f"{who}, {how}, {name}"]
                gain = per_cent(found[f"after − before, {how}, {name}, f1"], "+") if who == "after" else ""
                measures = (per_cent(part[measure]) for measure in MEASURES)
                rows.append(
                    [called, "shown" if how == "assisted" else "–", who, *measures, f"{part['tokens']:.0f}", gain, str(part["rows"])]
                )
    head = [
        "set",
        "answer",
        "warm start",
        "F1",
        "F1 of flawed",
        "precision",
        "recall",
        "with a verdict",
        "tokens",
        "F1 gained, paired",
        "n",
    ]
    return md_table(Table(head, rows))


def kinds(found: Mapping[str, Any]) -> str:
    """Of the judge after its warm start."""
    rows = []
    for kind in found["after, standard"]:
        parts = [found[f"after, {how}"][kind] for how in ("standard", "assisted")]
        rows.append([kind, str(parts[0][0]), *(str(count) for part in parts for count in part[1:])])
    return md_table(Table(["planted", "n", "called flawed", "at the right step", "called flawed, answer shown", "at the right step"], rows))


def shares(found: Mapping[str, Any]) -> str:
    cells = [(says, found[name]) for name, says in SHARES.items()]
    return md_table(Table(["of the policy", "% [95 % interval]", "n"], [[says, *share(cell)] for says, cell in cells]))


def share(cell: Mapping[str, Any] | None) -> tuple[str, str]:
    return ("–", "0") if cell is None else (per_cent(cell["share"]), str(cell["n"]))


def sums(found: Mapping[str, Any]) -> str:
    rows = [[name, *(str(part[key]) for key in ("rows", "with a sum", "with a false one", "at the flaw"))] for name, part in found.items()]
    return md_table(Table(["solutions", "n", "state a sum", "a false one", "first where the flaw is"], rows))


def section(preset: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Of the stages that are there."""
    stamp, hours = rows["speed"]["stamp"], sum(row["found"].get("seconds", 0.0) for row in rows.values()) / 3600
    said = [f"`real_text.py {preset}` on {stamp['device']}, {stamp['date'][:10]}, torch {stamp['torch']}, {hours:.1f} hours"]
    trained = [(who, rows[who]["found"]) for who in ("judge", "policy") if who in rows]
    said += [f"the {who}'s warm start {found['steps']} steps, {found['rows seen']:,} rows" for who, found in trained]
    if "flawed" in rows:
        said.append(f"{rows['flawed']['samples']} samples of each of {rows['flawed']['found']['problems']} test problems")
    said.append("all stages" if "pair" in rows else "without the pair of FAPO and GRPO")
    parts = [textwrap.fill(f"{'; '.join(said)}.", 150) + "\n"]
    for stage, write in (("benchmark", benchmark), ("kinds", kinds), ("flawed", shares)):
        parts += [write(rows[stage]["found"])] if stage in rows else []
    return "\n".join([*parts, sums(rows["rows"]["found"]["false sums"])])


def block(rows: Sequence[Mapping[str, Any]]) -> str:
    newest: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        newest.setdefault(row["preset"], {})[row["stage"]] = row
    return "\n" + "\n".join(section(preset, stages) for preset, stages in newest.items()) + "\n"


def main(arguments: Arguments) -> None:
    renew(arguments.pages, block(read_lines(arguments.rows)), "text", arguments.check)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
