"""The fused loss: equal to advantage, log-prob and loss one after the other; chunks, compaction; memory that does not grow with T·V."""

import itertools
import math

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import soundrl.kernels.head_chunks as head_chunks
import soundrl.kernels.linear_logprob as linear_logprob_module
import soundrl.kernels.linear_policy_loss as module
import soundrl.kernels.logprob as rows_module
import soundrl.kernels.policy_loss as loss_module
from soundrl.kernels.advantage import RewardGroups
from soundrl.kernels.head_chunks import USUAL, head_memory
from soundrl.kernels.linear_policy_loss import linear_policy_loss
from soundrl.kernels.lm_head import LMHead
from soundrl.kernels.logprob import selective_logprob_reference
from soundrl.kernels.loss_rule import VARIANTS, LossRule
from soundrl.kernels.policy_loss import policy_loss

D = torch.float64
T, H, V = 60, 16, 130
CU = torch.tensor([0, 1, 20, 20, 45, T])


@pytest.fixture(autouse=True)
def kernels(request, monkeypatch):
    """Interpreted kernels are slow: they run where a test asks for them, the rest is what is around them."""
    if not getattr(request, "param", False):
        for m in (linear_logprob_module, rows_module, loss_module):
            monkeypatch.setattr(m, "runs_triton", lambda x: False)


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


@pytest.mark.parametrize("kernels", [True], indirect=True)
def test_kernels_equal_the_three_parts(x):
    """Clipped tokens; KL and entropy terms, with which no row is left out."""
    terms = {"kl": "k3", "kl_coef": 0.1, "entropy_coef": 0.01}
    for rule, on_policy in (
        (LossRule(correction="tis"), False),
        (LossRule(variant="gspo"), False),
        (LossRule(variant="grpo", **terms), True),
    ):
        (expected, metrics), (ours, sums) = composed(x, rule, on_policy), fused(x, rule, on_policy, memory_budget=4 * V * 33)
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


def test_every_variant_is_the_three_parts_in_a_row(x):
    """fp64, ≤ 1e-9, in one chunk or several; and every metric."""
    y = {k: v.to(D) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in x.items()}
    for (rule, on_policy), rows in zip(rules(), itertools.cycle((None, 7, 59))):  # noqa: B905
        expected, metrics = composed(y, rule, on_policy)
        ours, sums = fused(y, rule, on_policy, D, memory_budget=rows and 8 * V * rows)
        check(expected, ours, 1e-9)
        assert {k: v.item() for k, v in sums.items()} == pytest.approx({k: v.item() for k, v in metrics.items()}, rel=1e-9, abs=1e-9)


def test_chunks_change_nothing(x):
    """≤ 1e-6 relative in fp32 (products of other shapes round otherwise on a CPU); metrics that count are equal."""
    for rule in (LossRule(correction="icepop"), LossRule(variant="gspo"), LossRule(entropy_coef=0.01)):
        whole, sums = fused(x, rule, False)
        for rows in (7, 59):
            ours, ours_sums = fused(x, rule, False, memory_budget=4 * V * rows)
            for name, p, q in zip(("loss", "hidden", "weight", "bias"), whole, ours, strict=True):
                assert (p - q).norm() <= 1e-6 * p.norm(), (rule.variant, rows, name)
            assert all(torch.equal(sums[k], ours_sums[k]) for k in ("tokens", "clip_low", "clip_high", "dual_clip", "corrected"))


def multiplied_rows(monkeypatch) -> list[tuple[str, int]]:
    """Which products are made of how many rows."""
    made = []
    original = head_chunks.product

    def product(a, b, out, **options):
        kind = "dweight" if out.shape == (V, H) else "dhidden" if out.shape[1] == H else "logits"
        made.append((kind, len(b) if kind == "dweight" else len(a)))
        original(a, b, out, **options)

    monkeypatch.setattr(head_chunks, "product", product)
    return made


def test_rows_without_coefficient_are_really_left_out(x, monkeypatch):
    """Witness: advantage 0 and clipped tokens do not reach the products; inverse: with an entropy term every row does."""
    made = multiplied_rows(monkeypatch)
    live = fused(x, LossRule(), False)
    count = made[-1][1]
    assert made == [("logits", T), ("dhidden", count), ("dweight", count)] and count < 45  # 15 and more have advantage 0 or are clipped
    assert int((live[0][1].abs().sum(1) == 0).sum()) == T - count
    made.clear()
    fused(x, LossRule(entropy_coef=0.01), False)
    assert made == [("logits", T), ("dhidden", T), ("dweight", T)]
    # On policy they are known before: once, whatever the chunks, and the metrics have them.
    made.clear()
    waits = []
    monkeypatch.setattr(module, "compaction", lambda live_T: waits.append(live_T))
    advantages = x["groups"].advantages(CU, T)
    leaf = x["hidden"].clone().requires_grad_(), x["weight"].clone().requires_grad_()
    terms = (x["targets"], None, advantages, x["sampler"], 37.0)
    _, sums, rows = linear_policy_loss(*leaf, *terms, rule=LossRule(correction="tis"), memory_budget=4 * V * 7)
    count = int((advantages != 0).sum())
    assert (
        0 < count < T and sum(n for kind, n in made if kind == "dweight") == count and sum(n for kind, n in made if kind == "logits") == T
    )
    assert not waits and sums["tokens"] == T and (rows.logprob < 0).all()


