"""What a plan needs to know of a model, counted on a copy without storage (torch's meta device) made from its config.json alone.

Its forward pass runs on shapes, and what autograd saves is added up, so any architecture is known: of a mixture of experts the rows of
those that a token is sent to, with LoRA the inputs that the adapters' gradients need. Shapes: T tokens, H hidden, V vocabulary, E experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM

from soundrl.engine.files.adapter_folder import Shape
from soundrl.engine.files.model_folder import load_config
from soundrl.engine.lora.lora import Adapters
from soundrl.engine.planning.meta_experts import grouped_on_meta
from soundrl.engine.telemetry.flops import active_parameters, experts_of

ATTENTION = "soundrl_plan"
TRACED_TOKENS = 256
Sizes = tuple[tuple[int, int, int], ...]
"""Tensors by shape: rows (dimension 0, which FSDP2 cuts), elements of a row, how many there are."""


class _Attention(torch.autograd.Function):
    """Keeps what attention over packed sequences keeps: query, key, value, output, and the log-sum-exp of each row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out


def _fused(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, **kwargs: Any) -> tuple[Tensor, None]:
    return _Attention.apply(query, key, value).transpose(1, 2), None


AttentionInterface.register(ATTENTION, _fused)


@dataclass(frozen=True)
class Shapes:
    """Of a model; `adapters` where it is trained by LoRA, empty where all of it is."""

    tensors: Sizes
    named: dict[str, int]  # elements of each tensor, in model order
    layer: int  # parameters of the largest layer
    layers: int
    hidden: int
    vocabulary: int
    cached: int  # elements of the KV cache, a token
    saved: float  # bytes that one token leaves for the backward pass, over all layers, without recomputation
    widest: float  # bytes of the largest single tensor among these, a token
    active: int  # parameters in matrix products that one token meets: the input embedding is none, of E experts it meets its top k
    attended: int  # layers × query heads × width of a head
    heads: int
    key_heads: int  # each is in one rank of vLLM's alone, whatever `rollout.tensor_parallel`
    adapters: Sizes = ()
    linear: dict[str, int] = field(default_factory=dict)  # inputs and outputs of the linear layers of each (last) name, over all layers
    slots: int = 0  # elements that vLLM has for adapters of its own

    @property
    def parameters(self) -> int:
        return elements(self.tensors)

    @property
    def largest(self) -> int:
        """Elements of the largest tensor."""
        return max(rows * row for rows, row, _ in self.tensors)

    @property
    def outside(self) -> int:
        """Parameters in no layer: embedding, head, last norm."""
        return self.parameters - self.layers * self.layer

    @property
    def adapted(self) -> int:
        return elements(self.adapters)


def elements(sizes: Sizes) -> int:
    return sum(rows * row * count for rows, row, count in sizes)


def shard(sizes: Sizes, ranks: int) -> int:
    """Elements that each rank allocates: FSDP2 cuts dimension 0 into equal parts, rounded up, and pads the last ranks'.

    Worked example: 5 rows of 2 over 4 ranks are 2 rows, 4 elements, on each.
    """
    return sum(-(-rows // ranks) * row * count for rows, row, count in sizes)


def shapes(folder: Path, dtype: torch.dtype, lora: tuple[int, float, str] = (0, 32.0, "")) -> Shapes:
    """Of the model in `folder`, whose config.json alone is read; `lora` as `model.lora`. ValueError where that names layers which are not
    there."""
    config = load_config(folder)
    config.use_cache = False
    model = on_meta(config, dtype)
    layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    sizes, named = counted(model.parameters()), {name: p.numel() for name, p in model.named_parameters()}
    layer = max(sum(p.numel() for p in each.parameters()) for each in layers)
    linear = Counter[str]()
    for name, module in model.named_modules():
        if type(module) is nn.Linear:
            linear[name.rpartition(".")[2]] += module.in_features + module.out_features
    active, adapters = active_parameters(model, config), attached(model, lora) if lora[0] else ()
    model.get_output_embeddings().forward = lambda hidden: hidden.sum()[None, None]
    with grouped_on_meta(), saved_bytes(model) as saved, repeated(layers, saved):
        ids = torch.zeros(1, TRACED_TOKENS, dtype=torch.int64, device="meta")
        model(input_ids=ids, position_ids=ids, use_cache=False)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shapes(
        tensors=sizes,
        named=named,
        layer=layer,
        layers=len(layers),
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        cached=2 * len(layers) * heads * width,
        saved=sum(saved) / TRACED_TOKENS,
        widest=max(saved) / TRACED_TOKENS,
        active=active,
        attended=len(layers) * config.num_attention_heads * width,
        heads=config.num_attention_heads,
        key_heads=heads,
        adapters=adapters,
        linear=dict(linear),
    )


def on_meta(config: Any, dtype: torch.dtype) -> Any:
    """The model without storage, its head tied where it is."""
    more = (
        {"experts_implementation": "grouped_mm"} if experts_of(config) else {}
    )  # the loop over experts looks at data, of which there is none
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION, **more)
    model.tie_weights()
    return model


def counted(tensors: Iterable[Tensor]) -> Sizes:
    return tuple((rows, row, count) for (rows, row), count in Counter((p.shape[0], p.numel() // p.shape[0]) for p in tensors).items())


def attached(model: Any, lora: tuple[int, float, str]) -> Sizes:
    """Freezes the model and puts the adapters of `lora` (as `model.lora`) on it, which compute in its type here, as FSDP2 lets them."""
    model.requires_grad_(False)
    adapters = Adapters(model, Shape(*lora)).parameters()
    for parameter in adapters.values():
        parameter.data = parameter.data.to(model.dtype)
    return counted(adapters.values())


@contextmanager
def repeated(layers: nn.ModuleList, saved: list[int]) -> Iterator[None]:
    """Two layers of a kind (same class and shapes) run, the others hand their input on; what the second saves is counted for each of them.
    The first is no measure: under a frozen embedding it keeps less. (A layer takes 0.2 s here, shapes alone go through Python.)"""
    kinds: dict[Any, list[nn.Module]] = {}
    for layer in layers:
        kinds.setdefault((type(layer), tuple(p.shape for p in layer.parameters())), []).append(layer)
    more: list[int] = []
    for _, second, *others in (of for of in kinds.values() if len(of) > 2):
        before, out = list[int](), list[Any]()

        def begin(module: nn.Module, given: Any, before: list[int] = before) -> None:
            before.append(len(saved))

        def end(module: nn.Module, given: Any, said: Any, before: list[int] = before, out: list[Any] = out, n: int = len(others)) -> None:
            more.extend(saved[before[0] :] * n)
            out.append(said)

        def hand_on(hidden: Tensor, *args: Any, out: list[Any] = out, **kwargs: Any) -> Any:
            return (hidden, *out[0][1:]) if isinstance(out[0], tuple) else hidden

        second.register_forward_pre_hook(begin)
        second.register_forward_hook(end)
        for other in others:
            other.forward = hand_on
    yield
    saved.extend(more)


@contextmanager
def saved_bytes(model: nn.Module) -> Iterator[list[int]]:
    """Sizes of the storages that autograd saves within, each once, parameters left out."""
    known = {id(storage): storage for storage in (p.untyped_storage() for p in model.parameters())}
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in known:
            known[id(storage)] = storage  # kept, so that no other gets its id
            sizes.append(storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes
