"""Every variant of the loss against an independent direct formula in fp64 with autograd, eager and by the kernel; metrics; refusals."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from liger_kernel.ops.grpo_loss import GrpoLossFunction
from torch import Tensor

from soundrl.kernels.language import tl, triton
from soundrl.kernels.loss_rule import CORRECTIONS, KL_ESTIMATES, VARIANTS, LossRule
from soundrl.kernels.policy_loss import METRIC_SUMS, policy_loss, sequence_mean

LENGTHS = [3, 1, 5, 0, 7, 4]
CU = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()])
T = sum(LENGTHS)
D = torch.float64


def inputs(seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    logprob = -3 * torch.rand(T, generator=rng, dtype=D)
    noise = lambda size: size * torch.randn(T, generator=rng, dtype=D)  # noqa: E731
    x = {
        "logprob": logprob,
        "old": (logprob + noise(0.6)).clamp(max=0.0),  # above 0 none would be a log-probability
        "advantages": noise(1.0),
        "sampler": (logprob + noise(0.8)).clamp(max=0.0),
        "reference": logprob + noise(0.7),
        "entropy": 2 * torch.rand(T, generator=rng, dtype=D),
    }
    return {name: value.float().double() for name, value in x.items()}  # both precisions see the same numbers


def direct(x: dict[str, Tensor], rule: LossRule, count: float, on_policy: bool) -> Tensor:
    """The formulas of the sources, sequence by sequence, token by token, with stop-gradients where the papers have them."""
    total = torch.zeros((), dtype=D)
    place = 0
    for length in LENGTHS:
        tokens = range(place, place + length)
        place += length
        old = [x["logprob"][t].detach() if on_policy else x["old"][t] for t in tokens]
        log_q = [o - x["sampler"][t] for o, t in zip(old, tokens, strict=True)]
        mean_log_ratio = sum((x["logprob"][t] - o for t, o in zip(tokens, old, strict=True)), torch.zeros((), dtype=D)) / max(length, 1)
        geometric = math.exp(sum(float(q) for q in log_q) / max(length, 1))
        for t, o, q in zip(tokens, old, log_q, strict=True):
            lp, a = x["logprob"][t], x["advantages"][t]
            ratio = torch.exp(lp - o)
            if rule.variant == "gspo":  # s_i with the gradient of the token (Eq. 13): sg[s_i] · π_t / sg[π_t]
                r = mean_log_ratio.exp().detach() * torch.exp(lp - lp.detach())
            else:
                r = ratio
            if rule.variant == "cispo":
                objective = torch.clamp(ratio, max=1 + rule.clip_high).detach() * a * lp
            elif rule.variant == "sapo":
                tau = rule.sapo_tau[0] if a >= 0 else rule.sapo_tau[1]
                objective = 4 / tau * torch.sigmoid(tau * (ratio - 1)) * a
            else:
                objective = torch.min(r * a, torch.clamp(r, 1 - rule.clip_low, 1 + rule.clip_high) * a)
                if a < 0:
                    objective = torch.max(objective, rule.dual_clip * a)
            weight = {
                "none": 1.0,
                "tis": min(math.exp(q), rule.correction_high),
                "icepop": math.exp(q) if rule.correction_low <= math.exp(q) <= rule.correction_high else 0.0,
                "sequence": float(rule.correction_low <= geometric <= rule.correction_high),
            }[rule.correction]
            k = x["reference"][t] - lp
            kl = {"none": 0 * lp, "k1": -k, "k2": k * k / 2, "k3": torch.exp(k) - 1 - k}[rule.kl]
            kl = kl * ratio if rule.kl_times_ratio else kl
            token = -weight * objective + rule.kl_coef * kl - rule.entropy_coef * x["entropy"][t]
            total = total + token / (length if VARIANTS[rule.variant][1] else 1)
    return total / (T if rule.variant == "bnpo" else count)


def run(x: dict[str, Tensor], rule: LossRule, count: float, on_policy: bool, dtype: torch.dtype):
    y = {name: value.to(dtype, copy=True) for name, value in x.items()}
    y["logprob"].requires_grad_()
    y["entropy"].requires_grad_()
    loss, sums = policy_loss(
        y["logprob"],
        None if on_policy else y["old"],
        y["advantages"],
        y["sampler"],
        None if rule.variant == "bnpo" else count,
        rule=rule,
        cu_seqlens=CU,
        entropy_T=y["entropy"],
        reference_logprob_T=y["reference"],
    )
    loss.backward()
    of_entropy = y["entropy"].grad if y["entropy"].grad is not None else torch.zeros(T, dtype=dtype)
    return loss.item(), y["logprob"].grad, of_entropy, sums


RULES = [
    LossRule(
        variant=variant,
        correction=correction,
        kl=kl,
        kl_coef=0.1 * (kl != "none"),
        kl_times_ratio=times_ratio,
        entropy_coef=entropy,
        dual_clip=1.6,
        correction_high=1.5,
    )
    for variant, correction in itertools.product(VARIANTS, CORRECTIONS)
    for kl, times_ratio, entropy in [("none", False, 0.0), ("k1", True, 0.01), ("k2", False, 0.01), ("k3", True, 0.0)]
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["eager", "kernel"])
def test_every_variant_equals_the_direct_formula(dtype):
    """1e-12 eager in fp64; 1e-5 for the fp32 kernel: loss, gradient by log-probability and by entropy."""
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]
    for i, rule in enumerate(RULES):
        x, on_policy = inputs(i % 5), i % 3 == 0
        z = {name: value.clone() for name, value in x.items()}
        z["logprob"].requires_grad_()
        z["entropy"].requires_grad_()
        expected = direct(z, rule, 20.0, on_policy)
        expected.backward()
        loss, gradient, of_entropy, _ = run(x, rule, 20.0, on_policy, dtype)
        assert loss == pytest.approx(expected.item(), rel=tolerance, abs=tolerance), rule
        assert torch.allclose(gradient.double(), z["logprob"].grad, rtol=tolerance, atol=tolerance / 10), rule
        wanted = z["entropy"].grad if rule.entropy_coef else torch.zeros(T, dtype=D)
        assert torch.allclose(of_entropy.double(), wanted, rtol=tolerance, atol=tolerance / 10), rule


def test_every_branch_occurs_in_these_inputs():
    """Witness for the test above: low clip, high clip, dual clip and corrected tokens are all exercised, and the rules cover all names."""
    seen = dict.fromkeys(METRIC_SUMS, 0.0)
    rule = LossRule(dual_clip=1.6, correction="tis", kl="k3", kl_coef=0.1)
    for seed in range(5):
        sums = run(inputs(seed), rule, 1.0, False, D)[3]
        seen = {k: seen[k] + sums[k].item() for k in seen}
    assert seen.pop("not_finite") == 0 and all(value > 0 for value in seen.values()), seen
    assert {(r.variant, r.correction) for r in RULES} == set(itertools.product(VARIANTS, CORRECTIONS))
    assert {r.kl for r in RULES} == set(KL_ESTIMATES)


@pytest.mark.parametrize(("correction", "variant"), [("none", "dapo"), ("tis", "gspo"), ("icepop", "cispo"), ("sequence", "sapo")])
def test_metrics_of_the_kernel_equal_eager(correction, variant):
    rule = LossRule(variant=variant, correction=correction, dual_clip=1.6, kl="k2", kl_coef=0.1)
    for on_policy in (False, True):
        eager, kernel = (run(inputs(3), rule, 20.0, on_policy, dtype)[3] for dtype in (D, torch.float32))
        assert {k: v.item() for k, v in kernel.items()} == pytest.approx({k: v.item() for k, v in eager.items()}, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("case", ["grpo", "dapo", "dr_grpo", "bnpo", "sapo", "cispo", "delta", "gspo", "k3", "k3 ratio", "ratio given"])
def test_ligers_logits_kernel_agrees_where_the_variants_coincide(case):
    """Liger-Kernel's GrpoLossFunction, padded [B, L+1, V] logits, against ours on the packed log-probabilities; loss and dlogits."""
    rng = torch.Generator().manual_seed(1)
    batch, length, vocabulary, beta = 3, 4, 11, 0.05 if "k3" in case else 0.0
    logits = torch.randn(batch, length + 1, vocabulary, generator=rng)
    ids = torch.randint(vocabulary, (batch, length), generator=rng)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    logp = torch.log_softmax(logits[:, :-1] / 0.9, -1).gather(-1, ids[..., None]).squeeze(-1)
    old, ref = (logp + 0.5 * torch.randn(logp.shape, generator=rng) for _ in range(2))
    weight = 0.5 + torch.rand(logp.shape, generator=rng)
    advantages = torch.tensor([1.2, -0.7, -1.5])
    variant = case if case in VARIANTS else "dapo"
    theirs = logits.clone().requires_grad_()
    loss_type = {"gspo": "grpo"}.get(variant, variant)
    result = GrpoLossFunction.apply(
        theirs,
        old,
        ref if beta else None,
        ids,
        advantages,
        mask,
        0.9,
        beta,
        0.2,
        1.28 if variant == "cispo" else 0.28,
        False,
        loss_type,
        length,
        True,
        "sequence" if variant == "gspo" else "token",
        1.0,
        1.05,
        weight if case == "ratio given" else None,
        1.5 if case == "delta" else None,
        case == "k3 ratio",
    )
    result[0].backward()
    ours = logits.clone().requires_grad_()
    keep = mask.bool()
    packed = torch.log_softmax(ours[:, :-1] / 0.9, -1).gather(-1, ids[..., None]).squeeze(-1)[keep]
    counts = {"dapo": 9.0, "cispo": 9.0, "bnpo": None, "dr_grpo": 3.0 * length}
    kl = {"kl": "k3", "kl_coef": beta, "kl_times_ratio": case == "k3 ratio"} if beta else {}
    dual = 1.5 if case == "delta" else math.inf
    given = case == "ratio given"
    loss, _ = policy_loss(
        packed,
        old[keep],
        advantages[:, None].expand_as(mask)[keep],
        (old - weight.log())[keep] if given else None,  # their ratio is our tis weight q = exp(old − sampler), never capped here
        counts.get(variant, 3.0),
        rule=LossRule(variant=variant, dual_clip=dual, correction="tis" if given else "none", **kl),
        cu_seqlens=torch.tensor([0, 4, 6, 9]),
        reference_logprob_T=ref[keep],
    )
    loss.backward()
    assert loss.item() == pytest.approx(result[0].item(), rel=1e-5, abs=1e-6)
    assert ours.grad is not None and theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_on_policy_ratio_is_exactly_one():
    x = {name: value.float() for name, value in inputs(1).items()}
    logprob = x["logprob"].requires_grad_()
    loss, sums = policy_loss(logprob, None, x["advantages"], logprob.detach(), 50.0, rule=LossRule(correction="tis"))
    loss.backward()
    assert loss.item() == pytest.approx(-(x["advantages"].sum() / 50).item(), rel=1e-6)
    assert logprob.grad is not None and torch.allclose(logprob.grad, -x["advantages"] / 50, rtol=1e-6, atol=0)
    assert [sums[k].item() for k in ("clip_low", "clip_high", "kl", "sampler_kl", "corrected")] == [0.0] * 5
    assert sums["exp_abs_dlogp"].item() == sums["tokens"].item() == T


