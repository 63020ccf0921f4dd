"""Chosen columns of a rank's rollout file, batch by batch, and one batch alone by its place: no page needs a step's tokens in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute

from soundrl.engine.files.rollout_file import SCHEMA
from soundrl.engine.files.run_reader import old_rollouts
from soundrl.view.plain import one_fault

compute: Any = pyarrow.compute
"""Its functions are made when it is imported, which no type checker sees"""
pa.set_memory_pool(pa.system_memory_pool())  # the others keep what they have freed, and a page is read once
BATCH = 1024  # rows of a batch of format 1


@dataclass
class Place:
    """Of a batch in its file."""

    row: int
    """Its first, of the file"""
    rows: int
    at: int
    length: int
    """Bytes"""


@dataclass
class Part:
    """One rank's file of one sampling."""

    path: Path
    rank: int
    set: str
    places: list[Place] = field(default_factory=list)
    head: int = 0
    """Bytes of its schema"""
    said: bytes = b""
    """Rollouts by rank, as rank 0's file ends, JSON"""
    fault: str = ""

    @property
    def rows(self) -> int:
        return sum(place.rows for place in self.places)

    def scan(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Each whole batch, with those of `columns` that the file has; `places`, `said` and `fault` are then known."""
        self.places, self.fault, row = [], "", 0
        if self.path.suffix == ".jsonl":
            yield from self._old(columns)
            return
        try:
            with pa.OSFile(str(self.path)) as file:
                with pa.ipc.open_stream(file) as plain:
                    schema, self.head = plain.schema, file.tell()
                file = pa.OSFile(str(self.path))
                with file, pa.ipc.open_stream(file, options=_only(schema, columns)) as stream:
                    while True:
                        at = file.tell()
                        batch, more = stream.read_next_batch_with_custom_metadata()
                        batch.validate(full=True)
                        if more is not None and b"rows" in more:
                            self.said = more[b"rows"]
                        self.places.append(Place(row, batch.num_rows, at, file.tell() - at))
                        row += batch.num_rows
                        yield batch
        except StopIteration:
            pass
        except (pa.ArrowException, OSError, ValueError) as error:
            self.fault = f"{self.path.name}: read up to rollout {row} ({one_fault(error)}); restore it"

    def again(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The batches that `scan` has found, with other columns."""
        if self.path.suffix == ".jsonl":
            yield from self._old(columns)
            return
        for place in self.places:
            if place.rows:
                yield self.batch(place.row, columns)[0]

    def _old(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        try:
            table = old_rollouts(self.path).select([name for name in columns if name in SCHEMA.names])
        except ValueError as error:
            self.fault = one_fault(error)
            return
        for number, batch in enumerate(table.to_batches(max_chunksize=BATCH)):
            self.places.append(Place(number * BATCH, batch.num_rows, 0, 0))
            yield batch

    def batch(self, row: int, columns: Sequence[str]) -> tuple[pa.RecordBatch, int]:
        """That which holds this row of the file, and the row's number in it. ValueError where the file is not what it was."""
        number = next(i for i, place in enumerate(self.places) if place.row <= row < place.row + place.rows)
        place = self.places[number]
        if self.path.suffix == ".jsonl":
            return list(self._old(columns))[number], row - place.row
        with self.path.open("rb") as file:
            head = os.pread(file.fileno(), self.head, 0)
            body = os.pread(file.fileno(), place.length, place.at)
        try:
            with pa.ipc.open_stream(pa.BufferReader(head)) as plain:
                schema = plain.schema
            with pa.ipc.open_stream(pa.BufferReader(head + body), options=_only(schema, columns)) as stream:
                batch = stream.read_next_batch()
                batch.validate(full=True)
        except (pa.ArrowException, OSError, ValueError, StopIteration) as error:
            raise ValueError(f"{self.path.name}: damaged at rollout {place.row} ({one_fault(error)}); restore it") from None
        return batch, row - place.row


def _only(schema: pa.Schema, columns: Sequence[str]) -> pa.ipc.IpcReadOptions:
    """One thread: two pages are two."""
    return pa.ipc.IpcReadOptions(included_fields=[i for i, name in enumerate(schema.names) if name in columns], use_threads=False)
