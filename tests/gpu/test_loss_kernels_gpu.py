"""The loss kernels compiled, on one GPU, against fp64 on the same GPU: error within twice that of torch in the same type.

Shapes: T tokens, H hidden, V vocabulary, N rollouts. The interpreter proves the formulas elsewhere; here it is what it cannot show: real
bf16 products, fp32 accumulation, 64-bit addresses, peak memory, equal bits over repeats, compilations.
"""

import pytest
import torch
from gpu_cases import (
    DAPO,
    DEVICE,
    FULL,
    SLACK,
    TYPES,
    Loss,
    assert_within_twice,
    both_with_gradients,
    draw,
    off,
    peak_mib,
    targets,
    torch_both,
)
from torch import Tensor
from torch.nn.functional import linear

import soundrl.kernels.linear_policy_loss as loss_module
from soundrl.kernels.advantage import group_advantage
from soundrl.kernels.head_chunks import product
from soundrl.kernels.linear_logprob import linear_logprob
from soundrl.kernels.linear_policy_loss import linear_policy_loss
from soundrl.kernels.lm_head import LMHead
from soundrl.kernels.logprob import selective_logprob
from soundrl.kernels.loss_rule import LossRule


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("tokens, vocabulary", [(1, 3), (37, 1009), (70_001, 257), (65, 151_936)])
@pytest.mark.parametrize("inplace", [False, True])
def test_logprob_from_logits(dtype, tokens, vocabulary, inplace):
    logits_TV, targets_T = draw(tokens, vocabulary, dtype=dtype) * 3, targets(tokens, vocabulary)
    temperature_T = 0.5 + draw(tokens, seed=3).abs()
    exact = both_with_gradients(lambda x: torch_both(x, targets_T, temperature_T.double()), [logits_TV.double()])
    plain = both_with_gradients(lambda x: torch_both(x, targets_T, temperature_T), [logits_TV])
    kernel = lambda x: selective_logprob(x, targets_T, temperature_T, inplace_backward=inplace)  # noqa: E731
    assert_within_twice(both_with_gradients(kernel, [logits_TV.clone()]), plain, exact)


def test_addresses_beyond_two_to_the_31():
    tokens, vocabulary = 14_200, 151_936
    assert tokens * vocabulary > 2**31
    logits_TV, targets_T = draw(tokens, vocabulary, dtype=torch.bfloat16), targets(tokens, vocabulary)
    tail_TV, tail_T = logits_TV[-3:].clone(), targets_T[-3:].clone()
    exact = both_with_gradients(lambda x: torch_both(x, tail_T), [tail_TV.double()])
    leaf = logits_TV.requires_grad_()
    logprob_T, entropy_T, *_ = selective_logprob(leaf, targets_T, inplace_backward=True)
    g_T, h_T = (
        torch.zeros(tokens, device=DEVICE).index_copy(0, torch.arange(tokens - 3, tokens, device=DEVICE), draw(3, seed=s)) for s in (5, 6)
    )
    (gradient,) = torch.autograd.grad((logprob_T, entropy_T), leaf, (g_T, h_T))
    ours = {"logprob": logprob_T[-3:].detach(), "entropy": entropy_T[-3:].detach(), "gradient 0": gradient[-3:]}
    plain = both_with_gradients(lambda x: torch_both(x, tail_T), [tail_TV])
    assert_within_twice(ours, plain, exact)
    assert not gradient[:-3].any()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("tokens, hidden, vocabulary", [(1, 24, 5), (129, 200, 1009), (66_001, 64, 300), (257, 512, 151_936)])
def test_logprob_from_hidden(dtype, tokens, hidden, vocabulary):
    hidden_TH = draw(tokens, hidden, dtype=dtype)
    weight_VH, targets_T = draw(vocabulary, hidden, seed=1, dtype=dtype) * 2 * hidden**-0.5, targets(tokens, vocabulary)
    leaves = [hidden_TH, weight_VH]
    exact = both_with_gradients(lambda h, w: torch_both(linear(h, w), targets_T), [x.double() for x in leaves])
    plain = both_with_gradients(lambda h, w: torch_both(linear(h, w), targets_T), leaves)
    budget = 128 * vocabulary * dtype.itemsize  # several chunks in the backward pass
    kernel = lambda h, w: linear_logprob(h, w, targets_T, memory_budget=budget)[:2]  # noqa: E731
    assert_within_twice(both_with_gradients(kernel, leaves), plain, exact)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rule", [DAPO, FULL, LossRule(variant="cispo", clip_high=4.0)], ids=["dapo", "full", "cispo"])
