"""A model's LM head as an `LMHead`, wherever transformers, PEFT and FSDP2 have put it, and the hidden states that arrive there.

Shapes: B rows of a batch, L tokens of a row, H hidden, V vocabulary, R rank of an adapter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from soundrl.kernels.backend import KERNEL_DTYPES, DTensor
from soundrl.kernels.lm_head import LMHead

# What the models of transformers do to their logits, by the names in their configs; `check_logits` finds what stands in none of these.
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma; RecurrentGemma; xLSTM
FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier")  # Cohere; Muse; Falcon-H1
DIVISOR = "logits_scaling"  # Granite; HyperCLOVA X alone multiplies by it
PROBE = (-24.0, -1.0, 0.125, 3.0)
"""Logits that a model is shown in place of its own: their images tell scale and softcap."""

# Modules around a layer that change nothing it computes: torch.compile, activation checkpointing, DistributedDataParallel.
AROUND = ("_orig_mod", "_checkpoint_wrapped_module", "module")

Result = TypeVar("Result")


def refuse(what: str, cure: str) -> ValueError:
    return ValueError(f"the LM head {what}: {cure}")


def base_of(model: Any) -> Any:
    """The transformers model inside PEFT, DistributedDataParallel and torch.compile (FSDP2 wraps nothing)."""
    while True:
        inner = next((getattr(model, name) for name in AROUND if name in getattr(model, "_modules", {})), None)
        if inner is None and callable(getattr(model, "get_base_model", None)):
            inner = model.get_base_model()
        if inner is None:
            return model
        model = inner


def head_of(model: Any, dtype: torch.dtype | None = None) -> LMHead:
    """The head of a transformers model, plain or inside PEFT, DDP and FSDP2, for `linear_logprob` and `linear_policy_loss`.

    model  anything with `get_output_embeddings()` and `config`
    dtype  what the weights are cast to (None: left as they are); shards of FSDP2 before they are gathered

    Bias, softcap and scale come along. Of PEFT: LoRA on the head (several active adapters, merged, disabled) and `modules_to_save`. A
    weight that FSDP2 holds in shards stays a DTensor, which the functions gather (`LMHead`): every rank must call them. Call it anew for
    each step: weights are read as they are now. Raises ValueError for what `LMHead` cannot say: DoRA, LoRA dropout in training,
    quantised heads, heads that are no nn.Linear, ZeRO-3's shards.
    """
    base = base_of(model)
    layer = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    if layer is None:
        raise refuse(f"of {type(base).__name__} is not known, get_output_embeddings() gives none", "pass LMHead(weight, bias) yourself")
    plain, adapters = unwrapped(layer)
    if not isinstance(plain, nn.Linear) or type(plain).forward is not nn.Linear.forward:
        cure = "keep it out of the quantisation (llm_int8_skip_modules=['lm_head']), or pass LMHead(weight, bias) yourself"
        raise refuse(f"is a {type(plain).__name__}, which does not compute what nn.Linear does", cure)
    weight = plain.weight
    if weight.dtype not in (*KERNEL_DTYPES, torch.float64) or type(weight.data) not in (Tensor, nn.Parameter, DTensor):
        raise refuse(f"is quantised ({type(weight.data).__name__} of {weight.dtype})", "load the model with lm_head in bf16 or fp32")
    if weight.ndim != 2 or weight.numel() == 0:
        cure = "under ZeRO-3 call within deepspeed.zero.GatheredParameters, under FSDP within summon_full_params; or use FSDP2"
        raise refuse(f"has a weight of shape {tuple(weight.shape)}, its shards lie elsewhere", cure)
    softcap, scale = of_logits(base)
    bias = None if plain.bias is None else cast(plain.bias, dtype)
    return LMHead(cast(weight, dtype), bias, softcap, scale, lora_of(adapters, dtype))


def of_logits(base: Any) -> tuple[float | None, float]:
    """(softcap, scale) by the model's config."""
    config = base.config.get_text_config() if hasattr(base.config, "get_text_config") else base.config
    softcap = next((value for name in SOFTCAPS if (value := getattr(config, name, None)) is not None), None)
    scale = next((value for name in FACTORS if (value := getattr(config, name, None)) is not None), None)
    divisor = getattr(config, DIVISOR, None)
    if scale is None and divisor is not None:
        scale = divisor if getattr(config, "model_type", "") == "hyperclovax" else 1 / divisor
    return softcap, 1.0 if scale is None else float(scale)


