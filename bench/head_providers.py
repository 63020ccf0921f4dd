"""Who computes the LM head's log-probabilities, policy loss and cross-entropy: plain torch, soundrl, and other libraries where installed.

A library is imported when its provider is built, not before. Shapes: T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from harness import Provider, Results, Work, compiled
from head import RULE, Head, grpo_loss
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from soundrl.kernels.linear_logprob import linear_logprob
from soundrl.kernels.linear_policy_loss import linear_policy_loss
from soundrl.kernels.loss_rule import LossRule
from soundrl.kernels.policy_loss import policy_loss

CHUNK_OF_VOCABULARY = 32768  # TRL's default


def with_gradients(head: Head, loss_of: Callable[[Tensor, Tensor], Tensor]) -> Work:
    """Loss and both gradients, from fresh leaves each time."""

    def step(_: Any) -> Results:
        hidden_TH, weight_VH = head.leaves()
        loss = loss_of(hidden_TH, weight_VH)
        of_hidden, of_weight = torch.autograd.grad(loss, (hidden_TH, weight_VH))
        return {"loss": loss.detach(), "dhidden": of_hidden, "dweight": of_weight}

    return Work(step)


def torch_logprob(hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor) -> Tensor:
    """As most trainers write it: [T, V] logits, upcast, log-softmax, gather."""
    return torch.log_softmax(linear(hidden_TH, weight_VH).float(), -1).gather(-1, targets_T[:, None]).squeeze(-1)


def torch_logprob_entropy(hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor) -> Tensor:
    """[2, T]."""
    logp_TV = torch.log_softmax(linear(hidden_TH, weight_VH).float(), -1)
    return torch.stack([logp_TV.gather(-1, targets_T[:, None]).squeeze(-1), -(logp_TV.exp() * logp_TV).sum(-1)])


def liger_logprob(head: Head, entropy: bool) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction as Function

    def logprob(hidden_TH: Tensor, weight_VH: Tensor) -> tuple[Tensor, ...]:
        out = Function.apply(hidden_TH, weight_VH, head.targets_T, return_entropy=entropy)
        return (-out[0], out[1]) if entropy else (-out,)

    return logprob


def trl_logprob(head: Head, outputs: tuple[str, ...]) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    from trl.kernels import ChunkedLogProbFunction  # pyright: ignore[reportMissingImports]

    return lambda hidden_TH, weight_VH: ChunkedLogProbFunction.apply(
        hidden_TH, weight_VH, None, head.targets_T, 1.0, CHUNK_OF_VOCABULARY, None, 1.0, outputs
    )


def cce_logprob(head: Head) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    from cut_cross_entropy import linear_cross_entropy  # pyright: ignore[reportMissingImports]

    return lambda hidden_TH, weight_VH: (-linear_cross_entropy(hidden_TH, weight_VH, head.targets_T, reduction="none"),)


def quack_logprob(head: Head) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    from quack.linear_cross_entropy import linear_cross_entropy_func  # pyright: ignore[reportMissingImports]

    return lambda hidden_TH, weight_VH: (
        -linear_cross_entropy_func(hidden_TH, weight_VH, None, head.targets_T, reduction="none", inplace_backward=True),
    )


def liger_fused_grpo(head: Head) -> Work:
    """LigerFusedLinearGRPOLoss. It knows one advantage a sequence, ours differ by token: as its importance weights, with advantage 1."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    on_gpu, tokens = head.hidden_TH.is_cuda, len(head.targets_T)
    batch = 8
    rows = (batch, tokens // batch)
    module = LigerFusedLinearGRPOLoss(
        beta=0.0, compiled=on_gpu, use_ref_model=False, epsilon_low=RULE.clip_low, epsilon_high=RULE.clip_high, loss_type="dapo"
    )
    one_B = torch.ones(batch, device=head.hidden_TH.device)
    mask_BT = torch.ones(rows, device=head.hidden_TH.device)

    def loss_of(hidden_TH: Tensor, weight_VH: Tensor) -> Tensor:
        loss, _ = module(
            hidden_TH.view(*rows, -1),
            weight_VH,
            head.targets_T.view(rows),
            mask_BT,
            one_B,
            old_per_token_logps=head.old_logprob_T.view(rows),
            vllm_is_ratio=head.advantages_T.view(rows),
        )
        return loss

    return with_gradients(head, loss_of)


def bare_products(head: Head) -> Provider:
    """Logits, dhidden and dweight by cuBLAS alone, on random numbers: what a fused loss cannot beat without skipping work."""

    def step(_: Any) -> Results:
        logits_TV = head.hidden_TH @ head.weight_VH.t()
        return {"dhidden": logits_TV @ head.weight_VH, "dweight": logits_TV.t() @ head.hidden_TH}

    return Provider("bare products", lambda: Work(step), ceiling=("FLOP", 3 * head.product_flop))


def bare_logits(head: Head) -> Provider:
    return Provider(
        "bare logits product",
        lambda: Work(lambda _: {"logits": head.hidden_TH @ head.weight_VH.t()}),
        ceiling=("FLOP", head.product_flop),
    )


def ours_grpo(head: Head, advantages_T: Tensor, ignored: bool = False) -> Work:
    """`ignored`: rows of advantage 0 are no targets, so that not even their logits are made."""
    count = float(len(head.targets_T))
    targets_T = head.targets_T.masked_fill(advantages_T == 0, -100) if ignored else head.targets_T

    def loss_of(hidden_TH: Tensor, weight_VH: Tensor) -> Tensor:
        return linear_policy_loss(hidden_TH, weight_VH, targets_T, head.old_logprob_T, advantages_T, None, count, rule=RULE)[0]

    return with_gradients(head, loss_of)


def grpo(head: Head) -> list[Provider]:
    """Loss, dhidden, dweight of the clipped loss; `logprob` providers have the same plain-torch loss on top."""
    count = float(len(head.targets_T))

    def on_top(logprob: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> Work:
        return with_gradients(head, lambda h, w: grpo_loss(logprob(h, w)[0].float(), head.old_logprob_T, head.advantages_T, count))

    def whole(hidden_TH: Tensor, weight_VH: Tensor) -> Tensor:
        return grpo_loss(torch_logprob(hidden_TH, weight_VH, head.targets_T), head.old_logprob_T, head.advantages_T, count)

    def ours_in_two(hidden_TH: Tensor, weight_VH: Tensor) -> Tensor:
        logprob_T = linear_logprob(hidden_TH, weight_VH, head.targets_T).logprob
        return policy_loss(logprob_T, head.old_logprob_T, head.advantages_T, None, count, rule=RULE)[0]

    return [
        Provider("ours", lambda: ours_grpo(head, head.advantages_T)),
        Provider("ours, logprob then loss", lambda: with_gradients(head, ours_in_two)),
        Provider("torch", lambda: with_gradients(head, whole)),
        Provider("torch.compile", lambda: with_gradients(head, compiled(whole, head.hidden_TH.device.type))),
        Provider("liger fused GRPO", lambda: liger_fused_grpo(head)),
        Provider("liger scaled CE", lambda: on_top(liger_logprob(head, entropy=False))),
        Provider("trl chunked", lambda: on_top(trl_logprob(head, ()))),
        Provider("cut-cross-entropy", lambda: on_top(cce_logprob(head))),
        Provider("quack linear CE", lambda: on_top(quack_logprob(head))),
        bare_products(head),
    ]


def forward(head: Head) -> list[Provider]:
    """Log-probability and entropy without gradient: the pass over old and reference policies."""

    def work(logprob: Callable[[Tensor, Tensor], Any]) -> Work:
        @torch.no_grad()
        def step(_: Any) -> Results:
            outputs = logprob(head.hidden_TH, head.weight_VH)  # TRL's has more, CCE's and QuACK's one
            return dict(zip(("logprob", "entropy"), outputs, strict=False))

        return Work(step)

    targets_T = head.targets_T

    def of_targets(both: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda hidden_TH, weight_VH: both(hidden_TH, weight_VH, targets_T)

    return [
        Provider("ours", lambda: work(lambda h, w: linear_logprob(h, w, targets_T)[:2])),
        Provider("ours, streaming", lambda: work(lambda h, w: linear_logprob(h, w, targets_T, memory_budget=0)[:2])),
        Provider("torch", lambda: work(of_targets(torch_logprob_entropy))),
        Provider("torch.compile", lambda: work(of_targets(compiled(torch_logprob_entropy, targets_T.device.type)))),
        Provider("liger scaled CE", lambda: work(liger_logprob(head, entropy=True))),
        Provider("trl chunked", lambda: work(trl_logprob(head, ("entropy",)))),
        Provider("cut-cross-entropy", lambda: work(cce_logprob(head)), omits=("entropy",)),
        Provider("quack linear CE", lambda: work(quack_logprob(head)), omits=("entropy",)),
        bare_logits(head),
    ]


def mean_cross_entropy(head: Head) -> list[Provider]:
    """Mean cross-entropy with gradients: where libraries that know no per-token weights can be compared. Ours is CISPO with advantage 1 on
    policy, whose value and gradient are exactly that."""
    ones_T = torch.ones_like(head.advantages_T)
    rule = LossRule(variant="cispo")

    def ours(hidden_TH: Tensor, weight_VH: Tensor) -> Tensor:
        return linear_policy_loss(hidden_TH, weight_VH, head.targets_T, None, ones_T, None, float(len(ones_T)), rule=rule)[0]

    def plain(hidden_TH: Tensor, weight_VH: Tensor) -> Tensor:
        return cross_entropy(linear(hidden_TH, weight_VH).float(), head.targets_T)

    def torch_fused() -> Work:
        from torch.nn.functional import linear_cross_entropy  # torch ≥ 2.13

        return with_gradients(head, lambda h, w: linear_cross_entropy(h, w, head.targets_T))

    def liger() -> Work:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Function

        return with_gradients(head, lambda h, w: Function.apply(h, w, head.targets_T)[0])

    def quack() -> Work:
        from quack.linear_cross_entropy import chunked_linear_cross_entropy  # pyright: ignore[reportMissingImports]

        return with_gradients(head, lambda h, w: chunked_linear_cross_entropy(h, w, head.targets_T))

    def fla() -> Work:
        from fla.modules.fused_linear_cross_entropy import fused_linear_cross_entropy_loss  # pyright: ignore[reportMissingImports]

        return with_gradients(head, lambda h, w: fused_linear_cross_entropy_loss(h, head.targets_T, w))

    return [
        Provider("ours", lambda: with_gradients(head, ours)),
        Provider("torch", lambda: with_gradients(head, plain)),
        Provider("torch.compile", lambda: with_gradients(head, compiled(plain, head.hidden_TH.device.type))),
        Provider("torch fused", torch_fused),
        Provider("liger fused linear CE", liger),
        Provider("quack chunked", quack),
        Provider("fla", fla),
        bare_products(head),
    ]
