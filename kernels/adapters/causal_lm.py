"""A plain transformers model in a training loop of one's own: log-probabilities and the policy loss without its logits.

Shapes: B rows of a batch, L tokens of a row, T trained tokens of all rows, H hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from soundrl.kernels.adapters.head import base_of, check_logits, head_of, run_head
from soundrl.kernels.backend import require
from soundrl.kernels.linear_logprob import linear_logprob
from soundrl.kernels.linear_policy_loss import linear_policy_loss
from soundrl.kernels.logprob import Logprobs
from soundrl.kernels.loss_rule import LossRule
from soundrl.kernels.softmax import IGNORED


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """A batch as trainers keep it, padded (a row a sequence) or packed (several a row, told apart by `inputs["position_ids"]`).

    ids              [B, L] int64 prompt and response
    mask             [B, L] bool: the tokens that are trained; never the first of a sequence, which nothing predicts
    advantages       [B], or [B, L] where tokens of a row differ (packed rows: always)
    attention_mask   [B, L], as for the model
    old_logprob      [B, L] under the weights that sampled, at the trained tokens; None = on policy
    sampler_logprob  [B, L] what the sampling engine reported; reference_logprob [B, L]: where the rule has a KL term
    inputs           whatever else the model takes: position_ids, pixel_values, …
    """

    ids: Tensor
    mask: Tensor
    advantages: Tensor
    attention_mask: Tensor | None = None
    old_logprob: Tensor | None = None
    sampler_logprob: Tensor | None = None
    reference_logprob: Tensor | None = None
    inputs: dict[str, Any] = field(default_factory=dict)


def token_logprobs(
    model: Any, ids_BL: Tensor, attention_mask_BL: Tensor | None, mask_BL: Tensor, temperature: float = 1.0, **inputs: Any
) -> Logprobs:
    """`linear_logprob` of the tokens that `mask_BL` names, each [B, L] at the token's own place and 0 (False) elsewhere.

    model     a causal LM of transformers, also inside PEFT, DDP or FSDP2; `inputs` (position_ids, pixel_values, …) are handed on to it
    mask_BL   [B, L] bool, as in `Rollouts`

    Differentiable by the model's weights, also where the mask is empty (a rank without tokens must still take part in the gradient).
    Raises ValueError for heads that `head_of` refuses, and for a mask of another shape or on a first token.

    >>> logprob, entropy, *_ = token_logprobs(model, ids, attention_mask, mask)
    """
    check_mask(ids_BL, mask_BL, inputs)

    def compute(hidden_BLH: Tensor, output: Any) -> Logprobs:
        check_output(model, hidden_BLH, output, ids_BL)
        return in_place(score(model, hidden_BLH[:, :-1], targets(ids_BL, mask_BL), temperature))

    return run_head(model, compute, asked(ids_BL, attention_mask_BL, inputs))


def rl_loss(
    model: Any, rollouts: Rollouts, count: float | Tensor | None, *, rule: LossRule | None = None, temperature: float = 1.0
) -> tuple[Tensor, dict[str, Tensor], Logprobs]:
    """`linear_policy_loss` of a batch: forward pass, loss, and the gradient of the head in one node; `loss.backward()` does the rest.

    count        what the sum over the whole mini-batch is divided by (table in `kernels/loss_rule.py`), the same in every micro-batch.
                 FSDP2 and DDP *average* gradients: give it over all ranks, divided by their number
    temperature  the sampler's

    Returns the loss (0 with gradient 0 for an empty mask), metric sums (`METRIC_SUMS`, divide by `tokens`), and `Logprobs` [B, L] without
    gradient, 0 outside the mask.

    >>> loss, metrics, _ = rl_loss(model, Rollouts(ids=ids, mask=mask, advantages=advantages), count=float(mask.sum()))
    """
    ids_BL, mask_BL = rollouts.ids, rollouts.mask
    check_mask(ids_BL, mask_BL, rollouts.inputs)
    advantages = rollouts.advantages if rollouts.advantages.ndim == 2 else rollouts.advantages[:, None]

    def predicted(x_BL: Any) -> Any:
        return None if x_BL is None else x_BL.expand(mask_BL.shape)[:, 1:]

    def compute(hidden_BLH: Tensor, output: Any) -> tuple[Tensor, dict[str, Tensor], Logprobs]:
        check_output(model, hidden_BLH, output, ids_BL)
        hidden, head = ready(model, hidden_BLH[:, :-1])
        with torch.autocast(hidden.device.type, enabled=False):
            loss, metrics, scored = linear_policy_loss(
                *(hidden, head, targets(ids_BL, mask_BL), predicted(rollouts.old_logprob), predicted(advantages.float())),
                *(predicted(rollouts.sampler_logprob), count),
                rule=rule,
                cu_seqlens=bounds(predicted(mask_BL), predicted(rollouts.inputs.get("position_ids"))),
                reference_logprob=predicted(rollouts.reference_logprob),
                temperature=temperature,
            )
        return loss, metrics, in_place(scored)

    return run_head(model, compute, asked(ids_BL, rollouts.attention_mask, rollouts.inputs))


def targets(ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """[B, L − 1]: of each token but the last the next one, where it is trained."""
    return torch.where(mask_BL.bool(), ids_BL, IGNORED)[:, 1:]


def in_place(scored: Logprobs) -> Logprobs:
    """[B, L] of [B, L − 1]: at the token itself, not at the one before it."""
    return Logprobs(*(torch.cat([torch.zeros_like(x[:, :1]), x], 1) for x in scored))


def score(model: Any, hidden_BLH: Tensor, targets_BL: Tensor, temperature: float | Tensor, fp32: bool = False) -> Logprobs:
    """`linear_logprob` with the model's head in autocast's type; `fp32`: in fp32, whatever autocast says."""
    hidden_BLH, head = ready(model, hidden_BLH, fp32)
    with torch.autocast(hidden_BLH.device.type, enabled=False):
        return linear_logprob(hidden_BLH, head, targets_BL, temperature)


def ready(model: Any, hidden: Tensor, fp32: bool = False) -> tuple[Tensor, Any]:
    """Hidden states and head in one type: autocast's where it is on."""
    kind = hidden.device.type
    dtype = torch.float32 if fp32 else torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    return hidden.to(dtype), head_of(model, dtype)


