"""Every op as torch.library sees it: opcheck, fullgraph torch.compile, one graph for all lengths."""

import pytest
import torch

from soundrl.kernels.advantage import group_advantage
from soundrl.kernels.linear_logprob import linear_logprob
from soundrl.kernels.linear_policy_loss import linear_policy_loss
from soundrl.kernels.lm_head import LMHead, projection
from soundrl.kernels.logprob import selective_logprob
from soundrl.kernels.loss_rule import LossRule
from soundrl.kernels.policy_loss import policy_loss

H, V = 8, 24
RULE = LossRule(variant="gspo", correction="sequence", kl="k3", kl_coef=0.1, entropy_coef=0.01)


def leaves(T: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(T)
    hidden, weight = torch.randn(T, H, generator=rng), torch.randn(V, H, generator=rng)
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(V, (T,), generator=rng)


def rows(T: int) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(T + 1)
    return [-torch.rand(T, generator=rng) for _ in range(4)]


def cases(T: int) -> dict:
    """op → its arguments, as the public functions pass them."""
    hidden, weight, targets = leaves(T)
    logits = torch.randn(T, V, requires_grad=True)
    bias = torch.randn(V, requires_grad=True)
    old, sampler, reference, advantages = rows(T)
    logprob = (-torch.rand(T)).requires_grad_()
    entropy = torch.rand(T).requires_grad_()
    cu = torch.tensor([0, T // 2, T])
    per_row = torch.ones(T) * 0.8
    statistics = [torch.zeros(T), torch.ones(T), torch.ones(T)]
    adapter = LMHead(weight, bias, 3.0, lora=(torch.randn(2, H, requires_grad=True), torch.randn(V, 2, requires_grad=True), 0.5))
    head = tuple(projection(hidden, adapter, targets, per_row, False, None))
    return {
        "sequence_mean": (old, cu),
        "group_moments": (old, cu, advantages > -0.5, 1.0, sampler > -0.5),
        "group_advantage": (old, cu, advantages > -0.5, 1.0, sampler > -0.5, None, True),
        "policy_loss": (
            *(logprob, old, advantages, sampler, entropy, reference, old, old, sampler),
            *(RULE.words(), RULE.numbers()),
        ),
        "logprob": (logits, targets, 1.0, per_row, bias, 3.0, False),
        "logprob_backward": (logits.detach(), targets, 0.9, None, None, 0.0, statistics, old, sampler, None),
        "logprob_backward_": (logits.detach().clone(), targets, 0.9, None, None, 0.0, statistics, old, sampler, None),
        "linear_logprob": head,
        "linear_logprob_backward": (*(x.detach() if isinstance(x, torch.Tensor) else x for x in head), statistics, old, sampler, None, [True] * 5),  # noqa: E501
        "linear_policy_loss": (*head, old, advantages, sampler, reference, cu, torch.tensor(9.0), RULE.words(), RULE.numbers(), [True] * 5),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(cases(4)))
def test_opcheck(name):
    # Gradients of the statistics and of gradients are not defined: the static autograd check passes over non-differentiable outputs.
    op = getattr(torch.ops.soundrl, name).default
    torch.library.opcheck(op, cases(6)[name], test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))


def fused(hidden, weight, targets, old, sampler, advantages, cu):
    loss, sums, _ = linear_policy_loss(hidden, weight, targets, old, advantages, sampler, 9.0, rule=LossRule(correction="tis"))
    return loss, sums["kl"]


def apart(hidden, weight, targets, old, sampler, advantages, cu):
    logprob, entropy, lse, _ = linear_logprob(hidden, weight, targets, 0.9)
    second, *_ = selective_logprob(hidden @ weight.t(), targets, 0.9)
    scaled = group_advantage(advantages, cu)
    rule = LossRule(variant="grpo", entropy_coef=0.01)
    loss, sums = policy_loss(logprob + second, old, scaled, sampler, 9.0, rule=rule, cu_seqlens=cu, entropy_T=entropy)
    return loss + 0.0 * lse.sum(), sums["kl"]


def test_what_waits_for_a_gpu_is_kept_out_of_cuda_graphs():
    waits = {name for name in cases(4) if torch.Tag.cudagraph_unsafe in getattr(torch.ops.soundrl, name).default.tags}
    assert waits == {"linear_logprob", "linear_logprob_backward", "linear_policy_loss"}


@pytest.mark.parametrize("function", [fused, apart])
def test_compiles_whole_and_once_for_all_lengths(function):
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for T in (5, 16, 33):
            results = []
            for way in (function, compiled):
                hidden, weight, targets = leaves(T)
                old, sampler, _, advantages = rows(T)
                loss, kl = way(hidden, weight, targets, old, sampler, advantages, torch.tensor([0, 2, T]))
                loss.backward()
                results.append([loss.detach(), kl, hidden.grad, weight.grad])
            assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)), T


def test_a_recompilation_would_be_noticed():
    """Inverse of the test above: with static shapes the second length compiles anew."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, y: group_advantage(x, y), backend="aot_eager", fullgraph=True, dynamic=False)
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled(torch.ones(4), torch.tensor([0, 4]))
        with pytest.raises(torch._dynamo.exc.RecompileError):
            compiled(torch.ones(5), torch.tensor([0, 5]))
