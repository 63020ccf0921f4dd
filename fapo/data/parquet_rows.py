"""Reads a Parquet file in a process of its own: `python parquet_rows.py FILE CHARACTERS COLUMN…` prints a JSON object a row, or a list of
one text: why this row cannot be read; or at last a JSON text: the error that ended the file.

Run-length coding lets a file of kilobytes decode to any size. pyarrow has no bound for that, and to ask a damaged footer for the sizes ends
the whole process (an uncaught C++ exception, pyarrow 26.0.1). Here either ends a child with a memory limit, and the trainer gets an error.
Nothing of soundrl is imported.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator

MEMORY_LIMIT = 4 << 30  # address space of this process, bytes: ample for row groups of a few hundred MB
BATCH_ROWS = 64  # few, since a text that is stored once may be repeated in every row


def rows(path: str, limit: int, columns: list[str]) -> Iterator[dict | list[str] | str]:
    """The rows with at most `limit` characters of text each, or as the last item an error such as `:3: no valid UTF-8 (…); …`."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        yield f": Parquet needs pyarrow ({error}); pip install 'soundrl[train]', or write .jsonl"
        return
    pa.set_cpu_count(1)
    row = 0
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            names = file.schema_arrow.names
            whole = [column.partition(".")[0] for column in columns]
            if twice := [name for name in whole if names.count(name) > 1]:
                yield f": two columns are named {twice[0]!r}; rename one"
                return
            # Of a struct the field that is read, where it has it: what stands beside it may be megabytes, dates, or not a number.
            leaves = [f"{file.schema.column(index).path}." for index in range(len(file.schema))]
            wanted = [column for column in columns if any(leaf.startswith(f"{column}.") for leaf in leaves)]
            for batch in file.iter_batches(BATCH_ROWS, columns=wanted, use_threads=False):
                for index in range(batch.num_rows):
                    (fields,) = batch.slice(index, 1).to_pylist()
                    row += 1
                    long = text_size(fields) > limit
                    yield [f"texts longer than {limit} characters; shorten the row"] if long else fields
    except UnicodeDecodeError as error:
        yield f":{row + 1}: no valid UTF-8 ({error.reason}); write texts as UTF-8"
    except (pa.ArrowException, ValueError, OverflowError, RecursionError, OSError, MemoryError) as error:
        yield f": no valid Parquet after row {row} ({str(error)[:120]!r}); write the file again"


def text_size(value: object) -> int:
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, dict):
        return sum(map(text_size, value.values()))
    return sum(map(text_size, value)) if isinstance(value, (list, tuple)) else 0


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    path, limit, *columns = sys.argv[1:]
    for row in rows(path, int(limit), columns):
        # Times, decimals and bytes have no JSON form; as an object they are refused wherever a text is needed.
        print(json.dumps(row, default=lambda value: {type(value).__name__: str(value)[:40]}))


if __name__ == "__main__":
    main()
