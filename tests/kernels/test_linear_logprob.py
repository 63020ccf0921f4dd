"""Log-probs from hidden states: chunks and streaming against fp64; −100, K ids, adapters, autocast; bits that do not depend on a batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import soundrl.kernels.head_chunks as head_chunks
import soundrl.kernels.linear_logprob as module
import soundrl.kernels.logprob as rows_module
import soundrl.kernels.softmax as softmax_module
from soundrl.kernels.head_chunks import USUAL, chunk_rows, compaction, full_sums, head_memory
from soundrl.kernels.linear_logprob import linear_logprob
from soundrl.kernels.linear_logprob_triton import launch_streaming
from soundrl.kernels.lm_head import LMHead, projection
from soundrl.kernels.logprob import selective_logprob_reference
from soundrl.kernels.softmax import softmax_of

D = torch.float64
COOL = softmax_of(0.9, None, None)


@pytest.fixture(autouse=True)
def kernels(request, monkeypatch):
    """Interpreted kernels are slow: they run where a test asks for them (`KERNELS`), the rest is what is around them."""
    if not getattr(request, "param", False):
        for m in (module, rows_module):
            monkeypatch.setattr(m, "runs_triton", lambda x: False)


KERNELS = pytest.mark.parametrize("kernels", [True], indirect=True)
BOTH = pytest.mark.parametrize("kernels", [True, False], indirect=True)


def case(T: int, H: int, V: int, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng)  # noqa: E731
    return {
        "hidden": draw(T, H),
        "weight": draw(V, H) / H**0.5,
        "targets": torch.randint(V, (T,), generator=rng),
        "bias": draw(V),
        "a": draw(2, H) / H**0.5,
        "b": draw(V, 2),
        "temperature": 0.5 + torch.rand(T, generator=rng),
        # Rows without any gradient are among them: they are left out of the backward pass.
        **{f"grad_{n}": draw(T).masked_fill(torch.arange(T) % 3 == 1, 0.0) for n in ("logprob", "entropy", "lse")},
    }


NAMES = ("hidden", "weight", "bias", "a", "b")


def run(x: dict[str, Tensor], full: bool, dtype: torch.dtype, **options) -> list[Tensor]:
    """log-prob, entropy, lse and the gradients of all leaves; dtype fp64 = materialised, with torch's own operators."""
    leaf = {n: x[n].to(dtype, copy=True).requires_grad_() for n in (NAMES if full else NAMES[:2])}
    hidden, weight, bias = leaf["hidden"], leaf["weight"], leaf.get("bias")
    if dtype == D:
        t = x["temperature"].to(D)[:, None] if full else 0.8
        z = hidden @ weight.t()
        if full:
            z = 4 * torch.tanh(0.7 * (z + 0.5 * (hidden @ leaf["a"].t()) @ leaf["b"].t() + bias) / 4)
        out = *selective_logprob_reference(z / t, x["targets"]), torch.logsumexp(z / t, -1)
    else:
        head = LMHead(weight, bias, 4.0, 0.7, (leaf["a"], leaf["b"], 0.5)) if full else weight
        out = linear_logprob(hidden, head, x["targets"], x["temperature"] if full else 0.8, **options)[:3]
    torch.autograd.backward(out, [x[f"grad_{n}"].to(out[0].dtype) for n in ("logprob", "entropy", "lse")])
    return [v.detach().to(D) for v in (*out, *(v.grad for v in leaf.values()))]


SHAPES = [(0, 8, 5, True), (1, 5, 1, False), (40, 33, 300, True), (5, 64, 131, False), (3, 17, 4200, True)]


@BOTH
@pytest.mark.parametrize(("T", "H", "V", "full"), SHAPES)
def test_chunks_equal_fp64(T, H, V, full):
    """Bias, bound, scale, adapter, a temperature a row: logits c tanh(s (x Wᵀ + x Aᵀ Bᵀ / 2 + b) / c) / t."""
    x = case(T, H, V)
    for p, q in zip(run(x, full, D), run(x, full, torch.float32, memory_budget=4 * V * 9), strict=True):
        assert torch.allclose(p, q, rtol=2e-5, atol=2e-5), (p - q).abs().max()


