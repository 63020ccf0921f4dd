"""Packing: the worked example, budgets, and content rather than arrival deciding the order."""

import random

import pytest
import torch

from soundrl.engine.packing import Sample, pack, pack_all
from soundrl.kernels.varlen_attention import varlen_attention_reference

CPU = torch.device("cpu")


def sample(prompt: int, response: int, advantage: float = 1.0) -> Sample:
    return Sample(
        prompt_tokens=range(prompt), tokens=range(100, 100 + response), logprobs=[-0.5 - i for i in range(response)], advantage=advantage
    )


def test_the_worked_example():
    batch = pack(
        [
            Sample(prompt_tokens=[5, 6], tokens=[7], logprobs=[-1.0], advantage=2.0),
            Sample(prompt_tokens=[8], tokens=[9, 4], logprobs=[-2.0, -3.0], advantage=-1.0),
        ],
        CPU,
    )
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9, 4]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1, 2]
    assert batch.cu_seqlens.tolist() == [0, 3, 6]
    assert batch.loss_mask.tolist() == [False, False, True, False, True, True]
    assert batch.response_index.tolist() == [2, 4, 5]
    assert batch.response_cu_seqlens.tolist() == [0, 1, 3]
    assert batch.sampler_logprobs.tolist() == [0, 0, -1, 0, -2, -3]
    assert batch.advantages.tolist() == [0, 0, 2, 0, -1, -1]


def test_budget_and_first_fit():
    batches = pack_all([sample(2, 3), sample(1, 2), sample(2, 2), sample(1, 1)], 7, CPU)
    assert [b.cu_seqlens.tolist() for b in batches] == [[0, 5, 7], [0, 4, 7]]


def test_every_token_is_packed_once_whatever_the_budget():
    rng = random.Random(0)
    samples = [sample(rng.randint(1, 9), rng.randint(1, 30), advantage=float(i)) for i in range(40)]
    for budget in (39, 64, 1000):
        batches = pack_all(samples, budget, CPU)
        assert all(b.tokens <= budget for b in batches)
        assert sum(b.tokens for b in batches) == sum(s.length for s in samples)
        assert sorted(float(a) for b in batches for a in b.advantages[b.response_index].unique()) == sorted(s.advantage for s in samples)
        assert [b.input_ids.tolist() for b in batches] == [b.input_ids.tolist() for b in pack_all(samples, budget, CPU)]


def test_a_sequence_over_the_budget_names_the_setting():
    with pytest.raises(ValueError, match="12 tokens exceeds optim.microbatch_tokens 10"):
        pack_all([sample(2, 10)], 10, CPU)


def test_nothing_to_pack_still_runs():
    batch = pack((), CPU)
    assert batch.tokens == 2 and batch.response_index.tolist() == []


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_attention_never_crosses_a_boundary(heads):
    """Against one explicit masked softmax in fp64 over the whole row."""
    lengths = [1, 2, 0, 15, 16, 17, 33]
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    rng = torch.Generator().manual_seed(0)
    tokens, dim = int(cu[-1]), 8
    q = torch.randn(tokens, heads[0], dim, generator=rng, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(tokens, heads[1], dim, generator=rng, dtype=torch.float64, requires_grad=True) for _ in range(2))
    upstream = torch.randn(tokens, heads[0], dim, generator=rng, dtype=torch.float64)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    allowed = (owner[:, None] == owner) & (torch.arange(tokens)[:, None] >= torch.arange(tokens))
    k_full, v_full = (x.repeat_interleave(heads[0] // heads[1], dim=1) for x in (k, v))
    scores = torch.einsum("thd,shd->hts", q, k_full) * 0.3
    expected = torch.einsum("hts,shd->thd", scores.masked_fill(~allowed, -torch.inf).softmax(-1), v_full)
    gradients = torch.autograd.grad(expected, (q, k, v), upstream)
    ours = varlen_attention_reference(q, k, v, cu.diff().tolist(), 0.3)
    assert torch.allclose(ours, expected, atol=1e-12)
    for a, b in zip(torch.autograd.grad(ours, (q, k, v), upstream), gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
