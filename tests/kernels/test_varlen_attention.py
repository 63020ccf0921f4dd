"""Packed attention in Triton's interpreter against an explicit masked softmax in fp64, and what must not depend on the pack.

Shapes: T tokens, Hq query heads, Hkv key heads, D head dimension.
"""

import math

import hypothesis.strategies as some
import pytest
import torch
import torch._dynamo.testing
from hypothesis import given
from hypothesis import settings as searched
from torch.distributed.tensor import DTensor, Replicate, Shard, init_device_mesh

from soundrl.kernels import varlen_attention as module
from soundrl.kernels import varlen_backward, varlen_launch
from soundrl.kernels.language import INTERPRETING
from soundrl.kernels.varlen_attention import forward, spans, varlen_attention, varlen_attention_reference
from soundrl.kernels.varlen_launch import TILE, Config, configs, passes, sequence_tiles, tile_bound

LENGTHS = [0, 1, 2, 16, 17, 64, 65, 127, 140]
TAIL = 3
assert INTERPRETING, "these tests need TRITON_INTERPRET=1 before triton is imported (tests/conftest.py)"


@pytest.fixture(params=["pointers", "descriptors"])
def kernels(request, monkeypatch):
    """Which kernels run where both exist."""
    monkeypatch.setattr(varlen_launch, "ASKED", "1" if request.param == "descriptors" else None)


@pytest.fixture
def plain(monkeypatch):
    """What a CPU runs without an interpreter."""
    monkeypatch.setattr(module, "runs_triton", lambda x: False)


def bounds(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def inputs(tokens: int, heads: int, kv_heads: int, dim: int, dtype=torch.float32, seed: int = 0) -> list[torch.Tensor]:
    """q, k, v and the gradient of the output."""
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, h, dim, generator=rng).to(dtype) for h in (heads, kv_heads, kv_heads, heads)]


def run(attention, q, k, v, upstream, *arguments, **settings) -> list[torch.Tensor]:
    """Output and the gradients of q, k and v; in fp64 for `dense`."""
    if attention is dense:
        q, k, v, upstream = (x.double() for x in (q, k, v, upstream))
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = attention(*leaves, *arguments, **settings)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def dense(q, k, v, cu_seqlens, window=None, softcap=None):
    """The whole row at once in fp64, with one [T, T] mask; rows behind the last boundary see nothing."""
    tokens, heads, dim = q.shape
    q, k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (q, k, v))
    owner = torch.searchsorted(cu_seqlens, torch.arange(tokens), right=True)
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    seen = (owner[:, None] == owner) & (owner < len(cu_seqlens)) & (distance >= 0) & (distance < (window or tokens))
    score = torch.einsum("thd,shd->hts", q, k) / math.sqrt(dim)
    if softcap:
        score = softcap * torch.tanh(score / softcap)
    weight = torch.where(seen, score, -1e30).softmax(-1) * seen
    return torch.einsum("hts,shd->thd", weight, v)


# Each head dimension with each group size, each with either type and each of the four score forms.
CASES = [
    (dim, group, (torch.float32, torch.bfloat16)[(i + j) % 2], *((None, None), (50, None), (None, 5.0), (20, 5.0))[(i + j) % 4])
    for i, dim in enumerate((32, 64, 96, 128))
    for j, group in enumerate((1, 2, 4, 8))
    if (i + j) % 2 == 0 or group <= 4
]


