"""TRL's GRPOTrainer and RLOOTrainer (1.16) on soundrl's kernels, by inheritance: `class Trainer(SoundrlLoss, GRPOTrainer)`.

`SoundrlLogprob` gives TRL's own loss our log-probabilities and entropies: every option of TRL, 8·T·H·V FLOP.
`SoundrlLoss` computes the gradient in the same pass, 6·T·H·V FLOP, where a `LossRule` says what TRL's options say; others it refuses.

Shapes: B sequences, L tokens of prompt and completion, K of the completion, T trained tokens of all sequences, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from soundrl.kernels.adapters.causal_lm import bounds, check_output, ready, score
from soundrl.kernels.adapters.head import run_head
from soundrl.kernels.linear_policy_loss import linear_policy_loss
from soundrl.kernels.loss_rule import VARIANTS, LossRule
from soundrl.kernels.softmax import IGNORED

SHARED = {name: name for name in ("grpo", "dapo", "bnpo", "dr_grpo", "cispo", "sapo")}
"""TRL's loss_type → variant."""


class Scored(NamedTuple):
    """What TRL reads of its fused head's output; `loss` is ours."""

    log_probs: Tensor
    entropy: Tensor
    aux_loss: Tensor | None
    loss: Tensor | None = None


class SoundrlLogprob:
    """Before `GRPOTrainer` (or `RLOOTrainer`) among a class's bases: TRL's own losses on soundrl's log-probabilities, wherever PEFT or
    FSDP2 have put the head."""

    _fused: Any = None

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        host: Any = super()  # GRPOTrainer, which builds the model's inputs, images included

        def stand_in(labels: Tensor, fused_lm_head: bool, **inputs: Any) -> Scored:
            compute = self._fused or (lambda hidden, output: self._scored(model, hidden, output, labels, inputs["input_ids"]))
            return run_head(model, compute, inputs | {"use_cache": False})

        return host._get_per_token_logps_and_entropies(stand_in, *args, **kwargs)

    def _scored(self, model: Any, hidden_BLH: Tensor, output: Any, labels_BL: Tensor, ids_BL: Tensor) -> Scored:
        check_output(model, hidden_BLH, output, ids_BL)
        trainer: Any = self
        fp32 = getattr(trainer.args, "cast_lm_head_to_fp32", False)  # RLOO has no such setting
        found = score(model, hidden_BLH[:, :-1], labels_BL[:, 1:], trainer.temperature, fp32)
        return Scored(found.logprob, found.entropy, getattr(output, "aux_loss", None))


