"""Attention over a packed row inside transformers' models: the hook they call, and the three implementations behind it.

Shapes: T tokens of one packed row, Hq query heads, Hkv key heads, D head dimension.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from soundrl.kernels.language import INTERPRETING
from soundrl.kernels.varlen_attention import varlen_attention, varlen_attention_reference
from soundrl.kernels.varlen_launch import sequence_tiles

HOOK = "soundrl_varlen"
# (q_THD, k_THD, v_THD, scale=, window=, softcap=) → [T, Hq, D], over the boundaries of one batch
Attend = Callable[..., Tensor]
# Newest first: module, the oldest compute capability it runs on, package. All take the arguments that `flash_attention` passes.
FLASH = (("flash_attn.cute", 9, "flash-attn-4"), ("flash_attn_interface", 9, "flash-attn-3"), ("flash_attn", 8, "flash-attn"))
KEEP_APART = {"full_attention", "sliding_attention"}  # layer types that see other tokens through attention alone


def packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, *, attend: Attend, **asked: Any
) -> tuple[Tensor, None]:
    """transformers' attention hook over one packed row: query [1, Hq, T, D], key and value [1, Hkv, T, D] → [1, T, Hq, D].

    `attend` comes from `attend_within`, passed to the model's forward. ValueError for what packed attention has no formula for.
    """
    foreign = [name for name in ("s_aux", "position_bias", "head_mask") if asked.get(name) is not None]
    if asked.get("dropout"):
        foreign.append(f"dropout {asked['dropout']}")
    if not getattr(module, "is_causal", True) or asked.get("is_causal") is False:
        foreign.append("attention to later tokens")
    if foreign:
        raise ValueError(
            f"model.path: {type(module).__name__} asks for {', '.join(foreign)}, which packed attention does not have; use another model"
        )
    q_THD, k_THD, v_THD = (x[0].transpose(0, 1) for x in (query, key, value))
    scores = {ours: asked.get(theirs) for ours, theirs in (("scale", "scaling"), ("window", "sliding_window"), ("softcap", "softcap"))}
    return attend(q_THD, k_THD, v_THD, **scores)[None], None


AttentionInterface.register(HOOK, packed_attention)


def check_attention(backend: str, model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> None:
    """ValueError, before any weight is loaded, where the model or the machine cannot do what `model.attention` says."""
    text = model.config.get_text_config()
    foreign = sorted(set(getattr(text, "layer_types", None) or ()) - KEEP_APART)
    if foreign:
        raise ValueError(
            f"model.path has layers of type {', '.join(foreign)} ({text.model_type}), which would mix the sequences of a packed row; use a "
            f"model whose layers are all {' or '.join(sorted(KEEP_APART))}"
        )
    if not model.is_backend_compatible():
        raise ValueError(
            f"model.path is a {text.model_type}, whose code in this transformers calls no attention interface, so sequences of a packed "
            "row would mix; use another architecture, or a newer transformers"
        )
    if backend == "flash":
        if device.type != "cuda" or dtype == torch.float32:
            raise ValueError(f"model.attention flash needs a GPU and 16 bits, not {dtype} on {device.type}; set --model.attention triton")
        flash_function(torch.cuda.get_device_capability(device)[0])


@lru_cache
def flash_function(capability: int) -> Callable[..., Any]:
    """flash-attn's varlen function, the newest installed that runs on this GPU generation."""
    for name, oldest, _ in FLASH:
        if capability >= oldest:
            try:
                return importlib.import_module(name).flash_attn_varlen_func
            except ImportError:
                continue
    packages = " or ".join(f"{package} ({name})" for name, oldest, package in FLASH if capability >= oldest)
    raise ValueError(
        f"model.attention is flash, but {packages} cannot be imported; pip install --no-build-isolation flash-attn, or set "
        "--model.attention triton"
    )


def flash_attention(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, *, scale: Any, window: Any, softcap: Any, **bounds: Any) -> Tensor:
    """`varlen_attention` by flash-attn 2, 3 or 4, deterministic. Its window counts the keys to the left without the token's own."""
    extra: dict[str, Any] = {"softcap": softcap} if softcap else {}
    if window:
        extra["window_size"] = (window - 1, 0)
    attend = flash_function(torch.cuda.get_device_capability(q_THD.device)[0])
    out = attend(q_THD, k_THD, v_THD, softmax_scale=scale, causal=True, deterministic=True, **bounds, **extra)
    return out[0] if isinstance(out, tuple) else out


def attend_within(backend: str, cu_seqlens: Tensor, tokens: int) -> Attend:
    """Attention that stays within the sequences of one packed row of `tokens` tokens; made once a batch, used by every layer."""
    if backend == "flash":
        bounds, longest = cu_seqlens.int(), int(cu_seqlens.diff().max())
        return partial(flash_attention, cu_seqlens_q=bounds, cu_seqlens_k=bounds, max_seqlen_q=longest, max_seqlen_k=longest)
    on_triton = cu_seqlens.is_cuda or INTERPRETING
    if backend == "sdpa" and on_triton:
        return partial(varlen_attention_reference, lengths=cu_seqlens.diff().tolist())
    return partial(varlen_attention, cu_seqlens=cu_seqlens, tiles_N4=sequence_tiles(cu_seqlens, tokens) if on_triton else None)
