"""The one definition of the policy loss; every path of soundrl computes exactly this.

Shapes: T = trained (response) tokens of a packed batch, B = sequences in it. All arithmetic is fp32 (fp64 for fp64 log-probabilities).

    r_t    = exp(logprob_t − old_logprob_t)                            log-ratio clamped to ±20, no gradient beyond
    clip   : m_t = max(−A_t r_t, −A_t clip(r_t, 1 − clip_low, 1 + clip_high)), and at most −A_t dual_clip where A_t < 0
    gspo   : the same with r_t = exp(mean over the sequence of logprob − old_logprob), its gradient taken token by token
    cispo  : m_t = −A_t min(r_t, 1 + clip_high) logprob_t              the factor of logprob_t carries no gradient
    sapo   : m_t = −A_t · 4/τ · sigmoid(τ (r_t − 1))                   τ by the sign of A_t
    loss   = Σ_t s_t (w_t m_t + kl_coef K_t − entropy_coef H_t) / count

`s_t` is 1, or 1/length where a variant first takes the mean over each sequence; which variant is which and what its `count` is stands in
`kernels/loss_rule.py`. `K_t` with x = reference_logprob_t − logprob_t (clamped to ±20): k1 −x, k2 x²/2, k3 exp(x) − 1 − x; times r_t on
request.

`w_t` corrects for the sampler, whose log-probabilities differ from the trainer's (q_t = exp(old_logprob_t − sampler_logprob_t)):
`none` 1; `tis` min(q_t, high) (truncated importance sampling); `icepop` q_t inside [low, high], else 0; `sequence` 1 where the
geometric mean of q over the sequence lies in [low, high], else 0. Weights carry no gradient.
A sampler's (or old) log-probability that is none (NaN, infinite, above 0: vLLM reports NaN for tokens of probability ~1) makes q_t
(and r_t) exactly 1 and stands in no mean over its sequence; such tokens are counted (`not_finite`), and mismatch sums leave them out.
"""

# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from soundrl.kernels import token_loss
from soundrl.kernels.backend import (
    check_offsets,
    check_rows,
    launch,
    operator,
    reads_values,
    require,
    runs_triton,
    schema_of,
    wide,
)
from soundrl.kernels.loss_rule import RULE, LossRule
from soundrl.kernels.policy_loss_triton import BLOCK_T, COLUMNS, policy_loss_kernel, sequence_mean_kernel, sum_rows_kernel
from soundrl.kernels.token_loss import on_torch

is_logprob: Callable[[Tensor], Tensor] = on_torch(token_loss.is_logprob)
"""[T] bool: finite and not above 0."""

# Metrics come back as sums over tokens, so that micro-batches and ranks add up exactly; divide by `tokens`.
METRIC_SUMS = tuple("tokens clip_low clip_high dual_clip kl exp_abs_dlogp sampler_kl corrected reference_kl not_finite".split())


