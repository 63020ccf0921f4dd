"""Log-probs from hidden states: the streaming kernel and the chunked backward against fp64; bits that do not depend on the batch."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import soundrl.kernels.linear_logprob as module
import soundrl.kernels.logprob as rows_module
from soundrl.kernels.head_chunks import LinearHead, chunk_rows, compaction
from soundrl.kernels.linear_logprob import linear_logprob
from soundrl.kernels.linear_logprob_triton import launch_streaming
from soundrl.kernels.lm_head import LMHead
from soundrl.kernels.logprob import selective_logprob_reference
from soundrl.kernels.softmax import softmax_of

D = torch.float64
COOL = softmax_of(0.9, None, None)


@pytest.fixture
def plain(monkeypatch):
    for m in (module, rows_module):
        monkeypatch.setattr(m, "runs_triton", lambda x: False)


def case(T: int, H: int, V: int, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "hidden": torch.randn(T, H, generator=rng),
        "weight": torch.randn(V, H, generator=rng) / H**0.5,
        "targets": torch.randint(V, (T,), generator=rng),
        "bias": torch.randn(V, generator=rng),
        "temperature": 0.5 + torch.rand(T, generator=rng),
        # Rows without any gradient are among them: they are left out of the backward pass.
        "grad_logprob": torch.randn(T, generator=rng).masked_fill(torch.arange(T) % 3 == 1, 0.0),
        "grad_entropy": torch.randn(T, generator=rng).masked_fill(torch.arange(T) % 3 == 1, 0.0),
    }


def run(x: dict[str, Tensor], full: bool, dtype: torch.dtype, **options) -> list[Tensor]:
    """log-prob, entropy, dhidden, dweight(, dbias); dtype fp64 = the materialised reference."""
    leaf = {n: x[n].to(dtype, copy=True).requires_grad_() for n in ("hidden", "weight", "bias")}
    temperature, bias, softcap = (x["temperature"], leaf["bias"], 4.0) if full else (0.8, None, None)
    if dtype == D:
        t = temperature.to(D) if isinstance(temperature, Tensor) else temperature
        logprob, entropy = selective_logprob_reference(leaf["hidden"] @ leaf["weight"].t(), x["targets"], t, bias_V=bias, softcap=softcap)
    else:
        logprob, entropy, *_ = linear_logprob(leaf["hidden"], LMHead(leaf["weight"], bias, softcap), x["targets"], temperature, **options)
    torch.autograd.backward([logprob, entropy], [x["grad_logprob"].to(logprob.dtype), x["grad_entropy"].to(logprob.dtype)])
    return [v.detach().to(D) for v in (logprob, entropy, leaf["hidden"].grad, leaf["weight"].grad, *([leaf["bias"].grad] if full else []))]


SHAPES = [(0, 8, 5, True), (1, 5, 1, False), (70, 33, 300, True), (5, 64, 131, False), (3, 17, 4200, True)]


@pytest.mark.parametrize(("T", "H", "V", "full"), SHAPES)
def test_kernels_equal_fp64(T, H, V, full):
    x = case(T, H, V)
    for p, q in zip(run(x, full, D), run(x, full, torch.float32, memory_budget=4 * V * 9), strict=True):
        assert torch.allclose(p, q, rtol=2e-5, atol=2e-5), (p - q).abs().max()


@pytest.mark.parametrize(("T", "H", "V", "full"), SHAPES)
def test_plain_path_equals_fp64(plain, T, H, V, full):
    x = case(T, H, V)
    for p, q in zip(run(x, full, D), run(x, full, torch.float32, memory_budget=4 * V * 9), strict=True):
        assert torch.allclose(p, q, rtol=2e-5, atol=2e-5), (p - q).abs().max()


def test_bf16_is_as_near_to_fp64_as_torch_in_bf16():
    """Streaming forward and chunked backward within twice the error of torch's own bf16; rounded logits are
    truncated by the interpreter, which is a larger error than a GPU's."""
    x = case(40, 32, 150)
    exact = run(x, False, D)
    for fp32_logits in (False, True):
        ours = run(x, False, torch.bfloat16, fp32_logits=fp32_logits, memory_budget=150 * 6 * 11)
        hidden, weight = (x[n].bfloat16().requires_grad_() for n in ("hidden", "weight"))
        logprob, entropy = selective_logprob_reference(hidden @ weight.t(), x["targets"], 0.8)
        torch.autograd.backward([logprob, entropy], [x["grad_logprob"], x["grad_entropy"]])
        theirs = [v.detach().to(D) for v in (logprob, entropy, hidden.grad, weight.grad)]
        for e, o, t in zip(exact, ours, theirs, strict=True):
            factor = 2 if fp32_logits else 5
            assert (o - e).norm() <= factor * (t - e).norm() + 1e-6, ((o - e).norm(), (t - e).norm())


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


