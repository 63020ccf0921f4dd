"""Log-prob and entropy from logits: interpreted kernels and the plain CPU path against torch's autograd in fp64."""

import itertools

import pytest
import torch
from torch import Tensor

import soundrl.kernels.logprob as module
from soundrl.kernels.logprob import selective_logprob, selective_logprob_reference

D = torch.float64


@pytest.fixture(params=["kernel", "plain"])
def path(request, monkeypatch):
    """Both implementations of the rows: Triton, interpreted, and torch as it runs on a CPU."""
    if request.param == "plain":
        monkeypatch.setattr(module, "runs_triton", lambda x: False)
    return request.param


def make(kind: str, T: int, V: int, rng: torch.Generator) -> Tensor:
    x = torch.randn(T, V, generator=rng)
    if kind == "huge":
        return 1e4 * x.sign() + x
    if kind == "all negative":
        return x - 1e4
    if kind == "masked":  # −inf on all but some, the target's place included in some rows
        return x.masked_fill(torch.arange(V) % 3 != 0, -torch.inf)
    return 3 * x


def both(x: Tensor, targets: Tensor, temperature, bias_V: Tensor | None, softcap, grads: tuple[Tensor, Tensor], dtype=torch.float32):
    """[log-prob, entropy, dlogits(, dbias)] of the reference in fp64 and of ours, under the same upstream gradients."""
    out = []
    for function, kind in ((selective_logprob_reference, D), (selective_logprob, dtype)):
        logits = x.to(kind, copy=True).requires_grad_()
        b = None if bias_V is None else bias_V.to(kind, copy=True).requires_grad_()
        t = temperature.to(D if kind == D else torch.float32) if isinstance(temperature, Tensor) else temperature
        bias = {"bias" if function is selective_logprob else "bias_V": b}
        logprob, entropy = function(logits, targets, t, **bias, softcap=softcap)[:2]
        torch.autograd.backward([logprob, entropy], [g.to(logprob.dtype) for g in grads])
        out.append([v.detach().to(D) for v in (logprob, entropy, logits.grad, *([] if b is None else [b.grad]))])
    return out


@pytest.mark.parametrize("kind", ["plain", "huge", "all negative", "masked"])
def test_forward_and_backward_equal_fp64(path, kind):
    """Odd sizes, T = 0 and 1, softcap, bias, temperature by row, non-uniform upstream gradients for log-prob and entropy."""
    rng = torch.Generator().manual_seed(0)
    sizes = [(0, 5), (1, 1), (3, 31), (2, 513), (2, 4097)]
    options = itertools.cycle([(0.7, None, False), ("row", 5.0, True), ("row", None, True), (1.3, 5.0, False)])
    for (T, V), (temperature, softcap, bias) in [(size, next(options)) for size in sizes for _ in range(2)]:
        x = make(kind, T, V, rng)
        targets = torch.randint(V, (T,), generator=rng) // 3 * 3 if kind == "masked" else torch.randint(V, (T,), generator=rng)
        by_row = 0.5 + torch.rand(T, generator=rng)
        b = torch.randn(V, generator=rng) if bias else None
        grads = torch.randn(T, generator=rng), torch.randn(T, generator=rng)
        expected, ours = both(x, targets, by_row if temperature == "row" else temperature, b, softcap, grads)
        # Adding a bias at 10⁴ in fp32 rounds to 10⁻³ before any kernel's arithmetic begins.
        tolerance = 2e-3 if bias and kind in ("huge", "all negative") else 2e-5
        for name, p, q in zip(("logprob", "entropy", "dlogits", "dbias"), expected, ours, strict=False):
            assert torch.allclose(p, q, rtol=2e-5, atol=tolerance), (name, T, V, temperature, softcap, bias, (p - q).abs().max())