class SoundrlLoss(SoundrlLogprob):
    """Before `GRPOTrainer` among a class's bases: head, loss and both gradients in one node.

    What TRL logs, and the loss's value, come from TRL's own code on our log-probabilities; the gradient is that of `linear_policy_loss`,
    whose value must agree. Raises ValueError, when the trainer is made, for options without a `LossRule`: these are `SoundrlLogprob`'s.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        rule_of(self)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        host: Any = super()
        self._fused = fused = FusedLoss(self, model, inputs)
        try:
            own = host._compute_loss(model, inputs)  # no gradient, but that of a mixture's balance loss
        finally:
            self._fused = None
        fused.check(own)
        return own + (fused.loss - fused.loss.detach())


def rule_of(trainer: Any, entropy_coef: float = 0.0) -> LossRule:
    """TRL's options as a rule. `entropy_coef`: in the rule's own unit, see `FusedLoss`."""
    args, kind, beta = trainer.args, trainer.loss_type, trainer.beta
    low, high = trainer.epsilon_low, trainer.epsilon_high
    sequence = trainer.importance_sampling_level == "sequence"
    variant = "gspo" if sequence else SHARED.get(kind, "")
    clips = kind not in ("cispo", "sapo")
    for unlike, what in (
        (kind not in SHARED, f"loss_type={kind!r}"),
        (sequence and kind != "grpo", f"importance_sampling_level='sequence' with loss_type={kind!r}"),
        (sequence and beta != 0 and args.use_bias_correction_kl, "importance_sampling_level='sequence' with use_bias_correction_kl"),
        (trainer.top_entropy_quantile < 1, "top_entropy_quantile"),
        (trainer.off_policy_mask_threshold is not None, "off_policy_mask_threshold"),
        (trainer._entropy_bonus_enabled and kind in ("grpo", "sapo"), f"an entropy bonus with loss_type={kind!r}"),
        (kind == "cispo" and high < 1, f"cispo with epsilon_high={high} < 1"),
        (clips and args.delta is not None and args.delta <= 1 + high, f"delta={args.delta} ≤ 1 + epsilon_high"),
    ):
        if unlike:
            raise ValueError(f"{what} has no fused loss; take class Trainer(SoundrlLogprob, GRPOTrainer), which leaves the loss to TRL")
    assert variant in VARIANTS
    return LossRule(
        variant=variant,
        clip_low=low,
        clip_high=high - 1 if kind == "cispo" else high,  # TRL's epsilon_high is cispo's bound itself
        dual_clip=args.delta if clips and args.delta is not None else math.inf,
        sapo_tau=(args.sapo_temperature_pos, args.sapo_temperature_neg),
        kl="k3" if beta else "none",
        kl_coef=beta,
        kl_times_ratio=bool(beta and args.use_bias_correction_kl),
        entropy_coef=entropy_coef,
    )


class FusedLoss:
    """One micro-batch's loss: called by `run_head` with the hidden states, it leaves `loss` and gives TRL what TRL's code reads."""

    def __init__(self, trainer: Any, model: Any, inputs: dict[str, Any]) -> None:
        self.trainer, self.model, self.inputs = trainer, model, inputs
        mask = inputs["completion_mask"] * inputs["tool_mask"] if "tool_mask" in inputs else inputs["completion_mask"]
        self.mask_BK = mask.bool()
        self.training = trainer.model.training
        self.steps = float(trainer.current_gradient_accumulation_steps) if self.training else 1.0
        self.loss = self.aux = torch.zeros(())

    def count(self) -> float | Tensor | None:
        """What TRL divides the sum by, accumulation included (in bnpo it divides afterwards)."""
        trainer, sequences = self.trainer, len(self.mask_BK)
        if trainer.loss_type in ("dapo", "cispo"):
            tokens = self.inputs["num_items_in_batch"].clamp(min=1.0) / trainer.accelerator.num_processes
            return tokens * self.steps / trainer.args.steps_per_generation if self.training else tokens
        per_sequence = {"grpo": 1, "sapo": 1, "dr_grpo": trainer.max_completion_length}
        return None if trainer.loss_type == "bnpo" else sequences * per_sequence[trainer.loss_type] * self.steps

    def entropy_coef(self, count: float | Tensor | None) -> float:
        """TRL's bonus is a mean over the micro-batch's tokens, a rule's has the loss's own denominator."""
        trainer = self.trainer
        if not trainer._entropy_bonus_enabled:
            return 0.0
        gated = trainer.use_adaptive_entropy and trainer._last_world_entropy > trainer.args.entropy_target
        coef = 0.0 if gated else trainer.entropy_coef
        return coef if count is None else coef * float(count) / max(int(self.mask_BK.sum()), 1) / self.steps

    def __call__(self, hidden_BLH: Tensor, output: Any) -> Scored:
        trainer, inputs, mask_BK = self.trainer, self.inputs, self.mask_BK
        check_output(self.model, hidden_BLH, output, torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1))
        hidden_BKH = hidden_BLH[:, :-1][:, -mask_BK.shape[1] :]
        hidden_BKH, head = ready(self.model, hidden_BKH, trainer.args.cast_lm_head_to_fp32)
        advantages = inputs["advantages"] if inputs["advantages"].ndim == 2 else inputs["advantages"][:, None]
        if trainer.use_vllm and trainer.vllm_importance_sampling_correction:
            advantages = advantages * inputs["importance_sampling_ratio"]  # weights ≥ 0 pass through every surrogate
        old, count = inputs.get("old_per_token_logps"), self.count()
        with torch.autocast(hidden_BKH.device.type, enabled=False):
            loss, _, scored = linear_policy_loss(
                *(hidden_BKH, head, torch.where(mask_BK, inputs["completion_ids"], IGNORED), old),
                *(advantages.expand(mask_BK.shape).float(), None, count),
                rule=rule_of(trainer, self.entropy_coef(count)),
                cu_seqlens=bounds(mask_BK),
                reference_logprob=inputs["ref_per_token_logps"] if trainer.beta else None,
                temperature=float(trainer.temperature),
            )
        self.loss = loss if count is not None else loss / self.steps
        # Outside the mask TRL multiplies by 0, and no ratio there may be infinite: the old log-probability, ratio 1.
        logprob_BK = scored.logprob if old is None else torch.where(mask_BK, scored.logprob, old.float())
        aux = getattr(output, "aux_loss", None)
        if trainer.aux_loss_enabled and aux is not None:
            self.aux = trainer.router_aux_loss_coef * aux.detach() / self.steps
        return Scored(logprob_BK, scored.entropy, aux, self.loss)

    def check(self, own: Tensor) -> None:
        """That TRL's value is ours: a formula that TRL changes must not train in silence by the old one."""
        own_value, value = own.item(), (self.loss.detach() + self.aux.to(self.loss.device)).item()
        if abs(own_value - value) > 1e-3 * max(1.0, abs(own_value)):
            raise ValueError(
                f"TRL's loss is {own_value}, soundrl's formula gives {value}: this TRL's loss_type={self.trainer.loss_type!r} is another "
                "than 1.16's; take class Trainer(SoundrlLogprob, GRPOTrainer)"
            )
