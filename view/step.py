"""The rollouts of a step in numbers: a row each in arrays, texts left on the disk.

Shapes: N rollouts, G groups.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from soundrl.engine.files.rollout_file import NAME, SCHEMA
from soundrl.view.arrow import Part, compute
from soundrl.view.plain import NotThere

KINDS = ("train", "eval", "replaced", "probe")
LIGHT = (
    "prompt_id sample set prompt tokens extracted outcome verdict reward advantage kept score finish_reason "
    "judge_tokens judge_seconds times window"
).split()
"""Columns that a step's pages need; of `tokens` the lengths alone are kept, of `prompt` the beginning of each group's first"""
SHOWN = 160  # characters of a problem in a list
OUTCOMES = ("correct", "wrong", "no_answer", "unparseable", "unknown", "unscored")
VERDICTS = ("sound", "flawed", "unknown")
TIMES = ("sampled", "verified", "asked", "first_token", "answered")
MOST = 1 << 20  # rollouts of a step


@dataclass
class Head:
    """A group, without its rollouts."""

    prompt_id: str
    set: str
    problem: str
    start: int = 0
    """Its first row"""
    size: int = 0


class Step:
    """`Step(folder of the run, 12, "train")`; NotThere where there is none. What could not be read is in `faults`."""

    def __init__(self, run: Path, step: int, kind: str) -> None:
        self.step, self.kind = step, kind
        self.parts = parts_of(run, step, kind)
        self.faults: list[str] = []
        self.heads: list[Head] = []
        self._made: dict[Hashable, Any] = {}
        columns: dict[str, list[np.ndarray]] = {}
        self._group_of: dict[tuple[str, str], int] = {}
        for part in self._kept(columns):
            if part.fault:
                self.faults.append(part.fault)
        whole = {name: np.concatenate(values) for name, values in columns.items()} if columns else columns_of(SCHEMA.empty_table())
        group = whole.pop("group", np.zeros(0))
        # An evaluation writes the first sample of every problem, then the second: the rollouts of a group stand apart in the file.
        self.disk = np.lexsort((np.nan_to_num(whole["sample"]), group))
        """[N] the row in the files of each row here, where groups come one after the other, and in each the samples"""
        self.columns: dict[str, np.ndarray] = {name: values[self.disk] for name, values in whole.items()}
        """[N] each; NaN, or -1 of a code, where nothing is recorded"""
        sizes = np.bincount(group.astype(np.int64), minlength=len(self.heads))
        self.of_heads = np.cumsum([0, *sizes])[:-1]
        for head, start, size in zip(self.heads, self.of_heads.tolist(), sizes.tolist(), strict=True):
            head.start, head.size = start, size
        self.starts = np.cumsum([0, *(part.rows for part in self.parts)])
        """Of each part in the rows of the files"""

    def _kept(self, columns: dict[str, list[np.ndarray]]) -> Iterator[Part]:
        """Reads each part; a file of an attempt by more ranks, which rank 0's last word does not count, is left out."""
        kept, counts = [], dict[str, list[int]]()
        for part in self.parts:
            if part.set in counts and not (part.rank < len(counts[part.set]) and (counts[part.set][part.rank] or part.rank == 0)):
                continue
            kept.append(part)
            if sum(each.rows for each in kept) > MOST:
                self.faults.append(f"more than {MOST} rollouts; the others are not shown")
                break
            for batch in part.scan(LIGHT):
                for name, values in (columns_of(batch) | {"group": self._groups(batch)}).items():
                    columns.setdefault(name, []).append(values)
            yield part
            if part.rank == 0 and part.said and (found := counts_of(part.said)) is not None:
                counts[part.set] = found
            missing = counts.get(part.set, [])
            if part.rank < len(missing) and missing[part.rank] != part.rows and not part.fault:
                self.faults.append(f"{part.path.name}: {part.rows} rollouts of {missing[part.rank]}; restore it")
        self.parts = kept
        for name, ranks in counts.items():
            there = {part.rank for part in kept if part.set == name}
            if absent := [str(rank) for rank, rows in enumerate(ranks) if rows and rank not in there]:
                self.faults.append(f"the files of rank {', '.join(absent)} are missing; where nodes share no disk, copy them here")

    def _groups(self, batch: pa.RecordBatch) -> np.ndarray:
        """Of each row, its group; those that are new come to `heads`."""
        ids, sets = (
            batch.column(name).to_pylist() if name in batch.schema.names else [""] * batch.num_rows for name in ("prompt_id", "set")
        )
        prompts = batch.column("prompt") if "prompt" in batch.schema.names else None
        out = np.empty(batch.num_rows)
        for number, (id, set) in enumerate(zip(ids, sets, strict=True)):
            key = (set or "", id or "")
            if key not in self._group_of:
                self._group_of[key] = len(self.heads)
                text = (prompts[number].as_py() if prompts is not None else None) or ""
                self.heads.append(Head(key[1], key[0], text.strip()[:SHOWN]))
            out[number] = self._group_of[key]
        return out

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gave, kept as long as the step is; its size is in `size`."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @property
    def size(self) -> int:
        """Bytes in memory, about."""
        return (
            sum(column.nbytes for column in self.columns.values())
            + 50 * len(self.disk)
            + 500 * len(self.heads)
            + 300 * len(self.parts)
            + 2000
        )

    def rows(self, g: int) -> slice:
        """NotThere where there is no such group."""
        if not 0 <= g < len(self.heads):
            raise NotThere(f"step {self.step} ({self.kind}) has no group {g}; it has {len(self.heads)}, from 0")
        return slice(self.heads[g].start, self.heads[g].start + self.heads[g].size)

    def row(self, g: int, sample: int) -> int:
        rows = self.rows(g)
        if not 0 <= sample < rows.stop - rows.start:
            raise NotThere(f"group {g} has no rollout {sample}; it has {rows.stop - rows.start}, from 0")
        return rows.start + sample

    def place(self, row: int) -> tuple[int, int]:
        """Group, and place in it, of a row."""
        g = int(np.searchsorted(self.of_heads, row, side="right")) - 1
        return g, row - self.heads[g].start

    def read(self, rows: slice | list[int], columns: tuple[str, ...]) -> list[dict[str, Any]]:
        """Those columns of these rows, from the disk; null where the file has none."""
        out: list[dict[str, Any]] = []
        held: tuple[int, int, pa.RecordBatch] | None = None  # first and last row of the files, of the batch at hand
        for row in self.disk[rows].tolist():
            if held is None or not held[0] <= row < held[1]:
                number = self._part(row)
                batch, at = self.parts[number].batch(row - int(self.starts[number]), columns)
                held = (row - at, row - at + batch.num_rows, batch)
            out.append(dict.fromkeys(columns) | held[2].slice(row - held[0], 1).to_pylist()[0])
        return out

    def _part(self, row: int) -> int:
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def rank(self, row: int) -> int:
        return self.parts[self._part(int(self.disk[row]))].rank


