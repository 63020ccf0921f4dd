"""What training has computed of each token of a step's rollouts, a file a rank beside them: an Arrow stream of zstd record batches.

    rollouts/step-000012/trained-0.arrows

A rank writes those that it has trained, which others may have sampled. Rollouts that trained nothing have no row, nor have those of a step
that was interrupted between two optimizer steps, which trained before.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from soundrl.engine.files.rollout_file import ragged

SCHEMA = pa.schema(
    {
        "prompt_id": pa.string(),
        "sample": pa.int32(),
        # Of each of the rollout's tokens; NaN where a token is not the policy's own.
        "logprobs": pa.list_(pa.float32()),  # under the weights that it trained, after temperature
        "entropy": pa.list_(pa.float16()),  # nats
    }
)
ROWS = 512  # of a batch


class Trained(NamedTuple):
    """Of one rollout; arrays as long as its tokens."""

    prompt_id: str
    sample: int
    logprobs: np.ndarray
    """float32"""
    entropy: np.ndarray
    """float16, in nats"""


def trained_name(rank: int) -> str:
    return f"trained-{rank}.arrows"


def write_trained(path: Path, rows: Iterable[Trained]) -> None:
    """OSError where the disk is full."""
    rows = list(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        for start in range(0, len(rows), ROWS):
            ids, samples, logprobs, entropy = zip(*rows[start : start + ROWS], strict=True)
            columns = [pa.array(ids), pa.array(samples, pa.int32()), ragged(logprobs, "float32"), ragged(entropy, "float16")]
            stream.write_batch(pa.record_batch(columns, schema=SCHEMA))


def read_trained(folder: Path) -> pa.Table:
    """The rows of all ranks, of a step's folder; none where it has no such file. ValueError for a damaged one."""
    tables = [SCHEMA.empty_table()]
    for path in sorted(folder.glob("trained-*.arrows")):
        try:
            with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
                tables.append(stream.read_all().cast(SCHEMA))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"{path}: damaged ({' '.join(str(error).split())[:200]}); restore it, or remove it") from None
    return pa.concat_tables(tables)
