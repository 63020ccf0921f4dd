"""From outcomes and verdicts to rewards and advantages of whole groups (arXiv 2510.22543 §3.2, its released code for shaping)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from soundrl.fapo.records import Group, Outcome, Rollout, Verdict
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


def rule_reward(outcome: Outcome) -> float:
    """+1 for a correct answer, else −1 (Eq. 4); 0 where the rollout leaves its group, which enters no mean."""
    return 0.0 if outcome.leaves else 1.0 if outcome is Outcome.CORRECT else -1.0


def base_rewards(group: Group) -> list[float]:
    """Before λ and shaping: the verifier's own, else the rule's."""
    scores = group.scores or [None] * len(group.outcomes)
    return [rule_reward(o) if score is None else score for o, score in zip(group.outcomes, scores, strict=True)]


def step_ratio_reward(outcome: Outcome, verdict: Verdict | None, steps: int) -> float:
    """The share of right steps, which rewards what looks right (arXiv 2510.22543 Fig. 7, for comparison; it gives no formula): t* ÷ n of a
    flawed positive whose first wrong step is t* of n, 1 of a sound one or one without verdict, −1 of a wrong answer.

    >>> [step_ratio_reward(Outcome.CORRECT, verdict, 4) for verdict in (Verdict.sound(), Verdict.flawed(3), Verdict.flawed(0))]
    [1.0, 0.75, 0.0]
    """
    if outcome is not Outcome.CORRECT or verdict is None or not is_flawed(verdict):
        return rule_reward(outcome)
    return min(verdict.step or 0, steps) / steps


def overlong_penalty(length: int, max_length: int, buffer: int, factor: float) -> float:
    """Soft length penalty, 0 … −factor over the last `buffer` tokens before `max_length`.

    >>> [overlong_penalty(length, 8192, 4096, 1.0) for length in (4096, 6144, 8192)]
    [0.0, -0.5, -1.0]
    """
    if buffer == 0:
        return 0.0
    return min(-(length - (max_length - buffer)) / buffer * factor, 0.0) + 0.0  # + 0.0 turns −0.0 into 0.0


def is_flawed(verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.kind == "flawed"


def is_unknown(verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.kind == "unknown"


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
