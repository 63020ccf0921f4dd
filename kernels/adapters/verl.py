"""verl's (0.9) functions with their signatures, computed by soundrl. In a run, by settings alone:

    actor_rollout_ref.model.external_lib=soundrl.kernels.adapters.verl_external actor_rollout_ref.actor.policy_loss.loss_mode=soundrl

Shapes: T rows, B sequences, L response tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from soundrl.kernels.linear_logprob import linear_logprob
from soundrl.kernels.logprob import selective_logprob
from soundrl.kernels.loss_rule import LossRule
from soundrl.kernels.policy_loss import policy_loss

# (verl's loss mode, loss_agg_mode) → (variant, what the sum is divided by). The modes not listed have no formula here.
TOKENS, SEQUENCES, LENGTHS, ONE = "tokens", "sequences", "sequences × horizon", "1"
RULES = {
    ("vanilla", "token-mean"): ("dapo", TOKENS),
    ("vanilla", "token-sum"): ("dapo", ONE),
    ("vanilla", "seq-mean-token-sum"): ("dapo", SEQUENCES),
    ("vanilla", "seq-mean-token-sum-norm"): ("dr_grpo", LENGTHS),
    ("vanilla", "seq-mean-token-mean"): ("grpo", SEQUENCES),
    ("cispo", "token-mean"): ("cispo", TOKENS),
    ("cispo", "token-sum"): ("cispo", ONE),
    ("cispo", "seq-mean-token-sum"): ("cispo", SEQUENCES),
    ("cispo", "seq-mean-token-sum-norm"): ("cispo", LENGTHS),
    ("gspo", "seq-mean-token-mean"): ("gspo", SEQUENCES),
}
# verl's sapo is a mean over each sequence, whatever the setting says.
RULES |= {("sapo", mode): ("sapo", SEQUENCES) for _, mode in list(RULES)}
LOSSES = {"soundrl": "vanilla", "soundrl_gspo": "gspo", "soundrl_cispo": "cispo", "soundrl_sapo": "sapo"}
"""Names under which `register` enters our losses → verl's loss mode whose formula they have."""


def logprobs_from_logits(logits: Tensor, labels: Tensor, inplace_backward: bool = True) -> Tensor:
    """verl.utils.torch_functional: logits [..., V], labels [...] → log-probabilities [...], in fp32 (verl's are in the logits' type)."""
    return selective_logprob(logits, labels, inplace_backward=inplace_backward).logprob


class FusedLinearForPPO(nn.Module):
    """verl.utils.experimental.torch_functional: log-probabilities and entropies straight from hidden states; both settings are verl's and
    decide nothing here."""

    def __init__(self, chunk_size: int = 512, impl_backend: str = "torch") -> None:
        super().__init__()

    def forward(
        self, hidden_states: Tensor, vocab_weights: Tensor, input_ids: Tensor, temperature: float | Tensor = 1.0
    ) -> tuple[Tensor, Tensor]:
        found = linear_logprob(hidden_states, vocab_weights.to(hidden_states.dtype), input_ids, temperature)
        return found.logprob, found.entropy


def compute_policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
    *,
    mode: str = "vanilla",
) -> tuple[Tensor, dict[str, Any]]:
    """verl.trainer.ppo.core_algos' compute_policy_loss_*: all [B, L] → loss, metrics. ValueError for what has no formula here."""
    mask_BL, info = response_mask.bool(), config.global_batch_info
    if (mode, loss_agg_mode) not in RULES:
        known = ", ".join(sorted({agg for name, agg in RULES if name == mode}))
        raise ValueError(f"loss_agg_mode={loss_agg_mode!r} has no formula with {mode!r} here: use {known}, or verl's loss_mode={mode!r}")
    variant, denominator = RULES[mode, loss_agg_mode]
    low, high = (config.clip_ratio if x is None else x for x in (config.clip_ratio_low, config.clip_ratio_high))
    if mode == "cispo" and low < 1:
        raise ValueError(
            f"clip_ratio_low={low} bounds cispo's ratio from below, for which there is no formula: set 1, or loss_mode='cispo'"
        )
    settings: dict[str, Any] = {"clip_low": low, "clip_high": high}
    settings["dual_clip"] = config.get("clip_ratio_c", 3.0) if mode == "vanilla" else math.inf
    if mode == "sapo":
        settings["sapo_tau"] = (float(config.tau_pos), float(config.tau_neg))
    weights = 1.0 if rollout_is_weights is None else rollout_is_weights[mask_BL]  # ≥ 0: they pass through every surrogate
    count = count_of(denominator, mask_BL, info)
    loss, sums = policy_loss(
        *(log_prob[mask_BL], old_log_prob[mask_BL], advantages[mask_BL] * weights, None, count),
        rule=LossRule(variant=variant, **settings),
        cu_seqlens=nn.functional.pad(mask_BL.sum(1).cumsum(0), (1, 0)),
    )
    tokens = sums["tokens"].clamp(min=1)
    moved = (old_log_prob - log_prob.detach())[mask_BL].clamp(-20, 20).sum() / tokens
    clipped = torch.zeros(()) if mode == "sapo" else (sums["clip_low"] + sums["clip_high"]) / tokens
    metrics = {"pg_clipfrac": clipped, "ppo_kl": moved, "pg_clipfrac_lower": sums["dual_clip"] / tokens}
    return loss * info.get("dp_size", 1), {f"actor/{name}": value.item() for name, value in metrics.items()}


def count_of(denominator: str, mask_BL: Tensor, info: dict[str, Any]) -> float | Tensor:
    """verl's denominators over the global batch; a lone rank may leave them out."""
    if denominator == ONE:
        return 1.0
    name, local = ("batch_num_tokens", mask_BL.sum()) if denominator == TOKENS else ("global_batch_size", mask_BL.any(1).sum())
    count = info.get(name)
    if count is None:
        if info.get("dp_size", 1) > 1:
            raise ValueError(f"global_batch_info has no {name}, needed with dp_size={info['dp_size']}: use a verl that gives it")
        count = local.clamp(min=1).float()
    return count * (info.get("loss_scale_factor") or mask_BL.shape[1]) if denominator == LENGTHS else count


class VerlFunctions(NamedTuple):
    logprobs_from_logits: Callable[..., Tensor]
    FusedLinearForPPO: type[nn.Module]
    policy_losses: dict[str, Callable[..., tuple[Tensor, dict[str, Any]]]]
    """By the name that `loss_mode` takes."""


def verl_functions() -> VerlFunctions:
    """Ours, to be put in verl's place by hand; `register` does it."""
    losses = {name: partial(compute_policy_loss, mode=mode) for name, mode in LOSSES.items()}
    return VerlFunctions(logprobs_from_logits, FusedLinearForPPO, losses)


def register() -> None:
    """Put ours in place of verl's log-probabilities and fused head, in every module of verl that has them already, and enter the losses."""
    from verl.trainer.ppo.core_algos import register_policy_loss  # pyright: ignore[reportMissingImports]
    from verl.utils import torch_functional  # pyright: ignore[reportMissingImports]
    from verl.utils.experimental import torch_functional as fused  # pyright: ignore[reportMissingImports]

    ours = verl_functions()
    for module, name in ((torch_functional, "logprobs_from_logits"), (fused, "FusedLinearForPPO")):
        theirs = getattr(module, name)
        for loaded in [m for key, m in sys.modules.items() if key.partition(".")[0] == "verl"]:
            if vars(loaded).get(name) is theirs:
                setattr(loaded, name, getattr(ours, name))
    for name, loss in ours.policy_losses.items():
        register_policy_loss(name)(loss)
