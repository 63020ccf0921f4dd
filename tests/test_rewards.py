"""Rewards and advantages: the unit facts of the paper (arXiv 2510.22543 §3.2, App. A) and of the released code."""

import itertools
import statistics

import pytest
import torch

from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Verdict
from soundrl.fapo.reward_rule import overlong_penalty
from soundrl.fapo.rewards import RewardSettings, assign_advantages
from soundrl.kernels.advantage import group_advantage

PROMPT = Prompt(id="p", text="?", answer="1")
STATES = {
    "s": (Outcome.CORRECT, Verdict.sound()),
    "f": (Outcome.CORRECT, Verdict.flawed(0)),
    "u": (Outcome.CORRECT, Verdict.unknown("timeout")),
    "w": (Outcome.WRONG, None),
    "n": (Outcome.NO_ANSWER, None),
    "t": (Outcome.UNKNOWN, None),
}


def group(states: str, length: int = 10) -> Group:
    rollouts = [
        Rollout(
            prompt_id="p",
            sample=i,
            prompt_tokens=(1,),
            tokens=(2,) * length,
            logprobs=(0.0,) * length,
            text="",
            finish_reason="stop",
            policy_version=0,
        )
        for i in range(len(states))
    ]
    pairs = [STATES[s] for s in states]
    return Group(prompt=PROMPT, rollouts=rollouts, outcomes=[o for o, _ in pairs], verdicts=[v for _, v in pairs])


def settings(lam: float = 1.0, **changes) -> RewardSettings:
    base = {"normalize_std": True, "max_new_tokens": 100, "overlong_buffer": 0, "overlong_factor": 1.0, "drop_unknown": True}
    return RewardSettings(lam=lam, **(base | changes))


def scored(states: str, lam: float = 1.0, **changes) -> Group:
    g = group(states)
    assign_advantages([g], settings(lam, **changes))
    return g


def by_state(states: str, lam: float = 1.0) -> dict[str, float]:
    return dict(zip(states, scored(states, lam).advantages, strict=True))


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ("ssffwwww", {"s": 1.410, "f": 0.282, "w": -0.846}),
        ("ssssffff", {"s": 0.935, "f": -0.935}),
        ("ssssssfw", {"s": 0.504, "f": -0.840, "w": -2.184}),
    ],
)
def test_the_published_examples_with_sample_deviation(states, expected):
    assert by_state(states) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("lam", [0.5, 1.0, 4 / 3, 1.9])
def test_without_sound_rollouts_fapo_is_grpo(lam):
    assert scored("ffffwwww", lam).advantages == pytest.approx(scored("ffffwwww", 0.0).advantages, rel=1e-4)


def test_all_correct_and_partly_flawed_has_a_signal_where_grpo_has_none():
    assert all(a == 0.0 for a in scored("ssssssff", 0.0).advantages)
    fapo = by_state("ssssssff")
    assert fapo["f"] < 0 < fapo["s"]


def test_all_flawed_is_exactly_zero():
    assert scored("ffffffff").advantages == [0.0] * 8


def test_alpha_equal_beta_puts_flawed_at_zero():
    assert by_state("sssffwww")["f"] == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("lam", [2 / 3, 1.0, 4 / 3])
def test_the_sign_of_flawed_flips_where_rho_passes_two_over_lambda_minus_one(lam):
    flips = 0
    for sound, flawed, wrong in itertools.product(range(9), range(1, 9), range(1, 9)):
        rho, shift = sound / wrong, 2 / lam - 1
        advantage = by_state("s" * sound + "f" * flawed + "w" * wrong, lam)["f"]
        if abs(rho - shift) > 1e-9:
            assert (advantage < 0) == (rho > shift), (sound, flawed, wrong)
            flips += rho > shift
    assert flips > 50


