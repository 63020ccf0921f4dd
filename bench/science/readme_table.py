"""The science table of README.md, from the rows: nobody types an interval.

    python bench/science/readme_table.py            # rewrites what stands between <!-- science --> and <!-- /science -->
    python bench/science/readme_table.py --check    # says whether it is up to date: status 0 or 1

A claim a line, with its verdict, primary outcomes and n, under what the report's first table says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
import words
from claim import Claim, Row
from page import Table, md_table
from report import ROOT, ROWS, outcome, read

BLOCK = re.compile(r"(<!-- science -->\n).*?(<!-- /science -->)", re.DOTALL)


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


def rewritten(page: str, block: str, name: str) -> str:
    """The page with `block` between its marks. Raises SystemExit where they do not stand there exactly once.

    >>> rewritten("a\\n<!-- science -->\\nold\\n<!-- /science -->\\nb\\n", "new\\n", "README.md")
    'a\\n<!-- science -->\\nnew\\n<!-- /science -->\\nb\\n'
    """
    if len(BLOCK.findall(page)) != 1:
        raise SystemExit(f"error: {name} needs <!-- science --> and <!-- /science -->, each on a line of its own and once")
    return BLOCK.sub(lambda found: f"{found[1]}{block}{found[2]}", page)


def main(arguments: Arguments) -> None:
    from analysis import claims

    rows = read(arguments.rows)
    new_block = block(claims(rows), rows)
    stale = []
    for path in arguments.pages:
        page = path.read_text()
        new = rewritten(page, new_block, path.name)
        if new != page:
            stale.append(path)
            if not arguments.check:
                path.write_text(new)
    names = ", ".join(path.name for path in stale)
    if stale and arguments.check:
        raise SystemExit(f"error: not what the rows say: {names}; run python bench/science/readme_table.py")
    print(f"rewritten: {names}" if stale else "up to date")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
