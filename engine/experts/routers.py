"""The routers of a mixture of experts, looked at while the model computes: which experts each token chose, and the load-balance term.

    L = 1/Λ Σ_l E Σ_i f_li P_li,     f_li = share of the tokens that chose expert i in layer l,     P_li = mean probability of i there

(Switch Transformers, arXiv 2101.03961 Eq. 4–6, with top-k as transformers' `load_balancing_loss_func` counts it: f sums to k, and k is the
least L can be.) transformers pools all layers before it multiplies, where one layer's excess hides another's; here each layer is balanced
by itself. f carries no gradient and P is a sum over tokens: where f is known beforehand, L is a sum over tokens, too, which no split into
micro-batches or ranks changes. Shapes: T tokens, E experts, K of them a token, Λ layers with experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from soundrl.engine.ranks import holders

SOFTMAX = ("qwen2_moe", "qwen3_moe", "olmoe", "mixtral", "flex_olmo", "qwen3_next", "qwen3_5_moe_text", "minimax")
"""Families whose routers take the largest of a softmax over all experts and return (logits, weights, choices), as transformers 5.19 has
them; the first four are tried."""


class Seen:
    """What the routers did in one forward pass."""

    def __init__(self, layers: int, experts: int, counted_T: Tensor, fractions_LE: Tensor | None, keep: bool) -> None:
        self.counted_T, self.fractions_LE, self.keep = counted_T, fractions_LE, keep
        self.counts_LE = torch.zeros(layers, experts, dtype=torch.float64, device=counted_T.device)
        """How often each expert was chosen, by the counted tokens"""
        self.probs_LE = torch.zeros_like(self.counts_LE)
        """Sums of its probability over these"""
        self.term = torch.zeros((), device=counted_T.device)
        """Σ_l Σ_t Σ_i f_li p_tli, differentiable; 0 where no fractions were given"""
        self.chosen: list[Tensor] = [torch.empty(0)] * layers if keep else []
        """[T, K] int64 of each layer, where they are kept"""
        self._logits: list[tuple[int, Tensor]] = []

    def look(self, layer: int, logits_TE: Tensor, chosen_TK: Tensor) -> None:
        if self.keep:
            self.chosen[layer] = chosen_TK.detach()
        if self.fractions_LE is not None:
            self._logits.append((layer, logits_TE))
        with torch.no_grad():
            self.probs_LE[layer] = self._probs(logits_TE).sum(0)
            chose_T = self.counted_T[:, None].expand_as(chosen_TK).double()
            self.counts_LE[layer].scatter_add_(0, chosen_TK.flatten(), chose_T.flatten())

    def end(self) -> None:
        """The term, of logits that were kept until here: where activations are recomputed, what the forward pass of a layer keeps for the
        backward pass must be what its second one keeps, in which nobody looks."""
        for layer, logits_TE in self._logits:
            assert self.fractions_LE is not None
            self.term = self.term + (self._probs(logits_TE) @ self.fractions_LE[layer]).sum()
        self._logits.clear()

    def _probs(self, logits_TE: Tensor) -> Tensor:
        return torch.softmax(logits_TE.float(), dim=-1) * self.counted_T[:, None]


class Routers:
    """Those of one model, in model order. They say nothing unless they are `watched`."""

    def __init__(self, modules: list[nn.Module], experts: int, chosen: int) -> None:
        self.layers, self.experts, self.chosen = len(modules), experts, chosen
        self.seen: Seen | None = None
        self.hooks: list[RemovableHandle] = [module.register_forward_hook(partial(self._look, i)) for i, module in enumerate(modules)]

    @classmethod
    def of(cls, model: PreTrainedModel) -> Routers | None:
        """None for a model without experts, and for one whose routers are not known here: those of DeepSeek and its kin score by a sigmoid,
        and have a bias against imbalance of their own."""
        config: Any = model.config.get_text_config()
        if config.model_type not in SOFTMAX:
            return None
        experts = getattr(config, "num_experts", None) or config.num_local_experts
        modules = [module for module in model.modules() if type(module).__name__.endswith("TopKRouter")]
        return cls(modules, experts, config.num_experts_per_tok) if modules else None

    def _look(self, layer: int, module: nn.Module, inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        if self.seen is not None:
            logits_TE, _, chosen_TK = output
            self.seen.look(layer, logits_TE, chosen_TK)

    @contextmanager
    def watched(self, counted_T: Tensor, fractions_LE: Tensor | None = None, keep: bool = False) -> Iterator[Seen]:
        """One forward pass of T tokens, of which those in `counted_T` (bool) count; `fractions_LE` (float32): f of the term. The backward
        pass stands outside: where activations are recomputed, routers compute once more in it, and nobody must count again."""
        self.seen = seen = Seen(self.layers, self.experts, counted_T, fractions_LE, keep)
        try:
            yield seen
            seen.end()
        finally:
            self.seen = None

    def describe(self, shards: int) -> str:
        """`shards`: ranks that hold one copy. FSDP2 cuts a parameter's first dimension, and the experts' is the experts."""
        where = f", on {held} of {shards} ranks alone" if (held := holders(self.experts, shards)) < shards else ""
        return f"{self.experts} experts in each of {self.layers} layers{where}, {self.chosen} a token"
