"""A folder of one low-rank adapter in PEFT's format, which PEFT, vLLM and SGLang read, and the base that it belongs to.

    adapter_config.json         rank, alpha, the layers' names, where the base is
    adapter_model.safetensors   base_model.model.<layer>.lora_A.weight [R, I] and …lora_B.weight [O, R], float32
    card.json                   of our own: SHA-256 and size of the base's config.json and weights, of a judge the prompt that it answers

Shapes: I and O inputs and outputs of a layer, R rank.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from soundrl.engine.files.model_folder import opened, read_json, weight_files
from soundrl.engine.files.tensor_file import Layout, Seal, sealed, write_bytes, write_tensors
from soundrl.engine.files.whole import whole
from soundrl.engine.ranks import Ranks

CONFIG, TENSORS, CARD = "adapter_config.json", "adapter_model.safetensors", "card.json"
ADAPTER = "adapter"  # folder, within one of a merged policy
BEFORE, AFTER = "base_model.model.", ".weight"
PLAIN = {"bias": "none", "use_dora": False, "use_rslora": False, "fan_in_fan_out": False, "lora_bias": False}
"""What an adapter of ours is not; another's that is one of these is refused."""
NONE = ("modules_to_save", "layers_to_transform", "layer_replication", "rank_pattern", "alpha_pattern", "exclude_modules")

Base = dict[str, Any]
"""`folder`, and `files`: by name [SHA-256, bytes]. Plain JSON."""


class Shape(NamedTuple):
    """`model.lora`: rank, alpha, and layers by name, separated by commas (empty: every linear one but the head)."""

    rank: int
    alpha: float
    layers: str

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def names(self) -> list[str]:
        return [name.strip() for name in self.layers.split(",") if name.strip()]


def base_of(folder: Path, ranks: Ranks | None = None) -> Base:
    """What the model in `folder` is known by: every byte of its weights is read, with `ranks` each file by one of them (a collective)."""
    names = ["config.json", *sorted(file.name for file in weight_files(folder))]
    rank, size = (ranks.rank, ranks.size) if ranks else (0, 1)
    own, found = {name: sealed(folder / name) for name in names[rank::size]}, dict[str, Seal]()
    for part in ranks.gather(own) if ranks else [own]:
        found |= part
    return {"folder": str(folder.resolve()), "files": {name: list(found[name]) for name in names}}


def other_base(saved: Base | None, own: Base | None) -> str:
    """What is wrong where adapters of the base `saved` meet the base `own`, by the first file that differs; empty: they belong together."""
    if saved is None or own is None:
        return "" if saved is own else f"it holds {'every weight' if saved is None else 'adapters'}, model.lora says otherwise"
    names = [*dict.fromkeys((*saved["files"], *own["files"]))]
    if odd := next((name for name in names if saved["files"].get(name) != own["files"].get(name)), None):
        return f"its adapters belong to the base {saved['folder']}, of which {odd} is another than in {own['folder']}; restore that base"
    return ""


def its_base(folder: Path) -> Base:
    """Of an adapter: what its card says, else what is in the folder that its configuration names. ValueError where that is nowhere here."""
    card = read_json(folder / CARD) if (folder / CARD).is_file() else {}
    if "base" in card:
        return card["base"]
    name = str(read_json(folder / CONFIG).get("base_model_name_or_path"))
    if not (Path(name) / "config.json").is_file():
        raise ValueError(f"{folder / CONFIG}: its base {name} is no folder here; write its path there (base_model_name_or_path)")
    return base_of(Path(name))


def peft_name(name: str) -> str:
    """
    >>> peft_name("model.layers.0.self_attn.q_proj.lora_A")
    'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'
    """
    return f"{BEFORE}{name}{AFTER}"


def write_adapter(
    target: Path,
    shape: Shape,
    base: Base,
    layouts: Mapping[str, Layout],
    tensors: Iterable[Tensor],
    card: Mapping[str, Any] | None = None,
) -> None:
    """`tensors` in the order of `layouts`, which has them by their parameters' names; `card`: what else its card says, of a judge its
    prompt. Written beside and renamed at once."""
    names = shape.names or [*dict.fromkeys(name.split(".")[-2] for name in layouts)]
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base["folder"],
        "r": shape.rank,
        "lora_alpha": int(shape.alpha) if shape.alpha == int(shape.alpha) else shape.alpha,
        "lora_dropout": 0.0,
        "target_modules": names,
        "inference_mode": True,
        "init_lora_weights": True,
        **PLAIN,
    }
    with whole(target) as beside:
        write_bytes(beside / CONFIG, (json.dumps(content, indent=2) + "\n").encode())
        write_bytes(beside / CARD, (json.dumps({**(card or {}), "base": base}, indent=2) + "\n").encode())
        write_tensors(beside / TENSORS, {peft_name(name): layout for name, layout in layouts.items()}, tensors, {"format": "pt"})


def read_shape(folder: Path, setting: str) -> Shape:
    """Of a plain adapter of linear layers. ValueError, which begins with `setting`, for what is none."""
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{setting} {folder} has no {CONFIG}; name a folder in PEFT's format, as export write --adapter makes it")
    said = read_json(folder / CONFIG)
    odd = [name for name, plain in PLAIN.items() if said.get(name, plain) != plain] + [name for name in NONE if said.get(name)]
    if said.get("peft_type") != "LORA" or odd or not isinstance(said.get("r"), int) or said["r"] < 1:
        raise ValueError(
            f"{setting} {folder / CONFIG} is no plain LoRA ({', '.join(odd) or said.get('peft_type')}); merge it into its base"
        )
    named = said.get("target_modules")
    return Shape(said["r"], float(said.get("lora_alpha", said["r"])), ",".join(named) if isinstance(named, list) else str(named or ""))


def adapted(folder: Path) -> list[str]:
    """The last names of the layers that the adapter in `folder` adds to, whatever pattern its configuration has for them."""
    with opened(folder / TENSORS) as reader:
        names = [name.removeprefix(BEFORE).removesuffix(AFTER) for name in reader.keys()]
    return sorted({name.split(".")[-2] for name in names})


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """Its tensors by the parameters' names (`model.layers.0.self_attn.q_proj.lora_A`)."""
    with opened(folder / TENSORS) as reader:
        return {name.removeprefix(BEFORE).removesuffix(AFTER): reader.get_tensor(name) for name in reader.keys()}
