"""The rows of a problem file: JSON Lines, a JSON list, CSV or Parquet, each with its number; every fault is a one-line `DataError`.

A problem file is outside data. Whatever stands in it, reading ends with rows or with one line that names the file, the row, what was
found and the cure; memory stays bounded, and nothing is skipped. A row that is at fault is a `RowError`
and ends no file.
"""

from __future__ import annotations

import csv
import json
import os
import re
import stat
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import pyarrow as pa

    from soundrl.fapo.data.columns import Columns

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
BATCH_ROWS = 64  # of a Parquet file, at a time: few, since run-length coding may repeat a text that is stored once in every row
MAX_ROW_CHARS = 1 << 20
"""Texts of a Parquet row's columns that are read, together; of the other formats `MAX_TOTAL_CHARS` bounds what is kept."""
MAX_BATCH_BYTES = 1 << 22  # of one that becomes Python objects at once, and not row by row
MAX_LINE_BYTES = 1 << 24  # longest line of a JSONL file, with what is not read: generations and traces run to megabytes
HEAD = 16  # rows of a JSON file that say which columns it has
MAX_LIST_BYTES = 1 << 28
"""Largest `.json` file that holds one list: it is read whole. JSONL and Parquet files are streamed and have no such limit."""


class DataError(ValueError):
    """A problem file or data set that cannot be used; the message is one line: `file:row: field: what was found; cure`."""


class RowError(DataError):
    """One row that cannot be used: `reason` (what was found; cure), `field` where it is known, and `place`, the prompt's id `file:row`."""

    def __init__(self, reason: str, field: str = "", place: str = "") -> None:
        super().__init__(reason)
        self.reason, self.field, self.place = reason, field, place

    @property
    def at(self) -> tuple[str, int]:
        """File and row of its place; 0 where an environment's ids have no number."""
        file, _, row = self.place.rpartition(":")
        return file, int(row) if row.isdecimal() else 0

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, self.field, self.reason) if part)


class Twice:
    """The value of a key that stands twice in its object: a fault where it is read, and nowhere else."""


def shown(value: object, limit: int = 60) -> str:
    """`value` for an error message: short, on one line, control characters escaped; containers only by their kind.

    >>> shown("a\\n" * 100, limit=8), shown(None), shown({"a": 1})
    ("'a\\\\na\\\\na\\\\na\\\\n'…", 'null', 'an object')
    """
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, (str, bytes)):
        return repr(value[:limit]) + ("…" if len(value) > limit else "")
    if isinstance(value, (int, float, Decimal)):
        return str(value)[:limit] + ("…" if len(str(value)) > limit else "")
    kinds = {dict: "an object", list: "a list", Twice: "a key that stands twice"}
    return kinds.get(type(value), f"a value of type {type(value).__name__}")


def shown_path(path: str | os.PathLike[str]) -> str:
    """`path` as it was given, or escaped where it holds control characters."""
    text = os.fspath(path)
    return text if text.isprintable() else ascii(text)


def file_id(path: str | os.PathLike[str]) -> str:
    """`path` as it was given, normalised: the beginning of its prompts' ids. `./a/../b.jsonl` is `b.jsonl`."""
    return shown_path(os.path.normpath(path))


Fields = dict[str, object]
Rows = Iterator[tuple[int, Fields | RowError]]


def read_rows(path: str | os.PathLike[str], columns: Columns) -> Rows:
    """Yields `(row, fields)`; rows count from 1: the line of a JSONL file, the item of a JSON list, the row of a Parquet file, the record
    of a CSV file, whose header does not count.

    `.jsonl` holds an object a line; `.json` the same or one list of objects; `.csv` a header and texts, empty ones null; `.parquet` is
    read for `columns` only, null fields included. Numbers with a point are `Decimal`, as they were written. In place of the fields of a
    row that is no such object stands the `RowError`. Raises `DataError` where the file itself is damaged, having yielded the rows before
    that, or has not the columns that it must have.

    Example: a file of the two lines `{"problem": "1+1", "answer": "2"}` and `[]` yields `(1, {"problem": "1+1", "answer": "2"})` and
    `(2, RowError("a list where an object is expected; write one JSON object a line"))`.
    """
    name = shown_path(path)
    try:
        info = os.stat(path)
    except FileNotFoundError:
        raise DataError(f"{name}: no such file; check the path, or name a generated data set as rg:<name>") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: {error.strerror if isinstance(error, OSError) else error}; check the path") from None
    # A FIFO would block for ever and a device never end, so neither is ever opened.
    if not stat.S_ISREG(info.st_mode):
        kind = "a directory; name a file in it" if stat.S_ISDIR(info.st_mode) else "a device, pipe or socket; name a regular file"
        raise DataError(f"{name}: {kind}")
    if info.st_size == 0:
        raise DataError(f"{name}: empty file; it needs at least one row")
    suffix = Path(path).suffix.lower()
    try:
        if suffix not in SUFFIXES:
            raise DataError(f"{name}: unknown suffix {shown(suffix)}; use .jsonl, .json, .csv or .parquet, unpacked")
        if (begin := _beginning(path)).startswith(b"version https://git-lfs"):
            raise DataError(f"{name}: a pointer of Git LFS, and not the file itself; git lfs pull, or download it again")
        if suffix == ".parquet":
            yield from _parquet_rows(path, name, columns)
        elif suffix == ".csv":
            yield from _csv_rows(path, name, columns)
        else:
            rows = _json_list(path, name) if suffix == ".json" and begin.lstrip().startswith(b"[") else _json_lines(path, name)
            yield from _checked(rows, name, columns)
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror or shown(str(error), 120)}); check the file") from None


