"""The policy loss and the group advantage compiled, on one GPU: against fp64, and what only a GPU's min and max do."""

import itertools
import math

import pytest
import torch
from gpu_cases import DEVICE, draw

from soundrl.kernels.advantage import group_advantage, group_moments, merged_moments
from soundrl.kernels.loss_rule import CORRECTIONS, VARIANTS, LossRule
from soundrl.kernels.policy_loss import policy_loss

T = 3000
CU = torch.tensor([0, 1000, 1001, T], device=DEVICE)


def run(x: dict, rule: LossRule) -> tuple:
    logprob = x["logprob"].clone().requires_grad_()
    given = (x["old"], x["advantages"], x["sampler"], None if rule.variant == "bnpo" else 77.0)
    loss, sums = policy_loss(logprob, *given, rule=rule, cu_seqlens=CU, reference_logprob_T=x["reference"])
    loss.backward()
    return loss.detach(), logprob.grad, torch.stack(list(sums.values()))


def inputs() -> dict:
    logprob = -draw(T, seed=1).abs()
    near = {name: logprob + 0.3 * draw(T, seed=seed) for seed, name in enumerate(("old", "sampler", "reference"), 2)}
    return {name: x.clamp(max=0.0) for name, x in near.items()} | {"logprob": logprob, "advantages": draw(T, seed=6)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_rule_equals_fp64(variant):
    for correction, kl in itertools.product(CORRECTIONS, ("k1", "k2", "k3")):
        rule, x = LossRule(variant=variant, correction=correction, kl=kl, kl_coef=0.1, dual_clip=1.6), inputs()
        exact = run({name: value.double() for name, value in x.items()}, rule)
        for ours, theirs in zip(run(x, rule), exact, strict=True):
            assert torch.allclose(ours.double(), theirs, rtol=2e-5, atol=1e-6 * theirs.abs().max().item()), rule


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("where", ["logprob", "advantages", "reference"])
def test_nan_reaches_the_loss(variant, where):
    x = inputs()
    x[where][1500] = math.nan
    loss, slope_T, _ = run(x, LossRule(variant=variant, correction="tis", kl="k3", kl_coef=0.1))
    assert loss.isnan() and slope_T[1500].isnan() and slope_T[:1000].isfinite().all()


def test_groups_spread_over_calls():
    rewards, flawed = draw(1000, seed=7), draw(1000, seed=8) > 0
    offsets = torch.tensor([0, 0, 400, 1000], device=DEVICE)
    whole = group_advantage(rewards, offsets, flawed, 1.0)
    cut = ((0, 300, [0, 0, 300, 300]), (300, 1000, [0, 0, 100, 700]))
    parts = [(rewards[a:b], torch.tensor(bounds, device=DEVICE), flawed[a:b], 1.0) for a, b, bounds in cut]
    moments = merged_moments(torch.stack([group_moments(*part) for part in parts]))
    ours = torch.cat([group_advantage(*part, moments_P5=moments) for part in parts])
    assert torch.allclose(ours, whole, rtol=2e-5, atol=2e-6)
    assert torch.allclose(whole, group_advantage(rewards.double(), offsets, flawed, 1.0), rtol=1e-5, atol=2e-6)
