"""The LM head as a value: what makes logits of hidden states. Shapes: H hidden, V vocabulary, R rank of an adapter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from soundrl.kernels.backend import require


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
               before them. Results are those of the whole on every rank, which all must call with the same rows
    """

    weight_VH: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0
    lora: tuple[Tensor, Tensor, float] | None = None
    group: Any = None

    def __post_init__(self) -> None:
        require(0 < self.scale < math.inf, lambda: f"scale={self.scale} must be finite and > 0: logits are multiplied by it; use 1.0")


def lm_head(head: Tensor | LMHead) -> LMHead:
    """A head from what public functions are given: the value itself, or the weight alone."""
    if isinstance(head, LMHead):
        return head
    require(
        isinstance(head, Tensor),
        lambda: f"head is a {type(head).__name__}: give its weight [V, H], or LMHead(weight, bias) where it has more than that",
    )
    return LMHead(head)
