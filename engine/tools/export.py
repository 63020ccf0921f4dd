"""Checkpoints from the command line: list them, check every byte, or write one as a Hugging Face folder, with no GPU and no gathering.

python -m soundrl.engine.tools.export list runs/fapo-7b
python -m soundrl.engine.tools.export check runs/fapo-7b/checkpoints/step-000040
python -m soundrl.engine.tools.export write runs/fapo-7b/checkpoints/step-000040 models/fapo --dtype bfloat16
python -m soundrl.engine.tools.export write runs/fapo-7b         # every checkpoint, to policy/, where it is not yet
python -m soundrl.engine.tools.export write runs/fapo-lora/checkpoints/step-000040 adapters/fapo --adapter
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import tyro
from torch import Tensor

from soundrl.engine.files.adapter_folder import ADAPTER, CARD
from soundrl.engine.files.checkpoint import WEIGHTS, CheckpointError, Rows, checkpoints, faults, place_of, read_manifest, read_state
from soundrl.engine.files.names import Names, named_like_folder
from soundrl.engine.files.tensor_file import Layout, write_bytes, write_tensors
from soundrl.engine.files.whole import whole
from soundrl.engine.tools.adapter_export import base_folder, export_adapter, merged_layouts, merged_tensors, saved_base, saved_shape

if TYPE_CHECKING:
    from soundrl.engine.policy import Policy

SHARD = 5 << 30  # bytes of a file of weights, as the Hub's
Dtype = Literal["float32", "bfloat16"]
Positional = Annotated[Path, tyro.conf.Positional]


def export(checkpoint: Path, target: Path, dtype: Dtype = "float32", base: Path | None = None) -> None:
    """Write the policy of a whole `checkpoint` to `target`, a folder that transformers and vLLM load. Adapters are merged into their base,
    which is read from `base` (None: where it was)."""
    model, kind = checkpoint / "model", getattr(torch, dtype)
    files = {str(file.relative_to(model)): file.read_bytes() for file in sorted(model.rglob("*")) if file.is_file()}
    state = read_state(checkpoint)
    with Rows(checkpoint, WEIGHTS) as rows:
        if (saved := saved_base(state)) is not None:
            folder = base_folder(checkpoint, saved, base)
            write_folder(target, files, merged_layouts(folder, kind), merged_tensors(folder, rows, saved_shape(state), kind))
            return
        names = Names.of_folder(model, {name: rows.shape(name) for name in rows.pieces})
        tensors = named_like_folder(names, ((name, rows.whole(name).to(kind)) for name in rows.pieces))
        write_folder(target, files, names.layouts(list(rows.pieces), kind), (tensor for _, tensor in tensors))


def export_live(policy: Policy, files: Mapping[str, bytes], target: Path) -> None:
    """The policy as it is now, in the type that it computes in, and its adapters in `adapter/` of the folder where it has some; rank 0
    writes. A collective."""
    dtype = getattr(torch, policy.settings.dtype)
    tensors = policy.named_full_tensors()
    if policy.ranks.main:
        layouts = policy.names.layouts(list(policy.names.shapes), dtype)
        write_folder(target, files, layouts, (tensor for _, tensor in tensors))
    for _ in tensors:  # all gather each
        pass
    if policy.adapters is not None and policy.base is not None:
        policy.adapters.write(target / ADAPTER, policy.base, policy.ranks.main, json.loads(files.get(CARD, b"{}")))
    policy.ranks.barrier()


def write_folder(target: Path, files: Mapping[str, bytes], layouts: Mapping[str, Layout], tensors: Iterable[Tensor]) -> None:
    """A Hugging Face folder: `files` by name, config.json among them, and `tensors` in the order and types of `layouts`, of which one is
    in memory at a time. Written beside and renamed at once, so that `target` is never half written. OSError where the disk is full."""
    tensors = iter(tensors)
    dtype = str(next(iter(layouts.values())).dtype).removeprefix("torch.")
    with whole(target) as beside:
        for name, content in files.items():
            if name == "config.json":
                content = (json.dumps(json.loads(content) | {"dtype": dtype}, indent=2) + "\n").encode()
            write_bytes(beside / name, content)
        shards = list(split(layouts))
        last = len(shards)
        names = ["model.safetensors"] if last == 1 else [f"model-{i + 1:05d}-of-{last:05d}.safetensors" for i in range(last)]
        for name, part in zip(names, shards, strict=True):
            write_tensors(beside / name, part, islice(tensors, len(part)), {"format": "pt"})
        if last > 1:
            where = {tensor: name for name, part in zip(names, shards, strict=True) for tensor in part}
            index = {"metadata": {"total_size": sum(layout.size for layout in layouts.values())}, "weight_map": where}
            write_bytes(beside / "model.safetensors.index.json", (json.dumps(index, indent=2) + "\n").encode())


def split(layouts: Mapping[str, Layout], limit: int = SHARD) -> Iterator[dict[str, Layout]]:
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
        yield f"{path}: {state['trainer']['updates']} updates{more}, written by {ranks} ranks, {size:.2f} GiB, saved {state['written']}"


def main(
    what: Annotated[Literal["list", "check", "write"], tyro.conf.Positional],
    folder: Positional,
    target: Positional = Path(),
    /,
    dtype: Dtype = "bfloat16",
    adapter: bool = False,
    base: Path | None = None,
) -> None:
    """`list RUN`, `check CHECKPOINT`, `write CHECKPOINT TARGET [--dtype float32]`; of a RUN `check` and `write` take every checkpoint. Of a
    run with adapters `write` merges them into their base (`--base`: where that is now), `--adapter` writes them alone, for PEFT."""
    try:
        if what == "list":
            print("\n".join(shown(folder)))
            return
        of_run = (folder / "checkpoints").is_dir()
        for path in checkpoints(folder / "checkpoints") if of_run else [folder]:
            check(path)
            if what == "check":
                print(f"{path} is whole: every byte is as it was written")
                continue
            into = folder / ("adapters" if adapter else "policy") / path.name if of_run else target
            if into.exists() and of_run:
                continue
            if into == Path() or into.exists():
                raise ValueError(f"the target {into} {'is missing' if into == Path() else 'exists'}; name a new folder")
            into.parent.mkdir(parents=True, exist_ok=True)
            if adapter:
                export_adapter(path, into, read_state(path))
            else:
                export(path, into, dtype, base)
            print(f"{into}: {'float32 adapters' if adapter else dtype}, from {path}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    tyro.cli(main)