def _object(pairs: list[tuple[str, object]]) -> Fields:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        fields |= {key: Twice() for key, _ in pairs if key in seen or seen.add(key)}
    return fields


def _integer(text: str) -> int | str:
    return int(text) if len(text) < 4000 else text  # Python converts no more than 4,300 digits


_BLANK = re.compile(r"[ \t\r\n]*")
# What is not read stops nothing: NaN and 1e999, which are no JSON or no double, are values like others here.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=Decimal, parse_int=_integer)


def _decode(text: str, start: int, cure: str) -> tuple[object, int]:
    """The JSON value that begins at `text[start]`, and the position after it; RowError where there is none."""
    try:
        return _DECODER.raw_decode(text, start)
    except RecursionError:
        raise RowError(f"nested too deeply; {cure}") from None
    except json.JSONDecodeError as error:
        raise RowError(f"no valid JSON ({error.msg}, character {error.pos - start + 1}); {cure}") from None
    except ArithmeticError:
        raise RowError(f"a number whose exponent is out of all bounds; {cure}") from None


def _fields(value: object, cure: str) -> Fields | RowError:
    return value if isinstance(value, dict) else RowError(f"{shown(value)} where an object is expected; {cure}")


def _utf8(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: no valid UTF-8 (byte {shown(data[error.start : error.start + 1])} at {error.start}); save as UTF-8"
        ) from None


def _json_lines(path: str | os.PathLike[str], name: str) -> Rows:
    cure = "write one JSON object a line"
    with open(path, "rb") as file:
        row = 0
        # Never more than the limit is read at once: a file without line ends costs 16 MiB, not its size.
        while line := file.readline(MAX_LINE_BYTES + 1):
            row += 1
            line = line.removesuffix(b"\n")
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{name}:{row}: line longer than {MAX_LINE_BYTES} bytes; {cure}")
            text = _utf8(line, f"{name}:{row}").strip(" \t\r")
            try:
                if not text:
                    raise RowError("empty line; delete it")
                value, end = _decode(text, 0, cure)
                fields = _fields(value, cure)
                if end != len(text) and isinstance(value, dict):
                    raise RowError(f"{shown(text[end:].strip())} after the object; {cure}")
            except RowError as error:
                fields = error
            yield row, fields