@KERNELS
def test_streaming_equals_chunks():
    """With −100 among the targets, NaN in a row that has none."""
    x = case(37, 33, 300)
    x["targets"][5] = -100
    x["hidden"][5] = torch.nan
    streamed, chunks = (run(x, False, torch.float32, memory_budget=budget) for budget in (0, 4 * 300 * 16))
    for p, q in zip(streamed, chunks, strict=True):
        assert torch.allclose(p, q, rtol=2e-5, atol=2e-6), (p - q).abs().max()
    assert all(float(out[5].abs().sum()) == 0.0 for out in streamed[:4])


def test_bf16_is_as_near_to_fp64_as_torch_in_bf16():
    """Within twice the error of torch's own bf16."""
    x = case(40, 32, 150)
    exact = run(x, False, D)
    for fp32_logits in (False, True):
        ours = run(x, False, torch.bfloat16, fp32_logits=fp32_logits, memory_budget=150 * 6 * 11)
        hidden, weight = (x[n].bfloat16().requires_grad_() for n in ("hidden", "weight"))
        logits = hidden @ weight.t()
        out = *selective_logprob_reference(logits, x["targets"], 0.8), torch.logsumexp(logits.float() / 0.8, -1)
        torch.autograd.backward(out, [x[f"grad_{n}"] for n in ("logprob", "entropy", "lse")])
        theirs = [v.detach().to(D) for v in (*out, hidden.grad, weight.grad)]
        for e, o, t in zip(exact, ours, theirs, strict=True):
            assert (o - e).norm() <= 2 * (t - e).norm() + 1e-6, ((o - e).norm(), (t - e).norm())


@KERNELS
def test_a_rows_bits_do_not_depend_on_its_batch(monkeypatch):
    """Permuting rows permutes log-probs and entropies bit for bit; a row alone gives the same bits (fp32 and bf16, streaming)."""
    # The interpreter's products are numpy's, and BLAS rounds a row by its place on some processors; these have one order of summation.
    monkeypatch.setattr(np, "matmul", lambda a, b, dtype=None: np.einsum("ij,jk->ik", a, b, dtype=dtype))
    for dtype in (torch.float32, torch.bfloat16):
        x = case(70, 40, 300, seed=1)
        hidden, weight, targets = x["hidden"].to(dtype), x["weight"].to(dtype), x["targets"]
        whole = launch_streaming(hidden, weight, targets, COOL, dtype != torch.float32)
        order = torch.randperm(70, generator=torch.Generator().manual_seed(0))
        moved = launch_streaming(hidden[order], weight, targets[order], COOL, dtype != torch.float32)
        assert all(torch.equal(a[order], b) for a, b in zip(whole, moved, strict=True))
        for row in (0, 69):
            alone = launch_streaming(hidden[row, None], weight, targets[row, None], COOL, dtype != torch.float32)
            assert all(torch.equal(a[row, None], b) for a, b in zip(whole, alone, strict=True))


def test_any_chunk_size_gives_the_same_gradient():
    x = case(50, 16, 90, seed=2)
    whole = run(x, True, torch.float32)
    for rows in (1, 7, 49):
        for a, b in zip(whole, run(x, True, torch.float32, memory_budget=4 * 90 * rows), strict=True):
            assert (a - b).norm() <= 1e-6 * a.norm()


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_frozen_head_and_frozen_hidden(frozen):
    x = case(9, 8, 20, seed=3)
    leaf = {n: x[n].clone().requires_grad_(n != frozen) for n in ("hidden", "weight")}
    logprob, entropy, *_ = linear_logprob(leaf["hidden"], leaf["weight"], x["targets"])
    (logprob.sum() + entropy.sum()).backward()
    full = {n: x[n].clone().requires_grad_() for n in ("hidden", "weight")}
    logprob, entropy, *_ = linear_logprob(full["hidden"], full["weight"], x["targets"])
    (logprob.sum() + entropy.sum()).backward()
    other = "weight" if frozen == "hidden" else "hidden"
    assert leaf[frozen].grad is None and torch.equal(leaf[other].grad, full[other].grad)


