"""The streaming kernel, pointers and descriptors, against fp64: far and infinite logits, odd shapes and strides, targets that are none."""

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor

import soundrl.kernels.linear_logprob_triton as module
from soundrl.kernels.linear_logprob_triton import EXACT, SPECIALISED, SQUARE, WIDE, Config, config_for, launch_streaming, stream
from soundrl.kernels.softmax import Softmax

D = torch.float64
PLAIN = Softmax(0.8, None, None, 0.0)
# Few columns and small tiles: the interpreter pays for each program and each turn.
POINTERS, DESCRIPTORS = Config(16, 32, 16, 4, 1), Config(16, 32, 16, 4, 1, specialised=True)


def exact(hidden: Tensor, weight: Tensor, targets: Tensor, softmax: Softmax) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log-prob, entropy, m, log S in fp64."""
    u = hidden.to(D) @ weight.to(D).t()
    if softmax.bias_V is not None:
        u = u + softmax.bias_V.to(D)
    if softmax.softcap:
        u = softmax.softcap * torch.tanh(u / softmax.softcap)
    temperature = softmax.temperature if softmax.temperature_T is None else softmax.temperature_T.to(D)[:, None]
    logp = torch.log_softmax(u / temperature, -1)
    inside = (targets >= 0) & (targets < len(weight))
    logprob = logp.gather(-1, targets.long().clamp(0, len(weight) - 1)[:, None]).squeeze(-1)
    m = u.amax(-1)
    lse = torch.logsumexp(u / temperature, -1) - m / (temperature if isinstance(temperature, float) else temperature.squeeze(-1))
    return logprob.masked_fill(~inside, torch.nan), -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1), m, lse


def assert_equal(ours: tuple[Tensor, ...], truth: tuple[Tensor, ...], tolerance: float = 1e-5) -> None:
    for name, o, t in zip(("logprob", "entropy", "m", "log S"), ours, truth, strict=True):
        off = (o.to(D) - t).abs() / t.abs().clamp(min=1.0)
        assert torch.equal(o.isnan(), t.isnan()) and (off.nan_to_num() <= tolerance).all(), (name, o, t)


def strided(x: Tensor, how: str) -> Tensor:
    """The same values in another memory."""
    return {"dense": lambda: x, "every second": lambda: torch.stack([x, -x], -1)[..., 0], "expanded": lambda: x[:1].expand(x.shape)}[how]()


@hypothesis.settings(max_examples=25)
@hypothesis.given(
    shape=st.tuples(st.sampled_from([0, 1, 17, 40]), st.sampled_from([1, 16, 33]), st.sampled_from([1, 31, 32, 33, 200])),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    targets_type=st.sampled_from([torch.int32, torch.int64]),
    given=st.sets(st.sampled_from(["temperature", "bias", "softcap"])),
    how=st.tuples(*[st.sampled_from(["dense", "every second", "expanded"])] * 3),
    specialised=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_fp64(shape, dtype, targets_type, given, how, specialised, seed):
    T, H, V = shape
    rng = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(T, 2 * H, generator=rng).to(dtype)[:, ::2], torch.randn(V, H, generator=rng).to(dtype)
    targets = strided(torch.randint(-2, V + 2, (T,), generator=rng).to(targets_type), how[0])
    temperature = strided(0.3 + torch.rand(T, generator=rng), how[1]) if "temperature" in given else None
    bias = strided(torch.randn(V, generator=rng), how[2]) if "bias" in given and not specialised else None
    softmax = Softmax(0.7, temperature, bias, 3.0 if "softcap" in given else 0.0)
    ours = stream(hidden, weight, targets, softmax, False, DESCRIPTORS if specialised and H % 8 == 0 else POINTERS)
    assert_equal(ours, exact(hidden, weight, targets, softmax))


@pytest.mark.parametrize("config", [POINTERS, DESCRIPTORS])
def test_far_logits(config):
    """±10⁴ and thousands of nats between the tiles: what fp32 can hold of the products, and no more lost."""
    rng = torch.Generator().manual_seed(1)
    weight, targets = torch.randn(200, 16, generator=rng), torch.randint(200, (5,), generator=rng)
    weight[:, 0] = 1.0
    for far, spread, temperature in ((1e4, 1.0, 1.0), (-1e4, 1.0, 0.7), (0.0, 3000.0, 1.0), (0.0, 1.0, 1e-9)):
        hidden = torch.randn(5, 16, generator=rng) * spread
        hidden[:, 0] += far
        softmax = Softmax(temperature, None, None, 0.0)
        # The products are the interpreter's own, in fp32: taken as given, so that what is measured is the statistics.
        u = hidden @ weight.t()
        truth = exact(u, torch.eye(200), targets, softmax)
        ours = stream(hidden, weight, targets, softmax, False, config)
        off = 4 * float(u.abs().max()) * 2.0**-23 / temperature  # one product summed in another order
        for o, t in zip(ours[:2], truth[:2], strict=True):
            assert (o.to(D) - t).abs().max() <= 1e-5 * max(1.0, float(t.abs().max())) + off, (far, spread, o, t)


def test_logits_of_minus_infinity():
    """Whole tiles and whole parts of −∞ (a bias that forbids entries), before and after those that are not."""
    rng = torch.Generator().manual_seed(2)
    hidden, weight = torch.randn(3, 16, generator=rng), torch.randn(200, 16, generator=rng)
    for forbidden in (slice(0, 70), slice(60, 200), slice(0, 199), slice(1, 200)):
        bias = torch.zeros(200)
        bias[forbidden] = -torch.inf
        targets = torch.tensor([int(i) for i in range(200) if bias[i] == 0][:1] + [forbidden.start, 199])
        softmax = Softmax(1.0, None, bias, 0.0)
        assert_equal(stream(hidden, weight, targets, softmax, False, POINTERS), exact(hidden, weight, targets, softmax))


@pytest.mark.parametrize("config", [POINTERS, DESCRIPTORS])
def test_a_target_outside_the_vocabulary_is_nan_and_nothing_else(config):
    rng = torch.Generator().manual_seed(3)
    hidden, weight = torch.randn(7, 16, generator=rng), torch.randn(40, 16, generator=rng)
    targets = torch.tensor([1, -99, 40, 3, -1, 2**32 + 3, 39])
    ours = stream(hidden, weight, targets, PLAIN, False, config)
    assert torch.equal(ours[0].isnan(), torch.tensor([False, True, True, False, True, True, False]))
    inside = stream(hidden, weight, targets.clamp(0, 39), PLAIN, False, config)
    assert all(torch.equal(a, b) for a, b in zip(ours[1:], inside[1:], strict=True))
    assert torch.equal(ours[0].nan_to_num(), inside[0].masked_fill(ours[0].isnan(), 0.0))


def test_a_row_that_is_not_asked_about_is_zero():
    """Target −100, whatever the row holds."""
    rng = torch.Generator().manual_seed(7)
    hidden, weight = torch.randn(3, 16, generator=rng), torch.randn(40, 16, generator=rng)
    hidden[1] = torch.nan
    for kind in (torch.int32, torch.int64):
        ours = stream(hidden, weight, torch.tensor([5, -100, 7], dtype=kind), PLAIN, False, POINTERS)
        assert all(float(x[1]) == 0 and x[0].isfinite() and x[2] != 0 for x in ours)


def test_a_broken_row_is_nan_and_no_other():
    rng = torch.Generator().manual_seed(4)
    hidden, weight = torch.randn(4, 16, generator=rng), torch.randn(70, 16, generator=rng)
    whole = stream(hidden, weight, torch.arange(4), PLAIN, False, POINTERS)
    hidden[1, 3] = torch.nan
    ours = stream(hidden, weight, torch.arange(4), PLAIN, False, POINTERS)
    others = torch.tensor([0, 2, 3])
    assert ours[0][1].isnan() and all(torch.equal(a[others], b[others]) for a, b in zip(ours, whole, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_descriptors_and_pointers_give_the_same_bits(dtype):
    """Rows and weight that a descriptor cannot address (misaligned, strided) among them."""
    rng = torch.Generator().manual_seed(5)
    hidden, weight = torch.randn(20, 25, generator=rng).to(dtype)[:, 1:], torch.randn(71, 48, generator=rng).to(dtype)[1:, :24]
    assert hidden.data_ptr() % 16
    both = [stream(hidden, weight, torch.arange(20), PLAIN, True, config) for config in (POINTERS, DESCRIPTORS)]
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_rounded_logits_are_those_of_a_head_in_that_type():
    rng = torch.Generator().manual_seed(6)
    hidden, weight = torch.randn(6, 16, generator=rng).half(), torch.randn(90, 16, generator=rng).half()
    rounded = (hidden.float() @ weight.float().t()).half()
    truth = exact(rounded, torch.eye(90, dtype=torch.float16), torch.arange(6), PLAIN)
    assert_equal(stream(hidden, weight, torch.arange(6), PLAIN, True, POINTERS), truth)


def test_the_table_is_by_gpu_type_and_proof(monkeypatch):
    bf16 = torch.bfloat16
    assert [config_for(bf16, True, gpu, 4096) for gpu in (80, 89, 90, 100, 103, 120)] == [SQUARE, SQUARE, WIDE, WIDE, WIDE, SQUARE]
    assert config_for(bf16, False, 90, 4096) == SQUARE and config_for(torch.float32, True, 90, 4096) == EXACT
    # Nothing is specialised by default before a GPU has run it, and then only where it can be.
    assert not module.PROVED
    monkeypatch.setattr(module, "PROVED", frozenset({(90, ".".join(module.triton.__version__.split(".")[:2]))}))
    assert config_for(bf16, True, 90, 4096) == SPECIALISED
    assert [config_for(bf16, *given) for given in ((True, 100, 4096), (False, 90, 4096), (True, 90, 4100))] == [WIDE, SQUARE, WIDE]


def test_any_launch_goes_through_the_table(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "config_for", lambda *given: seen.append(given) or POINTERS)
    launch_streaming(torch.zeros(1, 8), torch.zeros(3, 8), torch.zeros(1, dtype=torch.int32), PLAIN, False)
    assert seen == [(torch.float32, True, 90, 8)]