def policy_loss(
    logprob_T: Tensor,
    old_logprob_T: Tensor | None,
    advantages_T: Tensor,
    sampler_logprob_T: Tensor | None,
    count: float | Tensor | None,
    *,
    rule: LossRule | None = None,
    cu_seqlens: Tensor | None = None,
    entropy_T: Tensor | None = None,
    reference_logprob_T: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Policy-gradient loss of packed tokens, and its metrics.

    logprob_T            [T] log π of each sampled token under the weights being trained; differentiable
    old_logprob_T        [T] the same under the weights that sampled; None = on policy (the ratio is exactly 1)
    advantages_T         [T] advantage of the token's rollout
    sampler_logprob_T    [T] what the sampling engine reported; None only with correction `none` (mismatch metrics are then 0)
    count                what the sum is divided by, over the whole mini-batch and all ranks, taken before the first forward (see the
                         table in `loss_rule`); this alone makes the gradient independent of how the batch is split. None: tokens of
                         this call (`bnpo`)
    cu_seqlens           [B+1] int32 or int64 bounds of the sequences within the T tokens, for rules that look at whole sequences
    entropy_T            [T] entropy of each token's distribution, differentiable, where `rule.entropy_coef` is not 0
    reference_logprob_T  [T] under the reference policy, where `rule.kl` asks for it

    Returns a scalar loss (0 with gradient 0 for T = 0) and `METRIC_SUMS` as scalars without gradient. Raises ValueError for
    shapes, types, devices or missing arguments, with the cure.
    """
    rule = rule or LossRule()
    require(
        logprob_T.ndim == 1 and logprob_T.dtype.is_floating_point,
        lambda: f"logprob has shape {tuple(logprob_T.shape)} and type {logprob_T.dtype}: give floating point [T], packed, without padding",
    )
    per_token = {"old_logprob": old_logprob_T, "advantages": advantages_T, "sampler_logprob": sampler_logprob_T, "entropy": entropy_T}
    check_rule(rule, count, cu_seqlens, ("logprob", logprob_T), per_token | {"reference_logprob": reference_logprob_T})
    of_sequences = sequence_terms(rule, logprob_T.detach(), old_logprob_T, sampler_logprob_T, cu_seqlens)
    entropy_T = entropy_T if rule.entropy_coef else None
    reference_logprob_T = reference_logprob_T if rule.kl != "none" else None
    tokens = Tokens(logprob_T, old_logprob_T, advantages_T, sampler_logprob_T, entropy_T, reference_logprob_T, *of_sequences)
    loss_sum, _, _, sums = loss_terms(*tokens, rule.words(), rule.numbers())
    return loss_sum / divisor(count, logprob_T.numel()), dict(zip(METRIC_SUMS, sums.unbind(), strict=True))


def sequence_terms(
    rule: LossRule, logprob_T: Tensor, old_logprob_T: Tensor | None, sampler_logprob_T: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What a token's loss needs to know of its sequence, each [T] or None: 1/length, mean log-ratio, mean log q. No gradient.

    `logprob_T` is read only where `rule.needs_sequences(old_logprob_T is None)`.
    """
    scale_T = log_ratio_T = log_q_T = None
    if rule.sequence_mean:
        assert cu_seqlens is not None
        length_B = cu_seqlens.diff()
        scale_T = length_B.clamp(min=1).to(logprob_T.dtype).reciprocal().repeat_interleave(length_B, output_size=len(logprob_T))
    if rule.surrogate == "gspo" and old_logprob_T is not None:
        assert cu_seqlens is not None
        log_ratio_T = mean_where(is_logprob(old_logprob_T), logprob_T - old_logprob_T, cu_seqlens)
    if rule.correction == "sequence":
        assert cu_seqlens is not None and sampler_logprob_T is not None
        old_T = logprob_T if old_logprob_T is None else old_logprob_T
        log_q_T = mean_where(is_logprob(sampler_logprob_T) & is_logprob(old_T), old_T - sampler_logprob_T, cu_seqlens)
    return scale_T, log_ratio_T, log_q_T


def mean_where(known_T: Tensor, x_T: Tensor, cu_seqlens: Tensor) -> Tensor:
    """`sequence_mean` of the known tokens alone, at every token; 0 for a sequence without any."""
    share_T = sequence_mean(known_T.to(x_T.dtype), cu_seqlens)  # exactly 1 where all are known
    return sequence_mean(x_T.masked_fill(~known_T, 0.0), cu_seqlens) / share_T.masked_fill(share_T == 0, 1.0)


@operator("sequence_mean(Tensor x_T, Tensor cu_seqlens) -> Tensor")
def sequence_mean(x_T: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Mean of `x_T` over each sequence, at each of its tokens; one program a sequence, so the sum has one order.

    Worked example: x [1, 3, 5], cu_seqlens [0, 2, 3] → [2, 2, 5].
    """
    if runs_triton(x_T):
        out_T = torch.empty_like(x_T, dtype=torch.float32, memory_format=torch.contiguous_format)
        given = (x_T.contiguous(), cu_seqlens.contiguous(), out_T)
        launch(sequence_mean_kernel, len(cu_seqlens) - 1, x_T, *given, BLOCK=1024, num_warps=4)
        return out_T.to(x_T.dtype)
    length_B = cu_seqlens.diff()
    sequence_T = torch.repeat_interleave(torch.arange(len(length_B), device=x_T.device), length_B)
    sum_B = torch.zeros(len(length_B), device=x_T.device, dtype=x_T.dtype).index_add_(0, sequence_T, x_T)
    return (sum_B / length_B.clamp(min=1))[sequence_T]


@sequence_mean.register_fake
def _(x_T: Tensor, cu_seqlens: Tensor) -> Tensor:
    return torch.empty_like(x_T)


class Tokens(NamedTuple):
    """What the loss of each token is made of, all [T]."""

    logprob_T: Tensor
    old_T: Tensor | None
    advantages_T: Tensor
    sampler_T: Tensor | None
    entropy_T: Tensor | None
    reference_T: Tensor | None
    scale_T: Tensor | None
    sequence_log_ratio_T: Tensor | None
    sequence_log_q_T: Tensor | None


# Below this |x| k3 is its series, which ends with x⁷: in fp32 both forms are right to 1e-6 at the bound, in fp64 to 1e-12.
K3_SERIES = {torch.float32: 0.5, torch.float64: 0.02}


@operator(f"policy_loss({schema_of(Tokens)}, {RULE}) -> (Tensor, Tensor, Tensor, Tensor)")
def loss_terms(*given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Σ_t of the loss before `count`, its derivative by each log-probability and by each entropy, metric sums [10]."""
    *tensors, words, numbers = given
    rule, device, dtype = LossRule.of(words, numbers), tensors[0].device, wide(tensors[0])
    tokens = Tokens(*(None if x is None else x.to(dtype).contiguous() for x in tensors))
    options = (tuple(rule.numbers()), K3_SERIES[dtype], rule.surrogate, rule.correction, rule.kl, rule.kl_times_ratio)
    if not runs_triton(tokens.logprob_T):
        loss_T, slope_T, entropy_slope_T, *metrics = of_tokens(*tokens, *options)
        sums = torch.stack([x.sum() for x in (torch.ones_like(loss_T), *metrics)])
        return loss_T.sum(), slope_T, entropy_slope_T, sums
    count, blocks = len(tokens.logprob_T), max(1, -(-len(tokens.logprob_T) // BLOCK_T.value))  # T = 0 still writes one row of zeros
    slopes = torch.empty_like(tokens.logprob_T), torch.empty_like(tokens.logprob_T)
    # Zeros, not empty: the columns behind the last sum are added too.
    partial = torch.zeros(blocks, COLUMNS.value, device=device)
    sums = torch.empty(COLUMNS.value, device=device)
    numbers, *rest = options
    launch(policy_loss_kernel, blocks, partial, tokens, numbers, slopes, partial, count, *rest, num_warps=4)
    launch(sum_rows_kernel, 1, partial, partial, sums, blocks, BLOCK=32, num_warps=4)
    return sums[0].clone(), *slopes, sums[1:11].clone()


of_tokens = on_torch(token_loss.token_loss)


@loss_terms.register_fake
def _(logprob_T: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x_T = torch.empty_like(logprob_T, dtype=wide(logprob_T), memory_format=torch.contiguous_format)
    return x_T.new_empty(()), x_T, torch.empty_like(x_T), x_T.new_empty(len(METRIC_SUMS))


def _keep(ctx, inputs: tuple, output: tuple) -> None:
    _, slope_T, entropy_slope_T, sums = output
    ctx.mark_non_differentiable(slope_T, entropy_slope_T, sums)
    ctx.save_for_backward(slope_T, entropy_slope_T)
    ctx.dtypes = inputs[0].dtype, None if inputs[4] is None else inputs[4].dtype


def _backward(ctx, grad: Tensor, *_: object) -> tuple:
    slope_T, entropy_slope_T = ctx.saved_tensors
    logprob_dtype, entropy_dtype = ctx.dtypes
    of_entropy = None if entropy_dtype is None else (grad * entropy_slope_T).to(entropy_dtype)
    return (grad * slope_T).to(logprob_dtype), None, None, None, of_entropy, *[None] * 6


loss_terms.register_autograd(_backward, setup_context=_keep)


def divisor(count: float | Tensor | None, tokens: int) -> float | Tensor:
    """What a checked `count` divides by: a number, or a tensor without dimensions."""
    return max(tokens, 1) if count is None else count.reshape(()) if isinstance(count, Tensor) else count


def check_rule(
    rule: LossRule, count: float | Tensor | None, cu_seqlens: Tensor | None, like: tuple[str, Tensor], given: dict[str, Tensor | None]
) -> None:
    """That the arguments hold what `rule` reads, and those that are `given` a row for each of `like`, without a gradient of their own
    (but `entropy`)."""
    require(isinstance(rule, LossRule), lambda: f"rule={rule!r} is no LossRule: give LossRule(variant={str(rule)!r})")
    for name, x in given.items():
        if x is not None:
            check_rows(name, x, *like)
            require(
                name == "entropy" or not (x.requires_grad and torch.is_grad_enabled()),
                lambda name=name: f"{name} carries a gradient, which the loss would drop: pass {name}.detach()",
            )
    require(
        (count is None) == (rule.variant == "bnpo"),
        lambda: (
            f"variant={rule.variant!r} with count={count}: bnpo divides by the tokens of each call (count=None), the others by a count "
            "over the whole mini-batch (kernels/loss_rule.py)"
        ),
    )
    if isinstance(count, Tensor):
        require(count.numel() == 1, lambda: f"count has shape {tuple(count.shape)}: give one number for the whole mini-batch")
    if count is not None and (not isinstance(count, Tensor) or reads_values(count)):
        require(0 < float(count) < math.inf, lambda: f"count={float(count)} must be finite and > 0")
    if rule.sequence_mean or rule.correction == "sequence":
        require(
            cu_seqlens is not None,
            lambda: (
                f"variant={rule.variant!r} with correction={rule.correction!r} needs cu_seqlens [B+1] of the trained tokens; pass it, or "
                "use variant 'dapo' and correction 'tis'"
            ),
        )
    if cu_seqlens is not None:
        check_offsets("cu_seqlens", cu_seqlens, like[0], len(like[1]))
        device = like[1].device
        require(cu_seqlens.device == device, lambda: f"cu_seqlens is on {cu_seqlens.device}, {like[0]} on {device}: bring them together")
    for asks, setting, name, cure in (
        (rule.correction != "none", f"correction={rule.correction!r}", "sampler_logprob", "use correction 'none'"),
        (rule.kl != "none", f"kl={rule.kl!r}", "reference_logprob", "use kl 'none' and kl_coef 0"),
        (rule.entropy_coef != 0, f"entropy_coef={rule.entropy_coef}", "entropy", "set 0"),
    ):
        missing = asks and name in given and given[name] is None
        require(not missing, lambda setting=setting, name=name, cure=cure: f"{setting} needs {name} [T]; pass it, or {cure}")