def test_tied_head_gets_both_gradients():
    x = case(9, 8, 20, seed=4)
    grads = []
    for ours in (True, False):
        weight = x["weight"].clone().requires_grad_()
        hidden = torch.tanh(nn.functional.embedding(x["targets"], weight))
        if ours:
            logprob, entropy, *_ = linear_logprob(hidden, weight, x["targets"])
        else:
            logprob, entropy = selective_logprob_reference(hidden @ weight.t(), x["targets"])
        (logprob.sum() + entropy.sum()).backward()
        grads.append(weight.grad)
    assert torch.allclose(*grads, rtol=1e-5, atol=1e-6)


def test_nothing_wants_a_gradient():
    x = case(6, 8, 20, seed=5)
    with torch.no_grad():
        out = linear_logprob(x["hidden"], x["weight"], x["targets"], x["temperature"])
    z = (x["hidden"] @ x["weight"].t()) / x["temperature"][:, None]
    assert torch.allclose(out.lse, torch.logsumexp(z, -1), rtol=1e-5) and not out.lse.requires_grad
    assert torch.equal(out.greedy, z.argmax(-1) == x["targets"]) and out.greedy.dtype == torch.bool
    best = linear_logprob(x["hidden"], x["weight"], z.argmax(-1), x["temperature"])
    assert best.greedy.all() and not out.greedy.all()


def test_an_adapter_of_a_frozen_weight_needs_no_gradient_of_the_weight(monkeypatch):
    made = []
    original = head_chunks.product
    monkeypatch.setattr(head_chunks, "product", lambda a, b, out, **o: (made.append(out.shape), original(a, b, out, **o)))
    x = case(30, 16, 90, seed=6)
    hidden, weight, a, b = (x[n].clone().requires_grad_(n != "weight") for n in ("hidden", "weight", "a", "b"))
    linear_logprob(hidden, LMHead(weight, lora=(a, b, 0.5)), x["targets"]).logprob.sum().backward()
    assert weight.grad is None and (90, 16) not in made and {(2, 16), (90, 2)} <= set(made)
    other = [x[n].clone().requires_grad_() for n in ("hidden", "a", "b")]
    merged = x["weight"] + 0.5 * other[2] @ other[1]
    linear_logprob(other[0], merged, x["targets"]).logprob.sum().backward()
    for p, q in zip((hidden, a, b), other, strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-5)


@BOTH
def test_k_ids_a_row_are_gathered_with_gradient():
    """Against autograd: log p(target) less the log of the kept set's mass (sampling replay), and a teacher's top k (distillation)."""
    T, V, K = 14, 50, 4
    x, rng = case(T, 8, V, seed=7), torch.Generator().manual_seed(1)
    ids = torch.stack([torch.randperm(V, generator=rng)[:K] for _ in range(T)])
    ids[3, 2:] = -100
    ids[4] = -100
    ids[5] = ids[5, 0]
    teacher = torch.rand(T, K, generator=rng)
    grads = []
    for ours in (True, False):
        hidden, weight, bias = (x[n].clone().to(torch.float32 if ours else D).requires_grad_() for n in ("hidden", "weight", "bias"))
        if ours:
            out = linear_logprob(hidden, LMHead(weight, bias, 5.0), ids, 0.9, memory_budget=4 * V * 6)
            assert out.logprob.shape == (T, K) and out.entropy.shape == (T,) and out.logprob[3, 3] == out.lse[4] == out.entropy[4] == 0
            logprob, lse = out.logprob, out.lse
        else:
            z = 5 * torch.tanh((hidden @ weight.t() + bias) / 5) / 0.9
            logprob = torch.log_softmax(z, -1).gather(-1, ids.clamp(min=0)).masked_fill(ids < 0, 0.0)
            lse = torch.logsumexp(z, -1).masked_fill((ids < 0).all(-1), 0.0)
        kept = logprob.masked_fill(ids < 0, -1e4).logsumexp(-1)
        replay = (logprob[:, 0] - kept)[(ids >= 0).any(-1)].sum()
        ((teacher * logprob).sum() + replay + 0.1 * lse.sum()).backward()
        grads.append([logprob.detach().to(D), *(v.grad.to(D) for v in (hidden, weight, bias))])
    for p, q in zip(*grads, strict=True):
        assert torch.allclose(p, q, rtol=2e-5, atol=2e-5)