@pytest.mark.parametrize(("dim", "group", "dtype", "window", "softcap"), CASES)
def test_forward_and_backward_against_fp64(monkeypatch, dim, group, dtype, window, softcap):
    if dim != 96 and (group == 1 or dim == 64):
        monkeypatch.setattr(varlen_launch, "ASKED", "1")
    cu_seqlens = bounds(LENGTHS if group < 4 else [0, 1, 17, 64, 140])  # a program a head: eight heads are slow to interpret
    q, k, v, upstream = inputs(int(cu_seqlens[-1]) + TAIL, group, 1, dim, dtype)
    ours = run(varlen_attention, q, k, v, upstream, cu_seqlens, window=window, softcap=softcap)
    expected = run(dense, q, k, v, upstream, cu_seqlens, window, softcap)
    for name, a, b in zip(("out", "dq", "dk", "dv"), ours, expected, strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        # The interpreter truncates to bf16, a unit in the last place at most; O in bf16 also enters the gradients of q and k.
        relative, absolute = {torch.float32: (1e-5, 2e-6), torch.bfloat16: (2**-7, 2e-5 if name in ("out", "dv") else 1e-2)}[dtype]
        worst = ((a.double() - b).abs() - relative * b.abs()).max().item()
        assert worst <= absolute * (1 if name == "out" else b.abs().max().item()), (name, worst)
        assert (a[-TAIL:] == 0).all()
    # Inverse: the measure tells another window, another softcap and a mask that is off by one sequence.
    wrong = dense(q.double(), k.double(), v.double(), cu_seqlens[:-1], window, softcap)
    assert (ours[0].double() - wrong).abs().max() > 0.1


@pytest.mark.parametrize(("own", "step"), [(64, 32), (32, 64), (128, 128)])
def test_any_blocks_give_the_same_values(monkeypatch, own, step):
    """Tiles in several parts, blocks wider than the tile's part, and one block for all: the table may hold any of them."""
    cu_seqlens = bounds([0, 1, 33, 150])
    q, k, v, upstream = inputs(int(cu_seqlens[-1]) + TAIL, 2, 1, 16)
    monkeypatch.setattr(varlen_launch, "INTERPRETER", passes(*[Config(own, step, 4, 1)] * 3))
    monkeypatch.setattr(varlen_launch, "INTERPRETER_TMA", dict.fromkeys(("forward", "dkv"), Config(own, step, 4, 1, tma=True)))
    for window, asked in ((None, None), (40, "1")):
        monkeypatch.setattr(varlen_launch, "ASKED", asked)
        ours = run(varlen_attention, q, k, v, upstream, cu_seqlens, window=window)
        for a, b in zip(ours, run(dense, q, k, v, upstream, cu_seqlens, window), strict=True):
            assert torch.allclose(a.double(), b, rtol=1e-5, atol=5e-6)


def test_the_reference_knows_window_and_softcap():
    cu_seqlens = bounds([0, 1, 7, 33])
    q, k, v, upstream = (x.double() for x in inputs(int(cu_seqlens[-1]), 4, 2, 8))
    for settings in ({}, {"window": 5}, {"softcap": 2.0}, {"window": 3, "softcap": 2.0}):
        ours = run(varlen_attention_reference, q, k, v, upstream, cu_seqlens.diff().tolist(), **settings)
        for a, b in zip(ours, run(dense, q, k, v, upstream, cu_seqlens, **settings), strict=True):
            assert torch.allclose(a, b, atol=1e-12)


def test_a_sequence_gives_the_same_bits_in_any_pack(kernels):
    """Outputs and gradients alone, in two packs, and beside a sequence of NaN: bit for bit."""
    lengths, probe = [40, 70, 9], 1
    cu_seqlens = bounds(lengths)
    base = inputs(int(cu_seqlens[-1]), 2, 1, 32)
    part = slice(int(cu_seqlens[probe]), int(cu_seqlens[probe + 1]))
    alone = run(varlen_attention, *(x[part] for x in base), bounds([lengths[probe]]))
    first = run(varlen_attention, *base, cu_seqlens)
    # Another pack: other neighbours, other lengths, other offsets.
    before, after = inputs(131, 2, 1, 32, seed=1), inputs(5, 2, 1, 32, seed=2)
    other = run(varlen_attention, *(torch.cat([a, x[part], b]) for a, x, b in zip(before, base, after, strict=True)), bounds([131, 70, 5]))
    poisoned = [x.clone() for x in base]
    for x in poisoned:
        x[: part.start], x[part.stop :] = torch.nan, torch.inf
    beside_nan = run(varlen_attention, *poisoned, cu_seqlens)
    for i in range(4):
        assert torch.equal(alone[i], first[i][part])
        assert torch.equal(alone[i], other[i][131:201])
        assert torch.equal(alone[i], beside_nan[i][part])
        assert not torch.isfinite(beside_nan[i][: part.start]).any()  # witness: the neighbours were spoilt
    # Inverse: one changed token of the sequence itself does change it.
    changed = [x.clone() for x in base]
    changed[1][part.start] += 1.0
    assert not torch.equal(run(varlen_attention, *changed, cu_seqlens)[0][part], first[0][part])


def test_probabilities_are_masked_after_the_exponential(monkeypatch):
    """A later key whose hidden score exceeds the row's LSE by more than 2^128: its probability overflows before the mask."""
    q, k, v, upstream = inputs(24, 1, 1, 16)
    q[:] = q.abs()
    k[-1] = 1e4
    cu_seqlens = bounds([24])
    hidden = (q[0, 0] @ k[-1, 0]) / 4 * varlen_launch.LOG2E
    assert torch.exp2(hidden).isinf()  # witness
    ours = run(varlen_attention, q, k, v, upstream, cu_seqlens)
    # Of the last row the query's gradient is a rounding error of 1 times that key: a few 1e-3, or 0, by the processor.
    for a, b in zip(ours, run(dense, q, k, v, upstream, cu_seqlens), strict=True):
        assert torch.allclose(a.double(), b, rtol=1e-4, atol=5e-3)
    # Inverse: without that mask the gradients are not finite.
    monkeypatch.setattr(varlen_backward, "visible", lambda row, column, *_: (row >= column) | (row < column))
    assert not all(torch.isfinite(x).all() for x in run(varlen_attention, q, k, v, upstream, cu_seqlens))


def test_more_than_65535_tokens():
    """70,000 of which five belong to sequences: all rows are written. A grid's axes y and z would end at 65,535."""
    q, k, v, _ = inputs(70_000, 1, 1, 16)
    out = varlen_attention(q, k, v, bounds([2, 3]))
    assert torch.allclose(out[:5].double(), dense(q[:5].double(), k[:5].double(), v[:5].double(), bounds([2, 3])), atol=1e-5)
    assert (out[5:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["kernel", "plain"])
@pytest.mark.parametrize("tokens", [0, 4])
def test_no_sequence_at_all(tokens, dtype):
    """Zeros that are part of the graph, whatever stands in the rows that belong to no sequence."""
    given = inputs(tokens, 2, 1, 16, dtype)
    if tokens:
        given[0][1] = math.nan
    for cu_seqlens, settings in (([0], {}), ([0, 0], {}), ([0, 0, 0], {"window": 2}), ([0, 0], {"softcap": 5.0})):
        out, *gradients = run(varlen_attention, *given, torch.tensor(cu_seqlens), **settings)
        assert all((x == 0).all() and x.shape[0] == tokens for x in (out, *gradients))


def test_rows_more_than_two_thousand_million_elements_apart():
    """Offsets are 64 bits wide: the last rows lie beyond 2³¹ elements. Only the pages that are read exist."""
    stride, lengths, dim = 2**23 - 8, [250, 20], 16
    tokens, dtype = sum(lengths), torch.float16
    storage = torch.empty(stride * tokens, dtype=dtype)
    far = [torch.as_strided(storage, (tokens, 1, dim), (stride, dim, 1), 64 * i) for i in range(3)]
    assert (tokens - 1) * stride > 2**31
    near = inputs(tokens, 1, 1, dim, dtype)
    for a, b in zip(far, near, strict=False):
        a.copy_(b)
    assert far[0].stride(0) == stride
    ours = varlen_attention(*far, bounds(lengths))
    assert torch.equal(ours, varlen_attention(*near[:3], bounds(lengths)))


STRIDES = {
    "dense": lambda x: x,
    "entries": lambda x: torch.stack([x, x], -1)[..., 0],
    "heads, odd": lambda x: torch.nn.functional.pad(x, (0, 3))[..., : x.shape[2]],
    "tokens, odd": lambda x: torch.nn.functional.pad(x.flatten(1), (0, 5))[:, : x.shape[1] * x.shape[2]].unflatten(1, x.shape[1:]),
    "heads outside": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "unaligned": lambda x: torch.nn.functional.pad(x.flatten(), (1, 0))[1:].view(x.shape),
    "one head for all": lambda x: x[:, :1].expand(x.shape),
    "one token for all": lambda x: x[:1].expand(x.shape),
}


def test_strides_of_every_argument(kernels):
    """The same values as of dense copies: q, k, v, the gradient, boundaries and tiles."""
    cu_seqlens = bounds([10, 70])
    tiles = sequence_tiles(cu_seqlens, 80)
    wide_tiles = torch.stack([tiles, tiles], -1)[..., 0]
    odd_bounds = torch.stack([cu_seqlens.int(), cu_seqlens.int()], 1)[:, 0]
    names = list(STRIDES)
    for i in (0, 4) if varlen_launch.ASKED else (2, 6):
        given = [STRIDES[names[(i + j) % len(names)]](x) for j, x in enumerate(inputs(80, 2, 2, 16))]
        expected = run(varlen_attention, *(x.clone(memory_format=torch.contiguous_format) for x in given), cu_seqlens, tiles_N4=tiles)
        leaves = [x.requires_grad_() for x in given[:3]]
        out = varlen_attention(*leaves, odd_bounds, tiles_N4=wide_tiles)
        ours = [out.detach(), *torch.autograd.grad(out, leaves, given[3])]
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True)), i


