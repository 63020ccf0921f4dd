"""A rank's rollouts of one step on disk: an Arrow stream of zstd record batches, appended as groups come.

    rollouts/step-000012/rank-0.arrows                         training
    rollouts/step-000012/rank-0.replaced-.arrows               sampled for training, and replaced (`rollout.refill`)
    rollouts/step-000012/rank-0.eval-aime24%2Ftest.arrows      an evaluation of the set aime24/test

A stream needs no footer: what a killed run leaves (`….arrows.part`) reads up to its last whole batch. Rank 0 ends its file after all the
others, with an empty batch that says how many rollouts each rank has written: by it a step is known to be whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from soundrl.fapo.records import Group, Rollout, Verdict

VERDICT = pa.struct({"kind": pa.string(), "step": pa.int32(), "reason": pa.string()})
TURN = pa.struct({"own": pa.bool_(), "tool": pa.string(), "failed": pa.bool_(), "text": pa.string()})
TIMES = pa.struct({name: pa.float64() for name in ("sampled", "verified", "asked", "answered")})
SCHEMA = pa.schema(
    {
        "prompt_id": pa.string(),
        "sample": pa.int32(),
        "kind": pa.string(),  # train, replaced (by `rollout.refill`), eval or probe
        "set": pa.string(),
        "prompt": pa.string(),
        "answer": pa.string(),
        "text": pa.string(),
        "tokens": pa.list_(pa.int32()),
        "logprobs": pa.list_(pa.float32()),  # NaN where the sampler said none
        "prompt_length": pa.int32(),  # tokens
        "extracted": pa.string(),  # null where the record does not carry it
        "outcome": pa.string(),
        "verdict": VERDICT,  # null = not judged
        "critique": pa.string(),
        "judge_tokens": pa.int32(),
        "judge_seconds": pa.float64(),
        "judge_worker": pa.string(),
        "judge_votes": pa.list_(pa.string()),
        "reward": pa.float64(),
        "advantage": pa.float64(),
        "kept": pa.bool_(),
        "score": pa.float64(),  # a verifier's own reward, before λ and length penalty; null = the rule's ±1
        "finish_reason": pa.string(),
        "policy_version": pa.int32(),
        "mask": pa.list_(pa.uint8()),  # 1 = the policy's own token; null = all are
        "turns": pa.list_(TURN),  # null = one
        # For who looks at the run; nothing is computed from them.
        "paragraphs": pa.list_(pa.string()),  # what `verdict.step` counts; null = not judged
        "times": TIMES,  # Unix seconds; null = not recorded (of evaluations), and of the last two: not asked (remembered, an oracle)
        "window": pa.int32(),  # that trained it, see `soundrl.engine.schedule`; null = it trained nothing
    }
)
OF_JUDGE = ("critique", "judge_tokens", "judge_seconds", "judge_worker", "judge_votes")
"""Beside the verdict. A remembered answer has no tokens and seconds of its own."""
KNOWN = frozenset(SCHEMA)
NAME = re.compile(r"rank-(\d+)(?:\.(\w+)-(.*))?\.arrows(?:\.part)?", re.DOTALL)
"""Rank, kind (none = train) and set of a file's name."""


def file_name(rank: int, kind: str, set: str = "") -> str:
    """
    >>> file_name(0, "train", "gsm8k"), file_name(3, "eval", "aime24/test")
    ('rank-0.arrows', 'rank-3.eval-aime24%2Ftest.arrows')
    """
    part = "" if kind == "train" else f".{kind}-{set.replace('%', '%25').replace('/', '%2F')}"
    return f"rank-{rank}{part}.arrows"


def ragged(rows: Sequence[Any], dtype: str) -> pa.ListArray:
    """Sequences of numbers, or numpy arrays, as one list column; no Python object a number.

    >>> ragged([(1, 2), np.array([3])], "int32").to_pylist()
    [[1, 2], [3]]
    """
    arrays = [np.asarray(row, dtype) for row in rows]
    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate([np.empty(0, dtype), *arrays])))


