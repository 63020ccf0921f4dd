"""Packed attention on a GPU: error beside SDPA's own, the same bits again and in any pack, no compilation as lengths change."""

import random

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from soundrl.kernels import varlen_backward, varlen_forward, varlen_launch
from soundrl.kernels.language import INTERPRETING
from soundrl.kernels.varlen_attention import varlen_attention, varlen_attention_reference

assert not INTERPRETING, "GPU tests need compiled kernels: set TRITON_INTERPRET=0"
GPU = torch.device("cuda")
NAMES = ("out", "dq", "dk", "dv")
# One pair of head counts a head dimension: each further pair would compile three kernels more.
HEADS = {16: (2, 1), 32: (8, 1), 40: (2, 2), 64: (8, 2), 96: (4, 4), 128: (8, 2), 192: (4, 1), 256: (4, 2)}


@pytest.fixture(params=["pointers", "descriptors"])
def kernels(request, monkeypatch):
    """Which kernels run where both exist. What passes with descriptors, and is faster, goes into `varlen_launch.PROVED`."""
    monkeypatch.setattr(varlen_launch, "ASKED", "1" if request.param == "descriptors" else "0")
    if request.param == "descriptors" and varlen_launch.gpu_kind(torch.device("cuda", torch.cuda.current_device())) != "hopper":
        pytest.skip("only Hopper has them")


def random_case(seed: int, dtype: torch.dtype, dim: int, tokens: int = 1200):
    """q, k, v and upstream gradient over a random packing with empty, short and long sequences and a tail, and score settings."""
    rng = random.Random(seed)
    heads, kv_heads = HEADS[dim]
    lengths = []
    while sum(lengths) < tokens - 300:
        lengths.append(rng.choice((0, 1, 2, rng.randint(3, 40), rng.randint(41, 290))))
    generator = torch.Generator(GPU).manual_seed(seed)
    tensors = [torch.randn(tokens, h, dim, device=GPU, generator=generator).to(dtype) for h in (heads, kv_heads, kv_heads, heads)]
    cu_seqlens = torch.tensor([0, *lengths], device=GPU).cumsum(0)
    settings = (
        {"window": rng.choice((None, 33, 70)), "softcap": rng.choice((None, 20.0))} if dim in (64, 128) and dtype == torch.bfloat16 else {}
    )
    return tensors, cu_seqlens, settings


def run(attention, tensors, *arguments, **settings) -> list[torch.Tensor]:
    """Output and the gradients of q, k, v."""
    *inputs, upstream = tensors
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attention(*leaves, *arguments, **settings)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


# 200 packings in all; BLOCK_D 16 … 256, heads of their own width and padded ones.
@pytest.mark.parametrize(
    ("dtype", "dim", "packings"),
    [
        *((torch.bfloat16, dim, 20) for dim in (32, 64, 96, 128, 192, 256)),
        *((torch.float16, dim, 15) for dim in (64, 128)),
        *((torch.float32, dim, 10) for dim in (16, 40, 64, 128, 256)),
    ],
)
def test_error_stays_within_twice_that_of_sdpa(kernels, dtype, dim, packings):
    """Root mean square against fp64, over all packings, of output and gradients; SDPA in the same type sets the budget."""
    ours_sum, budget_sum = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for seed in range(packings):
        tensors, cu_seqlens, settings = random_case(1000 * dim + seed, dtype, dim)
        lengths = cu_seqlens.diff().tolist()
        truth = run(varlen_attention_reference, [x.double() for x in tensors], lengths, **settings)
        ours = run(varlen_attention, tensors, cu_seqlens, **settings)
        peer = run(varlen_attention_reference, tensors, lengths, **settings)
        for i in range(4):
            assert torch.isfinite(ours[i]).all() and (ours[i][int(cu_seqlens[-1]) :] == 0).all(), (seed, NAMES[i])
            ours_sum[i] += (ours[i].double() - truth[i]).square().mean().cpu()
            budget_sum[i] += (peer[i].double() - truth[i]).square().mean().cpu()
    for name, error, budget in zip(NAMES, ours_sum.sqrt().tolist(), budget_sum.sqrt().tolist(), strict=True):
        print(f"{dtype} D{dim} {name}: {error / budget:.3f} × SDPA")
        assert error <= 2 * budget, (name, error, budget)


@pytest.mark.parametrize(("dtype", "dim"), [(torch.bfloat16, 64), (torch.bfloat16, 128), (torch.bfloat16, 256), (torch.float32, 64)])
def test_a_hundred_repeats_give_the_same_bits(kernels, dtype, dim):
    tensors, cu_seqlens, settings = random_case(7, dtype, dim, tokens=8000)
    first = run(varlen_attention, tensors, cu_seqlens, **settings)
    for _ in range(99):
        again = run(varlen_attention, tensors, cu_seqlens, **settings)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(("dtype", "dim"), [(torch.bfloat16, 64), (torch.bfloat16, 128), (torch.bfloat16, 256), (torch.float32, 64)])
