"""Low-rank adapters on a frozen base (LoRA, arXiv 2106.09685): y = W·x + b + s·B·(A·x) with s = alpha ÷ rank.

A and B are parameters of the linear layer itself, beside its weight: the base keeps its names, so that it is loaded and synced as without
them, and FSDP2 shards, gathers and reduces them with the layer they belong to. Adapters are float32, as master weights are; the base is
held in the type that it computes in, and has no gradient and no moments. PEFT's own layers would rename the base, and move its weight one
module down. Shapes: I and O inputs and outputs of a layer, R rank.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from soundrl.engine.files.adapter_folder import Base, Shape, write_adapter
from soundrl.engine.files.tensor_file import Layout
from soundrl.engine.gather import gathered
from soundrl.engine.ranks import Ranks

KINDS = ("lora_A", "lora_B")


def is_adapter(name: str) -> bool:
    return name.rpartition(".")[2] in KINDS


class Adapted(nn.Linear):
    """A linear layer whose parameters `lora_A` [R, I] and `lora_B` [O, R] are added to what it computes."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    scale: float
    adapts: bool

    def forward(self, input: Tensor) -> Tensor:
        out = F.linear(input, self.weight, self.bias)
        if not self.adapts:
            return out
        return out + self.scale * F.linear(F.linear(input, self.lora_A), self.lora_B)


class Adapters:
    """Those of one model, made on meta before it is sharded. ValueError where `shape` names a layer that is none, or a tied head."""

    def __init__(self, model: Any, shape: Shape) -> None:
        self.shape, head = shape, model.get_output_embeddings()
        linear = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
        known = sorted({name.rpartition(".")[2] for name in linear})
        self.without_experts = any(".experts." in name and p.ndim == 3 for name, p in model.named_parameters())
        """Of a mixture: a layer's experts are one tensor, no linear layers, and stay as they are"""
        fused = "; a layer's experts are one tensor, and take none" if self.without_experts else ""
        for asked in shape.names:
            if not any(matches(name, asked) for name in linear):
                raise ValueError(f"model.lora names {asked}, but no linear layer is called so; there are {', '.join(known)}{fused}")
        self.layers: dict[str, Adapted] = {}
        """By the module's name, in model order."""
        for name, module in linear.items():
            if any(matches(name, asked) for asked in shape.names) or (not shape.names and module is not head):
                self.layers[name] = self._adapted(module)
        if isinstance(head, Adapted) and head.weight is model.get_input_embeddings().weight:
            raise ValueError(
                "model.lora names the head, which this model ties to its embedding: merged, it would change that as well; leave it out"
            )

    def _adapted(self, module: nn.Linear) -> Adapted:
        for kind, size in zip(KINDS, ((self.shape.rank, module.in_features), (module.out_features, self.shape.rank)), strict=True):
            module.register_parameter(kind, nn.Parameter(torch.empty(size, dtype=torch.float32, device="meta")))
        module.__class__ = Adapted
        adapted = cast(Adapted, module)
        adapted.scale, adapted.adapts = self.shape.scale, True
        return adapted

    def parameters(self) -> dict[str, nn.Parameter]:
        """By their names in the model."""
        return {f"{name}.{kind}": getattr(layer, kind) for name, layer in self.layers.items() for kind in KINDS}

    @torch.no_grad()
    def begin(self, seed: int, ranks: Ranks) -> None:
        """As PEFT begins: A uniform in ±1 ÷ √I (Kaiming, a = √5), B zero. From seed and name alone, so any number of ranks begins alike."""
        for name, layer in self.layers.items():
            key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1)
            bound = 1 / math.sqrt(layer.in_features)
            a_RI = torch.empty(self.shape.rank, layer.in_features).uniform_(-bound, bound, generator=generator)
            fill(layer.lora_A, a_RI, ranks)
            local(layer.lora_B).zero_()

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
        """This rank's rows of whole `tensors` by the parameters' names."""
        for name, parameter in self.parameters().items():
            fill(parameter, tensors[name], ranks)

    def full(self) -> Iterator[tuple[str, Tensor]]:
        """Every adapter, unsharded, float32, by the parameter's name in model order. A collective."""
        return gathered(self.parameters().items(), torch.float32)

    def layouts(self) -> dict[str, Layout]:
        """Of what `full` gives."""
        return {name: Layout(torch.float32, tuple(parameter.shape)) for name, parameter in self.parameters().items()}

    def write(self, target: Path, base: Base, here: bool, card: Mapping[str, Any] | None = None) -> None:
        """As they are now, in PEFT's format with what `card` says of them, by each rank that is `here`. A collective."""
        tensors = self.full()
        if here:
            write_adapter(target, self.shape, base, self.layouts(), (tensor for _, tensor in tensors), card)
        for _ in tensors:  # all gather each
            pass

    def rows(self) -> dict[str, Tensor]:
        """A copy of this rank's rows."""
        return {name: local(parameter).clone() for name, parameter in self.parameters().items()}

    @contextmanager
    def without(self, names: Iterable[str]) -> Iterator[None]:
        """Within, the model computes as if these layers had no adapter."""
        layers = [self.layers[name] for name in names]
        for layer in layers:
            layer.adapts = False
        try:
            yield
        finally:
            for layer in layers:
                layer.adapts = True

    @contextmanager
    def at(self, rows: Mapping[str, Tensor]) -> Iterator[None]:
        """Within, the model computes with these rows of adapters instead of its own. For passes without gradient: what FSDP2 has gathered
        must not outlive it."""
        now = self.rows()
        self.put(rows)
        try:
            yield
        finally:
            self.put(now)

    @torch.no_grad()
    def put(self, rows: Mapping[str, Tensor]) -> None:
        """What `rows` gave."""
        for name, parameter in self.parameters().items():
            local(parameter).copy_(rows[name])

    def describe(self) -> str:
        count = sum(parameter.numel() for parameter in self.parameters().values())
        names = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in self.layers))
        fused = "; its experts stay as they are" if self.without_experts else ""
        return f"of which {count / 1e6:.2f} M train, in adapters of rank {self.shape.rank} on {names}{fused}"