NONE = (math.nan, math.inf, -math.inf, 0.7)
BROKEN = {1: NONE[0], 3: NONE[1], 6: NONE[2], 12: NONE[3], 13: NONE[0]}  # token 3 is a whole sequence


@pytest.mark.parametrize("dtype", [D, torch.float32], ids=["eager", "kernel"])
@pytest.mark.parametrize("where", ["sampler", "old"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_no_log_probability_has_ratio_one_and_is_counted(variant, where, dtype):
    """Against the fp64 formula on inputs whose broken tokens were given the ratio 1, and, for a mean over a sequence, that mean."""
    for correction, on_policy in itertools.product(CORRECTIONS, {where == "sampler", False}):
        rule = LossRule(variant=variant, correction=correction, dual_clip=1.6, kl="k3", kl_coef=0.1)
        broken, mended = inputs(1), inputs(1)
        for t, value in BROKEN.items():
            broken[where][t] = value
            if where == "old":
                mended["old"][t] = mended["logprob"][t]
        before = mended["logprob"] if on_policy else mended["old"]
        bad = torch.tensor(list(BROKEN))
        mended["sampler"][bad] = before[bad]
        loss, gradient, _, sums = run(broken, rule, 20.0, on_policy, dtype)
        assert sums["not_finite"].item() == len(BROKEN) and math.isfinite(loss) and bool(gradient.isfinite().all())
        rest = [t for t in range(T) if t not in BROKEN]
        gap = (before - mended["sampler"])[rest]
        assert sums["exp_abs_dlogp"].item() == pytest.approx(gap.abs().exp().sum().item(), rel=1e-5)
        assert sums["sampler_kl"].item() == pytest.approx((gap.exp() - 1 - gap).sum().item(), rel=1e-4)
        if correction == "sequence":  # a token whose q is the geometric mean of the others changes it not
            for a, b in itertools.pairwise(CU.tolist()):
                others = [t for t in range(a, b) if t not in BROKEN]
                mean = (before - mended["sampler"])[others].mean() if others else torch.zeros((), dtype=D)
                for t in set(range(a, b)) & set(BROKEN):
                    mended["sampler"][t] = before[t] - mean
        if variant == "gspo" and where == "old":
            continue  # its mean log-ratio leaves the tokens out: the next test
        x = {name: value.clone() for name, value in mended.items()}
        x["logprob"].requires_grad_()
        expected = direct(x, rule, 20.0, on_policy)
        expected.backward()
        assert loss == pytest.approx(expected.item(), rel=1e-5, abs=1e-6), rule
        assert x["logprob"].grad is not None and torch.allclose(gradient.double(), x["logprob"].grad, rtol=1e-5, atol=1e-6), rule


@pytest.mark.parametrize("dtype", [D, torch.float32], ids=["eager", "kernel"])
def test_means_over_a_sequence_leave_out_what_is_no_log_probability(dtype):
    """gspo with a broken old log-probability: the others of its sequence train as if it were not there, and it with their ratio."""
    x = {name: value.to(dtype) for name, value in inputs(4).items()}
    rule, cu, keep = LossRule(variant="gspo", correction="sequence"), torch.tensor([0, 5]), [0, 1, 3, 4]
    whole = {name: value[:5].clone() for name, value in x.items()}
    for value in NONE:
        whole["old"][2] = value
        grads = []
        for part, bounds in (([0, 1, 2, 3, 4], cu), (keep, torch.tensor([0, 4]))):
            logprob = whole["logprob"][part].requires_grad_()
            rest = (whole[name][part] for name in ("old", "advantages", "sampler"))
            policy_loss(logprob, *rest, 1.0, rule=rule, cu_seqlens=bounds)[0].backward()
            grads.append(logprob.grad)
        assert torch.allclose(grads[0][keep] * 5, grads[1] * 4, rtol=1e-5) and bool(grads[0].isfinite().all())


def test_rounding_above_zero_is_a_log_probability():
    logprob, sampler = torch.tensor([-0.5, -0.5]), torch.tensor([1e-6, 0.0])
    _, sums = policy_loss(logprob, None, torch.ones(2), sampler, 1.0, rule=LossRule(correction="tis"))
    assert sums["not_finite"].item() == 0 and sums["corrected"].item() == 2


def test_a_nan_of_the_trainer_is_not_hidden():
    logprob = torch.tensor([-0.5, math.nan])
    loss, _ = policy_loss(logprob, torch.tensor([-0.4, math.nan]), torch.ones(2), torch.full((2,), math.nan), 1.0, rule=LossRule())
    assert math.isnan(loss.item())


RULES_OF_NAN = [
    LossRule(variant=variant, correction=correction, kl="k3", kl_coef=0.1, entropy_coef=0.1)
    for variant, correction in zip(VARIANTS, itertools.cycle(("tis", "icepop", "none")), strict=False)
]


@pytest.mark.parametrize("dtype", [D, torch.float32], ids=["eager", "kernel"])
@pytest.mark.parametrize("where", ["logprob", "advantages", "entropy", "reference"])
def test_nan_reaches_the_loss_of_every_rule(where, dtype):
    """A diverged model must not train on: what enters the loss as NaN leaves it as NaN, in the token's slope too where it has one."""
    for rule, on_policy in itertools.product(RULES_OF_NAN, (False, True)):
        x = inputs(1)
        x[where][5] = math.nan
        loss, slope, of_entropy, _ = run(x, rule, 20.0, on_policy, dtype)
        assert math.isnan(loss), (rule, on_policy)
        if where == "advantages" or (where == "logprob" and not on_policy):
            assert math.isnan(slope[5].item()), (rule, on_policy)
        assert bool(slope[[0, 12]].isfinite().all() and of_entropy.isfinite().all())


def test_numpys_kinder_minimum_is_out_of_the_interpreter():
    """Witness for the test above: as on a GPU, an interpreted minimum or maximum that does not ask for NaN loses it."""

    @triton.jit
    def clamp_kernel(x, y):
        tl.store(y, tl.minimum(tl.maximum(tl.load(x), -1.0), 1.0))

    x, y = torch.tensor([math.nan]), torch.zeros(1)
    clamp_kernel[(1,)](x, y)
    assert y.item() == -1.0


@pytest.mark.parametrize("dtype", [D, torch.float32], ids=["eager", "kernel"])
def test_k3_of_small_and_large_gaps(dtype):
    """exp(x) − 1 − x of differences around every bound, in fp32 too, never below 0; x by 40 digits of its series."""
    gaps = [sign * x for x in (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 0.019, 0.021, 0.499, 0.501, 1.0, 3.0) for sign in (1, -1)]
    x_T = torch.tensor(gaps, dtype=dtype)
    exact = [sum((Fraction(v) ** k / math.factorial(k) for k in range(2, 40)), Fraction(0)) for v in x_T.tolist()]
    for gap, wanted in zip(x_T, exact, strict=True):
        lp = (gap - gap).reshape(1).requires_grad_()  # 0, so that the difference to the reference is the gap, bit for bit
        rule = LossRule(kl="k3", kl_coef=1.0)
        loss, sums = policy_loss(lp, None, torch.zeros(1, dtype=dtype), None, 1.0, rule=rule, reference_logprob_T=gap.reshape(1))
        loss.backward()
        tolerance = 2e-6 if dtype == torch.float32 else 1e-11
        assert sums["reference_kl"].item() == pytest.approx(float(wanted), rel=tolerance, abs=0) and loss.item() >= 0
        assert lp.grad is not None and lp.grad.item() == pytest.approx(-math.expm1(gap.item()), rel=tolerance, abs=0)


@pytest.mark.parametrize("layout", ["strided", "expanded", "int32 bounds"])
def test_arguments_of_any_layout(layout):
    """Each argument as a column of a matrix, or one number expanded; bounds as int32 too: the values of dense int64 ones, to the bit."""
    rule = LossRule(variant="gspo", correction="sequence", kl="k2", kl_coef=0.1, entropy_coef=0.01)
    x = {name: value.float() for name, value in inputs(3).items()}
    if layout == "expanded":
        x = {name: value[:1].expand(T) for name, value in x.items()}
    dense = {name: value.clone().contiguous() for name, value in x.items()}
    if layout == "strided":
        x = {name: torch.stack([value, value + 1], 1)[:, 0] for name, value in x.items()}
    bounds = CU.int() if layout == "int32 bounds" else torch.stack([CU, CU + 5], 1)[:, 0]
    out = []
    for y, cu, count in ((x, bounds, torch.tensor([20.0])), (dense, CU, 20.0)):
        lp = y["logprob"].detach().requires_grad_()
        given = (lp, y["old"], y["advantages"], y["sampler"], count)
        loss, sums = policy_loss(*given, rule=rule, cu_seqlens=cu, entropy_T=y["entropy"], reference_logprob_T=y["reference"])
        loss.backward()
        assert loss.shape == ()
        out.append([loss.detach(), lp.grad, *sums.values()])
    assert all(torch.equal(a, b) for a, b in zip(*out, strict=True))


def test_split_into_parts_adds_up():
    x = {name: value.float() for name, value in inputs(2).items()}
    names = ("logprob", "old", "advantages", "sampler")
    whole, sums = policy_loss(*(x[k] for k in names), 77.0)
    parts = [policy_loss(*(x[k][a:b] for k in names), 77.0) for a, b in ((0, 6), (6, 7), (7, T))]
    assert sum(p.item() for p, _ in parts) == pytest.approx(whole.item(), rel=1e-6)
    assert sum(s["tokens"].item() for _, s in parts) == sums["tokens"].item() == T


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["eager", "kernel"])
def test_nothing_to_train_is_a_differentiable_zero(dtype):
    logprob = torch.zeros(0, dtype=dtype, requires_grad=True)
    rule = LossRule(variant="gspo", correction="sequence")
    empty = torch.zeros(0, dtype=dtype)
    loss, sums = policy_loss(logprob, empty, empty, empty, 1.0, rule=rule, cu_seqlens=torch.tensor([0, 0]))
    loss.backward()
    assert loss.item() == 0.0 and logprob.grad is not None and logprob.grad.shape == (0,)
    assert all(value.item() == 0.0 for value in sums.values())


def test_far_away_log_probabilities_stay_finite_and_have_no_gradient():
    """|log-ratio| beyond 20: exp() is bounded, and the bound's gradient is 0."""
    for dtype in (D, torch.float32):
        logprob = torch.tensor([-1.0, -1.0, -90.0], dtype=dtype, requires_grad=True)
        old = torch.tensor([-1.0, -90.0, -1.0], dtype=dtype)
        advantages = torch.tensor([1.0, -1.0, 1.0], dtype=dtype)
        loss, sums = policy_loss(logprob, old, advantages, old, 1.0, rule=LossRule(dual_clip=math.inf, kl="k3", kl_coef=1.0),
                                 reference_logprob_T=old)  # fmt: skip
        loss.backward()
        assert math.isfinite(loss.item()) and logprob.grad is not None
        assert logprob.grad.tolist() == [-1.0, 0.0, 0.0]
        assert sums["dual_clip"].item() == 0


def test_sequence_mean_of_long_and_empty_sequences():
    lengths = [0, 1, 2000, 0, 17]
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    x = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(0))
    out = sequence_mean(x, cu)
    for a, b in itertools.pairwise(cu.tolist()):
        assert torch.allclose(out[a:b], x[a:b].double().mean().float().expand(b - a), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "ppo"}, "variant='ppo' is unknown; use one of dapo, grpo, dr_grpo, bnpo, gspo, cispo, sapo"),
        ({"correction": "magic"}, "correction='magic' is unknown; use one of none, tis, icepop, sequence"),
        ({"dual_clip": 1.1}, "dual_clip=1.1 must exceed 1 \\+ clip_high = 1.28; inf = no bound"),
        ({"correction_high": 0.9}, "must lie on either side of 1"),
        ({"kl": "k3"}, "kl='k3' with kl_coef=0.0: set both or neither"),
        ({"sapo_tau": (0.0, 1.0)}, "sapo_tau=\\(0.0, 1.0\\) must be > 0"),
        ({"clip_low": -0.1}, "clip_low=-0.1 and clip_high=0.28 must be finite and ≥ 0"),
    ],
)
def test_rules_that_contradict_themselves_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        LossRule(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"advantages": torch.zeros(3)}, r"advantages has shape \(3,\), logprob has \(20,\): give advantages one entry a row"),
        ({"old": torch.zeros(T, dtype=torch.int64)}, "old_logprob is torch.int64: give floating point, e.g. old_logprob.float"),
        ({"sampler": None, "rule": LossRule(correction="tis")}, "correction='tis' needs sampler_logprob"),
        ({"rule": LossRule(variant="grpo")}, "variant='grpo' with correction='none' needs cu_seqlens"),
        ({"rule": LossRule(variant="grpo"), "cu_seqlens": torch.tensor([0, 7])}, "cu_seqlens runs from 0 to 7, logprob has 20 rows"),
        ({"cu_seqlens": torch.tensor([0, 9, 5, T])}, "cu_seqlens decreases at entry 2"),
        ({"cu_seqlens": torch.tensor([0.0, T])}, r"cu_seqlens has shape \(2,\) and type torch.float32: give int32 or int64"),
        ({"rule": LossRule(kl="k1", kl_coef=0.1)}, "kl='k1' needs reference_logprob"),
        ({"rule": LossRule(entropy_coef=0.1)}, "entropy_coef=0.1 needs entropy"),
        ({"rule": LossRule(variant="bnpo")}, "variant='bnpo' with count=9.0: bnpo divides by the tokens of each call"),
        ({"count": None}, "variant='dapo' with count=None"),
        ({"count": 0.0}, "count=0.0 must be finite and > 0"),
        ({"count": torch.tensor(0.0)}, "count=0.0 must be finite and > 0"),
        ({"count": math.nan}, "count=nan must be finite and > 0"),
        ({"count": torch.ones(2)}, r"count has shape \(2,\): give one number for the whole mini-batch"),
        ({"rule": "grpo"}, r"rule='grpo' is no LossRule: give LossRule\(variant='grpo'\)"),
        (
            {"old": torch.zeros(T, requires_grad=True)},
            r"old_logprob carries a gradient, which the loss would drop: pass old_logprob.det",
        ),
        ({"advantages": torch.zeros(T, requires_grad=True)}, "advantages carries a gradient"),
        ({"cu_seqlens": torch.tensor([0, T], device="meta")}, "cu_seqlens is on meta, logprob on cpu: bring them together"),
        ({"logprob": torch.zeros(2, 3)}, r"logprob has shape \(2, 3\) and type torch.float32: give floating point \[T\]"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    x: dict = {name: value.float() for name, value in inputs(0).items()} | {"count": 9.0, "rule": None, "cu_seqlens": None} | change
    with pytest.raises(ValueError, match=message):
        policy_loss(
            x["logprob"], x["old"], x["advantages"], x["sampler"], x["count"], rule=x["rule"], cu_seqlens=x["cu_seqlens"]
        )  # fmt: skip