def batch_of(groups: Sequence[Group], kind: str, set: str) -> pa.RecordBatch:
    """The groups' rollouts, a row each. What groups have none of (an evaluation's rewards; all but rollouts, of a step under way) is null;
    `set` empty = the prompt's source."""

    def each(name: str) -> list[Any]:
        lists = [(getattr(group, name), len(group.rollouts)) for group in groups]
        return [value for values, size in lists for value in (values if len(values) else [None] * size)]

    rollouts, outcomes, verdicts = each("rollouts"), each("outcomes"), each("verdicts")
    prompts = [group.prompt for group in groups for _ in group.rollouts]
    columns: dict[str, Any] = {
        **{name: [getattr(r, name) for r in rollouts] for name in ("prompt_id", "sample", "text", "finish_reason", "policy_version")},
        **{"kind": [kind] * len(rollouts), "set": [set or prompt.source for prompt in prompts]},
        **{"prompt": [prompt.text for prompt in prompts], "answer": [prompt.answer for prompt in prompts]},
        "tokens": ragged([r.tokens for r in rollouts], "int32"),
        "logprobs": ragged([r.logprobs for r in rollouts], "float32"),
        "prompt_length": [len(r.prompt_tokens) for r in rollouts],
        "outcome": [getattr(outcome, "value", None) for outcome in outcomes],
        "extracted": each("extracted"),
        "verdict": [None if v is None else {"kind": v.kind, "step": v.step, "reason": v.reason} for v in verdicts],
        # What was not said is null.
        **{name: [v and (getattr(v, name.removeprefix("judge_")) or None) for v in verdicts] for name in OF_JUDGE},
        **{"reward": each("rewards"), "advantage": each("advantages"), "kept": each("kept"), "score": each("scores")},
        "mask": [None if r.mask.all() else r.mask for r in rollouts],
        "turns": [[vars(turn) for turn in r.turns] or None for r in rollouts],
        "paragraphs": [list(r.paragraphs) or None for r in rollouts],
        # An evaluation's file is the same bytes whenever it is made.
        "times": [None if kind == "eval" else times_of(r, v) for r, v in zip(rollouts, verdicts, strict=True)],
        "window": [r.window for r in rollouts],
    }
    return pa.RecordBatch.from_pydict(columns, schema=SCHEMA)


def times_of(rollout: Rollout, verdict: Verdict | None) -> dict[str, float | None] | None:
    """Of `TIMES` those that are known; None: no one is."""
    said = {"sampled": rollout.sampled, "verified": rollout.verified}
    said |= {} if verdict is None else {"asked": verdict.asked, "answered": verdict.answered}
    known = {name: value for name, value in said.items() if value}
    return dict.fromkeys(TIMES.names) | known if known else None


class RolloutWriter:
    """Writes one file; OSError, with its name, where the disk is full. Context manager."""

    def __init__(self, path: Path, kind: str = "train", set: str = "") -> None:
        self.path, self.kind, self.set = path, kind, set

    def __enter__(self) -> RolloutWriter:
        self.file = self.path.open("wb")
        # One thread: every rank of a machine writes at the same time.
        self.stream = pa.ipc.new_stream(self.file, SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False))
        return self

    def add(self, groups: Sequence[Group]) -> None:
        """One batch: what is whole in a file that was cut. A batch costs 1 ms, so a step is written in tens of groups."""
        self.stream.write_batch(batch_of(groups, self.kind, self.set))

    def end(self, rows: Sequence[int]) -> None:
        """Rank 0, once all others have written: how many rollouts each rank has."""
        self.stream.write_batch(pa.RecordBatch.from_pylist([], schema=SCHEMA), custom_metadata={"rows": json.dumps(list(rows))})

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            with self.file, self.stream:
                pass
        except OSError as full:
            error = full
        if isinstance(error, OSError):
            error.filename = error.filename or str(self.path)
            raise error


def read_file(path: Path) -> tuple[pa.Table, list[int] | None, str]:
    """Rows up to the last whole batch; rollouts by rank, where rank 0 has ended the file; and, where reading stopped early, of what.
    Columns are those of `SCHEMA`, null where an older file has none."""
    tables, rows, fault = [SCHEMA.empty_table()], None, ""
    try:
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
            for column in stream.schema:
                if column not in KNOWN:
                    raise ValueError(f"unknown column {column.name!r}")
            while True:
                batch, said = stream.read_next_batch_with_custom_metadata()
                batch.validate(full=True)
                rows = json.loads(said[b"rows"]) if said is not None and b"rows" in said else rows
                tables.append(pa.Table.from_batches([batch]))
    except StopIteration:
        pass
    except (pa.ArrowException, OSError, ValueError) as error:
        fault = " ".join(str(error).split())[:200]
    return pa.concat_tables(tables, promote_options="default"), rows, fault
