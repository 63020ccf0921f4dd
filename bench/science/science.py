"""Each claim of FAPO (arXiv 2510.22543), put to the test in the embedded world: runs over seeds, paired, and what they say.

    make science                     # everything: a night on two cores
    make science ARGS=--quick        # fewer seeds and steps, without E1b: under 3 hours
    python bench/science/science.py --only E1 E2 --seeds 2        # a part; what is there is not repeated
    python bench/science/science.py --kept                        # goes on from bench/results/science.jsonl, without its folders

What is asked, and what decides, was fixed before the runs: `protocol.md`. Rows go to bench/results/science.jsonl, the report to
<folder>/report/index.html and report.md.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

import overlap  # noqa: E402
import report  # noqa: E402
import tyro  # noqa: E402
from experiments import ARMS, FULL, QUICK, RATIOS, Size, wanted  # noqa: E402
from lab import Lab  # noqa: E402
from record import ROOT, machine  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "science.jsonl"


@dataclass(frozen=True)
class Arguments:
    quick: bool = False
    """Fewer seeds and steps, and E1b only by name, in a folder of its own; nothing is written to bench/results."""
    only: tuple[str, ...] = ()
    """Experiments, of E1, E1b, E2, E4, E5, E6, E7, E8; empty = all. E3 is read off E1 and E2."""
    seeds: int = 0
    """Seeds 0 … seeds − 1; 0 = as many as the version has."""
    folder: Path = Path("runs/science")
    """Where the runs live; a finished one is not repeated, an interrupted one goes on."""
    kept: bool = False
    """Do not repeat runs whose rows stand in the results, though not in the folder: one machine goes on with what another began."""
    parallel: int = 2
    """Runs at a time, one process and one thread each."""
    report: bool = False
    """Only write the report of the rows that are there."""


def main(arguments: Arguments) -> None:
    if unknown := {*arguments.only} - {*ARMS, "E8"}:
        raise SystemExit(f"error: --only {' '.join(unknown)}; there are {', '.join((*ARMS, 'E8'))}")
    size, folder = QUICK if arguments.quick else FULL, arguments.folder / ("quick" if arguments.quick else "full")
    results = folder / "science.jsonl" if arguments.quick else RESULTS
    if not arguments.report:
        lab = Lab(folder.resolve(), size, arguments.quick, arguments.parallel, read(results) if arguments.kept else {})
        for row in lab.rows(wanted(arguments.only, arguments.seeds or size.seeds, size.left_out)):
            keep(results, [row])
        if not arguments.only or "E8" in arguments.only:
            keep(results, timed(size, arguments.quick))
    report.main(report.Arguments(rows=results, out=arguments.folder / "report", quick=arguments.quick))


def timed(size: Size, quick: bool) -> list[dict[str, Any]]:
    """E8, alone on the machine: one ratio of judging to training after the other."""
    stamp = machine("cpu")
    return [row | {"quick": quick, "stamp": stamp} for ratio in RATIOS for row in overlap.measured(ratio, size.repeats)]


def read(file: Path) -> dict[str, dict[str, Any]]:
    """Rows by run; none where there is no file."""
    return {row["run"]: row for row in map(json.loads, file.read_text().splitlines())} if file.is_file() else {}


def keep(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write `rows` into `file`, in place of those of the same run, in the order of their names."""
    there = read(file) | {row["run"]: row for row in rows}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(there[name]) + "\n" for name in sorted(there)))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
