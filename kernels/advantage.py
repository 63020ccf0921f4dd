"""FAPO reward penalty and group-relative advantage over ragged groups. Shapes: N rollouts, P groups."""

from __future__ import annotations

import torch
from torch import Tensor

STD_EPSILON = 1e-6


def fapo_reward(rewards_N: Tensor, flawed_N: Tensor, lam: float) -> Tensor:
    """r − λ on flawed positives, r elsewhere (arXiv 2510.22543 Eq. 8); `lam = 0` returns `rewards_N` itself."""
    return rewards_N if lam == 0.0 else rewards_N - lam * flawed_N.to(rewards_N.dtype)


def group_advantage(
    rewards_N: Tensor,
    group_offsets: Tensor,
    flawed_N: Tensor | None = None,
    lam: float = 0.0,
    kept_N: Tensor | None = None,
    normalize_std: bool = True,
) -> Tensor:
    """Advantage [N] of each rollout within its group: (r − mean) / (std + 1e-6).

    rewards_N      [N] rule reward with overlong shaping already added
    group_offsets  [P+1] int64; group g holds rollouts offsets[g] … offsets[g+1]−1; groups may have any size, 0 and 1 included
    flawed_N       [N] bool: correct answer, wrong step; its reward loses `lam` (arXiv 2510.22543 Eq. 8)
    kept_N         [N] bool: False leaves the group (no part in mean and spread, advantage 0); None keeps all
    normalize_std  False gives r − mean (Dr. GRPO, arXiv 2503.20783)

    The spread is the *sample* standard deviation (n − 1), as in the released code; a group of one kept rollout, or of equal
    rewards, has advantage 0. `lam = 0` changes no bit. Computed in fp64 and returned as fp32: groups are small, and the
    result must not depend on the order of summation.

    >>> group_advantage(torch.tensor([1., 1, 0, 0, -1, -1, -1, -1]), torch.tensor([0, 8]))[[0, 2, 4]].tolist()
    [1.4100..., 0.2820..., -0.8460...]
    """
    if flawed_N is not None:
        rewards_N = fapo_reward(rewards_N, flawed_N, lam)
    out_N = torch.zeros(len(rewards_N), dtype=torch.float64, device=rewards_N.device)
    values_N = rewards_N.double()
    bounds = group_offsets.tolist()
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        keep = torch.ones(end - start, dtype=torch.bool, device=out_N.device) if kept_N is None else kept_N[start:end]
        group = values_N[start:end][keep]
        if len(group) < 2:
            continue
        centred = group - group.mean()
        if group.min() == group.max():
            centred = torch.zeros_like(group)  # exactly 0: rounding of the mean must not become an advantage of ±1e-10 / 1e-6
        if normalize_std:
            centred = centred / (group.std() + STD_EPSILON)
        out_N[start:end][keep] = centred
    return out_N.float()