def cast(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    return x if dtype is None else x.to(dtype)


def unwrapped(layer: Any) -> tuple[Any, list[tuple[nn.Linear, nn.Linear, float]]]:
    """The layer that holds the weight, and the LoRA pairs (A, B, s) that are added to it now."""
    adapters: list[tuple[nn.Linear, nn.Linear, float]] = []
    while True:
        modules = getattr(layer, "_modules", {})
        inner = next((modules[name] for name in AROUND if name in modules), None)
        if "modules_to_save" in modules:  # PEFT trains a copy of the whole layer
            saved, active = layer.modules_to_save, active_adapters(layer)
            inner = layer.original_module if layer.disable_adapters or not active else saved[active[0]]
        elif "base_layer" in modules:
            adapters += active_lora(layer)
            inner = layer.base_layer
        elif "original_module" in modules:
            raise refuse(f"is inside {type(layer).__name__}, which trains parts of it", "name it in modules_to_save, or target it by LoRA")
        if inner is None:
            return layer, adapters
        layer = inner


def active_adapters(layer: Any) -> list[str]:
    active = layer.active_adapters
    return [active] if isinstance(active, str) else list(active)


def active_lora(layer: Any) -> list[tuple[nn.Linear, nn.Linear, float]]:
    """Of a PEFT layer. Merged adapters stand in the weight already, disabled ones count for nothing."""
    if not hasattr(layer, "lora_A"):
        raise refuse(f"carries a {type(layer).__name__}, which is not LoRA", "target it by LoRA, or name it in modules_to_save")
    if layer.merged:
        if layer.disable_adapters or set(active_adapters(layer)) != set(layer.merged_adapters):
            raise refuse("has adapters merged that are not those active", "model.unmerge_adapter() first")
        return []
    pairs = []
    for name in [] if layer.disable_adapters else active_adapters(layer):
        if name not in layer.lora_A or layer.lora_A[name].weight.numel() == 0:  # another layer's adapter, or rank 0
            continue
        a, b, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
        if getattr(layer, "lora_variant", {}).get(name) is not None or getattr(layer, "use_dora", {}).get(name):
            raise refuse(f"carries adapter {name!r}, a variant of LoRA (DoRA, …)", "use plain LoRA there, or name it in modules_to_save")
        if a.bias is not None or b.bias is not None:
            raise refuse(f"carries adapter {name!r} with a bias of its own", "set lora_bias=False")
        if isinstance(dropout, nn.Dropout) and dropout.p > 0 and dropout.training:
            raise refuse(f"carries adapter {name!r} with lora_dropout={dropout.p}", "set it to 0, or model.eval()")
        pairs.append((a, b, float(layer.scaling[name])))
    return pairs


def lora_of(adapters: list[tuple[nn.Linear, nn.Linear, float]], dtype: torch.dtype | None) -> tuple[Tensor, Tensor, float] | None:
    """(A [R, H], B [V, R], s): the sum of several adapters is one of their ranks' sum."""
    if len(adapters) < 2:
        return next(((cast(a.weight, dtype), cast(b.weight, dtype), s) for a, b, s in adapters), None)
    a_RH = torch.cat([cast(a.weight, dtype) for a, _, _ in adapters])
    return a_RH, torch.cat([s * cast(b.weight, dtype) for _, b, s in adapters], 1), 1.0


def run_head(model: Any, compute: Callable[[Tensor, Any], Result], inputs: dict[str, Any]) -> Result:
    """One forward pass of `model`, with `compute(hidden [B, L, H], model's output)` in place of the logits.

    `compute` runs inside the model's own forward, so that hooks around it (FSDP2, DDP, autocast) see its results as the model's, and may
    call `head_of`. In the head itself nothing is computed: it hands on its input, and gives the model `PROBE` for logits.
    """
    base = base_of(model)
    if "_orig_mod" in getattr(model, "_modules", {}) or getattr(base, "_compiled_call_impl", None) is not None:
        raise refuse("is part of a compiled graph", "compile the backbone alone, model.model.compile(), or its layers")
    inner, own = base.forward, "forward" in vars(base)

    def forward(*args: Any, **kwargs: Any) -> Result:
        with captured(base) as seen:
            output = inner(*args, **kwargs)
        return compute(seen[0], output)

    base.forward = forward
    try:
        return model(**inputs)
    finally:
        if own:
            base.forward = inner
        else:
            del base.forward


@contextlib.contextmanager
def captured(base: Any) -> Iterator[list[Tensor]]:
    """Within it `base`'s head only hands on its input, the hidden states, into the list. Afterwards the model's output is checked."""
    layer, seen = base.get_output_embeddings(), []
    own = vars(layer).get("forward")

    def forward(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        seen.append(hidden)
        return torch.tensor(PROBE, device=hidden.device, dtype=torch.float32).expand(*hidden.shape[:-1], len(PROBE))

    layer.forward = forward
    try:
        yield seen
    finally:
        if own is None:
            del layer.forward
        else:
            layer.forward = own
    if len(seen) != 1:
        cure = "call its backbone, then linear_logprob(hidden, head_of(model), …)"
        raise refuse(f"of {type(base).__name__} ran {len(seen)} times in one pass", cure)


def check_logits(base: Any, logits: Tensor | None) -> None:
    """That the model made of `PROBE` what `of_logits` says: else it does something to its logits that nobody here knows of.

    Waits for the GPU, so once a model.
    """
    layer = base.get_output_embeddings()
    if logits is None or logits.shape[-1] != len(PROBE) or logits.numel() == 0 or getattr(layer, "_soundrl_checked", False):
        return
    softcap, scale = of_logits(base)
    expected = torch.tensor(PROBE, dtype=torch.float64) * scale
    expected = softcap * torch.tanh(expected / softcap) if softcap else expected
    made = logits.reshape(-1, len(PROBE))[0].double().cpu()
    if not torch.allclose(made, expected, rtol=2e-2, atol=1e-3):  # a bf16 model rounds its tanh
        cure = "pass LMHead(weight, softcap=…, scale=…) to linear_logprob yourself"
        raise refuse(f"of {type(base).__name__} changes logits {list(PROBE)} to {made.tolist()}, its config says {expected.tolist()}", cure)
    layer._soundrl_checked = True
