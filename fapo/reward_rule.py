"""The rule that gives one rollout its reward (arXiv 2510.22543 §3.2, its released code for shaping): plain numbers, without torch, so that
who only reads a run can say what it has computed. Whole groups are scored in `rewards`."""

from __future__ import annotations

from soundrl.fapo.records import Group, Outcome, Verdict


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
