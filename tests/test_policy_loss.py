"""The loss definition against an independent loop in fp64, its metrics, and its corrections against closed forms."""

import math
import random

import pytest
import torch

from soundrl.kernels.logprob import selective_logprob
from soundrl.kernels.policy_loss import CORRECTIONS, METRIC_SUMS, correction_weight, policy_loss

LENGTHS = [3, 1, 5, 0, 7, 4]
CU = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()])
T = sum(LENGTHS)


def inputs(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    logprob = -3 * torch.rand(T, generator=rng, dtype=torch.float64)
    return {
        "logprob": logprob.to(dtype),
        "old": (logprob + 0.6 * torch.randn(T, generator=rng, dtype=torch.float64)).to(dtype),
        "advantages": torch.randn(T, generator=rng, dtype=torch.float64).to(dtype),
        "sampler": (logprob + 0.8 * torch.randn(T, generator=rng, dtype=torch.float64)).to(dtype),
    }


def direct(x: dict[str, torch.Tensor], correction: str, low: float, high: float, lo=0.2, hi=0.28, dual=10.0, count=100.0):
    """The formulas of the paper and of the corrections' sources, token by token, with the derivative by hand."""
    total, gradient = 0.0, []
    lp, old, adv, sampler = (x[k].double().tolist() for k in ("logprob", "old", "advantages", "sampler"))
    sequence = [i for i, n in enumerate(LENGTHS) for _ in range(n)]
    for t in range(T):
        ratio, a = math.exp(max(-20.0, min(20.0, lp[t] - old[t]))), adv[t]
        q = math.exp(old[t] - sampler[t])
        if correction == "none":
            w = 1.0
        elif correction == "tis":
            w = min(q, high)
        elif correction == "icepop":
            w = q if low <= q <= high else 0.0
        else:
            own = [i for i in range(T) if sequence[i] == sequence[t]]
            geometric = math.exp(sum(old[i] - sampler[i] for i in own) / len(own))
            w = 1.0 if low <= geometric <= high else 0.0
        clipped = min(max(ratio, 1 - lo), 1 + hi)
        objective = min(ratio * a, clipped * a)
        active = ratio * a <= clipped * a
        if a < 0 and objective < dual * a:
            objective, active = dual * a, False
        total -= w * objective / count
        gradient.append(-w * a * ratio / count if active else 0.0)
    return total, gradient


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("seed", range(5))
def test_loss_and_gradient_equal_the_direct_formula(correction, seed):
    x = inputs(seed, torch.float32)
    logprob = x["logprob"].requires_grad_()
    options = {"correction": correction, "correction_low": 0.5, "correction_high": 1.5, "dual_clip": 1.6}
    loss, _ = policy_loss(logprob, x["old"], x["advantages"], x["sampler"], 100.0, cu_seqlens=CU, **options)
    loss.backward()
    expected, gradient = direct({k: v.detach() for k, v in x.items()}, correction, 0.5, 1.5, dual=1.6)
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-8)  # sums of both signs cancel
    assert logprob.grad is not None and logprob.grad.tolist() == pytest.approx(gradient, rel=1e-4, abs=1e-9)


def test_every_branch_occurs_in_these_inputs():
    """Witness for the test above: low clip, high clip, dual clip and corrected tokens are all exercised."""
    seen = dict.fromkeys(METRIC_SUMS, 0.0)
    for seed in range(5):
        x = inputs(seed, torch.float32)
        _, sums = policy_loss(x["logprob"], x["old"], x["advantages"], x["sampler"], 1.0, dual_clip=1.6)
        seen = {k: seen[k] + sums[k].item() for k in seen}
    assert all(value > 0 for value in seen.values()), seen


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_corrections_equal_their_closed_form_in_fp64(correction):
    rng = random.Random(0)
    old = torch.tensor([rng.uniform(-4, 0) for _ in range(T)])
    sampler = torch.tensor([rng.uniform(-4, 0) for _ in range(T)])
    weight = correction_weight(old, sampler, CU, correction, 0.5, 2.0)
    for t in range(T):
        q = math.exp(old[t].item() - sampler[t].item())
        if correction == "tis":
            assert weight[t].item() == pytest.approx(min(q, 2.0), rel=1e-6)
        if correction == "icepop":
            assert weight[t].item() == pytest.approx(q if 0.5 <= q <= 2 else 0.0, rel=1e-6)


def test_on_policy_ratio_is_exactly_one():
    x = inputs(1, torch.float32)
    logprob = x["logprob"].requires_grad_()
    loss, sums = policy_loss(logprob, None, x["advantages"], x["logprob"].detach(), 50.0)
    loss.backward()
    assert loss.item() == pytest.approx(-(x["advantages"].sum() / 50).item(), rel=1e-6)
    assert logprob.grad is not None and torch.allclose(logprob.grad, -x["advantages"] / 50, rtol=1e-6, atol=0)
    assert [sums[k].item() for k in ("clip_low", "clip_high", "kl", "sampler_kl", "corrected")] == [0.0] * 5
    assert sums["exp_abs_dlogp"].item() == T


def test_split_into_parts_adds_up():
    x = inputs(2, torch.float32)
    whole, sums = policy_loss(x["logprob"], x["old"], x["advantages"], x["sampler"], 77.0)
    parts = [policy_loss(*(x[k][a:b] for k in ("logprob", "old", "advantages", "sampler")), 77.0) for a, b in ((0, 6), (6, 7), (7, T))]
    assert sum(p.item() for p, _ in parts) == pytest.approx(whole.item(), rel=1e-6)
    assert sum(s["tokens"].item() for _, s in parts) == sums["tokens"].item() == T


def test_nothing_to_train_is_a_differentiable_zero():
    logprob = torch.zeros(0, requires_grad=True)
    loss, sums = policy_loss(logprob, None, torch.zeros(0), torch.zeros(0), 1.0)
    loss.backward()
    assert loss.item() == 0.0 and logprob.grad is not None and logprob.grad.shape == (0,)
    assert sums["tokens"].item() == 0.0


def test_unknown_or_incomplete_correction_is_refused():
    x = inputs(0, torch.float32)
    with pytest.raises(ValueError, match="'magic' is unknown; use one of none, tis, icepop, sequence"):
        policy_loss(x["logprob"], None, x["advantages"], x["sampler"], 1.0, correction="magic")
    with pytest.raises(ValueError, match="needs cu_seqlens"):
        policy_loss(x["logprob"], None, x["advantages"], x["sampler"], 1.0, correction="sequence")


def test_selective_logprob_equals_log_softmax():
    rng = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(9, 31, generator=rng)).requires_grad_()
    targets = torch.randint(31, (9,), generator=rng)
    logprob, entropy = selective_logprob(logits, targets, 0.7)
    expected = torch.log_softmax(logits.double() / 0.7, -1)
    assert torch.allclose(logprob.double(), expected[torch.arange(9), targets], atol=1e-5)
    assert torch.allclose(entropy.double(), -(expected.exp() * expected).sum(-1), atol=1e-5)
    with pytest.raises(ValueError, match="temperature=0 must be > 0"):
        selective_logprob(logits, targets, 0)