def merged(tensors: Iterable[tuple[str, Tensor]], adapters: Adapters | None, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """`tensors` of the base and its adapters, whole and by the model's names in its order → the base by name, with what adapters add to it,
    in `dtype`; without adapters as they come. Worked example: q.weight, q.bias, q.lora_A, q.lora_B give q.weight + s·B·A, q.bias."""
    if adapters is None:
        yield from tensors
        return
    held: dict[str, Tensor] = {}
    for name, tensor in tensors:
        owner, _, leaf = name.rpartition(".")
        if (layer := adapters.layers.get(owner)) is None:
            yield name, tensor.to(dtype)
            continue
        held[leaf] = tensor
        if leaf == KINDS[-1]:  # the last of a layer's parameters
            a_RI, b_OR = (held.pop(kind) for kind in KINDS)
            held["weight"] = merge(held["weight"], a_RI, b_OR, layer.scale)
            for leaf in list(held):
                yield f"{owner}.{leaf}", held.pop(leaf).to(dtype)


def merge(weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """W + s·B·A in float32: cast once, by the caller."""
    return torch.addmm(weight_OI.float(), b_OR.float(), a_RI.float(), alpha=scale)


def head_lora(layer: Any) -> tuple[Tensor, Tensor, float] | None:
    """What an output layer adds to its weight, as `LMHead` takes it."""
    return (layer.lora_A, layer.lora_B, layer.scale) if isinstance(layer, Adapted) and layer.adapts else None


def matches(name: str, asked: str) -> bool:
    """Whether a module is called so, as PEFT reads `target_modules`: whole, or the end of its path.

    >>> matches("model.layers.0.self_attn.q_proj", "q_proj"), matches("model.layers.0.mlp.up_proj", "proj")
    (True, False)
    """
    return name == asked or name.endswith(f".{asked}")


def local(parameter: Tensor) -> Tensor:
    return cast(DTensor, parameter.detach()).to_local()


def fill(parameter: Tensor, whole: Tensor, ranks: Ranks) -> None:
    """This rank's rows of a whole tensor."""
    own = local(parameter)
    first = ranks.first_row(len(whole))
    own.copy_(whole[first : first + len(own)])