def test_a_row_without_a_target_is_as_if_it_were_not_there(x, monkeypatch):
    """In every variant: loss, metrics, gradients; its logits are not made; NaN in it stays there. Lengths of sequences do not count it."""
    y = {k: v.to(D) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in x.items()}
    kept = torch.ones(T, dtype=torch.bool)
    kept[[0, 5, 6, 30, 59]] = False  # the whole first sequence among them
    advantages = y["groups"].advantages(CU, T).to(D)
    cu = torch.nn.functional.pad(kept.cumsum(0), (1, 0))[CU]
    targets, hidden = y["targets"].masked_fill(~kept, -100), y["hidden"].clone()
    hidden[5] = torch.nan
    made = multiplied_rows(monkeypatch)
    for rule, on_policy in rules():
        results = []
        for rows in (None, kept):
            pick = (lambda v: v) if rows is None else (lambda v: v[kept])
            leaf = (hidden if rows is None else y["hidden"][kept]).clone().requires_grad_(), y["weight"].clone().requires_grad_()
            terms = pick(targets), None if on_policy else pick(y["old"]), pick(advantages), pick(y["sampler"])
            more = {"cu_seqlens": CU if rows is None else cu, "reference_logprob": pick(y["reference"])}
            loss, sums, out = linear_policy_loss(*leaf, *terms, None if rule.variant == "bnpo" else 37.0, rule=rule, **more)
            loss.backward()
            of_hidden = leaf[0].grad if rows is not None else leaf[0].grad[kept]
            results.append([loss.detach(), *sums.values(), of_hidden, leaf[1].grad, *(v if rows is not None else v[kept] for v in out[:3])])
            if rows is None:
                assert not leaf[0].grad[~kept].any() and not torch.stack(out[:3])[:, ~kept].any()
        for p, q in zip(*results, strict=True):
            assert torch.allclose(p, q, rtol=1e-9, atol=1e-12), rule.variant
    assert all(n <= int(kept.sum()) for _, n in made)


