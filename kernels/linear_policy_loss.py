"""From hidden states to the policy loss in one autograd node. Shapes: T trained tokens, H hidden, V vocabulary, N rollouts, P groups.

A token's coefficient, the derivative of the loss by its log-probability, is known as soon as its own log-probability is. So one pass
over chunks of tokens makes the logits, the loss, and the gradients of hidden states and weight: 6·T·H·V FLOP, where forward and backward
passes that know nothing of each other need 8. Rules that look at whole sequences (gspo, the sequence mask on policy) need all
log-probabilities first and pay the 8.

Rows whose coefficient is 0 (masked or clipped tokens; advantage 0 without KL and entropy terms) have an exactly zero gradient and are
left out of both products of the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from soundrl.kernels.advantage import RewardGroups
from soundrl.kernels.backend import columns, operator, require
from soundrl.kernels.head_chunks import HEAD, HeadGradient, LinearHead
from soundrl.kernels.linear_logprob import Logprobs, checked_head, gradient_of_rows, gradients_like, head_forward, head_softmax
from soundrl.kernels.lm_head import LMHead, lm_head
from soundrl.kernels.logprob import row_forward
from soundrl.kernels.loss_rule import RULE, LossRule
from soundrl.kernels.policy_loss import METRIC_SUMS, check_rule, loss_terms, sequence_terms


def linear_policy_loss(
    hidden_TH: Tensor,
    head: Tensor | LMHead,
    targets_T: Tensor,
    old_logprob: Tensor | None,
    advantages: Tensor | RewardGroups,
    sampler_logprob: Tensor | None,
    count: float | Tensor | None,
    *,
    rule: LossRule | None = None,
    cu_seqlens: Tensor | None = None,
    reference_logprob: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    fp32_logits: bool = False,
    memory_budget: int | None = None,
) -> tuple[Tensor, dict[str, Tensor], Logprobs]:
    """`policy_loss` of `linear_logprob`, with the advantage of `group_advantage` in front: equal to the three in a row, in one node.

    hidden, head, targets, temperature, fp32_logits, memory_budget            as in `linear_logprob`
    old_logprob, sampler_logprob, count, rule, cu_seqlens, reference_logprob  as in `policy_loss`
    advantages   [T] fp32, or `RewardGroups`: rewards, flags and group bounds of the N rollouts, which `cu_seqlens` [N+1] then bounds
    Rows with coefficient 0 are left out of the gradient's products; that waits for the GPU once a chunk, to learn how many there are.

    Returns loss (scalar), metric sums (`METRIC_SUMS`) and `Logprobs`; the loss alone is differentiable, by
    hidden, weight and bias. The gradients are made in the forward pass and kept until backward: [T, H] in hidden's type, [V, H] in fp32.
    No [T, V] tensor exists at any time. Raises ValueError as its parts do.
    """
    rule, head = rule or LossRule(), lm_head(head)
    softmax = checked_head(hidden_TH, head.weight_VH, targets_T, head_softmax(head, temperature))
    if isinstance(advantages, RewardGroups):
        require(cu_seqlens is not None, lambda: "advantages are RewardGroups, which need cu_seqlens [N+1] of the rollouts' tokens; pass it")
        assert cu_seqlens is not None
        advantages_T = advantages.advantages(cu_seqlens, len(hidden_TH))
    else:
        advantages_T = advantages
    given = {"old_logprob": old_logprob, "advantages": advantages_T, "sampler_logprob": sampler_logprob}
    check_rule(rule, count, cu_seqlens, ("hidden", hidden_TH), given | {"reference_logprob": reference_logprob})
    settings = (*softmax, fp32_logits, memory_budget or 0)
    per_token = (old_logprob, advantages_T, sampler_logprob, reference_logprob if rule.kl != "none" else None)
    wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (hidden_TH, head.weight_VH, head.bias_V)]
    loss_sum, logprob_T, entropy_T, sums, m_T, log_sum_T, *_ = _linear_policy_loss(
        *(hidden_TH, head.weight_VH, targets_T, *settings, *per_token, cu_seqlens, rule.words(), rule.numbers(), wanted, True)
    )
    loss = loss_sum / (max(len(hidden_TH), 1) if count is None else count)
    lse_T = m_T / (softmax.temperature if softmax.temperature_T is None else softmax.temperature_T) + log_sum_T
    logprobs = Logprobs(logprob_T, entropy_T, lse_T, logprob_T == -log_sum_T)
    return loss, dict(zip(METRIC_SUMS, sums.unbind(), strict=True)), logprobs


PER_TOKEN = "Tensor? old_T, Tensor advantages_T, Tensor? sampler_T, Tensor? reference_T, Tensor? cu_seqlens"
NINE = f"({', '.join(['Tensor'] * 9)})"


@operator(f"linear_policy_loss({HEAD}, {PER_TOKEN}, {RULE}, bool[] wanted, bool compact) -> {NINE}")
def _linear_policy_loss(hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Loss before `count`, log-prob, entropy, metric sums; gradients of hidden, weight, bias (empty where not `wanted`)."""
    *settings, old_logprob_T, advantages_T, sampler_logprob_T, reference_logprob_T, cu_seqlens, words, numbers, wanted, compact = rest
    rule = LossRule.of(words, numbers)
    head = LinearHead(hidden_TH, weight_VH, *settings)
    logprob_T, entropy_T, m_T, log_sum_T = of_rows = columns(hidden_TH, 4)
    whole_first = rule.needs_sequences(old_logprob_T is None)
    if whole_first or not any(wanted):
        logprob_T, entropy_T, m_T, log_sum_T = head_forward(hidden_TH, weight_VH, targets_T, *settings)
    # Reads log-probabilities only where they are all there.
    of_sequences = sequence_terms(rule, logprob_T, old_logprob_T, sampler_logprob_T, cu_seqlens)

    def terms(rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        entropy = entropy_T if rule.entropy_coef else None
        per_token = (logprob_T, old_logprob_T, advantages_T, sampler_logprob_T, entropy, reference_logprob_T)
        cut = [None if x is None else x[rows] for x in (*per_token, *of_sequences)]
        return loss_terms(*cut, words, numbers)

    gradient = HeadGradient(head, *(wanted if not whole_first else (False, False, False)))
    gradients = gradient.hidden, gradient.weight, gradient.bias
    if any(wanted) and not whole_first:
        for rows, logits_cV in head.chunks():
            for whole, part in zip(of_rows, row_forward(logits_cV, targets_T[rows], head.softmax.of_rows(rows)), strict=True):
                whole[rows] = part
            _, *slopes_c, _ = terms(rows)
            gradient.add(rows, logits_cV, targets_T, (m_T, log_sum_T, entropy_T), tuple(slopes_c), compact)
    # Over all rows at once, so that loss and metrics do not depend on the chunks.
    loss_sum, slope_T, entropy_slope_T, sums = terms(slice(None))
    if any(wanted) and whole_first:
        grads = ([m_T, log_sum_T, entropy_T], slope_T, entropy_slope_T)
        gradients = gradient_of_rows(hidden_TH, weight_VH, targets_T, *settings, *grads, wanted, compact)
    return loss_sum, logprob_T, entropy_T, sums, m_T, log_sum_T, *gradients


@_linear_policy_loss.register_fake
def _(hidden_TH: Tensor, weight_VH: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    x_T, entropy_T, m_T, log_sum_T = columns(hidden_TH, 4)
    return x_T.new_empty(()), x_T, entropy_T, x_T.new_empty(len(METRIC_SUMS)), m_T, log_sum_T, *gradients_like(hidden_TH, weight_VH, *rest)


def _keep(ctx, inputs: tuple, output: tuple) -> None:
    _, *others = output
    ctx.mark_non_differentiable(*others)
    ctx.save_for_backward(*output[6:])
    ctx.types = inputs[1].dtype, None if inputs[5] is None else inputs[5].dtype
    ctx.wanted = inputs[-2]


def _backward(ctx, grad: Tensor, *_: object) -> tuple:
    dhidden_TH, dweight_VH, dbias_V = ctx.saved_tensors
    of_hidden = dhidden_TH * grad.to(dhidden_TH.dtype) if ctx.wanted[0] else None
    weight_dtype, bias_dtype = ctx.types
    # Scaled and rounded in one pass: a second fp32 [V, H] would be the largest tensor of the step.
    of_weight = torch.mul(dweight_VH, grad, out=torch.empty_like(dweight_VH, dtype=weight_dtype)) if ctx.wanted[1] else None
    of_bias = (dbias_V * grad).to(bias_dtype) if ctx.wanted[2] else None
    return of_hidden, of_weight, None, None, None, of_bias, *[None] * 12


_linear_policy_loss.register_autograd(_backward, setup_context=_keep)
