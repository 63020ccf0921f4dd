"""From outcomes and verdicts to rewards and advantages of whole groups (arXiv 2510.22543 §3.2, its released code for shaping)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from soundrl.fapo.records import Group, Rollout
from soundrl.fapo.reward_rule import base_rewards, is_flawed, is_unknown, overlong_penalty
from soundrl.kernels.advantage import fapo_reward, group_advantage


@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    lam: float
    """λ ≥ 0: what a flawed positive loses; 0 is GRPO, and verdicts then change nothing."""
    normalize_std: bool
    max_new_tokens: int
    overlong_buffer: int
    """Tokens; 0 = no length penalty."""
    overlong_factor: float
    drop_unknown: bool
    """A rollout without verdict leaves its group; False keeps its rule reward (the released code's behaviour). One whose outcome is
    unknown has no such reward, and leaves it always."""


def assign_advantages(groups: Sequence[Group], settings: RewardSettings, base: Sequence[float] | None = None) -> None:
    """Fill `kept`, `rewards` and `advantages` of every group from its outcomes and verdicts, in place.

    `base` holds the reward of each rollout before the length penalty, group after group; by default `base_rewards`.

    Worked example, λ = 1: outcomes correct, correct, wrong, wrong with verdicts sound, flawed, –, – give rewards 1, 0, −1, −1
    and advantages ≈ 1.31, 0.26, −0.78, −0.78. Were the flawed one unknown instead, it would leave: rewards 1, –, −1, −1.
    """
    for group in groups:
        group.kept = [
            not outcome.leaves and not (settings.drop_unknown and settings.lam > 0 and is_unknown(verdict))
            for outcome, verdict in zip(group.outcomes, group.verdicts, strict=True)
        ]
    if base is None:
        base = [reward for group in groups for reward in base_rewards(group)]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    shaped = [reward + shaping(rollout, settings) for reward, rollout in zip(base, rollouts, strict=True)]
    rewards_N = torch.tensor(shaped, dtype=torch.float64)
    flawed_N = torch.tensor([is_flawed(v) for g in groups for v in g.verdicts], dtype=torch.bool)
    kept_N = torch.tensor([k for g in groups for k in g.kept], dtype=torch.bool)
    offsets = torch.tensor([0, *torch.tensor([len(g.rollouts) for g in groups]).cumsum(0).tolist()])
    advantages_N = group_advantage(rewards_N, offsets, flawed_N, settings.lam, kept_N, settings.normalize_std)
    final_N = fapo_reward(rewards_N, flawed_N, settings.lam)
    for i, group in enumerate(groups):
        part = slice(int(offsets[i]), int(offsets[i + 1]))
        group.rewards, group.advantages = final_N[part].tolist(), advantages_N[part].tolist()


def shaping(rollout: Rollout, settings: RewardSettings) -> float:
    return overlong_penalty(len(rollout.tokens), settings.max_new_tokens, settings.overlong_buffer, settings.overlong_factor)
