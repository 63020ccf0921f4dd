"""Log-probability of given tokens, and entropy, from logits. Shapes: T tokens, V vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor


def selective_logprob(logits_TV: Tensor, targets_T: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """log softmax(logits / temperature) at `targets`, and the entropy of that distribution in nats.

    logits_TV [T, V] any float dtype; targets_T [T] int64. Returns two fp32 tensors [T]; statistics are fp32 whatever the
    logits' dtype, as a bf16 log-sum-exp over 100k entries loses the third digit.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be > 0: greedy sampling has no log-probability; use 1.0")
    scaled_TV = logits_TV.float() / temperature
    lse_T = torch.logsumexp(scaled_TV, dim=-1)
    logprob_T = scaled_TV.gather(-1, targets_T[:, None]).squeeze(-1) - lse_T
    with torch.no_grad():
        entropy_T = lse_T - (torch.softmax(scaled_TV, dim=-1) * scaled_TV).sum(-1)
    return logprob_T, entropy_T