def test_any_number_of_dimensions(x):
    shape, leaf = (3, T // 3), x["hidden"].clone().requires_grad_()
    rows = [x["targets"].int(), x["old"], x["groups"].advantages(CU, T), x["sampler"]]
    spread = [torch.stack([v, v], -1)[..., 0] for v in rows]
    out = []
    for hidden, given in ((leaf, rows), (leaf.view(*shape, H), [v.view(shape) for v in spread])):
        loss, _, logprobs = linear_policy_loss(hidden, x["weight"], *given, torch.tensor([37.0]), cu_seqlens=CU)
        assert logprobs.logprob.shape == given[0].shape and loss.shape == ()
        out.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    assert all(torch.equal(p, q) for p, q in zip(*out, strict=True))


def scale_error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """Least-squares scale − 1."""
    return float((ours.to(D) * exact).sum() / (exact * exact).sum() - 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_gradient_is_scaled_in_a_narrow_type(dtype):
    """1 / count and the upstream gradient (a scale of the loss, where fp16 asks for one) meet in fp32."""
    rng, tokens, width, vocabulary = torch.Generator().manual_seed(2), 1024, 32, 300
    hidden, weight = torch.randn(tokens, width, generator=rng).to(dtype), (0.3 * torch.randn(vocabulary, width, generator=rng)).to(dtype)
    targets, advantages = torch.randint(vocabulary, (tokens,), generator=rng), torch.randn(tokens, generator=rng)
    for count, upstream in ((3.0, 1.0), (24_601.0, 1.0), (1000.0, 0.7), (1e6, 1.0), (1e8, 1.0), (1e8, 3e6)):
        if dtype == torch.float16 and count / upstream > 1e5:
            upstream = count / 1000  # fp16 ends at 6e-8
        grads = []
        for kind in (dtype, D):
            h, w = (v.to(kind, copy=True).requires_grad_() for v in (hidden, weight))
            given = count if kind == D else torch.tensor([count], dtype=D)
            loss, *_ = linear_policy_loss(h, w, targets, None, advantages, None, given, fp32_logits=True)
            (upstream * loss).backward()
            grads.append((h.grad, w.grad))
        for ours, exact in zip(*grads, strict=True):
            assert abs(scale_error(ours, exact)) <= 3e-4, (dtype, count, upstream, scale_error(ours, exact))


def most_bytes(work) -> int:
    """Alive at once, beyond what was before, by torch's own account."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    now = most = 0
    for event in sorted((e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


SIZES = [(256, 64, 2000, 2), (100, 64, 2000, 2), (180, 64, 2000, 2), (256, 16, 2000, 4), (90, 200, 500, 2)]


@pytest.mark.parametrize("fp32_logits", [False, True])
@pytest.mark.parametrize(("tokens", "width", "vocabulary", "size"), SIZES)
def test_memory_is_as_predicted(monkeypatch, tokens, width, vocabulary, size, fp32_logits):
    """To 1 %, S1 scaled down: 128 rows in the budget. Left out is what has temporaries on a CPU alone: row functions, wider copies of
    factors."""
    monkeypatch.setattr(head_chunks, "CPU_BUDGET", 128 * vocabulary * head_chunks.bytes_per_logit(size, fp32_logits))
    monkeypatch.setattr(head_chunks, "product", lambda *_, **__: None)
    monkeypatch.setattr(rows_module, "row_backward", lambda *_: None)
    monkeypatch.setattr(rows_module, "row_forward", lambda logits, *_: tuple(torch.zeros(4, len(logits))))
    monkeypatch.setattr(module, "compaction", lambda live_T: None)
    monkeypatch.setattr(module, "_scaled", lambda x, factor: torch.empty_like(x))
    dtype = torch.bfloat16 if size == 2 else torch.float32
    leaf = torch.zeros(tokens, width, dtype=dtype, requires_grad=True), torch.zeros(vocabulary, width, dtype=dtype, requires_grad=True)
    rows = torch.zeros(tokens, dtype=torch.int64), torch.ones(tokens), torch.ones(tokens)

    def step() -> None:
        torch.autograd.grad(linear_policy_loss(*leaf, *rows, None, 5.0, fp32_logits=fp32_logits)[0], leaf)

    planned = head_memory(tokens, width, vocabulary, size, fp32_logits, USUAL, False)
    assert planned.rows == tokens or (tokens == 256 and planned.rows == 128) or (tokens == 180 and fp32_logits), planned
    most = most_bytes(step)
    assert planned.peak <= most <= 1.01 * planned.peak + 100 * tokens, (most, planned.peak)


def test_no_tokens_times_vocabulary(x):
    """Peak of the plain path, temporaries and all, for twice and four times the tokens. Inverse: materialised logits do show."""
    vocabulary, budget = 1000, 4 * 1000 * 16
    peaks = []
    for way, tokens in (("fused", 200), ("fused", 400), ("torch", 400)):
        hidden, weight = torch.randn(tokens, H, requires_grad=True), torch.randn(vocabulary, H, requires_grad=True)
        targets, advantages = torch.randint(vocabulary, (tokens,)), torch.randn(tokens)

        def step(way=way, hidden=hidden, weight=weight, targets=targets, advantages=advantages) -> None:
            if way == "fused":
                loss, *_ = linear_policy_loss(hidden, weight, targets, None, advantages, None, 1.0, memory_budget=budget)
            else:
                loss, _ = policy_loss(selective_logprob_reference(hidden @ weight.t(), targets)[0], None, advantages, None, 1.0)
            torch.autograd.grad(loss, (hidden, weight))

        peaks.append(most_bytes(step))
    small, large, materialised = peaks
    assert large - small < 200 * (8 * H + 100) and materialised > 2 * 4 * 400 * vocabulary > 2 * large, peaks


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


def test_autocast_whatever_the_coefficients_are(x):
    """fp32 leaves, bf16 products; with rows of coefficient 0 too."""
    for zeros in (0, 5):
        advantages = torch.ones(T).masked_fill(torch.arange(T) < zeros, 0.0)
        grads = []
        for dtype in (torch.float32, torch.bfloat16):
            leaf = [x[n].to(dtype, copy=True).requires_grad_() for n in ("hidden", "weight")]
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
                loss, *_ = linear_policy_loss(*leaf, x["targets"], x["old"], advantages, None, 7.0, memory_budget=2 * V * 25)
                loss.backward()
            assert all(v.grad.dtype == dtype for v in leaf)
            grads.append([loss.detach(), *(v.grad.bfloat16() for v in leaf)])
        assert all(map(torch.equal, *grads))


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
        ({"targets": torch.zeros(T, 2, dtype=torch.int64)}, r"targets has shape \(60, 2\): a policy loss has one target a row"),
        ({"budget": 0}, "memory_budget=0: gradients need at least a row of logits"),
        ({"advantages": torch.zeros(3)}, r"advantages has shape \(3,\), hidden has \(60, 16\)"),
        ({"old": torch.zeros(T + 1)}, r"old_logprob has shape \(61,\), hidden has"),
        ({"cu_seqlens": None}, r"advantages are RewardGroups, which need cu_seqlens"),
        ({"cu_seqlens": torch.tensor([0, 1, 2, 3, 4, 5])}, "cu_seqlens runs from 0 to 5, hidden has 60 rows"),
        ({"rule": LossRule(kl="k2", kl_coef=1.0)}, "kl='k2' needs reference_logprob"),
        ({"targets": torch.full((T,), V)}, "targets lie in 130 … 130"),
    ],
)
def test_bad_input_is_refused(x, change, message):
    y = {"advantages": x["groups"], "cu_seqlens": CU, "rule": None, "budget": None} | x | change
    more = {"cu_seqlens": y["cu_seqlens"], "rule": y["rule"], "memory_budget": y["budget"]}
    with pytest.raises(ValueError, match=message):
        linear_policy_loss(x["hidden"], x["weight"], y["targets"], y["old"], y["advantages"], x["sampler"], 1.0, **more)
