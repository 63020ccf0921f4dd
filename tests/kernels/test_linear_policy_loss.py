"""The fused loss: equal to advantage, log-prob and loss one after the other; chunks, compaction; memory that does not grow with T·V."""

import itertools
import math
import sys

import pytest
import torch
from conftest import start

import soundrl.kernels.head_chunks as head_chunks
from soundrl.kernels.advantage import RewardGroups
from soundrl.kernels.linear_policy_loss import linear_policy_loss
from soundrl.kernels.lm_head import LMHead
from soundrl.kernels.logprob import selective_logprob_reference
from soundrl.kernels.loss_rule import VARIANTS, LossRule
from soundrl.kernels.policy_loss import policy_loss

D = torch.float64
T, H, V = 60, 16, 130
CU = torch.tensor([0, 1, 20, 20, 45, T])


@pytest.fixture(scope="module")
def x() -> dict:
    rng = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(T, H, generator=rng), 0.3 * torch.randn(V, H, generator=rng)
    bias, targets = torch.randn(V, generator=rng), torch.randint(V, (T,), generator=rng)
    logprob, _ = selective_logprob_reference(hidden @ weight.t(), targets, 0.8, bias_V=bias)
    noise = lambda size: size * torch.randn(T, generator=rng)  # noqa: E731
    groups = RewardGroups(
        rewards_N=torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0]),
        group_offsets=torch.tensor([0, 3, 5]),  # the second group is all correct: its advantages are exactly 0
        flawed_N=torch.tensor([True, False, False, False, False]),
        lam=1.0,
    )
    old, sampler, reference = (logprob + noise(size) for size in (0.3, 0.5, 1.0))
    return {"hidden": hidden, "weight": weight, "bias": bias, "targets": targets, "groups": groups,
            "old": old, "sampler": sampler, "reference": reference}  # fmt: skip


def composed(x: dict, rule: LossRule, on_policy: bool):
    """Loss and gradients by the three definitions in fp64 and autograd."""
    leaf = {n: x[n].to(D, copy=True).requires_grad_() for n in ("hidden", "weight", "bias")}
    logits = leaf["hidden"] @ leaf["weight"].t()
    logprob, entropy = selective_logprob_reference(logits, x["targets"], 0.8, bias_V=leaf["bias"])
    loss, sums = policy_loss(
        logprob,
        None if on_policy else x["old"].to(D),
        x["groups"].advantages(CU, T).to(D),
        x["sampler"].to(D),
        None if rule.variant == "bnpo" else 37.0,
        rule=rule,
        cu_seqlens=CU,
        entropy_T=entropy,
        reference_logprob_T=x["reference"].to(D),
    )
    loss.backward()
    return [loss.detach(), *(leaf[n].grad for n in ("hidden", "weight", "bias"))], sums


def fused(x: dict, rule: LossRule, on_policy: bool, dtype=torch.float32, upstream: float = 1.0, **options):
    leaf = {n: x[n].to(dtype, copy=True).requires_grad_() for n in ("hidden", "weight", "bias")}
    loss, sums, (logprob, entropy, *_) = linear_policy_loss(
        leaf["hidden"],
        LMHead(leaf["weight"], leaf["bias"]),
        x["targets"],
        None if on_policy else x["old"],
        x["groups"],
        x["sampler"],
        None if rule.variant == "bnpo" else 37.0,
        rule=rule,
        cu_seqlens=CU,
        reference_logprob=x["reference"],
        temperature=0.8,
        **options,
    )
    assert not logprob.requires_grad and not entropy.requires_grad
    (upstream * loss).backward()
    return [loss.detach(), *(leaf[n].grad for n in ("hidden", "weight", "bias"))], sums


def rules():
    for i, variant in enumerate(VARIANTS):
        for correction, terms in (("tis", False), ("sequence", True)):
            extra = {"kl": "k3", "kl_coef": 0.1, "entropy_coef": 0.01} if terms else {}
            yield LossRule(variant=variant, correction=correction, **extra), (i % 2 == 0) != terms


