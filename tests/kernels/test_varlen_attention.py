"""Packed attention in Triton's interpreter against an explicit masked softmax in fp64, and what must not depend on the pack.

Shapes: T tokens, Hq query heads, Hkv key heads, D head dimension.
"""

import math

import pytest
import torch

from soundrl.kernels import varlen_backward, varlen_launch
from soundrl.kernels.language import INTERPRETING
from soundrl.kernels.varlen_attention import length_buckets, varlen_attention, varlen_attention_reference
from soundrl.kernels.varlen_forward import forward
from soundrl.kernels.varlen_launch import Config, passes
from soundrl.kernels.varlen_tiles import TILE, sequence_tiles, tile_bound

LENGTHS = [0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 200]
TAIL = 3
assert INTERPRETING, "these tests need TRITON_INTERPRET=1 before triton is imported (tests/conftest.py)"


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
def test_forward_and_backward_against_fp64(dim, group, dtype, window, softcap):
    cu_seqlens = bounds(LENGTHS)
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
    for window in (None, 40):
        ours = run(varlen_attention, q, k, v, upstream, cu_seqlens, window=window)
        for a, b in zip(ours, run(dense, q, k, v, upstream, cu_seqlens, window), strict=True):
            assert torch.allclose(a.double(), b, rtol=1e-5, atol=5e-6)


def test_the_reference_knows_window_and_softcap():
    cu_seqlens = bounds([0, 1, 7, 33])
    q, k, v, upstream = (x.double() for x in inputs(int(cu_seqlens[-1]), 4, 2, 8))
    for settings in ({}, {"window": 5}, {"softcap": 2.0}, {"window": 3, "softcap": 2.0}):
        ours = run(varlen_attention_reference, q, k, v, upstream, length_buckets(cu_seqlens), **settings)
        for a, b in zip(ours, run(dense, q, k, v, upstream, cu_seqlens, **settings), strict=True):
            assert torch.allclose(a, b, atol=1e-12)


def test_a_sequence_gives_the_same_bits_in_any_pack():
    """Outputs and gradients alone, in two packs, and beside a sequence of NaN: bit for bit."""
    lengths, probe = [40, 70, 9], 1
    cu_seqlens = bounds(lengths)
    base = inputs(int(cu_seqlens[-1]), 4, 2, 32)
    part = slice(int(cu_seqlens[probe]), int(cu_seqlens[probe + 1]))
    alone = run(varlen_attention, *(x[part] for x in base), bounds([lengths[probe]]))
    first = run(varlen_attention, *base, cu_seqlens)
    # Another pack: other neighbours, other lengths, other offsets.
    before, after = inputs(131, 4, 2, 32, seed=1), inputs(5, 4, 2, 32, seed=2)
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
    # Inverse: without the second mask the gradients are not finite.
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


def test_strides_that_kernels_cannot_address_are_copied():
    q, k, v, upstream = inputs(30, 2, 2, 16)
    cu_seqlens = bounds([10, 20])
    plain = run(varlen_attention, q, k, v, upstream, cu_seqlens)
    # As transformers gives them, [heads, T, D] in memory; with the last dimension strided; and an expanded gradient.
    turned = run(
        lambda *x: varlen_attention(*x), *(x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v)), upstream, cu_seqlens
    )
    strided = varlen_attention(*(torch.stack([x, x], -1)[..., 0] for x in (q, k, v)), cu_seqlens)
    assert all(torch.equal(a, b) for a, b in zip(plain, turned, strict=True)) and torch.equal(plain[0], strided)
    ones = torch.ones(())
    assert torch.equal(
        run(varlen_attention, q, k, v, ones.expand(q.shape), cu_seqlens)[1],
        run(varlen_attention, q, k, v, torch.ones_like(q), cu_seqlens)[1],
    )


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


def test_registered_operator_and_one_compilation_for_all_packings():
    q, k, v, _ = inputs(9, 2, 1, 16)
    tiles = sequence_tiles(bounds([4, 5]), 9)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(forward, (*leaves, tiles, 0.25, 0, 0.0))
    torch.library.opcheck(sequence_tiles, (bounds([4, 5]), 9))
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(varlen_attention, backend=counter, fullgraph=True, dynamic=True)
    rng = torch.Generator().manual_seed(0)
    for _ in range(6):
        lengths = torch.randint(0, 20, (int(torch.randint(2, 6, (1,), generator=rng)),), generator=rng).tolist()
        cu_seqlens = bounds([*lengths, 2])
        packed = inputs(int(cu_seqlens[-1]), 2, 1, 16)
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