@pytest.mark.parametrize("tokens, hidden, vocabulary", [(301, 200, 1009), (200, 256, 151_936)])
def test_fused_policy_loss(dtype, rule, tokens, hidden, vocabulary):
    case = Loss(tokens, hidden, vocabulary, dtype)
    ours = case.fused(rule, memory_budget=100 * vocabulary * dtype.itemsize)
    assert_within_twice(ours, case.plain(rule, dtype), case.plain(rule, torch.float64))


def test_a_chunk_of_more_than_two_to_the_31_logits():
    case = Loss(14_200, 64, 151_936, torch.bfloat16)
    torch.cuda.empty_cache()
    whole, parts = case.fused(DAPO, memory_budget=5 * 2**30), case.fused(DAPO)
    for name, tolerance in {"loss": 1e-6, "logprob": 1e-6, "dhidden": 1e-2, "dweight": 1e-2}.items():
        assert off(whole[name], parts[name].double()) <= tolerance, name


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 3e-3)])
def test_compaction_changes_nothing(monkeypatch, dtype, tolerance):
    case = Loss(1000, 256, 4003, dtype)
    on = case.fused(DAPO, memory_budget=300 * 4003 * dtype.itemsize)
    monkeypatch.setattr(loss_module, "compaction", lambda live_T: None)
    without = case.fused(DAPO, memory_budget=300 * 4003 * dtype.itemsize)
    for name in ("loss", "logprob", "dhidden", "dweight"):
        assert off(on[name], without[name].double()) <= (tolerance if name.startswith("d") else 1e-6), name
    dead_T = (case.advantages_T == 0) | (torch.arange(1000, device=DEVICE) % 5 == 1)  # no advantage, or clipped
    assert 390 <= int(dead_T.sum()) <= 410 and not on["dhidden"][dead_T].any() and on["dhidden"][~dead_T].any(1).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_rows_without_a_target_and_ids_beyond_the_vocabulary(dtype):
    """−100: zeros, no gradient, even where hidden is NaN. Another id: NaN, by streaming and in chunks, and no wait for it."""
    hidden_TH, weight_VH, targets_T = draw(300, 128, dtype=dtype), draw(1009, 128, seed=1, dtype=dtype) / 8, targets(300, 1009)
    targets_T[[3, 77]] = -100
    hidden_TH[77] = torch.nan
    targets_T[5], targets_T[6] = 1009, -7
    for budget in (None, 0, 64 * 1009 * dtype.itemsize):
        leaf = hidden_TH.clone().requires_grad_()
        out = linear_logprob(leaf, weight_VH, targets_T, memory_budget=budget)
        assert out.logprob[[5, 6]].isnan().all() and not out.logprob[[3, 77]].any() and not out.entropy[[3, 77]].any()
        live_T = torch.ones(300, dtype=torch.bool, device=DEVICE).index_fill(0, torch.tensor([3, 5, 6, 77], device=DEVICE), False)
        assert out.logprob[live_T].isfinite().all()
        out.logprob[live_T].sum().backward()
        assert not leaf.grad[~live_T].any() and leaf.grad[live_T].any(1).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_k_ids_an_adapter_and_a_scale(dtype):
    hidden_TH, weight_VH = draw(200, 128, dtype=dtype), draw(1009, 128, seed=1, dtype=dtype) / 8
    a_RH, b_VR = draw(4, 128, seed=2, dtype=dtype) / 8, draw(1009, 4, seed=3, dtype=dtype) / 4
    ids_TK = torch.randint(1009, (200, 8), generator=torch.Generator(DEVICE).manual_seed(1), device=DEVICE)
    weights_TK = draw(200, 8, seed=4)

    def whole(h: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        logp_TV = torch.log_softmax(0.5 * (linear(h, weight_VH.to(h.dtype)) + 0.7 * linear(linear(h, a), b)).to(exact_type(h)), -1)
        logp_TK = logp_TV.gather(-1, ids_TK)
        return (logp_TK * weights_TK).sum(-1), -(logp_TV.exp() * logp_TV).sum(-1)

    def ours(h: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        head = LMHead(weight_VH, scale=0.5, lora=(a, b, 0.7))
        out = linear_logprob(h, head, ids_TK, fp32_logits=True, memory_budget=64 * 1009 * 6)
        return (out.logprob * weights_TK).sum(-1), out.entropy

    leaves = [hidden_TH, a_RH, b_VR]
    exact = both_with_gradients(whole, [x.double() for x in leaves])
    assert_within_twice(both_with_gradients(ours, leaves), both_with_gradients(whole, leaves), exact)


def exact_type(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype == torch.float64 else torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_gradient_is_scaled_in_a_narrow_type(dtype):
    """Least-squares scale against fp64 within 3e-4, for counts on the GPU and an upstream gradient that is no power of 2."""
    case = Loss(2048, 128, 1009, dtype)
    for count, upstream in ((3.0, 1.0), (24_601.0, 0.7), (1e8, 3e5)):
        results = []
        for kind in (dtype, torch.float64):
            h, w = (x.to(kind, copy=True).requires_grad_() for x in (case.hidden_TH, case.weight_VH))
            given = torch.tensor([count], device=DEVICE)
            loss = linear_policy_loss(h, w, case.targets_T, None, case.advantages_T, None, given, fp32_logits=True)[0]
            results.append(torch.autograd.grad(upstream * loss, (h, w)))
        for p, q in zip(*results, strict=True):
            assert abs(float((p.double() * q).sum() / (q * q).sum()) - 1) <= 3e-4, (count, upstream)


def test_dweight_of_many_chunks_is_as_exact_as_one_product():
    """F17: 32 chunks summed in fp32 against one bf16 product with an fp32 result."""
    tokens, hidden, vocabulary = 32_768, 1024, 8192
    hidden_TH = draw(tokens, hidden, dtype=torch.bfloat16)
    weight_VH = draw(vocabulary, hidden, seed=1, dtype=torch.bfloat16) * 2 * hidden**-0.5
    targets_T, g_T = targets(tokens, vocabulary), draw(tokens, seed=5)

    def slope(logits_TV: Tensor) -> Tensor:  # of Σ g log p
        p_TV = logits_TV.softmax(-1)
        return g_T[:, None].to(p_TV.dtype) * (-p_TV).scatter_add_(-1, targets_T[:, None], torch.ones_like(p_TV[:, :1]))

    exact = slope(hidden_TH.double() @ weight_VH.double().t()).t() @ hidden_TH.double()
    plain = torch.mm(slope(linear(hidden_TH, weight_VH).float()).bfloat16().t(), hidden_TH, out_dtype=torch.float32)
    leaf = weight_VH.requires_grad_()
    logprob_T = linear_logprob(hidden_TH, leaf, targets_T, memory_budget=1024 * vocabulary * 2).logprob
    (ours,) = torch.autograd.grad(logprob_T, leaf, g_T)
    assert off(ours, exact) <= 1.5 * off(plain.bfloat16(), exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_product_that_accumulates_in_fp32(dtype):
    total_VH, dlogits_nV, hidden_nH = draw(1009, 200), draw(65, 1009, seed=1, dtype=dtype), draw(65, 200, seed=2, dtype=dtype)
    exact = total_VH.double() + dlogits_nV.double().t() @ hidden_nH.double()
    place = total_VH.data_ptr()
    product(dlogits_nV.t(), hidden_nH, total_VH, add=True)
    assert total_VH.data_ptr() == place and off(total_VH, exact) <= 1e-6
    # 2⁻¹² is lost beside 1 in bf16 and in fp16.
    sums, one, small = torch.ones(16, 16, device=DEVICE), torch.ones(16, 16, device=DEVICE, dtype=dtype), 2.0**-12
    for _ in range(64):
        product((one * small).t(), one / 16, sums, add=True)
    assert torch.equal(sums, torch.full_like(sums, 1 + 64 * small))
    assert (one + small == one).all()  # the witness
    large_VH, wide_nV, wide_nH = torch.zeros(8192, 2048, device=DEVICE), draw(64, 8192, dtype=dtype), draw(64, 2048, dtype=dtype)
    assert peak_mib(lambda: product(wide_nV.t(), wide_nH, large_VH, add=True)) < 16  # no second [V, H]


def test_fp32_logits_are_more_exact():
    case = Loss(300, 512, 4003, torch.bfloat16)
    exact = case.plain(DAPO, torch.float64)
    rounded, kept = case.fused(DAPO), case.fused(DAPO, fp32_logits=True, memory_budget=100 * 4003 * 6)
    assert off(kept["logprob"], exact["logprob"]) <= 0.1 * off(rounded["logprob"], exact["logprob"])
    assert off(kept["dweight"], exact["dweight"]) <= off(rounded["dweight"], exact["dweight"]) + SLACK


def test_group_advantage_of_any_size():
    sizes = torch.tensor([2, 1, 64, 0, 33, 2000, 7], device=DEVICE)
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    rewards_N, flawed_N = draw(int(sizes.sum())), draw(int(sizes.sum()), seed=1) > 0
    ours = group_advantage(rewards_N, offsets, flawed_N, 1.0)
    exact = group_advantage(rewards_N.double().cpu(), offsets.cpu(), flawed_N.cpu(), 1.0)
    assert off(ours.cpu(), exact.double()) <= 1e-5 and ours[2] == 0
