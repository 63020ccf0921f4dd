"""The rows of a run's files that cannot be used: each with its file, row, field and reason, all of them at once."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from soundrl.fapo.data.columns import Columns
from soundrl.fapo.data.rows import DataError, Fields, RowError
from soundrl.fapo.data.sources import opened

SHOWN = 3  # rows that an error line names; the others are counted, and listed in a file
HOPELESS = 1000  # so many unusable rows at the beginning of a file, and none that can be used: another kind of file, whose rest is not read

Row = TypeVar("Row")


class LeftOut:
    """Unusable rows by prompt id (`file:row`), a reason each, how many rows each file was read for, and how many of them repeat another."""

    def __init__(self) -> None:
        self.rows: dict[str, RowError] = {}
        self.read: Counter[str] = Counter()
        self.repeated: Counter[str] = Counter()

    def add(self, file: str, read: int, faults: Sequence[RowError], repeated: int = 0) -> None:
        """`faults` of the first `read` rows of `file`. A file that is read twice counts once."""
        self.read[file] = max(read, self.read[file])
        self.repeated[file] = max(repeated, self.repeated[file])
        self.rows = {fault.place: fault for fault in faults} | self.rows

    def __str__(self) -> str:
        """One line: the one fault, or how many there are and the first of them."""
        faults = self.ordered()
        if len(faults) == 1:
            return str(faults[0])
        more = f" | and {len(faults) - SHOWN:,} more" if len(faults) > SHOWN else ""
        return f"{len(faults):,} of {self.read.total():,} rows cannot be used: {' | '.join(map(str, faults[:SHOWN]))}{more}"

    def ordered(self) -> list[RowError]:
        """By file, in the order of reading, and row."""
        files = list(self.read)
        return sorted(self.rows.values(), key=lambda fault: (files.index(fault.at[0]), fault.at[1]))

    def counts(self) -> list[str]:
        """`college.jsonl: left out 7 of 2,818 rows (answer 6, prompt 1)`, a line a file that has some."""
        fields: dict[str, Counter[str]] = {}
        for fault in self.ordered():
            fields.setdefault(fault.at[0], Counter())[fault.field or "row"] += 1
        return [
            f"{file}: left out {found.total():,} of {self.read[file]:,} rows ({', '.join(f'{name} {n:,}' for name, n in found.items())})"
            for file, found in fields.items()
        ]

    def write(self, path: Path) -> None:
        """An object a line: file, row, field, reason. Where nothing is left out there is no file."""
        path.unlink(missing_ok=True)
        if self.rows:
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = ({"file": fault.at[0], "row": fault.at[1], "field": fault.field, "reason": fault.reason} for fault in self.ordered())
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def load_rows(
    source: str | os.PathLike[str],
    columns: Columns,
    make: Callable[[str, Fields], Row | None],
    max_rows: int | None = None,
    left_out: LeftOut | None = None,
) -> list[Row]:
    """`make(id, fields)` of each of the first `max_rows` rows of a source (`sources.py`); `id` is `<path as given, normalised>:<row>`.

    A row that `make` or the file's form refuses by a `RowError` is told to `left_out`; without one the rows are read to the end, and then
    one `DataError` says how many there are and shows the first. Where `make` gives None the row repeats another: it is counted, and is
    none of `max_rows`. A damaged file is a `DataError` always.
    """
    found: list[Row] = []
    out = LeftOut() if left_out is None else left_out
    unusable = 0
    for file, rows in opened(source, columns):
        faults: list[RowError] = []
        row, repeated = 0, 0
        full = False
        for row, fields in rows:
            try:
                if isinstance(fields, RowError):
                    raise fields
                if (made := make(f"{file}:{row}", fields)) is None:
                    repeated += 1
                else:
                    found.append(made)
            except RowError as error:
                error.place = f"{file}:{row}"
                faults.append(error)
            unusable_now = unusable + len(faults)
            if full := len(found) + unusable_now == max_rows or (unusable_now == HOPELESS and not found):
                break
        unusable += len(faults)
        out.add(file, row, faults, repeated)
        if full:
            break
    if left_out is None and unusable:
        raise DataError(str(out))
    return found