def test_a_window_as_large_as_32_bits_go_is_none(kernels):
    """A position plus the window must not overflow: keys would be seen by nobody, and their gradients 0."""
    q, k, v, upstream = inputs(70, 1, 1, 16)
    for window in (70, 2**31 - 1, 2**31, 2**40):
        ours = run(varlen_attention, q, k, v, upstream, bounds([70]), window=window)
        for a, b in zip(ours, run(dense, q, k, v, upstream, bounds([70])), strict=True):
            assert torch.allclose(a.double(), b, rtol=1e-5, atol=5e-6), window


@pytest.mark.parametrize("where", ["interpreted", "plain"])
def test_scores_beyond_fp16_and_q_alone_with_a_gradient(monkeypatch, where):
    if where == "plain":
        monkeypatch.setattr(module, "runs_triton", lambda x: False)
    q, k, v, upstream = (x.half() for x in inputs(40, 2, 1, 16))
    q, k = q * 100, k * 100  # products up to 10⁵
    assert ((q[:, :1] @ k.mT).isinf()).any()  # witness: as numbers of 16 bits they overflow
    q.requires_grad_()
    out = varlen_attention(q, k, v, bounds([40]), 1e-4)
    (gradient,) = torch.autograd.grad(out, q, upstream)
    wide = q.detach().double().requires_grad_()
    expected = dense(wide * 4e-4, k.double(), v.double(), bounds([40]))
    assert torch.allclose(out.double(), expected, atol=2e-3)
    expected_gradient = torch.autograd.grad(expected, wide, upstream.double())[0]
    assert torch.allclose(gradient.double(), expected_gradient, rtol=2e-2, atol=5e-3 * expected_gradient.abs().max())


