"""Log-probs from logits on one GPU, on what people really pass: strides, ids that are none, K ids a row, rows that are not aligned."""

import pytest
import torch
from gpu_cases import DEVICE, TYPES, draw, off, targets

from soundrl.kernels.logprob import selective_logprob


def gradients(logits_TV, *rest, **options):
    leaf = logits_TV.detach().requires_grad_()
    out = selective_logprob(leaf, *rest, **options)
    grads = [draw(x.numel(), seed=i + 3).view(x.shape) for i, x in enumerate(out[:3])]
    return [*(x.detach() for x in out), *torch.autograd.grad(out[:3], leaf, grads)]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("vocabulary", [1, 50_257, 151_936])
def test_ids_that_are_none_and_rows_that_are_not_aligned(dtype, vocabulary):
    logits_TV, targets_T = draw(9, vocabulary, dtype=dtype) * 3, targets(9, vocabulary)
    targets_T[2], targets_T[5], targets_T[7] = -100, vocabulary, -7
    logits_TV[2] = torch.nan
    logprob_T, entropy_T, lse_T, greedy_T, dlogits_TV = gradients(logits_TV, targets_T)
    assert logprob_T.isnan().nonzero().flatten().tolist() == [5, 7] and not greedy_T[[2, 5, 7]].any()
    assert logprob_T[2] == entropy_T[2] == lse_T[2] == 0 and not dlogits_TV[2].any()
    live = [0, 1, 3, 4, 6, 8]
    whole = logits_TV[live].double()
    exact = gradients(whole, targets_T[live])
    assert off(logprob_T[live], exact[0]) <= 2e-6 and off(lse_T[live], exact[2]) <= 2e-6
    assert (entropy_T[live].double() - exact[1]).abs().max() <= 1e-5
    assert torch.equal(greedy_T[live], whole.argmax(-1) == targets_T[live])


@pytest.mark.parametrize("dtype", TYPES)
def test_ids_by_the_row_and_any_stride(dtype):
    logits_TV, ids_TK = draw(33, 4099, dtype=dtype) * 3, targets(33 * 5, 4099).view(33, 5)
    ids_TK[:, 4], ids_TK[::3, 1], ids_TK[0] = ids_TK[:, 0], -100, -100
    temperature_T = 0.5 + draw(33, seed=1).abs()
    ours = gradients(logits_TV, ids_TK, temperature_T)
    exact = gradients(logits_TV.double(), ids_TK, temperature_T)
    eps = 2e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    assert all(off(p, q) <= 2e-6 for p, q in zip(ours[:3], exact[:3], strict=True)) and off(ours[4], exact[4]) <= eps
    spread = gradients(
        logits_TV, torch.stack([ids_TK, ids_TK + 1], -1)[..., 0].int(), torch.stack([temperature_T, temperature_T], 1)[:, 0, None]
    )
    assert all(map(torch.equal, ours, spread))
    assert ours[0].device.type == DEVICE
