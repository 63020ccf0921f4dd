"""The streaming kernel compiled, on one GPU: pointers and TMA descriptors alike, few rows, odd strides, targets that are none.

`test_specialised_…` passing here is what lets (GPU, Triton) into `linear_logprob_triton.PROVED`.
"""

import pytest
import torch
from gpu_cases import DEVICE, SLACK, draw, off, targets, torch_both
from torch import Tensor
from torch.nn.functional import linear

from soundrl.kernels.linear_logprob_triton import EXACT, SPECIALISED, SQUARE, WIDE, launch_streaming, stream
from soundrl.kernels.softmax import Softmax

PLAIN = Softmax(0.8, None, None, 0.0)
NARROW = [torch.bfloat16, torch.float16]
hopper = pytest.mark.skipif(torch.cuda.get_device_capability()[0] != 9, reason="warp specialisation is compiled for sm_90")


def head(tokens: int, hidden: int, vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    weight_VH = draw(vocabulary, hidden, seed=1, dtype=dtype) * 2 * hidden**-0.5
    return draw(tokens, hidden, dtype=dtype), weight_VH, targets(tokens, vocabulary)


@hopper
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("tokens, hidden, vocabulary", [(1, 64, 5), (129, 200, 1009), (1000, 1024, 32_000), (257, 4096, 151_936)])
def test_specialised_equals_pointers_and_fp64(dtype, tokens, hidden, vocabulary):
    """The same products in the same order, and the same statistics: the same to the last bits of fp32; against fp64 as near as torch."""
    x = head(tokens, hidden, vocabulary, dtype)
    for rounds in (True, False):
        ours, theirs = (stream(*x, PLAIN, rounds, config) for config in (SPECIALISED, WIDE))
        assert all(off(a, b.double()) <= 1e-6 for a, b in zip(ours, theirs, strict=True))
    exact = torch_both(linear(x[0].double(), x[1].double()), x[2], 0.8)
    plain = torch_both(linear(x[0], x[1]), x[2], 0.8)
    for o, p, e in zip(stream(*x, PLAIN, True, SPECIALISED)[:2], plain, exact, strict=True):
        assert off(o, e) <= 2 * off(p, e) + SLACK


@hopper
def test_specialised_repeats_equal_bit_for_bit():
    """A race between the warp that loads and those that multiply would show here: 300 times, with another grid in between."""
    x, other = head(3000, 2048, 50_257, torch.bfloat16), head(100, 512, 1000, torch.bfloat16)
    first = stream(*x, PLAIN, True, SPECIALISED)
    for _ in range(300):
        stream(*other, PLAIN, True, SPECIALISED)
        assert all(map(torch.equal, stream(*x, PLAIN, True, SPECIALISED), first))


@pytest.mark.parametrize("dtype", [torch.float32, *NARROW])
def test_every_entry_of_the_table(dtype):
    hidden_TH, weight_VH, targets_T = head(300, 1000, 4003, dtype)
    bias_V, temperature_T = draw(4003, seed=3), 0.5 + draw(300, seed=4).abs()
    truth = linear(hidden_TH.double(), weight_VH.double())
    exact = torch_both(4 * torch.tanh((truth + bias_V.double()) / 4), targets_T, temperature_T.double())
    full = Softmax(1.0, torch.stack([temperature_T, temperature_T], 1)[:, 0], bias_V.repeat_interleave(2)[::2], 4.0)
    for config in (EXACT,) if dtype == torch.float32 else (SQUARE,):
        ours = stream(hidden_TH, weight_VH, targets_T.int(), full, False, config)
        assert all(off(o, e) <= 2e-5 for o, e in zip(ours[:2], exact, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, *NARROW])
def test_targets_that_are_none(dtype):
    """−100: zeros; outside the vocabulary: NaN; never what happened to be in memory. No check of values is on."""
    hidden_TH, weight_VH, _ = head(6, 64, 40, dtype)
    targets_T = torch.tensor([1, -100, 40, 3, -1, 2**32 + 3], device=DEVICE)
    for _ in range(3):
        torch.full((6,), 77.0, device=DEVICE)  # what a later allocation may find
        ours = launch_streaming(hidden_TH, weight_VH, targets_T, PLAIN, dtype != torch.float32)
        assert ours[0].isnan().tolist() == [False, False, True, False, True, True] and not any(x[1] for x in ours)
        assert all(x.isfinite().all() for x in ours[1:])


def test_few_rows_and_one_row_are_rows_of_many():
    x = head(700, 1024, 32_003, torch.bfloat16)
    whole = launch_streaming(*x, PLAIN, True)
    for rows in (slice(0, 1), slice(3, 20), slice(500, 700)):
        part = launch_streaming(x[0][rows], x[1], x[2][rows], PLAIN, True)
        assert all(torch.equal(a[rows], b) for a, b in zip(whole, part, strict=True))