@searched(max_examples=40)
@given(
    lengths=some.lists(some.integers(0, 40), max_size=5),
    tail=some.integers(0, 3),
    heads=some.sampled_from([(1, 1), (4, 1), (4, 2), (3, 3)]),
    dtype=some.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    window=some.sampled_from([None, 1, 7, 39, 100]),
    softcap=some.sampled_from([None, 5.0]),
    strides=some.tuples(*[some.sampled_from(list(STRIDES)[:6])] * 4),
    boundaries=some.sampled_from([torch.int32, torch.int64]),
)
def test_on_a_cpu_against_fp64(lengths, tail, heads, dtype, window, softcap, strides, boundaries):
    """Whole and in pieces; NaN in the rows that belong to no sequence and in one sequence reaches no other."""
    cu_seqlens = bounds(lengths)
    tokens = int(cu_seqlens[-1]) + tail
    given = [STRIDES[how](x) for how, x in zip(strides, inputs(tokens, *heads, 16, dtype, seed=tokens), strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "runs_triton", lambda x: False)
        patch.setattr(module, "PIECE", 16)
        ours = run(varlen_attention, *given, cu_seqlens.to(boundaries), window=window, softcap=softcap)
        expected = run(dense, *given, cu_seqlens, window, softcap)
        tolerance = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
        for a, b in zip(ours, expected, strict=True):
            assert a.dtype == dtype and torch.allclose(
                a.double(), b, rtol=tolerance, atol=tolerance * max(1.0, *b.abs().flatten().tolist(), 0.0)
            )
        if len(lengths) > 1:
            spoilt = [x.clone() for x in given]
            for x in spoilt:
                x[: lengths[0]], x[int(cu_seqlens[-1]) :] = math.nan, math.inf
            again = run(varlen_attention, *spoilt, cu_seqlens, window=window, softcap=softcap)
            others = slice(lengths[0], int(cu_seqlens[-1]))
            # Not bit for bit: a CPU's products depend on where in memory their rows begin.
            assert all(torch.allclose(a[others], b[others], rtol=tolerance, atol=10 * tolerance) for a, b in zip(ours, again, strict=True))
            assert all((x[int(cu_seqlens[-1]) :] == 0).all() for x in again)


def test_spans_are_the_worked_example(monkeypatch):
    monkeypatch.setattr(module, "PIECE", 256)
    assert list(spans([3, 300], 10, False)) == [(0, 0, 3), (3, 3, 259), (250, 259, 303)]
    assert list(spans([3, 0, 300], 0, False)) == [(0, 0, 3), (3, 3, 303)]


@pytest.mark.parametrize("where", ["interpreted", "plain"])
def test_autocast_says_the_type(monkeypatch, where):
    """As SDPA takes it: what is wider is cast, and one of several types is no error."""
    if where == "plain":
        monkeypatch.setattr(module, "runs_triton", lambda x: False)
    q, k, v, upstream = inputs(9, 2, 1, 16)
    narrow = run(varlen_attention, *(x.bfloat16() for x in (q, k, v, upstream)), bounds([4, 5]), softcap=3.0)
    with torch.autocast("cpu", torch.bfloat16):
        ours = run(varlen_attention, q, k.bfloat16(), v, upstream.bfloat16(), bounds([4, 5]), softcap=3.0)
        wide = varlen_attention(q.double(), k.double(), v.double(), bounds([4, 5]))
    assert ours[0].dtype == torch.bfloat16 and wide.dtype == torch.float64
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(ours, narrow, strict=True))


