"""Rows of a rollout file become records again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from soundrl.engine.files.rollout_file import OF_JUDGE
from soundrl.fapo.records import Rollout, Turn, Verdict


def rollout_of(row: Mapping[str, Any], prompt_tokens: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray) -> Rollout:
    """Of a row of a rollout file."""
    return Rollout(
        prompt_id=row["prompt_id"],
        sample=row["sample"],
        prompt_tokens=prompt_tokens,
        tokens=tokens,
        logprobs=logprobs,
        text=row["text"],
        finish_reason=row["finish_reason"],
        policy_version=row["policy_version"],
        mask=np.array(row["mask"] or [], np.uint8),
        turns=tuple(Turn(**turn) for turn in row["turns"] or ()),
        sampled=(row["times"] or {}).get("sampled") or 0.0,
    )


def verdict_of(row: Mapping[str, Any]) -> Verdict:
    """Of a row of a rollout file that was judged."""
    said: dict[str, Any] = {name.removeprefix("judge_"): row[name] for name in OF_JUDGE if row[name] is not None}
    said |= {"votes": tuple(said["votes"])} if "votes" in said else {}
    said |= {name: value for name, value in (row["times"] or {}).items() if name in ("asked", "answered") and value is not None}
    return Verdict(**row["verdict"], **said)


def arrays(column: pa.ChunkedArray) -> Sequence[np.ndarray]:
    """A list column as arrays, no Python object a number."""
    out: list[np.ndarray] = []
    for chunk in column.chunks:
        values, offsets = chunk.values.to_numpy(zero_copy_only=False), chunk.offsets.to_numpy()
        out += [values[start:end] for start, end in zip(offsets, offsets[1:], strict=False)]
    return out
