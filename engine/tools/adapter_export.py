"""What a checkpoint of adapters is exported from: its rows, and the base, which is read where it stands and checked to be the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundrl.engine.files.adapter_folder import CARD, Base, Shape, base_of, other_base, write_adapter
from soundrl.engine.files.checkpoint import WEIGHTS, CheckpointError, Rows
from soundrl.engine.files.model_folder import BUFFERS, opened, read_json, weight_files
from soundrl.engine.files.tensor_file import Layout
from soundrl.engine.lora.lora import KINDS, merge


def saved_base(state: Mapping[str, Any]) -> Base | None:
    """None: the checkpoint holds every weight."""
    return state["trainer"].get("base")


def saved_shape(state: Mapping[str, Any]) -> Shape:
    return Shape(*state["config"]["model"]["lora"])


def base_folder(checkpoint: Path, saved: Base, given: Path | None) -> Path:
    """Where the base is: `given`, else where it was. CheckpointError where it is gone, or another."""
    folder = given or Path(saved["folder"])
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{checkpoint} holds adapters of {saved['folder']}, which is not there; name that base: --base FOLDER")
    if other := other_base(saved, base_of(folder)):
        raise CheckpointError(f"{checkpoint}: {other}")
    return folder


def merged_layouts(folder: Path, dtype: torch.dtype) -> dict[str, Layout]:
    """Of what `merged_tensors` gives."""
    layouts = dict[str, Layout]()
    for file in weight_files(folder):
        with opened(file) as reader:
            for name in reader.keys():
                if not BUFFERS.search(name):
                    layouts[name] = Layout(dtype, tuple(reader.get_slice(name).get_shape()))
    return layouts


def merged_tensors(folder: Path, rows: Rows, shape: Shape, dtype: torch.dtype) -> Iterator[Tensor]:
    """Each tensor of the base in `folder`, by its own name and in the order of `merged_layouts`, with its adapter added in float32 and cast
    once. CheckpointError where an adapter of the checkpoint belongs to none of them."""
    left = {name.rpartition(".")[0] for name in rows.pieces}
    for file in weight_files(folder):
        with opened(file) as reader:
            for name in reader.keys():
                if BUFFERS.search(name):
                    continue
                tensor, layer = reader.get_tensor(name), name.removesuffix(".weight")
                if layer in left:
                    left.remove(layer)
                    tensor = merge(tensor, *(rows.whole(f"{layer}.{kind}") for kind in KINDS), shape.scale)
                yield tensor.to(dtype)
    if left:
        raise CheckpointError(f"{rows.folder} has adapters of {len(left)} layers that {folder} lacks (first: {min(left)})")


def export_adapter(checkpoint: Path, target: Path, state: Mapping[str, Any]) -> None:
    """The adapters alone, in PEFT's format, float32. CheckpointError where the checkpoint holds every weight."""
    if (base := saved_base(state)) is None:
        raise CheckpointError(f"{checkpoint} holds every weight and no adapter (model.lora was off); export it without --adapter")
    with Rows(checkpoint, WEIGHTS) as rows:
        layouts = {name: Layout(torch.float32, rows.shape(name)) for name in rows.pieces}
        card = checkpoint / "model" / CARD  # of a judge
        said = read_json(card) if card.is_file() else {}
        write_adapter(target, saved_shape(state), base, layouts, (rows.whole(name) for name in layouts), said)
