"""A run as its folder tells it: configuration, metrics and rollouts, under way, finished or killed, of this version or an earlier one.

    python -m soundrl.engine.files.run_reader runs/fapo-7b 12                # the rollouts of step 12, a JSON object a line, without tokens
    python -m soundrl.engine.files.run_reader runs/fapo-7b 12 --kind eval    # those of the evaluation after it

Formats 3 and 2 (`format` in config.json) have `rollouts/step-000012/rank-0.arrows` (see `rollout_file`; 2 has no paragraphs, times and
windows), format 1 has `rollouts/step-000012.jsonl`; all read alike. What is damaged is a ValueError in one line with its place; what was
half written when the run ended is left out, in one line of the log.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import tyro

from soundrl.engine.files.rollout_file import NAME, SCHEMA, read_file
from soundrl.engine.files.trained_file import read_trained

FORMAT = 3
log = logging.getLogger(__name__)


class RunReader:
    """`RunReader("runs/fapo-7b")`; ValueError where that is no run's folder, or one of a later format."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        file = self.path / "config.json"
        if not file.is_file():
            raise ValueError(f"{path} is no run's folder (it has no config.json); name one, as runs/fapo-7b")
        try:
            self.config: dict[str, Any] = json.loads(file.read_bytes())
            self.format = self.config.get("format", 1)
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{file} holds no JSON object ({error}); take it from a copy of the run") from None
        if not isinstance(self.format, int) or self.format > FORMAT:
            raise ValueError(f"{file}: format {self.format!r} is none that this version reads (up to {FORMAT}); update soundrl")

    def metrics(self) -> list[dict[str, Any]]:
        """A row a line of metrics.jsonl, `{"step": 1, "reward/mean": 0.25, …}`; evaluations have rows of their own. What was not finite is
        None."""
        return read_lines(self.path / "metrics.jsonl")

    def steps(self, kind: str = "train") -> list[int]:
        """Those with whole rollouts of this kind, in order; step 0 is the evaluation before training. One that was cut off is none of
        them, and its rollouts can be read all the same."""
        pattern = "rank-0.arrows" if kind == "train" else f"rank-0.{kind}-*.arrows"
        found = [file.parent.name for file in self.path.glob(f"rollouts/step-*/{pattern}")]
        found += [file.stem for file in self.path.glob("rollouts/step-*.jsonl") if kind == "train"]
        return sorted({int(name[5:]) for name in found if name[5:].isdecimal()})

    def rollouts(self, step: int, kind: str = "train", set: str | None = None) -> list[dict[str, Any]]:
        """The rows of `table` as dictionaries; `verdict` is None or `{"kind": "flawed", "step": 2, "reason": ""}`."""
        return self.table(step, kind, set).to_pylist()

    def table(self, step: int, kind: str = "train", set: str | None = None) -> pa.Table:
        """A row a rollout, in the order of ranks; columns of `rollout_file.SCHEMA`, null where an earlier format has none. `kind`: `train`,
        `replaced`, `eval` or `probe`; `set`: one data set of them alone."""
        folder = self.path / "rollouts" / f"step-{step:06d}"
        if kind == "train" and folder.with_suffix(".jsonl").is_file():
            table = old_rollouts(folder.with_suffix(".jsonl"))
        else:
            parts: dict[str, dict[int, Path]] = {}
            for file in sorted(folder.glob("rank-*"), reverse=True):  # a whole file hides the half of an earlier attempt
                if (match := NAME.fullmatch(file.name)) and (match[2] or "train") == kind:
                    parts.setdefault(match[3] or "", {})[int(match[1])] = file
            if not parts:
                there = ", ".join(map(str, self.steps(kind))) or "none"
                raise ValueError(f"{self.path} has no rollouts of step {step} ({kind}); steps that it has: {there}")
            table = pa.concat_tables([_whole(parts[name]) for name in sorted(parts)], promote_options="default")
        return table if set is None else table.filter(pc.field("set") == set)

    def trained(self, step: int) -> pa.Table:
        """What training has computed of each token (`trained_file.SCHEMA`), a row a rollout that trained; none where an earlier format has
        it not, or training is under way. ValueError for a damaged file."""
        return read_trained(self.path / "rollouts" / f"step-{step:06d}")

    def ranks(self, step: int) -> int:
        """How many ranks a whole step of training had; 0 where the format does not say."""
        file = self.path / "rollouts" / f"step-{step:06d}" / "rank-0.arrows"
        return len(read_file(file)[1] or ()) if file.is_file() else 0


def _whole(files: dict[int, Path]) -> pa.Table:
    """The rollouts of one sampling from its ranks' files. A file under its final name must be whole; of one that a run under way or killed
    has left (`.part`) the whole batches count."""
    read = {rank: read_file(file) for rank, file in sorted(files.items())}
    rows = read[0][1] if 0 in read else None
    # By rank 0's word, where it has come to that: a file of an earlier attempt by more ranks is none of it.
    counts: dict[int, int | None] = dict.fromkeys(read) if rows is None else {rank: n for rank, n in enumerate(rows) if n or rank == 0}
    for rank, count in counts.items():
        if rank not in read:
            here = files[0].parent
            raise ValueError(f"{here}: the file with rank {rank}'s {count} rollouts is missing; where nodes share no disk, copy it here")
        table, ended, fault = read[rank]
        if rank == 0 and ended is None:
            fault = fault or "its end is missing"
        if count is not None and table.num_rows != count:
            fault = fault or f"there should be {count}"
        if fault and files[rank].suffix != ".part":
            file = files[rank]
            raise ValueError(f"{file}: damaged after {table.num_rows} rollouts ({fault}); restore it, or read those: add .part to its name")
    table = pa.concat_tables([read[rank][0] for rank in counts], promote_options="default")
    if rows is None or table.num_rows < sum(rows):
        log.warning("%s: cut off, or being written; %d rollouts are whole", next(iter(files.values())).parent, table.num_rows)
    return table


def old_rollouts(file: Path) -> pa.Table:
    """Format 1: an object a line; a log-probability that the sampler did not say is null."""
    rows = [row | {"kind": "train"} for row in read_lines(file)]
    try:
        return pa.Table.from_pylist(rows, schema=SCHEMA)
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"{file} holds no rollouts ({' '.join(str(error).split())[:200]}); restore it") from None


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file. A last line without its end was being written when the run was killed."""
    try:
        *lines, rest = file.read_bytes().split(b"\n")
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); check the path") from None
    if rest:
        log.warning("%s:%d: cut off, left out", file, len(lines) + 1)
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file}:{number}: no JSON object ({error}); restore it, or remove that line") from None
    return rows


def main(run: Annotated[Path, tyro.conf.Positional], step: Annotated[int, tyro.conf.Positional], /, kind: str = "train") -> None:
    """Print the rollouts of a step, without their tokens; `kind`: train, replaced, eval or probe."""
    try:
        table = RunReader(run).table(step, kind)
    except ValueError as error:
        sys.exit(f"error: {error}")
    for row in table.drop_columns(["tokens", "logprobs", "mask"]).to_pylist():
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it
    tyro.cli(main)