def check(expected, ours, tolerance=2e-5) -> None:
    for name, p, q in zip(("loss", "hidden", "weight", "bias"), expected, ours, strict=True):
        assert (p - q.to(D)).norm() <= tolerance * p.norm() + 1e-7, (name, (p - q).norm(), p.norm())


def test_fused_equals_the_three_parts_in_every_variant(x):
    for rule, on_policy in rules():
        (expected, metrics), (ours, sums) = composed(x, rule, on_policy), fused(x, rule, on_policy)
        check(expected, ours)
        assert {k: v.item() for k, v in sums.items()} == pytest.approx({k: v.item() for k, v in metrics.items()}, rel=1e-4, abs=1e-5)


def test_tokens_without_log_probability_are_the_same_in_both(x):
    for name in ("sampler", "old"):
        broken = x | {name: x[name].clone()}
        broken[name][torch.tensor([0, 4])] = torch.tensor([math.nan, math.inf])
        for variant, correction in (("dapo", "tis"), ("gspo", "sequence"), ("cispo", "icepop")):
            expected, sums = composed(broken, rule := LossRule(variant=variant, correction=correction), False)
            ours, own = fused(broken, rule, False)
            check(expected, ours)
            assert own["not_finite"].item() == sums["not_finite"].item() >= 2


def test_plain_path_in_fp64_is_exact(x):
    y = {k: v.to(D) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in x.items()}
    for rule, on_policy in rules():
        check(composed(x, rule, on_policy)[0], fused(y, rule, on_policy, D)[0], 1e-9)


def test_chunks_change_nothing(x):
    """≤ 1e-6 relative in fp32 (products of other shapes round otherwise on a CPU); metrics that count are equal."""
    for rule in (LossRule(correction="icepop"), LossRule(variant="gspo"), LossRule(entropy_coef=0.01)):
        whole, sums = fused(x, rule, False)
        for rows in (7, 59):
            ours, ours_sums = fused(x, rule, False, memory_budget=4 * V * rows)
            for name, p, q in zip(("loss", "hidden", "weight", "bias"), whole, ours, strict=True):
                assert (p - q).norm() <= 1e-6 * p.norm(), (rule.variant, rows, name)
            assert all(torch.equal(sums[k], ours_sums[k]) for k in ("tokens", "clip_low", "clip_high", "dual_clip", "corrected"))


def test_rows_without_coefficient_are_really_left_out(x, monkeypatch):
    """Witness: advantage 0 and clipped tokens do not reach the products; inverse: with an entropy term every row does."""
    multiplied = []
    original = head_chunks.product
    monkeypatch.setattr(head_chunks, "product", lambda a, b, out, add=False: (add and multiplied.append(len(b)), original(a, b, out, add)))
    fused(x, LossRule(), False)
    live = fused(x, LossRule(), False)
    assert multiplied[0] < 45, multiplied  # 15 tokens and more have advantage 0 or are clipped
    dead = live[0][1].abs().sum(1) == 0
    assert int(dead.sum()) == T - multiplied[0]
    multiplied.clear()
    fused(x, LossRule(entropy_coef=0.01), False)
    assert multiplied == [T]


def test_upstream_gradient_scales_and_count_may_be_a_tensor(x):
    one, three = (fused(x, LossRule(), False, upstream=u)[0] for u in (1.0, 3.0))
    for p, q in zip(one[1:], three[1:], strict=True):
        assert torch.allclose(3 * p, q, rtol=1e-5)
    leaf = x["hidden"].clone().requires_grad_()
    loss, *_ = linear_policy_loss(leaf, x["weight"], x["targets"], None, torch.ones(T), None, torch.tensor(10.0))
    loss.backward()
    assert loss.item() == pytest.approx(-T / 10, rel=1e-6) and leaf.grad is not None


def test_bf16_and_fp16_stay_near(x):
    for dtype, wide in itertools.product((torch.bfloat16, torch.float16), (False, True)):
        expected, _ = composed(x, LossRule(), False)
        ours, _ = fused(x, LossRule(), False, dtype, fp32_logits=wide, memory_budget=6 * V * 25)
        for p, q in zip(expected, ours, strict=True):
            assert (p - q.to(D)).norm() <= 0.05 * p.norm(), (dtype, wide)


