"""The science table of README.md, from the rows: nobody types an interval.

    python bench/science/readme_table.py            # rewrites what stands between <!-- science --> and <!-- /science -->
    python bench/science/readme_table.py --check    # says whether it is up to date: status 0 or 1

A claim a line, with its verdict, primary outcomes and n, under what the report's first table says.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
import words
from claim import Claim, Row
from page import Table, md_table
from report import ROOT, ROWS, outcome, read


@dataclass(frozen=True)
class Arguments:
    rows: Path = ROWS
    """The runs, a JSON object a line."""
    pages: tuple[Path, ...] = (ROOT / "README.md",)
    """Where the block stands, once in each."""
    check: bool = False
    """Change nothing; end with status 1 where a page is not up to date."""


def block(claims: Sequence[Claim], runs: Sequence[Row]) -> str:
    rows = [[f"{claim.id}. {claim.claim}", claim.verdict, outcome(claim), words.seeds(claim)] for claim in claims]
    short = ", of the short version" if runs and all(run["quick"] for run in runs) else ""
    said = f"{words.counting(claims)}; {words.ran(runs)}{short}. Written by `python bench/science/readme_table.py`.\n"
    return f"{md_table(Table(['claim', 'verdict', 'primary outcomes: mean [95 % interval] over paired seeds', 'n'], rows))}\n{said}"


def rewritten(page: str, block: str, name: str, mark: str) -> str:
    """The page with `block` between its marks. Raises SystemExit where they do not stand there exactly once.

    >>> rewritten("a\\n<!-- science -->\\nold\\n<!-- /science -->\\nb\\n", "new\\n", "README.md", "science")
    'a\\n<!-- science -->\\nnew\\n<!-- /science -->\\nb\\n'
    """
    marks = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    if len(marks.findall(page)) != 1:
        raise SystemExit(f"error: {name} needs <!-- {mark} --> and <!-- /{mark} -->, each on a line of its own and once")
    return marks.sub(lambda found: f"{found[1]}{block}{found[2]}", page)


def renew(pages: Sequence[Path], block: str, mark: str, check: bool) -> None:
    """Rewrites what stands between the marks, or with `check` ends with status 1 where it is not up to date."""
    stale = []
    for path in pages:
        page = path.read_text()
        new = rewritten(page, block, path.name, mark)
        if new != page:
            stale.append(path)
            if not check:
                path.write_text(new)
    names = ", ".join(path.name for path in stale)
    if stale and check:
        raise SystemExit(f"error: not what the rows say: {names}; run python {Path(sys.argv[0])}")
    print(f"rewritten: {names}" if stale else "up to date")


def main(arguments: Arguments) -> None:
    from analysis import claims

    rows = read(arguments.rows)
    renew(arguments.pages, block(claims(rows), rows), "science", arguments.check)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