def test_a_sequence_gives_the_same_bits_in_any_pack(kernels, dtype, dim):
    tensors, _, _ = random_case(3, dtype, dim, tokens=3000)
    q, k, v, upstream = tensors
    for length in (1, 63, 128, 129, 700):
        alone = [x[:length] for x in (q, k, v, upstream)]
        expected = run(varlen_attention, alone, torch.tensor([0, length], device=GPU))
        for before in (1, 127, 128, 1000):
            neighbours = [torch.cat([x[:before].flip(0), y, x[:77]]) for x, y in zip(tensors, alone, strict=True)]
            for x in neighbours:
                x[:before], x[before + length :] = torch.nan, torch.inf
            cu_seqlens = torch.tensor([0, before, before + length, before + length + 77], device=GPU)
            ours = run(varlen_attention, neighbours, cu_seqlens)
            assert all(torch.equal(a, b[before : before + length]) for a, b in zip(expected, ours, strict=True)), (length, before)
            assert not torch.isfinite(ours[0][:before]).any()  # witness: the neighbours were spoilt


def test_lengths_compile_nothing(kernels):
    """One binary a kernel for 100 packings of all sizes (F14, F19)."""
    compiled = (varlen_forward.varlen_forward_kernel, varlen_backward.varlen_dq_kernel, varlen_backward.varlen_dkv_kernel)

    def binaries() -> list[int]:
        return [len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in compiled]

    rng = random.Random(0)
    before = None
    for i in range(100):
        tokens = rng.randint(400, 3000) if i else 400
        lengths = [rng.randint(0, 60) for _ in range(rng.randint(1, 6))]
        tensors = [torch.randn(tokens, h, 128, device=GPU, dtype=torch.bfloat16) for h in (8, 2, 2, 8)]
        run(varlen_attention, tensors, torch.tensor([0, *lengths], device=GPU).cumsum(0))
        before = before or binaries()
    assert before == binaries() and min(before) >= 1


def test_nothing_waits_for_the_device(kernels):
    tensors, cu_seqlens, _ = random_case(0, torch.bfloat16, 64)
    run(varlen_attention, tensors, cu_seqlens)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(varlen_attention, tensors, cu_seqlens)
        with pytest.raises(RuntimeError, match="synchroniz"):  # inverse: the mode does see one
            cu_seqlens.diff().tolist()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_strides_of_every_argument(kernels):
    """Views that a model passes, a window of 32 bits, boundaries of int32 out of a larger tensor: the same bits as dense copies."""
    tensors, cu_seqlens, _ = random_case(5, torch.bfloat16, 64)
    fused = torch.cat(tensors[:3], dim=1)
    views = [*fused.split([x.shape[1] for x in tensors[:3]], dim=1), tensors[3].transpose(0, 1).contiguous().transpose(0, 1)]
    odd = [torch.nn.functional.pad(x.flatten(1), (1, 4))[:, 1:-4].unflatten(1, x.shape[1:]) for x in tensors]
    bounds = torch.stack([cu_seqlens.int()] * 2, 1)[:, 0]
    expected = run(varlen_attention, tensors, cu_seqlens, window=2**31 - 1)
    for given in (views, odd):
        assert all(torch.equal(a, b) for a, b in zip(expected, run(varlen_attention, given, bounds, window=2**31 - 1), strict=True))


def test_fp64_and_the_reference_on_a_gpu():
    tensors, cu_seqlens, _ = random_case(6, torch.float64, 64, tokens=700)
    for settings in ({}, {"window": 33}, {"softcap": 20.0}):
        ours = run(varlen_attention, tensors, cu_seqlens, **settings)
        truth = run(varlen_attention_reference, tensors, cu_seqlens.diff().tolist(), **settings)
        assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(ours, truth, strict=True))


def test_more_than_65535_tokens_and_heads_in_one_grid(kernels):
    lengths = [66_000, 3, 4000]
    tokens = sum(lengths) + 5
    tensors = [torch.randn(tokens, h, 64, device=GPU, dtype=torch.bfloat16) for h in (8, 2, 2, 8)]
    cu_seqlens = torch.tensor([0, *lengths], device=GPU).cumsum(0)
    ours = run(varlen_attention, tensors, cu_seqlens)
    last = slice(66_003, 70_003)
    alone = run(varlen_attention, [x[last] for x in tensors], torch.tensor([0, 4000], device=GPU))
    assert all(torch.equal(a[last], b) for a, b in zip(ours, alone, strict=True))
    assert all((x[-5:] == 0).all() and torch.isfinite(x).all() for x in ours)