@settings(max_examples=12)
@given(rows=st.sampled_from([(7,), (2, 5), (2, 1, 3), ()]), dtype=st.sampled_from([torch.int32, torch.int64]), k=st.sampled_from([0, 2]))
def test_rows_in_any_shape_targets_of_any_stride(rows, dtype, k):
    T = int(np.prod(rows))
    x = case(T, 6, 23, seed=T + k)
    spread = lambda t: torch.stack([t, t + 1], -1)[..., 0]  # noqa: E731
    ids = x["targets"] if not k else torch.stack([x["targets"], x["targets"].flip(0)], -1)
    flat = linear_logprob(x["hidden"], LMHead(x["weight"], x["bias"]), ids, x["temperature"])
    shape = (*rows, k) if k else rows
    head = LMHead(x["weight"].t().contiguous().t(), spread(x["bias"]))
    ours = linear_logprob(spread(x["hidden"]).view(*rows, 6) if T == 0 else spread(x["hidden"]).reshape(*rows, 6), head,
                          spread(ids.to(dtype).reshape(shape)), spread(x["temperature"]).reshape(rows))  # fmt: skip
    for name, p, q in zip(flat._fields, flat, ours, strict=True):
        assert q.shape == (shape if name in ("logprob", "greedy") else rows)
        assert torch.allclose(p.flatten(), q.flatten(), atol=1e-6) if p.is_floating_point() else torch.equal(p.flatten(), q.flatten())
    one = linear_logprob(x["hidden"], x["weight"], ids, torch.tensor([0.7]).expand(T))
    assert torch.equal(one.logprob, linear_logprob(x["hidden"], x["weight"], ids, 0.7).logprob)
    assert torch.equal(one.logprob, linear_logprob(x["hidden"], x["weight"], ids, torch.tensor(0.7)).logprob)


def test_a_row_without_a_target_is_exactly_nothing(monkeypatch):
    """Zeros, no gradient whatever its hidden state is, and its logits are never made."""
    multiplied = []
    original = head_chunks.product
    monkeypatch.setattr(head_chunks, "product", lambda a, b, out, **o: (multiplied.append(len(a)), original(a, b, out, **o)))
    x = case(12, 8, 20, seed=8)
    x["targets"][[1, 5, 6]] = -100
    hidden, weight = x["hidden"].clone(), x["weight"].clone().requires_grad_()
    hidden[5] = torch.nan
    hidden.requires_grad_()
    out = linear_logprob(hidden, weight, x["targets"])
    (out.logprob + out.entropy + out.lse).sum().backward()
    assert multiplied[0] == 9
    kept = x["targets"] >= 0
    assert all(v[~kept].eq(0).all() and v[kept].isfinite().all() for v in (*out[:3], hidden.grad)) and not out.greedy[~kept].any()
    other = x["weight"].clone().requires_grad_()
    whole = linear_logprob(x["hidden"][kept], other, x["targets"][kept])
    (whole.logprob + whole.entropy + whole.lse).sum().backward()
    assert torch.equal(whole.logprob, out.logprob[kept]) and torch.equal(weight.grad, other.grad)
    nothing = linear_logprob(hidden, weight, torch.full((12,), -100))
    nothing.logprob.sum().backward()
    assert nothing.logprob.eq(0).all() and torch.equal(weight.grad, other.grad)


