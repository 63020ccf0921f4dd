"""The rows of a problem file: JSON Lines, a JSON list or Parquet, each with its number; every fault is a one-line `DataError`.

A problem file is outside data. Whatever stands in it, reading ends with rows or with one line that names the file, the row, what was
found and the cure; memory stays bounded, and nothing is skipped.
"""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

MAX_ROW_BYTES = 1 << 20
"""Longest line of a JSONL file, item of a JSON list, or sum of the texts of a Parquet row (there in characters)."""
MAX_LIST_BYTES = 1 << 28
"""Largest `.json` file that holds one list: it is read whole. JSONL and Parquet files are streamed and have no such limit."""


class DataError(ValueError):
    """A problem file or data set that cannot be used; the message is one line: `file:row: field: what was found; cure`."""


def shown(value: object, limit: int = 60) -> str:
    """`value` for an error message: short, on one line, control characters escaped; containers only by their kind.

    >>> shown("a\\n" * 100, limit=8), shown(None), shown({"a": 1})
    ("'a\\\\na\\\\na\\\\na\\\\n'…", 'null', 'an object')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (str, bytes)):
        return repr(value[:limit]) + ("…" if len(value) > limit else "")
    if isinstance(value, (int, float)):
        text = repr(value)
        return text[:limit] + ("…" if len(text) > limit else "")
    return {dict: "an object", list: "a list"}.get(type(value), f"a value of type {type(value).__name__}")


def shown_path(path: str | os.PathLike[str]) -> str:
    """`path` as it was given, or escaped where it holds control characters."""
    text = os.fspath(path)
    return text if text.isprintable() else ascii(text)


def read_rows(path: str | os.PathLike[str], columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, object]]]:
    """Yields `(row, fields)`; rows count from 1: the line of a JSONL file, the item of a JSON list, the row of a Parquet file.

    `.jsonl` holds an object a line; `.json` the same or one list of objects; `.parquet` is read for `columns` only, null fields included.
    Raises `DataError` at the first row that is not as described, having yielded those before it.

    Example: a file `a.jsonl` of the two lines `{"problem": "1+1", "answer": "2"}` and `[]` yields `(1, {"problem": "1+1", "answer": "2"})`
    and then raises `a.jsonl:2: a list where an object is expected; write one JSON object a line`.
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
        if suffix == ".parquet":
            yield from _parquet_rows(path, name, columns)
        elif suffix == ".json" and _starts_a_list(path):
            yield from _json_list(path, name)
        elif suffix in (".json", ".jsonl"):
            yield from _json_lines(path, name)
        else:
            raise DataError(f"{name}: unknown suffix {shown(suffix)}; use .jsonl, .json or .parquet, unpacked")
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror or shown(str(error), 120)}); check the file") from None


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {shown(twice)} stands twice in one object")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {shown(text)} is too large")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite)


def _decode(text: str, start: int, where: str, cure: str) -> tuple[dict[str, object], int]:
    """The JSON object that begins at `text[start]`, and the position after it."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except RecursionError:
        raise DataError(f"{where}: nested too deeply; {cure}") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: no valid JSON ({error.msg}, character {error.pos - start + 1}); {cure}") from None
    except ValueError as error:
        raise DataError(f"{where}: {error}; {cure}") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: {shown(value)} where an object is expected; {cure}")
    return value, end


def _utf8(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: no valid UTF-8 (byte {shown(data[error.start : error.start + 1])} at {error.start}); save as UTF-8"
        ) from None


def _json_lines(path: str | os.PathLike[str], name: str) -> Iterator[tuple[int, dict[str, object]]]:
    cure = "write one JSON object a line"
    with open(path, "rb") as file:
        row = 0
        # Never more than the limit is read at once: a file without line ends costs 1 MiB, not its size.
        while line := file.readline(MAX_ROW_BYTES + 1):
            row += 1
            where = f"{name}:{row}"
            line = line.removesuffix(b"\n")
            if len(line) > MAX_ROW_BYTES:
                raise DataError(f"{where}: line longer than {MAX_ROW_BYTES} bytes; {cure}")
            text = _utf8(line, where).strip(" \t\r")
            if not text:
                raise DataError(f"{where}: empty line; delete it")
            fields, end = _decode(text, 0, where, cure)
            if end != len(text):
                raise DataError(f"{where}: {shown(text[end:].strip())} after the object; {cure}")
            yield row, fields


def _starts_a_list(path: str | os.PathLike[str]) -> bool:
    with open(path, "rb") as file:
        return file.read(4096).lstrip().startswith(b"[")


def _json_list(path: str | os.PathLike[str], name: str) -> Iterator[tuple[int, dict[str, object]]]:
    cure = "write one list of JSON objects"
    with open(path, "rb") as file:
        data = file.read(MAX_LIST_BYTES + 1)
    if len(data) > MAX_LIST_BYTES:
        raise DataError(f"{name}: list longer than {MAX_LIST_BYTES} bytes; write it as .jsonl, an object a line")
    text = _utf8(data, name)
    del data

    def skip(position: int) -> int:
        while position < len(text) and text[position] in " \t\r\n":
            position += 1
        return position

    position, row = skip(skip(0) + 1), 0
    closed = text.startswith("]", position)
    # Item by item instead of at once, so that a fault has a row number.
    while not closed:
        row += 1
        fields, end = _decode(text, position, f"{name}:{row}", cure)
        if end - position > MAX_ROW_BYTES:
            raise DataError(f"{name}:{row}: item longer than {MAX_ROW_BYTES} characters; shorten it")
        yield row, fields
        position = skip(end)
        closed = text.startswith("]", position)
        if not closed and not text.startswith(",", position):
            raise DataError(f"{name}:{row}: {shown(text[position : position + 61])} after the object; {cure}")
        position = skip(position + 1)
    if row == 0:
        raise DataError(f"{name}: empty list; it needs at least one row")
    if skip(position) < len(text):
        raise DataError(f"{name}:{row}: {shown(text[position : position + 61])} after the list; {cure}")


def _parquet_rows(path: str | os.PathLike[str], name: str, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, object]]]:
    # -P: the script's folder stays off the child's path.
    command = [sys.executable, "-P", str(Path(__file__).with_name("parquet_rows.py")), os.path.abspath(path), str(MAX_ROW_BYTES), *columns]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        row = 0
        try:
            for line in child.stdout:
                # A child that dies leaves half a line.
                if not line.endswith(b"\n"):
                    break
                if line.startswith(b'"'):
                    raise DataError(name + json.loads(line))
                row += 1
                fields, _ = _decode(line.decode("utf-8"), 0, f"{name}:{row}", "write texts and whole numbers")
                yield row, fields
            child.wait()
        finally:
            # Where fewer rows were wanted, or one was refused; a child that has ended is left alone.
            child.kill()
    if child.returncode:
        raise DataError(f"{name}: pyarrow crashed after row {row} (exit status {child.returncode}): damaged file; write it again")
    if row == 0:
        raise DataError(f"{name}: no rows; it needs at least one")