def test_masked_target_is_minus_infinity(path):
    logits = torch.tensor([[0.0, -torch.inf, 1.0]])
    logprob, entropy, *_ = selective_logprob(logits, torch.tensor([1]))
    assert logprob.item() == -torch.inf and entropy.item() == pytest.approx(0.5822, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_keep_fp32_statistics(path, dtype):
    rng = torch.Generator().manual_seed(1)
    x = (4 * torch.randn(3, 700, generator=rng)).to(dtype)
    targets, grads = torch.randint(700, (3,), generator=rng), (torch.randn(3, generator=rng), torch.randn(3, generator=rng))
    expected, ours = both(x, targets, 0.9, None, None, grads, dtype)
    assert torch.allclose(expected[0], ours[0], atol=1e-5) and torch.allclose(expected[1], ours[1], atol=1e-5)
    # The gradient is rounded to the logits' type (the interpreter truncates: up to one unit in the last place).
    assert torch.allclose(expected[2], ours[2], rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


def test_in_place_gradient_is_the_same_and_lives_in_the_logits_memory(path):
    rng = torch.Generator().manual_seed(2)
    base, targets = torch.randn(4, 50, generator=rng), torch.tensor([1, 2, 3, 4])
    grads = []
    for in_place in (False, True):
        leaf = base.clone().requires_grad_()
        logits = leaf * 1.0
        seen: list[int] = []
        logits.register_hook(lambda g, seen=seen: seen.append(g.data_ptr()))
        logprob, entropy, *_ = selective_logprob(logits, targets, inplace_backward=in_place)
        (logprob.sum() + 2 * entropy.sum()).backward()
        assert (seen == [logits.data_ptr()]) is in_place
        grads.append(leaf.grad)
    assert torch.equal(*grads)


def test_in_place_gradient_does_not_pass_for_logits_that_are_read_again(path):
    leaf = torch.randn(2, 9, requires_grad=True)
    for in_place in (False, True):
        logits = leaf * 1.0
        other = (logits**2).sum()  # its backward pass comes after ours and reads the logits
        logprob, *_ = selective_logprob(logits, torch.tensor([1, 2]), inplace_backward=in_place)
        if in_place:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                (logprob.sum() + other).backward()
        else:
            (logprob.sum() + other).backward()


def test_rows_may_be_strided(path):
    rng = torch.Generator().manual_seed(3)
    wide = torch.randn(6, 40, generator=rng)
    targets = torch.tensor([0, 5, 7])
    for view in (wide[::2, :33], wide[:3, ::2], torch.randn(33, 3, generator=rng).t()):
        assert torch.equal(selective_logprob(view, targets)[0], selective_logprob(view.contiguous(), targets)[0])


def test_gradcheck_of_the_plain_path():
    rng = torch.Generator().manual_seed(4)
    logits = torch.randn(3, 7, generator=rng, dtype=D, requires_grad=True)
    bias = torch.randn(7, generator=rng, dtype=D, requires_grad=True)
    targets = torch.tensor([0, 6, 3])
    assert torch.autograd.gradcheck(lambda x, b: selective_logprob(x, targets, 0.7, bias=b, softcap=2.0)[:3], (logits, bias))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.tensor([0, 1])}, r"targets has shape \(2,\), logits has \(3, 8\): give targets one id a row, shape \(3,\)"),
        ({"targets": torch.tensor([0, 1, 8])}, "targets lie in 8 … 8, the vocabulary has 8 entries"),
        ({"targets": torch.tensor([0, -1, 1])}, "targets lie in -1 … -1, .*give rows without a target -100"),
        ({"targets": torch.tensor([0, 1, 2], dtype=torch.int16)}, "targets is torch.int16: give int64"),
        ({"logits": torch.zeros(1, 3, 8)}, r"targets has shape \(3,\), logits has \(1, 3, 8\)"),
        ({"logits": torch.zeros(3, 8, dtype=torch.int64)}, "type torch.int64: give floating point"),
        ({"temperature": 0.0}, "temperature=0.0 must be finite and > 0"),
        ({"temperature": float("nan")}, "temperature=nan must be finite and > 0"),
        ({"temperature": torch.tensor([1.0, 0.0, 1.0])}, "temperature holds values that are not finite or not > 0"),
        ({"temperature": torch.ones(4)}, r"temperature has shape \(4,\), logits has \(3, 8\)"),
        ({"bias": torch.zeros(7)}, r"bias has shape \(7,\) on cpu, logits \(3, 8\)"),
        ({"softcap": -1.0}, "softcap=-1.0 must be finite and > 0; None = no cap"),
    ],
)
def test_bad_input_is_refused(change, message):
    x: dict = {"logits": torch.zeros(3, 8), "targets": torch.tensor([0, 1, 2])} | change
    logits, targets, temperature = x.pop("logits"), x.pop("targets"), x.pop("temperature", 1.0)
    with pytest.raises(ValueError, match=message):
        selective_logprob(logits, targets, temperature, **x)