def test_tensors_that_every_rank_holds_or_that_are_sharded_by_heads():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        q, k, v, upstream = inputs(9, 2, 1, 16)
        expected = run(varlen_attention, q, k, v, upstream, bounds([4, 5]))
        for placement in (Replicate(), Shard(1)):
            spread = [DTensor.from_local(x, mesh, [placement]) for x in (q, k, v, upstream)]
            ours = run(varlen_attention, *spread, bounds([4, 5]))
            assert all(x.placements == (placement,) and torch.equal(x.to_local(), e) for x, e in zip(ours, expected, strict=True))
        by_tokens = [DTensor.from_local(x, mesh, [Shard(0)]) for x in (q, k, v)]
        with pytest.raises(ValueError, match=r"attention needs whole rows of tokens; redistribute to Replicate\(\) or Shard\(1\)"):
            varlen_attention(*by_tokens, bounds([4, 5]))
        with pytest.raises(ValueError, match=r"k is placed as \(\), q as \(Shard\(dim=0\),\); redistribute one of them"):
            varlen_attention(by_tokens[0], k, v, bounds([4, 5]))
    finally:
        torch.distributed.destroy_process_group()


def test_the_table_says_which_kernels_run():
    """What no GPU has proved is asked for, not the default; and it leaves short sequences to the kernels with pointers."""
    assert not varlen_launch.PROVED
    for version, entries in varlen_launch.TMA.items():
        for key in entries:
            assert [c.tma for c in configs(*key, None, version)] == [c.tma for c in configs(*key, "0", version)] == [False]
            assert [c.tma for c in configs(*key, "1", version)] == [True, False]
    for gpu, head_dim, version in (("hopper", 96, (3, 6)), ("ampere", 128, (3, 6)), ("blackwell", 128, (3, 6)), ("hopper", 128, (3, 7))):
        assert [c.tma for c in configs("forward", gpu, 2, head_dim, "1", version)] == [False]


def test_tiles_are_the_worked_example_and_cover_each_row_once():
    assert sequence_tiles(torch.tensor([0, 200, 210]), 212).tolist() == [[0, 200, 1, 1], [0, 200, 0, 1], [200, 10, 0, 1], [210, 2, 0, 0]]
    rng = torch.Generator().manual_seed(0)
    for dtype in (torch.int32, torch.int64):
        lengths = torch.randint(0, 700, (12,), generator=rng)
        cu_seqlens = bounds(lengths.tolist()).to(dtype)
        tokens = int(cu_seqlens[-1]) + 77
        tiles = sequence_tiles(cu_seqlens, tokens)
        assert tiles.shape == (tile_bound(tokens, 12), 4) and tiles.dtype == torch.int32
        rows = [
            start + row for start, length, i, _ in tiles.tolist() for row in range(i * TILE, min(length, (i + 1) * TILE))
        ]  # a filler has length 0
        assert sorted(rows) == list(range(tokens))
        work = [i + 1 if live and length > i * TILE else 0 for _, length, i, live in tiles.tolist()]
        assert work == sorted(work, reverse=True)