@pytest.mark.parametrize("interpreted", [True, False])
def test_any_chunk_size_gives_the_same_gradient(interpreted, request):
    if not interpreted:
        request.getfixturevalue("plain")
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


def test_log_sum_exp_and_no_grad():
    x = case(6, 8, 20, seed=5)
    with torch.no_grad():
        lse = linear_logprob(x["hidden"], x["weight"], x["targets"], x["temperature"]).lse
    z = (x["hidden"] @ x["weight"].t()) / x["temperature"][:, None]
    assert torch.allclose(lse, torch.logsumexp(z, -1), rtol=1e-5) and not lse.requires_grad


def test_chunk_rows_by_the_budget():
    assert chunk_rows(10_000, 1000, 4, 4 * 1000 * 4500, True) == 3456
    assert chunk_rows(10, 1000, 4, 4 * 1000 * 4500, True) == 10
    assert chunk_rows(10, 1000, 4, 1, True) == 1  # a single row is always allowed
    assert chunk_rows(0, 1000, 4, None, False) == 1
    # Never an odd number of rows where there is a choice: Triton would compile the row kernels again for the second chunk's addresses.
    assert chunk_rows(8449, 151_936, 2, None, True) == 4240 and chunk_rows(50, 90, 4, 4 * 90 * 49, False) == 32
    assert all(chunk_rows(T, 151_936, 2, None, True) % 16 == 0 for T in range(4241, 12_000, 7))
    assert chunk_rows(8192, 151_936, 2, None, True) == 4096  # F4: 1.19 GiB of bf16 logits


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
    head = LinearHead(x["hidden"], x["weight"], 1.0, None, None, 0.0, False, 4 * 6 * 4)
    seen = {(rows.stop - rows.start, logits.data_ptr()) for rows, logits in head.chunks()}
    assert {size for size, _ in seen} == {4, 2} and len({pointer for _, pointer in seen}) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(20, 7)}, r"weight has shape \(20, 7\), hidden \(9, 8\): weight must be \[V, H\] with hidden's H"),
        (
            {"weight": torch.zeros(20, 8, dtype=torch.bfloat16)},
            "weight is torch.bfloat16 on cpu, hidden torch.float32 on cpu: make them alike",
        ),
        ({"hidden": torch.zeros(1, 9, 8)}, r"hidden has shape \(1, 9, 8\)"),
        ({"targets": torch.full((9,), 20)}, "targets lie in 20 … 20, the vocabulary has 20 entries"),
        ({"temperature": float("inf")}, "temperature=inf must be finite and > 0"),
        ({"bias": torch.zeros(9)}, r"bias has shape \(9,\) on cpu, weight \(20, 8\)"),
    ],
)
def test_bad_input_is_refused(change, message):
    x = case(9, 8, 20) | {"temperature": 1.0} | change
    with pytest.raises(ValueError, match=message):
        linear_logprob(x["hidden"], LMHead(x["weight"], x["bias"]), x["targets"], x["temperature"])


def test_a_sharded_weight_is_refused_with_the_cure():
    weight = torch.zeros(20, 8).as_subclass(type("Sharded", (DTensor,), {"__torch_dispatch__": torch.Tensor.__torch_dispatch__}))
    with pytest.raises(ValueError, match="weight is a sharded DTensor: call the kernel inside the forward of the module that owns it"):
        linear_logprob(torch.zeros(2, 8), weight, torch.zeros(2, dtype=torch.int64))