def counts_of(said: bytes) -> list[int] | None:
    try:
        found = json.loads(said)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) and all(type(each) is int for each in found) else None


def parts_of(run: Path, step: int, kind: str) -> list[Part]:
    """The files of a step in the order of `RunReader.table`: sets by name, then ranks; a whole one hides the half of an earlier attempt."""
    folder = run / "rollouts" / f"step-{step:06d}"
    old = folder.with_suffix(".jsonl")
    if kind == "train" and old.is_file():
        return [Part(old, 0, "")]
    found: dict[tuple[str, int], Path] = {}
    names = sorted(folder.iterdir(), reverse=True) if folder.is_dir() else []
    for file in names:
        if (match := NAME.fullmatch(file.name)) and (match[2] or "train") == kind and len(match[1]) < 7:
            found[match[3] or "", int(match[1])] = file
    if not found:
        raise NotThere(f"the run has no rollouts of step {step} ({kind}); run.json lists the steps that it has")
    return [Part(found[key], key[1], key[0]) for key in sorted(found)]


def columns_of(batch: pa.RecordBatch | pa.Table) -> dict[str, np.ndarray]:
    """The numbers of a batch's rows."""
    here, n = set(batch.schema.names), batch.num_rows

    def numbers(name: str, kind: str = "f8") -> np.ndarray:
        if name not in here:
            return np.full(n, np.nan)
        column = batch.column(name)
        return _floats(column)

    tokens = batch.column("tokens") if "tokens" in here else None
    verdict = batch.column("verdict") if "verdict" in here else None
    times = batch.column("times") if "times" in here else None
    out = {
        "sample": numbers("sample"),
        "outcome": _codes(batch.column("outcome") if "outcome" in here else None, OUTCOMES, n),
        "verdict": _codes(_field(verdict, "kind"), VERDICTS, n),
        "flaw": _floats(_field(verdict, "step")) if verdict is not None else np.full(n, np.nan),
        "length": _floats(compute.list_value_length(tokens)) if tokens is not None else np.full(n, np.nan),
        "cut": _codes(batch.column("finish_reason") if "finish_reason" in here else None, ("stop", "length"), n),
        **{name: numbers(name) for name in ("reward", "advantage", "kept", "score", "judge_tokens", "judge_seconds", "window")},
        **{f"time_{name}": np.full(n, np.nan) for name in TIMES},
    }
    if times is not None:
        there = [times.type.field(i).name for i in range(times.type.num_fields)]
        out |= {f"time_{name}": _floats(_field(times, name)) for name in TIMES if name in there}
    return out


def _field(column: Any, name: str) -> Any:
    return None if column is None else compute.struct_field(column, name)


def _floats(column: Any) -> np.ndarray:
    return np.asarray(
        column.cast(pa.float64()).to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.cast(pa.float64()).to_numpy()
    )


def _codes(column: Any, words: tuple[str, ...], n: int) -> np.ndarray:
    """Places in `words`, -1 for another word or none."""
    if column is None:
        return np.full(n, -1, np.int8)
    found = compute.index_in(column, value_set=pa.array(words)).fill_null(-1)
    return np.asarray(found.to_numpy(zero_copy_only=False) if isinstance(found, pa.Array) else found.to_numpy(), np.int8)
