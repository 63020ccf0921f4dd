"""Weight sync: the one function that brings trainer weights into the sampler, in order, within bounds, and proves it did.

    trainer frees its cached blocks → sampler wakes its weight memory → full tensors stream over, one at a time → prefix cache
    reset → sampler wakes its KV cache → gate

The *gate* samples probes with the new weights and compares the sampler's log-probabilities with the trainer's on the same
tokens: mean exp|Δ| above `run.gate` stops the run with a diagnosis. A checksum of parameters would not do: vLLM repacks and
fuses them, so a tensor can be loaded and still not be the one that computes (a tied head on CPU, for one).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from soundrl.engine.generator import Generator, Request, derived_seed
from soundrl.engine.packing import Sample
from soundrl.engine.policy import Policy
from soundrl.engine.trainer import Trainer

PROBE_TOKENS = 32
PROBES = 8  # 8 × 32 = 256 tokens per rank


class SyncError(RuntimeError):
    """The sampler does not compute what the trainer computes."""


@dataclass(frozen=True)
class GateResult:
    exp_abs_dlogp: float
    """mean exp|sampler − trainer| over the probes' tokens of all ranks, at the rollout temperature"""
    untempered: float
    """the same against the trainer's log-probabilities at temperature 1"""
    tokens: int


class WeightSync:
    """Calls are collectives: every rank syncs at the same time.

    `prompts` are token ids of training prompts; the probes continue the first ones at every sync, so that a stale prefix cache
    has something to betray itself with.
    """

    def __init__(
        self, policy: Policy, trainer: Trainer, generator: Generator, prompts: list[tuple[int, ...]], temperature: float, limit: float
    ) -> None:
        self.policy, self.trainer, self.generator = policy, trainer, generator
        self.prompts, self.temperature, self.limit = prompts[:PROBES], temperature, limit
        self.room = policy.settings.max_length - max(len(p) for p in self.prompts)
        self.sent: list[str] = []
        self.largest_tensor_bytes = 0

    def __call__(self) -> dict[str, float]:
        """Sync and gate. Returns metrics; SyncError with a diagnosis when the gate is not met."""
        if self.policy.world.device.type == "cuda":
            torch.cuda.empty_cache()
        self.generator.wake("weights")
        self.generator.load(self.stream())
        self.generator.reset_cache()
        self.generator.wake("kv_cache")
        result = self.gate()
        if not result.exp_abs_dlogp <= self.limit:  # a NaN must not pass
            from soundrl.engine.sync_doctor import diagnose

            raise SyncError(diagnose(self, result))
        return {"mismatch/gate": result.exp_abs_dlogp, "sync/largest_tensor_mib": self.largest_tensor_bytes / 2**20}

    def stream(self, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, Tensor]]:
        """Full tensors by name, one alive at a time; `sent` records what really went over."""
        self.sent = []
        for name, tensor in self.policy.named_full_tensors():
            if wanted(name):
                self.sent.append(name)
                self.largest_tensor_bytes = max(self.largest_tensor_bytes, tensor.numel() * tensor.element_size())
                yield name, tensor

    @torch.no_grad()
    def gate(self) -> GateResult:
        """Sample the probes and score them with the trainer's own packed forward pass."""
        length = min(PROBE_TOKENS, self.room)
        count = max(len(self.prompts), math.ceil(PROBES * PROBE_TOKENS / length))
        requests = [
            Request(
                prompt_id=f"probe:{i}",
                sample=0,
                prompt_tokens=self.prompts[i % len(self.prompts)],
                seed=derived_seed(0, "probe", self.generator.version, str(i), 0),
                temperature=self.temperature,
                max_new_tokens=length,
                ignore_end=True,
            )
            for i in range(count)
        ]
        rollouts = sorted(self.generator.generate(requests), key=lambda r: int(r.prompt_id.split(":")[1]))
        samples = [Sample(prompt_tokens=r.prompt_tokens, tokens=r.tokens, logprobs=r.logprobs) for r in rollouts]
        total = untempered = tokens = 0.0
        for batch in self.trainer.pack(samples):
            sampler_R = batch.sampler_logprobs[batch.response_index]
            for temperature in {self.temperature, 1.0}:
                logprob_R, _ = self.policy.response_logprobs(batch, temperature)
                gap = (logprob_R - sampler_R).abs().exp().sum().item()
                total += gap if temperature == self.temperature else 0.0
                untempered += gap if temperature == 1.0 else 0.0
            tokens += len(sampler_R)
        total, untempered, tokens = self.policy.world.sum([total, untempered, tokens])
        return GateResult(total / tokens, untempered / tokens, int(tokens))
