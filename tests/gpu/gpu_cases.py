"""Inputs, references and measures of the GPU tests of the loss kernels. Shapes: T tokens, H hidden, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from soundrl.kernels.language import INTERPRETING
from soundrl.kernels.linear_policy_loss import linear_policy_loss
from soundrl.kernels.loss_rule import LossRule
from soundrl.kernels.policy_loss import policy_loss

if INTERPRETING:
    raise RuntimeError("Triton interprets in this process: set TRITON_INTERPRET=0 for GPU tests, as tests/gpu/run.sh does")

DEVICE = "cuda"
TYPES = [torch.float32, torch.bfloat16, torch.float16]
# Twice torch's error, or 16 units of fp32: where torch happens to be exact, rounding in another order is no fault.
SLACK = 2e-6


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE, dtype=dtype)


def targets(tokens: int, vocabulary: int) -> Tensor:
    return torch.randint(vocabulary, (tokens,), generator=torch.Generator(DEVICE).manual_seed(9), device=DEVICE)


def off(out: Tensor, exact: Tensor) -> float:
    """‖out − exact‖ / ‖exact‖."""
    return float((out.double() - exact).norm() / exact.norm().clamp(min=1e-300))


def assert_within_twice(ours: dict[str, Tensor], torchs: dict[str, Tensor], exact: dict[str, Tensor], factor: float = 2.0) -> None:
    for name, truth in exact.items():
        mine, theirs = off(ours[name], truth), off(torchs[name], truth)
        assert mine <= factor * theirs + SLACK, f"{name}: {mine:.2e} against {theirs:.2e} of torch in the same type"


def torch_both(logits_TV: Tensor, targets_T: Tensor, temperature: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy by torch's own operators; bf16 and fp16 logits are upcast, as trainers do."""
    z_TV = logits_TV if logits_TV.dtype == torch.float64 else logits_TV.float()
    logp_TV = torch.log_softmax(z_TV / (temperature[:, None] if isinstance(temperature, Tensor) else temperature), -1)
    return logp_TV.gather(-1, targets_T[:, None]).squeeze(-1), -(logp_TV.exp() * logp_TV).sum(-1)


def both_with_gradients(both: Callable, leaves: list[Tensor]) -> dict[str, Tensor]:
    """Log-probability, entropy, and the leaves' gradients under fixed random gradients of both."""
    leaves = [x.detach().requires_grad_() for x in leaves]
    logprob_T, entropy_T = both(*leaves)
    given = [draw(len(logprob_T), seed=s).to(logprob_T.dtype) for s in (5, 6)]
    gradients = torch.autograd.grad((logprob_T, entropy_T), leaves, given)
    return {"logprob": logprob_T.detach(), "entropy": entropy_T.detach(), **{f"gradient {i}": g for i, g in enumerate(gradients)}}


def peak_mib(run: Callable[[], object]) -> float:
    """Most memory beyond what is allocated now; warmed up once, so that cuBLAS's workspaces do not count."""
    run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


class Loss:
    """Everything `linear_policy_loss` takes, with ratios far from the bounds of the clips (rounding must not decide), a fifth of the rows
    clipped and a fifth with advantage 0."""

    def __init__(self, tokens: int, hidden: int, vocabulary: int, dtype: torch.dtype) -> None:
        self.hidden_TH = draw(tokens, hidden, dtype=dtype)
        self.weight_VH = draw(vocabulary, hidden, seed=1, dtype=dtype) * 2 * hidden**-0.5
        self.targets_T = targets(tokens, vocabulary)
        with torch.no_grad():
            weight = self.weight_VH.double()
            parts = zip(self.hidden_TH.split(1024), self.targets_T.split(1024), strict=True)
            logprob_T = torch.cat([torch_both(linear(h.double(), weight), t)[0] for h, t in parts])
        kind_T = torch.arange(tokens, device=DEVICE) % 5
        self.advantages_T = draw(tokens, seed=2) + 0.5
        self.advantages_T = torch.where(kind_T == 0, 0.0, torch.where(kind_T == 1, self.advantages_T.abs(), self.advantages_T))
        gap_T = 0.2 * torch.rand(tokens, device=DEVICE) - 0.1
        self.old_T = (logprob_T - torch.where(kind_T == 1, 0.7, gap_T)).float()
        self.sampler_T = self.old_T + 0.2 * draw(tokens, seed=4)
        self.reference_T = (logprob_T + 0.3 * draw(tokens, seed=5)).float()

    def rows(self, dtype: torch.dtype) -> list[Tensor]:
        return [x.to(dtype) for x in (self.old_T, self.advantages_T, self.sampler_T)]

    def fused(self, rule: LossRule, **settings) -> dict[str, Tensor]:
        h, w = (x.detach().requires_grad_() for x in (self.hidden_TH, self.weight_VH))
        reference_T = self.reference_T if rule.kl != "none" else None
        rows = (self.targets_T, *self.rows(torch.float32), 777.0)
        loss, _, (logprob_T, *_) = linear_policy_loss(h, w, *rows, rule=rule, reference_logprob=reference_T, **settings)
        of_hidden, of_weight = torch.autograd.grad(loss, (h, w))
        return {"loss": loss.detach(), "logprob": logprob_T, "dhidden": of_hidden, "dweight": of_weight}

    def plain(self, rule: LossRule, dtype: torch.dtype) -> dict[str, Tensor]:
        """The materialised way: in fp64 `policy_loss` is plain torch, otherwise its kernel on torch's log-probabilities."""
        h, w = (x.detach().to(dtype).requires_grad_() for x in (self.hidden_TH, self.weight_VH))
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        logprob_T, entropy_T = torch_both(linear(h, w), self.targets_T)
        more = {"entropy_T": entropy_T, "reference_logprob_T": self.reference_T.to(wide) if rule.kl != "none" else None}
        loss, _ = policy_loss(logprob_T, *self.rows(wide), 777.0, rule=rule, **more)
        of_hidden, of_weight = torch.autograd.grad(loss, (h, w))
        return {"loss": loss.detach(), "logprob": logprob_T.detach(), "dhidden": of_hidden, "dweight": of_weight}


DAPO = LossRule(variant="dapo")
FULL = LossRule(variant="dapo", correction="tis", kl="k3", kl_coef=0.05, entropy_coef=0.02)