def test_registered_operators():
    q, k, v, _ = inputs(9, 2, 1, 16)
    tiles = sequence_tiles(bounds([4, 5]), 9)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(forward, (*leaves, tiles, 0.25, 0, 0.0))
    torch.library.opcheck(sequence_tiles, (bounds([4, 5]), 9))
    torch.library.opcheck(forward, (*(x.detach().double().requires_grad_() for x in leaves), bounds([4, 5]), 0.25, 3, 2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["kernel", "plain"])
def test_one_compilation_for_all_packings(dtype):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(varlen_attention, backend=counter, fullgraph=True, dynamic=True)
    rng = torch.Generator().manual_seed(0)
    for _ in range(3):
        lengths = torch.randint(0, 20, (int(torch.randint(2, 6, (1,), generator=rng)),), generator=rng).tolist()
        cu_seqlens = bounds([*lengths, 2])
        packed = inputs(int(cu_seqlens[-1]), 2, 1, 16, dtype)
        ours, eager = (run(attention, *packed, cu_seqlens) for attention in (compiled, varlen_attention))
        assert all(torch.equal(a, b) for a, b in zip(ours, eager, strict=True))
    assert counter.frame_count == 1
    torch._dynamo.reset()


Q, K, V, _ = inputs(10, 4, 2, 32)
CU = bounds([4, 6])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cu_seqlens": torch.tensor([1, 4, 10])}, "cu_seqlens runs from 1 to 10, q has 10 rows"),
        ({"cu_seqlens": torch.tensor([0, 6, 4, 10])}, "cu_seqlens decreases at entry 2: sizes cannot be negative"),
        ({"cu_seqlens": torch.tensor([0, 4, 11])}, "cu_seqlens runs from 0 to 11, q has 10 rows"),
        ({"cu_seqlens": torch.tensor([0.0, 10.0])}, r"torch.float32: give int32 or int64 \[n\+1\]"),
        ({"cu_seqlens": torch.tensor([[0, 10]])}, r"shape \(1, 2\)"),
        ({"cu_seqlens": torch.tensor([], dtype=torch.int32)}, r"shape \(0,\)"),
        ({"cu_seqlens": torch.empty(3, dtype=torch.int64, device="meta")}, "cu_seqlens is on meta, q on cpu"),
        ({"k_THD": K[:, :1].expand(-1, 3, -1), "v_THD": V[:, :1].expand(-1, 3, -1)}, "4 query heads cannot share 3 key heads"),
        ({"k_THD": K[:5], "v_THD": V[:5]}, "q's number of tokens"),
        ({"v_THD": V[..., :16]}, "must have one shape"),
        ({"q_THD": Q[None]}, "without a batch dimension"),
        (
            {"q_THD": Q[..., :12], "k_THD": K[..., :12], "v_THD": V[..., :12]},
            "head dimension 12 is not supported: multiples of 8 from 16 to 256",
        ),
        ({"k_THD": K.half()}, "k is torch.float16 on cpu, q is torch.float32"),
        ({"window": 0}, "window=0 must be > 0; None = no window"),
        ({"softcap": -1.0}, "softcap=-1.0 must be finite and > 0"),
        ({"tiles_N4": torch.zeros(2, 4, dtype=torch.int32)}, "made for another packing; call sequence_tiles"),
        ({"tiles_N4": sequence_tiles(CU, 10).long()}, "torch.int64 on cpu was made for another packing"),
    ],
)
def test_what_does_not_fit_is_said(change, said):
    arguments = {"q_THD": Q, "k_THD": K, "v_THD": V, "cu_seqlens": CU}
    varlen_attention(**arguments)  # inverse: without the change it runs
    with pytest.raises(ValueError, match=said):
        varlen_attention(**arguments | change)


def test_the_reference_checks_too_and_takes_no_tiles():
    q, k, v = (x.double() for x in (Q, K, V))
    assert torch.allclose(varlen_attention(q, k, v, CU), dense(q, k, v, CU))
    with pytest.raises(ValueError, match="decreases at entry 2"):
        varlen_attention(q, k, v, torch.tensor([0, 6, 4, 10]))
    with pytest.raises(ValueError, match=r"do not run torch.float64 on cpu here; leave it out"):
        varlen_attention(q, k, v, CU, tiles_N4=sequence_tiles(CU, 10))
