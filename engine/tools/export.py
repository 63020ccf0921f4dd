"""Checkpoints from the command line: list them, check every byte, or write one as a Hugging Face folder, with no GPU and no gathering.

python -m soundrl.engine.tools.export list runs/fapo-7b
python -m soundrl.engine.tools.export check runs/fapo-7b/checkpoints/step-000040
python -m soundrl.engine.tools.export write runs/fapo-7b/checkpoints/step-000040 models/fapo --dtype bfloat16
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from soundrl.engine.files.checkpoint import WEIGHTS, CheckpointError, Rows, checkpoints, faults, place_of, read_manifest, read_state
from soundrl.engine.files.model_folder import read_json
from soundrl.engine.files.tensor_file import Layout, write_bytes, write_tensors
from soundrl.engine.files.whole import whole

SHARD = 5 << 30  # bytes of a file of weights, as the Hub's
Dtype = Literal["float32", "bfloat16"]
Positional = Annotated[Path, tyro.conf.Positional]


def export(checkpoint: Path, target: Path, dtype: Dtype = "float32") -> None:
    """Write the policy of a whole `checkpoint` to `target`, a folder that transformers and vLLM load. One tensor is in memory at a time.
    Written beside and renamed at once, so that `target` is never half written. OSError where the disk is full."""
    kind = getattr(torch, dtype)
    with Rows(checkpoint, WEIGHTS) as rows, whole(target) as beside:
        beside.mkdir(parents=True)
        for file in sorted((checkpoint / "model").rglob("*")):
            if file.is_file() and file.name != "config.json":
                write_bytes(beside / file.relative_to(checkpoint / "model"), file.read_bytes())
        config = read_json(checkpoint / "model" / "config.json") | {"dtype": dtype}
        write_bytes(beside / "config.json", (json.dumps(config, indent=2) + "\n").encode())
        shards = list(split({name: Layout(kind, rows.shape(name)) for name in rows.pieces}))
        names = (
            ["model.safetensors"]
            if len(shards) == 1
            else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        )
        for name, layouts in zip(names, shards, strict=True):
            write_tensors(beside / name, layouts, (cast(rows, tensor, kind) for tensor in layouts), {"format": "pt"})
        if len(shards) > 1:
            where = {tensor: name for name, layouts in zip(names, shards, strict=True) for tensor in layouts}
            total = sum(layout.size for layouts in shards for layout in layouts.values())
            index = {"metadata": {"total_size": total}, "weight_map": where}
            write_bytes(beside / "model.safetensors.index.json", (json.dumps(index, indent=2) + "\n").encode())


def cast(rows: Rows, name: str, dtype: torch.dtype) -> Tensor:
    return rows.whole(name).to(dtype)


def split(layouts: dict[str, Layout], limit: int = SHARD) -> Iterator[dict[str, Layout]]:
    """Consecutive tensors of at most `limit` bytes together, one at least."""
    part, size = dict[str, Layout](), 0
    for name, layout in layouts.items():
        if part and size + layout.size > limit:
            yield part
            part, size = {}, 0
        part[name] = layout
        size += layout.size
    yield part


def check(checkpoint: Path) -> None:
    """CheckpointError, which names the file, where any byte of it is not as it was written."""
    seals = read_manifest(checkpoint)
    if found := list(faults(checkpoint, seals, sorted(seals))):
        raise CheckpointError("; ".join(found))


def shown(folder: Path) -> Iterator[str]:
    """A line a checkpoint of a run, the newest first."""
    found = checkpoints(folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder)
    if not found:
        raise CheckpointError(f"{folder} has no checkpoints; name a run's folder, as runs/fapo-7b")
    for path in found:
        place = place_of(path)
        assert place is not None
        try:
            seals, state = read_manifest(path), read_state(path)
        except CheckpointError as error:
            yield f"{path}: {error}"
            continue
        ranks = sum(name.startswith(WEIGHTS) for name in seals)
        size = sum(seal.size for seal in seals.values()) / 2**30
        more = f", {place.within} optimizer steps of the next one" if place.within else ""
        yield f"{path}: {state['trainer']['updates']} updates{more}, written by {ranks} ranks, {size:.2f} GiB, seen on {state['written']}"


def main(
    what: Annotated[Literal["list", "check", "write"], tyro.conf.Positional],
    folder: Positional,
    target: Positional = Path(),
    /,
    dtype: Dtype = "bfloat16",
) -> None:
    """`list RUN`, `check CHECKPOINT`, or `write CHECKPOINT TARGET [--dtype float32]`."""
    try:
        if what == "list":
            print("\n".join(shown(folder)))
            return
        check(folder)
        if what == "check":
            print(f"{folder} is whole: every byte is as it was written")
            return
        if target == Path() or target.exists():
            raise ValueError(f"the target {target} {'is missing' if target == Path() else 'exists'}; name a new folder")
        export(folder, target, dtype)
        print(f"{target}: {dtype}, from {folder}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    tyro.cli(main)
