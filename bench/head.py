"""Inputs of the LM-head benches, and what is right for them, in fp64. Shapes: T tokens, H hidden, V vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from harness import Plan, Results
from torch import Tensor
from torch.nn.functional import cross_entropy

from soundrl.kernels.loss_rule import LossRule

# Heads of real models at a usual micro-batch; M…: one head size at four vocabularies, for memory against V.
SHAPES = {
    "S1": (8192, 4096, 151936),  # Qwen3-8B
    "S2": (8192, 2560, 151936),  # Qwen3-4B
    "S3": (8192, 1536, 151936),  # Qwen2.5-1.5B
    "S4": (8192, 1024, 151936),  # Qwen3-0.6B
    "S5": (8192, 4096, 131072),  # Liger-Kernel's H100 figures
    "S6": (4096, 4096, 128256),  # Llama 3; Liger-Kernel's and QuACK's H200 figures
    "S7": (16384, 2048, 248320),  # Qwen3.5
    "F3": (8192, 4096, 128256),  # 8 × 1,024 tokens of Llama 3: Liger-Kernel's own benchmark of its GRPO loss
    "M32k": (8192, 2048, 32768),
    "M64k": (8192, 2048, 65536),
    "M128k": (8192, 2048, 131072),
    "M256k": (8192, 2048, 262144),
}
SMALL = (48, 32, 1000)
RULE = LossRule(variant="dapo", clip_low=0.2, clip_high=0.28)
TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 1e-2, torch.float32: 1e-5}


@dataclass(frozen=True, kw_only=True)
class Head:
    """Hidden states, LM head and what a policy loss needs, the same for every provider."""

    hidden_TH: Tensor
    weight_VH: Tensor
    targets_T: Tensor
    advantages_T: Tensor
    """fp32, normal around 0.5, so that the loss is not the difference of large sums; one for each token."""
    old_logprob_T: Tensor
    """fp32, within ±0.1 of the exact log-probability: no ratio comes near a clip bound, where rounding would decide on whole rows."""

    @property
    def shape(self) -> dict[str, int | float]:
        (tokens, hidden), vocabulary = self.hidden_TH.shape, len(self.weight_VH)
        return {"T": tokens, "H": hidden, "V": vocabulary}

    @property
    def product_flop(self) -> float:
        """2·T·H·V, one of the three products."""
        return 2.0 * self.hidden_TH.numel() * len(self.weight_VH)

    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.hidden_TH.detach().requires_grad_(), self.weight_VH.detach().requires_grad_()


def make_head(plan: Plan, name: str) -> Head:
    """Random head of a shape in `SHAPES`: bf16 on a GPU, fp32 at small shapes; logits have standard deviation 2."""
    tokens, hidden, vocabulary = SMALL if plan.small else SHAPES[name]
    dtype = torch.float32 if plan.small else torch.bfloat16
    rng = torch.Generator(plan.device).manual_seed(0)
    hidden_TH = torch.randn(tokens, hidden, generator=rng, device=plan.device, dtype=dtype)
    weight_VH = torch.randn(vocabulary, hidden, generator=rng, device=plan.device, dtype=dtype).mul_(2 * hidden**-0.5)
    targets_T = torch.randint(vocabulary, (tokens,), generator=rng, device=plan.device)
    advantages_T = torch.randn(tokens, generator=rng, device=plan.device) + 0.5
    noise_T = 0.2 * torch.rand(tokens, generator=rng, device=plan.device) - 0.1
    logprob_T = exact_logprob(hidden_TH, weight_VH, targets_T)["logprob"]
    old_logprob_T = (logprob_T + noise_T).float()
    return Head(
        hidden_TH=hidden_TH, weight_VH=weight_VH, targets_T=targets_T, advantages_T=advantages_T, old_logprob_T=old_logprob_T
    )  # fmt: skip


def grpo_loss(logprob_T: Tensor, old_logprob_T: Tensor, advantages_T: Tensor, count: float) -> Tensor:
    """−Σ min(A r, A clip(r)) / count in plain torch: `RULE` written out, the loss on top of log-probabilities."""
    ratio_T = (logprob_T - old_logprob_T).exp()
    clipped_T = ratio_T.clamp(1 - RULE.clip_low, 1 + RULE.clip_high)
    return -torch.minimum(advantages_T * ratio_T, advantages_T * clipped_T).sum() / count


def _chunks(tokens: int, vocabulary: int) -> Iterator[slice]:
    """1 GiB of fp64 logits at a time."""
    step = max(1, 2**27 // vocabulary)
    return (slice(start, min(start + step, tokens)) for start in range(0, tokens, step))


@torch.no_grad()
def exact_logprob(hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor) -> Results:
    """Log-probability of the targets and entropy, fp64."""
    weight = weight_VH.double()
    out: list[Tensor] = []
    for rows in _chunks(len(hidden_TH), len(weight_VH)):
        logp_cV = torch.log_softmax(hidden_TH[rows].double() @ weight.t(), -1)
        logprob_c = logp_cV.gather(-1, targets_T[rows, None]).squeeze(-1)
        out.append(torch.stack([logprob_c, -(logp_cV.exp() * logp_cV).sum(-1)]))
    logprob_T, entropy_T = torch.cat(out, 1)
    return {"logprob": logprob_T, "entropy": entropy_T}


def exact_gradients(head: Head, advantages_T: Tensor | None = None) -> Results:
    """Loss and gradients by autograd in fp64, chunk by chunk; of the mean cross-entropy where `advantages_T` is None. Kept in fp32."""
    weight = head.weight_VH.double().requires_grad_()
    tokens = len(head.targets_T)
    loss = torch.zeros((), dtype=torch.float64, device=weight.device)
    of_hidden = torch.empty(head.hidden_TH.shape, dtype=torch.float32, device=weight.device)
    for rows in _chunks(tokens, len(weight)):
        hidden_cH = head.hidden_TH[rows].double().requires_grad_()
        logits_cV = hidden_cH @ weight.t()
        if advantages_T is None:
            part = cross_entropy(logits_cV, head.targets_T[rows], reduction="sum") / tokens
        else:
            logprob_c = torch.log_softmax(logits_cV, -1).gather(-1, head.targets_T[rows, None]).squeeze(-1)
            part = grpo_loss(logprob_c, head.old_logprob_T[rows].double(), advantages_T[rows].double(), tokens)
        part.backward()
        assert hidden_cH.grad is not None
        of_hidden[rows] = hidden_cH.grad.float()
        loss += part.detach()
    assert weight.grad is not None
    return {"loss": loss, "dhidden": of_hidden, "dweight": weight.grad.float()}