def test_mean_and_variance_follow_the_paper():
    """μ_FAPO = μ_GRPO − λγ; σ²_FAPO = σ²_GRPO + λγ(1−γ)(λ − 4/(ρ+1)) with population variance (App. A)."""
    for sound, flawed, wrong in itertools.product(range(6), range(1, 6), range(1, 6)):
        n, lam = sound + flawed + wrong, 4 / 3
        gamma, rho = flawed / n, sound / wrong
        states = "s" * sound + "f" * flawed + "w" * wrong
        fapo, grpo = scored(states, lam).rewards, scored(states, 0.0).rewards
        assert statistics.fmean(fapo) == pytest.approx(statistics.fmean(grpo) - lam * gamma, abs=1e-12)
        predicted = statistics.pvariance(grpo) + lam * gamma * (1 - gamma) * (lam - 4 / (rho + 1))
        assert statistics.pvariance(fapo) == pytest.approx(predicted, abs=1e-12)


def test_rewards_of_every_outcome():
    g = scored("sfwnt")
    assert g.rewards == [1.0, 0.0, -1.0, -1.0, 0.0]
    assert g.kept == [True, True, True, True, False]


@pytest.mark.parametrize("changes", [{}, {"lam": 0.0}, {"drop_unknown": False}, {"normalize_std": False}, {"overlong_buffer": 95}])
def test_an_unknown_outcome_leaves_its_group_whatever_the_settings(changes):
    """A process that died says nothing of the answer: no −1, and no part in mean and spread."""
    g, without = scored("stwsw", **changes), scored("swsw", **changes)
    assert g.kept == [True, False, True, True, True]
    assert g.advantages[1] == 0.0
    assert g.advantages[:1] + g.advantages[2:] == without.advantages
    assert all(advantage == 0.0 for advantage in scored("tttt", **changes).advantages)


def test_unknown_leaves_its_group_and_earns_nothing():
    g = scored("ssuwww")
    without = scored("sswww")
    assert g.kept == [True, True, False, True, True, True]
    assert g.advantages[2] == 0.0
    assert g.advantages[:2] + g.advantages[3:] == without.advantages


def test_unknown_as_in_the_released_code_counts_as_sound():
    assert scored("suwww", drop_unknown=False).advantages == scored("sswww").advantages


def test_lambda_zero_is_grpo_bit_for_bit_whatever_the_verdicts_say():
    for states in ("sfuwwn", "ffff", "sfsf", "uuww"):
        plain = group(states)
        plain.verdicts = [None] * len(states)
        assign_advantages([plain], settings(0.0))
        judged = scored(states, 0.0)
        assert judged.advantages == plain.advantages
        assert judged.rewards == plain.rewards
        assert judged.kept == plain.kept == [True] * len(states)


def test_overlong_shaping_before_normalisation():
    assert [overlong_penalty(length, 8192, 4096, 1.0) for length in (10, 4096, 6144, 8192)] == [0.0, 0.0, -0.5, -1.0]
    assert overlong_penalty(20480, 20480, 4096, 0.5) == -0.5
    assert overlong_penalty(8192, 8192, 0, 1.0) == 0.0
    long, short = group("s", length=100), group("s", length=10)
    both = Group(prompt=PROMPT, rollouts=long.rollouts + short.rollouts, outcomes=[Outcome.CORRECT] * 2, verdicts=[Verdict.sound()] * 2)
    assign_advantages([both], settings(overlong_buffer=50))
    assert both.rewards == [0.0, 1.0]
    assert both.advantages == pytest.approx([-0.7071, 0.7071], abs=1e-4)


def test_ragged_groups_match_a_plain_formula():
    rng = torch.Generator().manual_seed(3)
    sizes = [0, 1, 2, 3, 8, 17, 1, 64]
    rewards = torch.randn(sum(sizes), generator=rng)
    offsets = torch.tensor([0, *itertools.accumulate(sizes)])
    ours = group_advantage(rewards, offsets)
    for start, end in itertools.pairwise(offsets.tolist()):
        values = rewards[start:end].double()
        expected = (values - values.mean()) / (values.std() + 1e-6) if len(values) > 1 else torch.zeros(len(values))
        assert torch.allclose(ours[start:end].double(), expected.double(), atol=1e-6)
    dr = group_advantage(rewards, offsets, normalize_std=False)
    assert torch.allclose(dr[3:6].double(), rewards[3:6].double() - rewards[3:6].double().mean(), atol=1e-6)


def test_equal_rewards_are_exactly_zero_whatever_they_are():
    assert group_advantage(torch.full((7,), 0.1), torch.tensor([0, 7])).tolist() == [0.0] * 7