def test_supervised_is_cross_entropy(x):
    hidden, other = (x["hidden"].clone().requires_grad_() for _ in range(2))
    loss, *_ = linear_policy_loss(hidden, x["weight"], x["targets"], None, torch.ones(T), None, float(T), rule=LossRule(variant="cispo"))
    loss.backward()
    expected = torch.nn.functional.cross_entropy(other @ x["weight"].t(), x["targets"])
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert hidden.grad is not None and other.grad is not None and torch.allclose(hidden.grad, other.grad, atol=1e-6)


def test_nothing_to_train_is_a_differentiable_zero(x):
    hidden, weight = torch.zeros(0, H, requires_grad=True), x["weight"].clone().requires_grad_()
    empty = torch.zeros(0)
    loss, sums, (logprob, *_) = linear_policy_loss(hidden, weight, torch.zeros(0, dtype=torch.int64), None, empty, empty, 5.0)
    loss.backward()
    assert loss.item() == 0.0 and weight.grad is not None and weight.grad.abs().max() == 0 and logprob.shape == (0,)
    assert all(v.item() == 0 for v in sums.values())


def test_no_gradient_wanted_makes_none(x):
    with torch.no_grad():
        loss, *_ = linear_policy_loss(x["hidden"], x["weight"], x["targets"], x["old"], x["groups"], x["sampler"], 37.0, cu_seqlens=CU)
    assert not loss.requires_grad
    assert loss.item() != 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"advantages": torch.zeros(3)}, r"advantages has shape \(3,\), hidden has \(60, 16\)"),
        ({"old": torch.zeros(T + 1)}, r"old_logprob has shape \(61,\), hidden has"),
        ({"cu_seqlens": None}, r"advantages are RewardGroups, which need cu_seqlens"),
        ({"cu_seqlens": torch.tensor([0, 1, 2, 3, 4, 5])}, "cu_seqlens runs from 0 to 5, hidden has 60 rows"),
        ({"rule": LossRule(kl="k2", kl_coef=1.0)}, "kl='k2' needs reference_logprob"),
        ({"targets": torch.full((T,), V)}, "targets lie in 130 … 130"),
    ],
)
def test_bad_input_is_refused(x, change, message):
    y = {"advantages": x["groups"], "cu_seqlens": CU, "rule": None} | x | change
    with pytest.raises(ValueError, match=message):
        linear_policy_loss(
            x["hidden"], x["weight"], y["targets"], y["old"], y["advantages"], x["sampler"], 1.0, cu_seqlens=y["cu_seqlens"], rule=y["rule"]
        )


MEMORY = """
import resource, torch
from soundrl.kernels.linear_policy_loss import linear_policy_loss
from soundrl.kernels.logprob import selective_logprob_reference
from soundrl.kernels.policy_loss import policy_loss
T, H = 2048, 16
for way, V in (("fused", 4096), ("fused", 32768), ("torch", 32768)):
    hidden, weight = torch.randn(T, H, requires_grad=True), torch.randn(V, H, requires_grad=True)
    targets, advantages = torch.randint(V, (T,)), torch.randn(T)
    if way == "fused":
        loss, *_ = linear_policy_loss(hidden, weight, targets, None, advantages, None, 1.0)
    else:
        loss, _ = policy_loss(selective_logprob_reference(hidden @ weight.t(), targets)[0], None, advantages, None, 1.0)
    loss.backward()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_peak_memory_does_not_grow_with_tokens_times_vocabulary():
    """Peak MiB of one process, step by step, T = 2,048: fp32 logits are 32 MiB at V = 4,096 and 256 MiB at 32,768. Inverse: materialised
    they do show."""
    done = start([sys.executable, "-c", MEMORY])
    small, large, materialised = map(int, done.stdout.split())
    # What is left to grow are the weight, its gradients and accumulator, V·H·4 bytes each.
    assert large - small < 60 and materialised - large > 400, done.stdout
