"""The one definition of the policy loss; every path of soundrl computes exactly this.

Shapes: T = trained (response) tokens of a packed batch, B = sequences in it. All arithmetic is fp32 or wider.

    ratio_t  = exp(logprob_t − old_logprob_t)                                     log-ratio clamped to ±20
    m_t      = max(−A_t · ratio_t, −A_t · clip(ratio_t, 1 − clip_low, 1 + clip_high))
    m_t      = min(m_t, −A_t · dual_clip)                     where A_t < 0       (dual clip, arXiv 1912.09729)
    loss     = Σ_t w_t · m_t / token_count                                        token mean (DAPO, arXiv 2503.14476)

`w_t` corrects for the sampler, whose log-probabilities differ from the trainer's (q_t = exp(old_logprob_t − sampler_logprob_t)):
`none` 1; `tis` min(q_t, high) (truncated importance sampling); `icepop` q_t inside [low, high], else 0; `sequence` 1 where the
geometric mean of q over the sequence lies in [low, high], else 0. Weights carry no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

CORRECTIONS = ("none", "tis", "icepop", "sequence")
LOG_RATIO_LIMIT = 20.0  # exp(20) is finite in fp32 with room for the product; verl clamps alike

# Metrics come back as sums over tokens, so that micro-batches and ranks add up exactly; divide by `tokens`.
METRIC_SUMS = ("tokens", "clip_low", "clip_high", "dual_clip", "kl", "exp_abs_dlogp", "sampler_kl", "corrected")


def correction_weight(
    old_logprob_T: Tensor, sampler_logprob_T: Tensor, cu_seqlens: Tensor | None, correction: str, low: float, high: float
) -> Tensor:
    """Weight [T] of each token against the sampler's distribution (see the module's text); fp32, no gradient.

    `cu_seqlens` [B+1] int64 bounds the sequences *of the trained tokens*; only `sequence` needs it.
    """
    log_q_T = (old_logprob_T - sampler_logprob_T).detach().float()
    if correction == "none":
        return torch.ones_like(log_q_T)
    if correction == "tis":
        return log_q_T.exp().clamp(max=high)
    if correction == "icepop":
        q_T = log_q_T.exp()
        return q_T * ((q_T >= low) & (q_T <= high))
    if correction == "sequence":
        if cu_seqlens is None:
            raise ValueError("correction='sequence' needs cu_seqlens [B+1] of the trained tokens; pass it or use 'tis'")
        lengths_B = cu_seqlens.diff()
        sequence_T = torch.repeat_interleave(torch.arange(len(lengths_B), device=log_q_T.device), lengths_B)
        sums_B = torch.zeros(len(lengths_B), device=log_q_T.device).index_add_(0, sequence_T, log_q_T)
        mean_B = (sums_B / lengths_B.clamp(min=1)).exp()
        return ((mean_B >= low) & (mean_B <= high)).float()[sequence_T]
    raise ValueError(f"correction={correction!r} is unknown; use one of {', '.join(CORRECTIONS)}")


def policy_loss(
    logprob_T: Tensor,
    old_logprob_T: Tensor | None,
    advantages_T: Tensor,
    sampler_logprob_T: Tensor,
    token_count: float | Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float = 10.0,
    correction: str = "tis",
    correction_low: float = 0.5,
    correction_high: float = 2.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped policy-gradient loss of packed tokens, and its metrics.

    logprob_T          [T] log π of each sampled token under the weights being trained; the only differentiable input
    old_logprob_T      [T] the same under the weights that sampled; None = on policy (the ratio is exactly 1)
    advantages_T       [T] advantage of the token's rollout
    sampler_logprob_T  [T] what the sampling engine reported
    token_count        tokens of the whole mini-batch over all ranks, counted before the first forward; this alone makes
                       the gradient independent of how the batch is split

    Returns a scalar loss (0 with gradient 0 for T = 0) and `METRIC_SUMS` as fp32 scalars without gradient.
    Source: FAPO arXiv 2510.22543 Eq. 3 with the token mean and dual clip of its released code.
    """
    logprob_T = logprob_T.float()
    old_T = logprob_T.detach() if old_logprob_T is None else old_logprob_T.float()
    log_ratio_T = (logprob_T - old_T).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio_T = log_ratio_T.exp()
    plain_T = -advantages_T * ratio_T
    clipped_T = -advantages_T * ratio_T.clamp(1 - clip_low, 1 + clip_high)
    loss_T = torch.maximum(plain_T, clipped_T)
    bound_T = -advantages_T * dual_clip
    negative_T = advantages_T < 0
    dual_T = negative_T & (loss_T > bound_T)
    loss_T = torch.where(dual_T, bound_T, loss_T)
    weight_T = correction_weight(old_T, sampler_logprob_T, cu_seqlens, correction, correction_low, correction_high)
    loss = (weight_T * loss_T).sum() / token_count

    with torch.no_grad():
        clipped = clipped_T > plain_T
        gap_T = old_T - sampler_logprob_T.float()
        sums = {
            "tokens": torch.tensor(float(logprob_T.numel()), device=logprob_T.device),
            "clip_low": (clipped & negative_T).float().sum(),
            "clip_high": (clipped & ~negative_T).float().sum(),
            "dual_clip": dual_T.float().sum(),
            "kl": (ratio_T - 1 - log_ratio_T).sum(),  # k3, non-negative
            "exp_abs_dlogp": gap_T.abs().exp().sum(),
            "sampler_kl": (gap_T.exp() - 1 - gap_T).sum(),
            "corrected": (weight_T != 1).float().sum(),
        }
    return loss, sums
