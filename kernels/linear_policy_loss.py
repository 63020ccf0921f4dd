"""From hidden states to the policy loss in one autograd node. Shapes: T trained tokens, H hidden, V vocabulary, N rollouts, P groups.

A token's coefficient, the derivative of the loss by its log-probability, is known as soon as its own log-probability is. So one pass
over chunks of tokens makes the logits, the loss, and the gradients of hidden states and weight: 6·T·H·V FLOP, where forward and backward
passes that know nothing of each other need 8. Rules that look at whole sequences (gspo, the sequence mask on policy) need all
log-probabilities first and pay the 8.

Rows without a target (−100) are taken out before anything else. Rows whose coefficient is 0 have an exactly zero gradient and are left out
of both products of the gradient: those of advantage 0 without KL and entropy terms from the start, clipped ones chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from soundrl.kernels.advantage import RewardGroups
from soundrl.kernels.backend import columns, operator, require, schema_of, wide
from soundrl.kernels.head_chunks import (
    GRADIENTS,
    HEAD,
    LEAVES,
    HeadGradient,
    Projection,
    by_name,
    compaction,
    full_sums,
    gradients_like,
    indices,
)
from soundrl.kernels.linear_logprob import empty_statistics, head_backward, spread, statistics
from soundrl.kernels.lm_head import LMHead, projection
from soundrl.kernels.logprob import Logprobs, logprobs
from soundrl.kernels.loss_rule import RULE, LossRule
from soundrl.kernels.policy_loss import METRIC_SUMS, check_rule, loss_terms, sequence_terms
from soundrl.kernels.softmax import IGNORED


def linear_policy_loss(
    hidden: Tensor,
    head: Tensor | LMHead,
    targets: Tensor,
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

    hidden, head, temperature, fp32_logits                              as in `linear_logprob`; T rows in all, in any number of dimensions
    targets                                                             as there, one a row. A row of −100 is as if it were not there: it is
                                                                        in no sum, no length of a sequence and no count
    old_logprob, sampler_logprob, reference_logprob, rule, count        as in `policy_loss`, in the shape of the targets
    cu_seqlens     [N+1] bounds of the sequences within the T rows
    advantages     in the shape of the targets, or `RewardGroups`: rewards, flags and group bounds of the N rollouts of `cu_seqlens`
    memory_budget  bytes of logits alive at once (None: as in `linear_logprob`), at least 1

    Returns loss (scalar), metric sums (`METRIC_SUMS`) and `Logprobs`; the loss alone is differentiable, by what `linear_logprob` is. The
    gradients are made in the forward pass, in the types of what they are gradients of, and kept until backward. No [T, V] tensor exists at
    any time.

    Rows of advantage 0 have log-probabilities and stand in the metrics; who wants neither gives them −100, and their logits are not made.
    Waits for the GPU once, and once a chunk where rows may be clipped. Raises ValueError as its parts do.
    """
    rule = LossRule() if rule is None else rule
    require(memory_budget != 0, lambda: "memory_budget=0: gradients need at least a row of logits; leave it out, or give bytes")
    whole = projection(hidden, head, targets, temperature, fp32_logits, memory_budget)
    require(whole.targets.ndim == 1, lambda: f"targets has shape {tuple(targets.shape)}: a policy loss has one target a row")
    if isinstance(advantages, RewardGroups):
        require(cu_seqlens is not None, lambda: "advantages are RewardGroups, which need cu_seqlens [N+1] of the rollouts' tokens; pass it")
        assert cu_seqlens is not None
        advantages = advantages.advantages(cu_seqlens, len(whole.targets)).view(targets.shape)
    given = {"old_logprob": old_logprob, "advantages": advantages, "sampler_logprob": sampler_logprob}
    # Other shapes than the targets' are `check_rule`'s to refuse.
    given = {
        n: x if x is None or x.shape != targets.shape else x.reshape(-1)
        for n, x in (given | {"reference_logprob": reference_logprob}).items()
    }
    check_rule(rule, count, cu_seqlens, ("hidden", whole.hidden_TH), given)
    old_T, advantages_T, sampler_T, reference_T = given.values()
    leaves = (getattr(whole, name) for name in LEAVES)
    wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in leaves]
    per_token = (old_T, advantages_T, sampler_T, reference_T if rule.kl != "none" else None)
    loss, logprob_T, entropy_T, lse_T, log_sum_T, sums, *_ = _linear_policy_loss(
        *whole, *per_token, cu_seqlens, _divisor(count, whole.hidden_TH), rule.words(), rule.numbers(), wanted
    )
    rows = logprobs(logprob_T, entropy_T, lse_T, log_sum_T, targets)
    return loss, dict(zip(METRIC_SUMS, sums.unbind(), strict=True)), rows


