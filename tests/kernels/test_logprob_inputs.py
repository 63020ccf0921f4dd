"""What people really pass to `selective_logprob`: strides, integers, ids that are none, K ids a row, NaN, −inf, shared memory, autocast.

Everything on both implementations of the rows: Triton, interpreted, and torch as it runs on a CPU.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard, init_device_mesh

import soundrl.kernels.backend as backend
import soundrl.kernels.logprob as module
from soundrl.kernels.logprob import Logprobs, row_backward, row_forward, selective_logprob
from soundrl.kernels.softmax import softmax_of

D = torch.float64
TRITON = module.runs_triton


@pytest.fixture(params=["kernel", "plain"])
def path(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(module, "runs_triton", lambda x: False)
    return request.param


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Values are not looked at beforehand; memory that nobody wrote is NaN."""
    monkeypatch.setattr(backend, "reads_values", lambda x: False)
    monkeypatch.setattr("soundrl.kernels.softmax.reads_values", lambda x: False)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ids(*shape: int, vocabulary: int, seed: int = 0) -> Tensor:
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def exact(logits: Tensor, targets: Tensor, temperature, bias, softcap) -> Logprobs:
    """fp64, by torch's operators and autograd."""
    u = logits if bias is None else logits + bias
    u = softcap * torch.tanh(u / softcap) if softcap else u
    z = u / (temperature[..., None] if isinstance(temperature, Tensor) else temperature)
    logp, wide = z.log_softmax(-1), targets.ndim == z.ndim
    live = targets != -100
    row = live.any(-1) if wide else live
    at = targets.clamp(min=0).long()
    logprob = logp.gather(-1, at if wide else at[..., None])
    entropy = -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1)
    top = z == z.amax(-1, keepdim=True)
    greedy = top.gather(-1, at if wide else at[..., None])
    if not wide:
        logprob, greedy = logprob.squeeze(-1), greedy.squeeze(-1)
    return Logprobs(logprob.masked_fill(~live, 0.0), entropy.masked_fill(~row, 0.0), z.logsumexp(-1).masked_fill(~row, 0.0), greedy & live)


def values_and_gradients(function, logits: Tensor, bias: Tensor | None, rest: tuple, dtype: torch.dtype) -> list[Tensor]:
    """logprob, entropy, lse, greedy, dlogits(, dbias) under fixed gradients of the first three."""
    leaves = [x.to(dtype, copy=True).requires_grad_() for x in (logits, bias) if x is not None]
    out = function(leaves[0], *rest[:2], leaves[1] if bias is not None else None, rest[2])
    grads = [draw(*x.shape, seed=i + 5).to(x.dtype) for i, x in enumerate(out[:3])]
    return [*(x.detach() for x in out), *torch.autograd.grad(out[:3], leaves, grads)]


def ours(logits, targets, temperature, bias, softcap):
    return selective_logprob(logits, targets, temperature, bias=bias, softcap=softcap)


@st.composite
def problems(draw_from):
    lead = draw_from(st.sampled_from([(), (3,), (2, 2)]))
    vocabulary = draw_from(st.sampled_from([1, 2, 16, 33, 240]))
    return {
        "lead": lead,
        "vocabulary": vocabulary,
        "ids": draw_from(st.sampled_from([None, 1, 3])),
        "ignored": draw_from(st.sampled_from([0.0, 0.5, 1.0])),
        "integer": draw_from(st.sampled_from([torch.int32, torch.int64])),
        "temperature": draw_from(st.sampled_from(["one", "0-dim", "rows", "column"])),
        "bias": draw_from(st.booleans()),
        "softcap": draw_from(st.sampled_from([None, 3.0])),
        "masked": draw_from(st.booleans()),
        "strided": draw_from(st.booleans()),
        "dtype": draw_from(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, D])),
        "seed": draw_from(st.integers(0, 9)),
    }