@pytest.mark.parametrize(("kernels", "budget"), [(False, None), (True, None), (True, 0)], indirect=["kernels"])
def test_a_target_beyond_the_vocabulary_is_nan_where_nobody_may_look(monkeypatch, budget):
    """As on a GPU, where checking would wait."""
    monkeypatch.setattr(softmax_module, "reads_values", lambda x: False)
    x = case(4, 8, 40, seed=9)
    x["targets"] = torch.tensor([1, -100, 40, -3])
    hidden, weight = x["hidden"].clone().requires_grad_(), x["weight"].clone().requires_grad_()
    out = linear_logprob(hidden, weight, x["targets"], memory_budget=budget)
    assert out.logprob.isnan().tolist() == [False, False, True, True] and out.logprob[1] == 0 and out.entropy.isfinite().all()
    out.logprob[:2].sum().backward()
    assert hidden.grad.isfinite().all() and not hidden.grad[1:].any() and weight.grad.isfinite().all()


def test_autocast_decides_the_type_and_gradients_come_back_in_the_arguments_own():
    x = case(16, 8, 40, seed=10)
    for hidden_type, weight_type in ((torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        hidden, weight = x["hidden"].to(hidden_type, copy=True).requires_grad_(), x["weight"].to(weight_type, copy=True).requires_grad_()
        narrow = [x[n].bfloat16().requires_grad_() for n in ("hidden", "weight")]
        with torch.autocast("cpu", torch.bfloat16):
            out = linear_logprob(hidden, weight, x["targets"]).logprob
            out.sum().backward()
        expected = linear_logprob(*narrow, x["targets"]).logprob
        expected.sum().backward()
        assert torch.equal(out, expected) and out.dtype == torch.float32
        assert hidden.grad.dtype == hidden_type and weight.grad.dtype == weight_type
        assert torch.equal(hidden.grad.bfloat16(), narrow[0].grad) and torch.equal(weight.grad.bfloat16(), narrow[1].grad)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear_logprob(x["hidden"].double(), x["weight"].double(), x["targets"]).logprob.dtype == D


def test_cublas_may_not_add_up_in_sixteen_bits_meanwhile():
    settings = torch.backends.cuda.matmul
    for name in (f"allow_{kind}_reduced_precision_reduction" for kind in ("bf16", "fp16")):
        before = getattr(settings, name), getattr(settings, f"{name}_split_k")
        try:
            for state in ((True, True), (False, True), (False, False)):
                setattr(settings, name, state)
                with full_sums():
                    assert getattr(settings, name) is False and getattr(settings, f"{name}_split_k") is state[1]
                assert (getattr(settings, name), getattr(settings, f"{name}_split_k")) == state
        finally:
            setattr(settings, name, before)


def test_chunk_rows_by_the_budget():
    assert chunk_rows(10_000, 1000, 4, 4 * 1000 * 4500, True) == 3456
    assert chunk_rows(10, 1000, 4, 4 * 1000 * 4500, True) == 10
    assert chunk_rows(10, 1000, 4, 1, True) == 1  # a single row is always allowed
    assert chunk_rows(0, 1000, 4, USUAL, False) == 1
    # Never an odd number of rows where there is a choice: Triton would compile the row kernels again for the second chunk's addresses.
    assert chunk_rows(8449, 151_936, 2, USUAL, True) == 4240 and chunk_rows(50, 90, 4, 4 * 90 * 49, False) == 32
    assert all(chunk_rows(T, 151_936, 2, USUAL, True) % 16 == 0 for T in range(4241, 12_000, 7))
    assert chunk_rows(8192, 151_936, 2, USUAL, True) == 4096  # F4: 1.19 GiB of bf16 logits


def test_one_chunk_where_it_costs_no_memory():
    """T ≤ max(c + H, 2 H) in bf16, and never against a budget that was asked for."""
    V, H, c = 151_936, 4096, 4240
    rows = lambda tokens, width, fp32=False, size=2, budget=USUAL: head_memory(tokens, width, V, size, fp32, budget, True).rows  # noqa: E731
    for width in (H, 1024):
        assert rows(c + width, width) == c + width and rows(c + width + 8, width) <= c
    assert rows(16_000, 8192) == 16_000  # 2 H
    assert rows(8192, H, fp32=True) < 8192 and rows(1408, H, fp32=True) == 1408 and rows(8192, H, size=4) < 4096
    assert rows(8192, H, budget=2 * V * 1024) == 1024


@pytest.mark.parametrize("live", ["10011", "11111", "00000", "01110", "00001", ""])
def test_compaction_moves_only_into_holes(live):
    flags = torch.tensor([c == "1" for c in live], dtype=torch.bool)
    order = compaction(flags)
    if order is None:
        assert flags.all()
        return
    n = int(flags.sum())
    assert sorted(order.tolist()) == flags.nonzero().squeeze(-1).tolist() and len(order) == n
    for place, source in enumerate(order.tolist()):
        assert source == place or (not flags[place] and source >= n)


def test_chunks_share_one_buffer():
    x = case(10, 4, 6)
    head = projection(x["hidden"], x["weight"], x["targets"], 1.0, False, 4 * 6 * 4)
    seen = {(rows.stop - rows.start, logits.data_ptr()) for rows, _, logits in head.chunks(head.rows_of_a_chunk(of_weight=True))}
    assert {size for size, _ in seen} == {4, 2} and len({pointer for _, pointer in seen}) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(20, 7)}, r"weight has shape \(20, 7\), hidden \(9, 8\): weight must be \[V, H\] with hidden's H"),
        (
            {"weight": torch.zeros(20, 8, dtype=torch.bfloat16)},
            r"weight is torch.bfloat16 on cpu, hidden torch.float32 on cpu: make them alike, e.g. with hidden.to\(weight.dtype\)",
        ),
        ({"hidden": torch.zeros(9, 8, dtype=torch.int32)}, r"hidden has shape \(9, 8\) and type torch.int32"),
        ({"hidden": torch.zeros(8, 8)}, r"targets has shape \(9,\), hidden has \(8, 8\)"),
        ({"targets": torch.full((9,), 20)}, "targets lie in 20 … 20, the vocabulary has 20 entries"),
        ({"temperature": float("inf")}, "temperature=inf must be finite and > 0"),
        ({"temperature": torch.ones(9, requires_grad=True)}, "temperature requires a gradient, which is not computed"),
        ({"bias": torch.zeros(9)}, r"bias has shape \(9,\), hidden \(9, 8\): bias must be \[V\] with the weight's V"),
        ({"lora": (torch.zeros(2, 7), torch.zeros(20, 2), 1.0)}, r"A has shape \(2, 7\)"),
        ({"lora": (torch.zeros(2, 8), torch.zeros(20, 3), 1.0)}, r"B has shape \(20, 3\).* must be \[V, R\]"),
        ({"scale": -1.0}, "scale=-1.0 must be finite and > 0"),
        ({"budget": -1}, "memory_budget=-1 must be at least 0"),
        ({"budget": 0, "targets": torch.zeros(9, 2, dtype=torch.int64)}, "memory_budget=0 streams the logits of a plain weight"),
    ],
)
def test_bad_input_is_refused(change, message):
    x = case(9, 8, 20) | {"temperature": 1.0, "lora": None, "scale": 1.0, "budget": None} | change
    with pytest.raises(ValueError, match=message):
        head = LMHead(x["weight"], x["bias"], None, x["scale"], x["lora"])
        linear_logprob(x["hidden"], head, x["targets"], x["temperature"], memory_budget=x["budget"])


def test_a_module_is_no_head():
    with pytest.raises(ValueError, match=r"head is a module, Linear: give its weight \[V, H\], or LMHead\(weight, bias\)"):
        linear_logprob(torch.zeros(2, 8), nn.Linear(8, 20), torch.zeros(2, dtype=torch.int64))  # type: ignore[arg-type]
