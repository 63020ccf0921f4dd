"""The LM head as a value: what makes logits of hidden states. Shapes: T rows, H hidden, V vocabulary, R rank of an adapter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from soundrl.kernels.backend import KERNEL_DTYPES, DTensor, local, require
from soundrl.kernels.head_chunks import USUAL, Projection
from soundrl.kernels.softmax import flat, softmax_of
from soundrl.kernels.vocab_parallel import place_of_slice

if torch.distributed.is_available():
    from torch.distributed.tensor import Partial


@dataclass(frozen=True)
class LMHead:
    """logits = scale · (x · weightᵀ + s · (x · Aᵀ) · Bᵀ + bias), then softcap · tanh(logits / softcap).

    weight_VH  [V, H] in the hidden states' type; tied or frozen ones too
    bias_V     [V]
    softcap    tanh bound on the logits (Gemma 2); None = none
    scale      Cohere's `logit_scale`; Granite's is 1 / `logits_scaling`
    lora       (A [R, H], B [V, R], s): a low-rank adapter of the weight. Its gradients are made without one of the weight, unless that
               wants its own
    group      a process group over which the vocabulary is cut: weight, bias and B are this rank's entries, those of lower ranks come
               before them. Results are those of the whole on every rank, which all must call with the same rows; gradients of hidden and A
               are sums over the ranks. Not within torch.compile

    Weight, bias, A and B may be DTensors. Without a group they are gathered, and their gradients averaged over the mesh: what FSDP2 does
    with its parameters, and right for copies that all ranks train alike. So every rank of the mesh must call. A tensor that
    `full_tensor()` made of a sharded one is refused where it would get another gradient.
    """

    weight_VH: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0
    lora: tuple[Tensor, Tensor, float] | None = None
    group: Any = None

    def __post_init__(self) -> None:
        require(0 < self.scale < math.inf, lambda: f"scale={self.scale} must be finite and > 0: logits are multiplied by it; use 1.0")


def projection(
    hidden: Tensor, head: Tensor | LMHead, targets: Tensor, temperature: float | Tensor, fp32_logits: bool, memory_budget: int | None
) -> Projection:
    """Public arguments as operators take them, rows one below the other, in one type; ValueError for what does not fit together."""
    if not isinstance(head, LMHead):
        module = isinstance(head, nn.Module)
        require(
            isinstance(head, Tensor),
            lambda: (
                f"head is {'a module, ' if module else ''}{type(head).__name__}: give its weight [V, H], or LMHead(weight, bias) where "
                "logits are more than hidden · weightᵀ"
            ),
        )
        head = LMHead(head)
    hidden, group = local("hidden", hidden), head.group
    a_RH, b_VR, lora_scale = head.lora or (None, None, 0.0)
    given = {"weight": head.weight_VH, "bias": head.bias_V, "A": a_RH, "B": b_VR}
    own = {name: None if x is None else _gathered(name, x, group is not None) for name, x in given.items()}
    if torch.is_autocast_enabled(hidden.device.type):
        # As torch's own products do; fp64 stays. Outside the operators, so that gradients come back in the arguments' types.
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, *rest = (x if x is None or x.dtype == torch.float64 else x.to(dtype) for x in (hidden, *own.values()))
        own = dict(zip(own, rest, strict=True))
    weight_VH, bias_V, a_RH, b_VR = own.values()
    assert weight_VH is not None
    require(
        hidden.ndim >= 1 and hidden.dtype in (*KERNEL_DTYPES, torch.float64),
        lambda: f"hidden has shape {tuple(hidden.shape)} and type {hidden.dtype}: give fp32, bf16, fp16 or fp64 […, H]",
    )
    width, vocabulary, rank = hidden.shape[-1], len(weight_VH), 0 if a_RH is None else len(a_RH)
    require(vocabulary > 0, lambda: "weight has no entries: give [V, H] with V > 0")
    _check("weight", weight_VH, (vocabulary, width), "[V, H] with hidden's H", hidden)
    _check("A", a_RH, (rank, width), "[R, H] with hidden's H", hidden)
    _check("B", b_VR, (vocabulary, rank), "[V, R] with the weight's V and A's R", hidden)
    _check("bias", bias_V, (vocabulary,), "[V] with the weight's V", hidden, alike=False)
    require(
        memory_budget is None or memory_budget >= 0,
        lambda: f"memory_budget={memory_budget} must be at least 0 bytes of logits; None = the usual",
    )
    first, largest, entries, name = 0, vocabulary, vocabulary, ""
    if group is not None:
        first, largest, entries = place_of_slice(group, vocabulary, hidden.device)
        name = group.group_name
    # A scale is a temperature, and a bound, that much lower: c tanh(s x / c) / t = (c/s) tanh(x / (c/s)) / (t/s).
    softmax = softmax_of(temperature / head.scale, None, head.softcap and head.softcap / head.scale)
    softmax, ids = flat(softmax, targets, ("hidden", hidden), ("weight", weight_VH), entries)
    fixed = (fp32_logits, USUAL if memory_budget is None else memory_budget, name, first, largest)
    softmax = softmax._replace(bias_V=bias_V)
    return Projection(hidden.reshape(-1, width), weight_VH, ids, *softmax, a_RH, b_VR, float(lora_scale), *fixed)


def _gathered(name: str, x: Tensor, cut: bool) -> Tensor:
    """`x` as an ordinary tensor whose gradient is right."""
    if isinstance(x, DTensor):
        return x.to_local() if cut else x.full_tensor(grad_placements=[Partial("avg")] * x.device_mesh.ndim)
    made = x.grad_fn if not torch.compiler.is_compiling() else None
    while made is not None and made.name() == "ToCopyBackward0":
        made = made.next_functions[0][0]
    # A rank's own part of the gradient, taken for the gradient of all: right only where every rank computes the same.
    before = made.next_functions[0][0] if made is not None and made.name() == "_ToTorchTensorBackward" else None
    require(
        cut or before is None or before.name() != "RedistributeBackward" or getattr(made, "grad_placements", ()) is not None,
        lambda: (
            f"{name} comes from full_tensor() or to_local(), whose gradient would be this rank's alone: give the DTensor itself, or "
            f'{name}.full_tensor(grad_placements=[Partial("avg")])'
        ),
    )
    return x


def _check(name: str, x: Tensor | None, shape: tuple[int, ...], meaning: str, hidden: Tensor, alike: bool = True) -> None:
    if x is None:
        return
    require(
        x.shape == shape,
        lambda: f"{name} has shape {tuple(x.shape)}, hidden {tuple(hidden.shape)}: {name} must be {meaning}, here {shape}",
    )
    require(
        x.device == hidden.device and (x.dtype == hidden.dtype if alike else x.dtype.is_floating_point),
        lambda: (
            f"{name} is {x.dtype} on {x.device}, hidden {hidden.dtype} on {hidden.device}: make them alike, e.g. with "
            f"hidden.to({name}.dtype), or call within torch.autocast"
        ),
    )