@given(problem=problems(), triton=st.booleans())
@settings(max_examples=24)
def test_equals_fp64_on_any_input(problem, triton):
    lead, vocabulary, seed, dtype = problem["lead"], problem["vocabulary"], problem["seed"], problem["dtype"]
    logits = (3 * draw(*lead, vocabulary, seed=seed)).to(dtype)
    if problem["masked"] and vocabulary > 2:
        logits = logits.masked_fill(torch.arange(vocabulary) % 3 == 2, torch.finfo(dtype).min if problem["strided"] else -torch.inf)
    if problem["strided"]:
        logits = torch.stack([logits, logits + 1], -2)[..., 0, :]
    shape = lead if problem["ids"] is None else (*lead, problem["ids"])
    targets = (ids(*shape, vocabulary=max(1, vocabulary // 3), seed=seed) * (3 if vocabulary > 2 else 1)).to(problem["integer"])
    targets = targets.masked_fill(draw(*shape, seed=seed + 1).abs() < torch.tensor(problem["ignored"]) * 1.3, -100)
    rows = 0.5 + draw(*lead, seed=2).abs()
    temperature = {"one": 0.7, "0-dim": torch.tensor(0.7), "rows": rows, "column": rows[..., None]}[problem["temperature"]]
    bias = draw(vocabulary, 2, seed=3).to(dtype)[:, 0] if problem["bias"] else None
    wide = {"column": rows.to(D), "rows": rows.to(D)}.get(problem["temperature"], 0.7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "runs_triton", TRITON if triton else lambda x: False)
        got = values_and_gradients(ours, logits, bias, (targets, temperature, problem["softcap"]), dtype)
    truth = values_and_gradients(exact, logits, bias, (targets, wide, problem["softcap"]), D)
    result = torch.float32 if dtype != D else D
    assert got[0].shape == targets.shape and got[1].shape == got[2].shape == lead and all(x.dtype == result for x in got[:3])
    assert torch.equal(got[3], truth[3])
    for name, p, q in zip(("logprob", "entropy", "lse", "", "dlogits", "dbias"), got, truth, strict=False):
        # The interpreter truncates to 16 bits instead of rounding; a bias' gradient is the sum of a column of such.
        small = torch.finfo(dtype).eps * (2 if name == "dlogits" else 8) if name.startswith("d") else 2e-6
        assert name == "" or torch.allclose(p.to(D), q, rtol=small + 1e-5, atol=small + 1e-5), (name, (p.to(D) - q).abs().max())


def spread(x: Tensor) -> Tensor:
    """The same numbers, two places apart."""
    return torch.stack([x, x.roll(1, 0)], 1)[:, 0]


def test_small_arguments_have_any_stride(path):
    logits, targets, temperature, bias = draw(3, 40), ids(3, vocabulary=40), 0.5 + draw(3, seed=1).abs(), draw(40, seed=2)
    several = ids(3, 4, vocabulary=40, seed=4)

    def run(targets, temperature, bias, grads=None) -> list[Tensor]:
        leaf = logits.clone().requires_grad_()
        out = selective_logprob(leaf, targets, temperature, bias=bias)
        (gradient,) = torch.autograd.grad(out[:3], leaf, grads or [torch.ones_like(x) for x in out[:3]])
        return [*out, gradient]

    dense = run(targets, temperature, bias)
    assert all(map(torch.equal, run(spread(targets), spread(temperature), spread(bias)), dense))
    assert all(map(torch.equal, run(targets.int(), temperature[:, None], bias), dense))
    assert all(map(torch.equal, run(targets, temperature, bias, [torch.ones(()).expand(3)] * 3), dense))
    by_one = run(targets, torch.full((3,), 0.7), None)
    for one in (torch.tensor(0.7), torch.tensor([0.7]), torch.tensor([0.7]).expand(3), torch.tensor(0.7, dtype=D)):
        assert all(map(torch.equal, run(targets, one, None), by_one))
    assert all(map(torch.equal, run(several.t().contiguous().t(), 1.0, None), run(several, 1.0, None)))


def test_temperature_by_sequence(path):
    logits, targets, temperature = draw(2, 3, 20), ids(2, 3, vocabulary=20), torch.tensor([[0.5], [2.0]])
    by_row = selective_logprob(logits, targets, temperature.expand(2, 3))
    assert all(map(torch.equal, selective_logprob(logits, targets, temperature), by_row))


@pytest.mark.parametrize("several", [False, True])
def test_ids_outside_the_vocabulary(path, as_on_a_gpu, several):
    """−100 is a dead row or entry, exactly 0; any other is NaN without a look at the neighbours, and changes nothing else."""
    logits = torch.cat([torch.full((6, 16), 77.0), draw(6, 32), torch.full((6, 16), 55.0)], 1)[:, 16:48].requires_grad_()
    targets, good = torch.tensor([1, -100, 32, -1, 2**31 - 1, 3]), torch.tensor([0, 5])
    if several:
        targets = torch.stack([targets, torch.tensor([4, -100, 4, 4, 4, 4])], 1)
    out = selective_logprob(logits, targets)
    first = out.logprob[:, 0] if several else out.logprob
    truth = exact(logits.detach().double(), targets.clamp(min=-100, max=31), 1.0, None, None)
    assert torch.equal(first.isnan(), torch.tensor([False, False, True, True, True, False]))
    assert first[1] == 0 and out.entropy[1] == 0 and out.lse[1] == 0 and not out.greedy[1].any()
    assert torch.allclose(out.logprob[good].double(), truth.logprob[good], atol=1e-5)
    assert torch.allclose(out.entropy.double(), truth.entropy, atol=1e-5) and torch.allclose(out.lse.double(), truth.lse, atol=1e-5)
    (gradient,) = torch.autograd.grad([out.logprob, out.entropy], logits, [torch.ones_like(out.logprob), torch.ones_like(out.entropy)])
    assert torch.equal(gradient[1], torch.zeros(32)) and gradient[good].isfinite().all()


def test_a_dead_row_is_not_read(path):
    logits = draw(4, 50)
    logits[1], logits[2, 7] = torch.nan, torch.nan
    targets = torch.tensor([3, -100, 5, 0])
    leaf = logits.requires_grad_()
    out = selective_logprob(leaf, targets)
    assert [x[1].item() for x in out] == [0, 0, 0, False]
    assert all(x[2].isnan() for x in out[:3]) and all(x[[0, 3]].isfinite().all() for x in out[:3])
    (gradient,) = torch.autograd.grad(out[:3], leaf, [torch.ones(4)] * 3, retain_graph=True)
    assert torch.equal(gradient[1], torch.zeros(50)) and gradient[2].isnan().all() and gradient[[0, 3]].isfinite().all()
    # No coefficient, no gradient: NaN · 0 is not asked for.
    (gradient,) = torch.autograd.grad(out.logprob, leaf, torch.tensor([1.0, 1.0, 0.0, 1.0]))
    assert torch.equal(gradient[1:3], torch.zeros(2, 50))


def test_rows_of_minus_infinity_and_vocabularies_of_one(path):
    out = selective_logprob(torch.full((2, 9), -torch.inf), torch.tensor([0, 1]))
    assert out.logprob.isnan().all() and out.entropy.isnan().all() and (out.lse == -torch.inf).all()
    out = selective_logprob(torch.full((2, 9), torch.finfo(torch.float32).min), torch.tensor([0, 1]))
    assert torch.allclose(out.logprob, torch.tensor(1 / 9).log(), atol=1e-6) and torch.allclose(out.entropy, torch.tensor(9.0).log())
    leaf = draw(3, 1).requires_grad_()
    out = selective_logprob(leaf, torch.zeros(3, dtype=torch.int64), 0.5)
    assert torch.equal(out.logprob, torch.zeros(3)) and torch.equal(out.entropy, torch.zeros(3)) and out.greedy.all()
    (gradient,) = torch.autograd.grad(out.logprob.sum() + out.lse.sum(), leaf)
    assert torch.allclose(gradient, torch.full((3, 1), 2.0)) and torch.allclose(out.lse, 2 * leaf[:, 0])


def overlapping(leaf: Tensor) -> Tensor:
    return (leaf * 1.0).flatten().as_strided((3, 9), (4, 1))


@pytest.mark.parametrize("share", [lambda leaf: (leaf * 1.0)[:1].expand(3, 9), overlapping], ids=["expanded", "overlapping"])
def test_rows_that_share_memory_are_not_overwritten(path, share):
    grads = []
    for in_place in (False, True):
        leaf = draw(3, 9).requires_grad_()
        selective_logprob(share(leaf), torch.tensor([1, 2, 3]), inplace_backward=in_place).logprob.sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


def test_autocast_changes_nothing(path):
    leaf, targets = draw(5, 60).requires_grad_(), ids(5, 2, vocabulary=60)
    results = []
    for on in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            out = selective_logprob(leaf, targets, 0.7)
            results.append([*out, *torch.autograd.grad(out[:3], leaf, [torch.ones_like(x) for x in out[:3]])])
    assert all(map(torch.equal, *results))


def test_an_ids_own_gradient_is_rounded_once(path):
    """p of the target is 1 − 2⁻¹²: 1 − p is lost where 1 is added to −p that has been rounded to bf16."""
    logits = torch.tensor([[8.3177, 0.0]], dtype=torch.bfloat16).requires_grad_()
    truth = 1 - logits.detach().double().softmax(-1)[0, 0]
    for targets in (torch.tensor([0]), torch.tensor([[0]]), torch.tensor([[0, 0, -100]])):
        (gradient,) = torch.autograd.grad(selective_logprob(logits, targets).logprob.sum(), logits)
        assert float(gradient[0, 0]) == pytest.approx(float(truth) * (2 if targets.shape == (1, 3) else 1), rel=1e-2) and truth > 0


def test_rows_in_order_and_in_place(path):
    """Rows 0, 4, 2 of five become the first three; a row of theirs without a coefficient is 0 and its logits, NaN, are not read."""
    logits, targets = draw(5, 70), ids(5, vocabulary=70)
    softmax = softmax_of(0.5 + draw(5, seed=3).abs(), None, None)
    _, entropy, m, log_sum = row_forward(logits, targets, softmax)
    grads = tuple(draw(5, seed=s).index_fill(0, torch.tensor(4), 0.0) for s in (5, 6, 7))
    whole = torch.empty(5, 70)
    row_backward(whole, logits, targets, softmax, (m, log_sum, entropy), grads)
    logits[4] = torch.nan
    order = torch.tensor([0, 4, 2])
    row_backward(logits[:3], logits, targets, softmax, (m, log_sum, entropy), grads, order)
    assert torch.allclose(logits[:3], whole[order], rtol=1e-6, atol=1e-7) and torch.equal(logits[1], torch.zeros(70))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": torch.ones(3)}, r"temperature has shape \(3,\), logits has \(3, 3, 8\): give one number, or one for each row"),
        ({"temperature": torch.ones(3, 3, requires_grad=True)}, r"temperature requires a gradient.*temperature.detach\(\)"),
        ({"temperature": torch.ones(3, 3, dtype=torch.int64)}, "temperature is torch.int64: give floating point"),
        ({"temperature": torch.tensor(0.0)}, "temperature holds values that are not finite or not > 0"),
        ({"targets": torch.zeros(3, 3, 0, dtype=torch.int64)}, r"targets has shape \(3, 3, 0\)"),
        (
            {"targets": torch.zeros(3, 3, device="meta", dtype=torch.int64)},
            r"targets is on meta, logits on cpu: move targets with .to\('cpu'\)",
        ),
        ({"temperature": torch.ones(3, 3, device="meta")}, "temperature is on meta, logits on cpu"),
        ({"bias": torch.ones(8, device="meta")}, "bias has shape .* on meta, logits"),
        ({"bias": torch.ones(8, dtype=torch.int64)}, "give floating point .V. .it is torch.int64"),
    ],
)
def test_bad_input_is_refused(change, message):
    x: dict = {"targets": torch.zeros(3, 3, dtype=torch.int64), "temperature": 1.0, "bias": None} | change
    with pytest.raises(ValueError, match=message):
        selective_logprob(torch.zeros(3, 3, 8), x["targets"], x["temperature"], bias=x["bias"])


def test_replicated_tensors_are_taken_and_sharded_ones_refused(path, tmp_path):
    torch.distributed.init_process_group("gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        logits, targets = draw(3, 8), ids(3, vocabulary=8)
        whole = DTensor.from_local(logits, mesh, [Replicate()]).requires_grad_()
        out = selective_logprob(
            whole, DTensor.from_local(targets, mesh, [Replicate()]), DTensor.from_local(torch.ones(3), mesh, [Replicate()])
        )
        out.logprob.sum().backward()
        leaf = logits.clone().requires_grad_()
        selective_logprob(leaf, targets).logprob.sum().backward()
        assert isinstance(whole.grad, DTensor) and torch.equal(whole.grad.to_local(), leaf.grad)
        with pytest.raises(
            ValueError, match=r"logits is a DTensor with placements .*Shard.*redistribute\(placements=\[Replicate\(\)\] \* 1\)"
        ):
            selective_logprob(DTensor.from_local(logits, mesh, [Shard(1)]), targets)
        with pytest.raises(ValueError, match=r"targets is a DTensor .* pass targets.to_local\(\) and everything else of the same rows"):
            selective_logprob(logits, DTensor.from_local(targets, mesh, [Shard(0)]))
    finally:
        torch.distributed.destroy_process_group()