def _divisor(count: float | Tensor | None, like: Tensor) -> Tensor | None:
    """A checked `count` as a scalar on the rows' device."""
    if isinstance(count, Tensor):
        return count.detach().reshape(()).to(like.device, wide(like))
    return None if count is None else torch.full((), count, dtype=wide(like), device=like.device)


class PerToken(NamedTuple):
    """What the loss of a token reads beside its own log-probability, all [T]."""

    old_T: Tensor | None
    advantages_T: Tensor
    sampler_T: Tensor | None
    reference_T: Tensor | None

    def at(self, rows: Tensor) -> PerToken:
        return PerToken(*(None if x is None else x[rows] for x in self))


REST = f"{schema_of(PerToken)}, Tensor? cu_seqlens, Tensor? count, {RULE}, bool[] wanted"
SEVEN = ", ".join(["Tensor"] * 7)


@operator(f"linear_policy_loss({HEAD}, {REST}) -> ({SEVEN}, {GRADIENTS})", waits=True)
@full_sums()
def _linear_policy_loss(*given: Any) -> tuple[Tensor, ...]:
    """Loss; log-prob, entropy, log-sum-exp, log S [T]; metric sums; what the gradients are still to be multiplied by; gradients of
    `LEAVES`."""
    head, rest = Projection(*given[: len(Projection._fields)]), given[len(Projection._fields) :]
    tokens, (cu_seqlens, count, words, numbers, wanted) = PerToken(*rest[:4]), rest[4:]
    rule, total = LossRule.of(words, numbers), len(head.targets)
    everywhere = rule.kl != "none" or rule.entropy_coef != 0  # a term with a gradient whatever the advantage
    kept_T = head.targets != IGNORED
    live_T = kept_T if everywhere else kept_T & (tokens.advantages_T != 0)
    kept, live = torch.stack([kept_T.sum(), live_T.sum()]).tolist()  # waits for the GPU
    rows = indices(kept_T, kept)
    if rows is not None:
        head, tokens, live_T = head.at(rows), tokens.at(rows), live_T[rows]
        cu_seqlens = None if cu_seqlens is None else pad(kept_T.cumsum(0), (1, 0))[cu_seqlens]
    count = head.hidden_TH.new_full((), max(kept, 1), dtype=wide(head.hidden_TH)) if count is None else count
    folded, left = _folded(count, head.hidden_TH.dtype)

    in_one_pass = any(wanted) and not rule.needs_sequences(tokens.old_T is None)
    of_rows = empty_statistics(head) if in_one_pass else statistics(head)
    # Reads log-probabilities only where they are all there.
    of_sequences = sequence_terms(rule, of_rows[0], tokens.old_T, tokens.sampler_T, cu_seqlens)
    if in_one_pass and live < kept:  # those with a coefficient first
        order = torch.argsort(~live_T, stable=True)
        head, tokens, rows = head.at(order), tokens.at(order), order if rows is None else rows[order]
        of_sequences = tuple(None if x is None else x[order] for x in of_sequences)

    def terms(at: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Loss before `count`, its derivative by log-probabilities and entropies with it folded in, metric sums, of the rows `at`."""
        (logprob_T, entropy_T, *_), (old_T, advantages_T, sampler_T, reference_T) = of_rows, tokens
        per_token = (logprob_T, old_T, advantages_T, sampler_T, entropy_T if rule.entropy_coef else None, reference_T, *of_sequences)
        loss_sum, slope, entropy_slope, sums = loss_terms(*(None if x is None else x[at] for x in per_token), words, numbers)
        return loss_sum, slope * folded, entropy_slope * folded, sums

    if in_one_pass:
        may_vanish = (tokens.old_T is not None and rule.surrogate == "clip") or rule.correction in ("icepop", "sequence")
        gradients = _one_pass(head, of_rows, terms, wanted, live, may_vanish and not everywhere)
    # Over all rows at once, so that loss and metrics do not depend on the chunks.
    loss_sum, slope_T, entropy_slope_T, sums = terms(slice(None))
    logprob_T, entropy_T, m_T, log_sum_T = of_rows
    if not in_one_pass:
        grads = [slope_T, entropy_slope_T, torch.zeros_like(slope_T)]
        gradients = head_backward(*head, [m_T, log_sum_T, entropy_T], grads, wanted) if any(wanted) else gradients_like(head, wanted)
    lse_T = head.softmax.log_sum_exp(m_T, log_sum_T)
    of_rows = (spread(x_T, rows, total) for x_T in (logprob_T, entropy_T, lse_T, log_sum_T))
    of_hidden, *of_rest = gradients
    return loss_sum / count, *of_rows, sums, left, spread(of_hidden, rows, total) if wanted[0] else of_hidden, *of_rest


def _one_pass(
    head: Projection,
    of_rows: tuple[Tensor, ...],
    terms: Callable[[slice], tuple[Tensor, ...]],
    wanted: list[bool],
    live: int,
    compact: bool,
) -> tuple[Tensor, ...]:
    """Fills `of_rows` and returns the gradients. The first `live` rows have one; `compact` leaves out those of them whose slopes turn out
    to be 0, and waits for the GPU once a chunk to learn how many are left."""
    size = head.rows_of_a_chunk(of_weight=wanted[1])
    gradient = HeadGradient(head, wanted, single=live <= size)
    for rows, chunk, logits_cV in head.chunks(size):
        for whole, part in zip(of_rows, chunk.whole_statistics(chunk.own_statistics(logits_cV)), strict=True):
            whole[rows] = part
        if rows.start < live:
            rows = slice(rows.start, min(rows.stop, live))
            _, *slopes, _ = terms(rows)
            _, entropy_c, *others = (x_T[rows] for x_T in of_rows)
            order = compaction((slopes[0] != 0) | (slopes[1] != 0)) if compact else None
            if order is None or len(order):
                chunk, logits_cV = chunk.at(slice(rows.stop - rows.start)), logits_cV[: rows.stop - rows.start]
                gradient.add(rows, chunk, chunk.turn(logits_cV, (*others, entropy_c), (*slopes, None), order), order)
        del logits_cV  # the buffer goes before the sums are rounded
    return gradient.total()


def _folded(count: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """1 / count as (what the slopes are multiplied by in fp32, before anything is rounded; what is left for the gradients made of them).

    A gradient scaled in its own type would be off as a whole, by up to 2⁻⁹ in bf16. fp16 ends at 6 · 10⁻⁸: there all of it is left, and
    meets the upstream gradient, which is then a scale of the loss, in fp32 (`_scaled`).
    """
    parts = 1 / count, torch.ones_like(count)
    return parts[::-1] if dtype == torch.float16 else parts


@_linear_policy_loss.register_fake
def _(*given: Any) -> tuple[Tensor, ...]:
    head = Projection(*given[: len(Projection._fields)])
    of_rows = columns(head.hidden_TH, 4)
    loss, left = (of_rows[0].new_empty(()) for _ in range(2))
    return loss, *of_rows, loss.new_empty(len(METRIC_SUMS)), left, *gradients_like(head, given[-1])


def _keep(ctx, inputs: tuple, output: tuple) -> None:
    _, *others = output
    ctx.mark_non_differentiable(*others)
    ctx.save_for_backward(*output[6:])
    ctx.set_materialize_grads(False)  # zeros as gradients of the gradients: as much memory once more
    ctx.wanted, ctx.others = inputs[-1], len(inputs) - len(Projection._fields)


def _backward(ctx, grad: Tensor, *_: object) -> tuple:
    left, *gradients = ctx.saved_tensors
    return by_name([_scaled(x, grad * left) for x in gradients], ctx.wanted, ctx.others)


def _scaled(x: Tensor, factor: Tensor) -> Tensor:
    """x · factor by an fp32 product, rounded once. On CPU, where looking costs nothing, a factor of 1 is seen."""
    if type(factor) is Tensor and factor.device.type == "cpu" and not torch.compiler.is_compiling() and factor == 1:
        return x
    # A scalar would be rounded to x's type first: with a dimension it is multiplied in its own.
    return torch.mul(x, factor.view([1] * x.ndim), out=torch.empty_like(x))


_linear_policy_loss.register_autograd(_backward, setup_context=_keep)