def _beginning(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        return file.read(4096)


def _checked(rows: Rows, name: str, columns: Columns) -> Rows:
    """`rows`, of which the first ones say which columns the file has."""
    head: list[tuple[int, Fields | RowError]] = []
    damage = None
    try:
        for item in islice(rows, HEAD):
            head.append(item)
    except DataError as error:  # perhaps in a row that nobody asks for
        damage = error
    if objects := [fields for _, fields in head if isinstance(fields, dict)]:
        columns.check(name, objects)
    yield from head
    if damage is not None:
        raise damage
    yield from rows


def _csv_rows(path: str | os.PathLike[str], name: str, columns: Columns) -> Rows:
    cure = 'write a header and a record a line, and quote "what holds commas, quotes or line ends"'
    csv.field_size_limit(MAX_LINE_BYTES)
    row = 0

    def lines(file: BinaryIO) -> Iterator[str]:
        while line := file.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{name}:{row + 1}: line longer than {MAX_LINE_BYTES} bytes; {cure}")
            yield _utf8(line, f"{name}:{row + 1}")

    with open(path, "rb") as file:
        file.seek(3 if file.read(3) == b"\xef\xbb\xbf" else 0)  # as spreadsheets begin it
        records = csv.reader(lines(file), strict=True)
        try:
            header = next(records, [])
            if twice := next((column for column in header if header.count(column) > 1), None):
                raise DataError(f"{name}: two columns are named {shown(twice)}; rename one")
            columns.check(name, [{column: None for column in header}])
            for record in records:
                row += 1
                if len(record) == len(header):
                    yield row, {column: text if text.strip() else None for column, text in zip(header, record, strict=True)}
                else:
                    what = f"{len(record)} fields, but {len(header)} in the header; {cure}" if record else "empty line; delete it"
                    yield row, RowError(what)
        except csv.Error as error:
            raise DataError(f"{name}:{row + 1}: no valid CSV ({error}); {cure}") from None
    if row == 0:
        raise DataError(f"{name}: no rows; it needs at least one")


def _json_list(path: str | os.PathLike[str], name: str) -> Rows:
    cure = "write one list of JSON objects"
    with open(path, "rb") as file:
        data = file.read(MAX_LIST_BYTES + 1)
    if len(data) > MAX_LIST_BYTES:
        raise DataError(f"{name}: list longer than {MAX_LIST_BYTES} bytes; write it as .jsonl, an object a line")
    text = _utf8(data, name)
    del data

    def skip(position: int) -> int:
        return _BLANK.match(text, position).end()  # pyright: ignore[reportOptionalMemberAccess]  # it matches nothing, too

    position, row = skip(skip(0) + 1), 0
    closed = text.startswith("]", position)
    # Item by item instead of at once, so that a fault has a row number. Behind an item that is no JSON nobody knows where the next begins.
    while not closed:
        row += 1
        try:
            item, end = _decode(text, position, cure)
        except RowError as error:
            raise DataError(f"{name}:{row}: {error}") from None
        yield row, _fields(item, cure)
        position = skip(end)
        closed = text.startswith("]", position)
        if not closed and not text.startswith(",", position):
            raise DataError(f"{name}:{row}: {shown(text[position : position + 61])} after the object; {cure}")
        position = skip(position + 1)
    if row == 0:
        raise DataError(f"{name}: empty list; it needs at least one row")
    if skip(position) < len(text):
        raise DataError(f"{name}:{row}: {shown(text[position : position + 61])} after the list; {cure}")


def _parquet_rows(path: str | os.PathLike[str], name: str, columns: Columns) -> Rows:
    """Only leaves that are read are decoded: what stands beside them may be megabytes, dates, or not a number. Their sizes are never asked
    of the footer, which ends the whole process where that is damaged (an uncaught C++ exception, pyarrow 26.0.1)."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{name}: Parquet needs pyarrow ({error}); pip install 'soundrl[train]', or write .jsonl") from None
    row = 0
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            leaves = [file.schema.column(index).path for index in range(len(file.schema))]
            columns.check(name, [_nested(leaves)])
            wanted, names = columns.leaves(leaves), file.schema_arrow.names
            if twice := [column for column in wanted if names.count(column.partition(".")[0]) > 1]:
                raise DataError(f"{name}: two columns are named {twice[0].partition('.')[0]!r}; rename one")
            for batch in file.iter_batches(BATCH_ROWS, columns=wanted, use_threads=False):
                for fields in _objects(batch):
                    row += 1
                    long = batch.nbytes > MAX_ROW_CHARS and _text_size(fields) > MAX_ROW_CHARS
                    yield row, RowError(f"texts longer than {MAX_ROW_CHARS} characters; shorten the row") if long else fields
    except UnicodeDecodeError as error:
        raise DataError(f"{name}:{row + 1}: no valid UTF-8 ({error.reason}); write texts as UTF-8") from None
    except DataError:
        raise
    except (pa.ArrowException, ValueError, OverflowError, RecursionError, OSError, MemoryError) as error:
        raise DataError(f"{name}: no valid Parquet after row {row} ({shown(str(error), 120)}); write the file again") from None
    if row == 0:
        raise DataError(f"{name}: no rows; it needs at least one")


def _objects(batch: pa.RecordBatch) -> Iterator[Fields]:
    """Its rows; one by one, which takes ten times as long, where that saves memory, or says which of them is no text."""
    if batch.nbytes <= MAX_BATCH_BYTES:
        try:
            yield from batch.to_pylist()
            return
        except UnicodeDecodeError:  # before the first was given
            pass
    for index in range(batch.num_rows):
        yield from batch.slice(index, 1).to_pylist()


def _nested(leaves: list[str]) -> Fields:
    """The columns of a Parquet file as a row of nulls: `a.b.list.element` → `{"a": {"b": {"list": {"element": None}}}}`."""
    row: dict[str, Any] = {}
    for leaf in leaves:
        inner = row
        for part in leaf.split("."):
            inner = inner.setdefault(part, {})
    return row


def _text_size(value: object) -> int:
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_text_size, value)) if isinstance(value, (list, tuple)) else 0