def bounds(rows_BL: Tensor, position_ids: Tensor | None = None) -> Tensor:
    """cu_seqlens [N+1] of rows [B, L] below each other: a sequence a row, or, where rows are packed, from one position 0 to the next.

    Worked example: two rows of 3 → [0, 3, 6]; position_ids [[1, 2, 0, 1]] → [0, 2, 4].
    """
    number, length = rows_BL.shape
    if position_ids is None:
        return torch.arange(0, number * length + 1, max(length, 1), device=rows_BL.device)
    starts_BL = position_ids == 0
    starts = torch.cat([torch.ones_like(starts_BL[:, :1]), starts_BL[:, 1:]], 1).flatten().nonzero()[:, 0]
    return torch.cat([starts, starts.new_tensor([number * length])])


def asked(ids_BL: Tensor, attention_mask_BL: Tensor | None, inputs: dict[str, Any]) -> dict[str, Any]:
    attention = {} if attention_mask_BL is None else {"attention_mask": attention_mask_BL}
    return {"input_ids": ids_BL, **attention, "use_cache": False, **inputs}


def check_mask(ids_BL: Tensor, mask_BL: Tensor, inputs: dict[str, Any]) -> None:
    require(
        ids_BL.ndim == 2 and mask_BL.shape == ids_BL.shape and mask_BL.dtype in (torch.bool, torch.int64, torch.int32),
        lambda: f"mask is {mask_BL.dtype} {tuple(mask_BL.shape)}, ids {tuple(ids_BL.shape)}: give both [B, L], the mask bool",
    )
    first = mask_BL[:, :1].bool()
    if inputs.get("position_ids") is not None:
        first = mask_BL.bool() & (inputs["position_ids"].expand(mask_BL.shape) == 0)
    if not mask_BL.is_cuda:  # would wait for the GPU
        require(not bool(first.any()), lambda: "mask trains the first token of a sequence, which nothing predicts: set it False there")


def check_output(model: Any, hidden_BLH: Tensor, output: Any, ids_BL: Tensor) -> None:
    require(
        hidden_BLH.shape[:-1] == ids_BL.shape,
        lambda: (
            f"the head got hidden states {tuple(hidden_BLH.shape)} for ids {tuple(ids_BL.shape)}: a model that adds or drops tokens "
            "(prompt tuning, encoder-decoder) has no [B, L]; use linear_logprob(hidden, head_of(model), …)"
        ),
    )
    check_logits(base_of(model), getattr(output, "logits", None))
