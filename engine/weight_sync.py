"""Weight sync: the one function that brings trainer weights into the sampler, in order, within bounds, and proves it did.

    trainer goes to the host where it shall (`Offload`), and frees its cached blocks → sampler wakes its weight memory → full tensors stream
    over, a layer at a time → prefix cache reset → sampler wakes its KV cache → gate

The *gate* samples probes with the new weights and compares the sampler's log-probabilities with the trainer's on the same
tokens, each engine on its own: where mean exp|Δ| is above `run.gate`, it measures again on eight times as many (one token of 256 is
enough to exceed it), and above it there too the run stops with a diagnosis. A checksum of parameters would not do: vLLM repacks and
fuses them, so a tensor can be loaded and still not be the one that computes (a tied head on CPU, for one).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from soundrl.engine.experts.agreement import Agreement
from soundrl.engine.gather import most_alive
from soundrl.engine.launch.last_words import RANK
from soundrl.engine.lora.adapter_sync import AdapterSync
from soundrl.engine.packing import Sample, pack_all
from soundrl.engine.policy import Policy
from soundrl.engine.samplers.sampler import Draw, Sampler, seed_of_turn
from soundrl.engine.samplers.turns import joined
from soundrl.engine.telemetry.timeline import TIMELINE
from soundrl.engine.trainer import Trainer
from soundrl.fapo.records import Reply
from soundrl.kernels.policy_loss import is_logprob

PROBE_TOKENS = 32
PROBES = 8  # 8 × 32 = 256 tokens an engine
AGAIN = 2048  # tokens an engine before a run is stopped
MOST_NOT_FINITE = 0.1  # share of tokens that the gate leaves out, as the sampler reports no log-probability for them


class SyncError(RuntimeError):
    """The sampler does not compute what the trainer computes."""


@dataclass(frozen=True)
class GateResult:
    exp_abs_dlogp: float
    """mean exp|sampler − trainer| over the probes' tokens at the rollout temperature, of the engine where it is highest; inf: not finite"""
    untempered: float
    """the same against the trainer's log-probabilities at temperature 1, where the other is above the limit; else the other"""
    tokens: int
    """sampled on each engine"""
    not_finite: int = 0
    """left out on the engine with most of them: the sampler's log-probability is none"""
    abs_dlogp: float = 0.0
    """mean |sampler − trainer|, of the engine where it is highest. A few tokens do not make it up, as they do the other"""
    routers: tuple[float, ...] = ()
    """share of tokens for which sampler and trainer chose the same experts, by layer, over all engines; empty: no experts, or it cannot be
    told"""

    @property
    def blind(self) -> bool:
        """So many tokens have no log-probability that the others prove nothing."""
        return self.not_finite > MOST_NOT_FINITE * self.tokens

    def passes(self, limit: float) -> bool:
        return self.exp_abs_dlogp <= limit and not self.blind


class WeightSync:
    """Calls are collectives: every rank syncs at the same time.

    `prompts` are token ids of training prompts; the probes continue the first ones at every sync, so that a stale prefix cache
    has something to betray itself with.
    """

    def __init__(
        self, policy: Policy, trainer: Trainer, sampler: Sampler, prompts: Sequence[np.ndarray], temperature: float, limit: float
    ) -> None:
        self.policy, self.trainer, self.sampler = policy, trainer, sampler
        self.prompts, self.temperature, self.limit = prompts[:PROBES], temperature, limit
        self.room = policy.settings.max_length - max(len(p) for p in self.prompts)
        self.reply = np.empty(0, np.int32)
        """Token ids of a reply, where the environment answers: probes are of two turns then, the second on a cached beginning"""
        self.adapting = AdapterSync(policy, sampler) if sampler.adapts else None
        """Where the sampler holds the base, and adapters alone go over"""
        self.sent: list[str] = []

    @TIMELINE("sync")
    def __call__(self) -> dict[str, float]:
        """Sync and gate. Returns metrics; SyncError with a diagnosis when the gate is not met."""
        self.trainer.sleep()
        if self.policy.ranks.device.type == "cuda":
            torch.cuda.empty_cache()
        self.sampler.wake("weights")
        self.bring()
        self.sampler.reset_cache()
        self.sampler.wake("kv_cache")
        result = self.gate()
        if result.exp_abs_dlogp > self.limit:  # all ranks hold the same numbers, and decide alike
            result = self.gate(AGAIN)
        if not result.passes(self.limit):
            from soundrl.engine.tools.sync_doctor import diagnose

            raise SyncError(diagnose(self, result))
        layers = result.routers  # each has counted the same tokens
        return ({"mismatch/router": sum(layers) / len(layers), "mismatch/router_lowest": min(layers)} if layers else {}) | {
            "mismatch/gate": result.exp_abs_dlogp,
            "mismatch/gate_tokens": float(result.tokens),
            "sync/gathered_mib": self.most_alive() / 2**20,
        }

    def bring(self) -> None:
        """The sampler has the weights as they are now."""
        if self.adapting is None:
            self.sampler.load(self.stream())
        else:
            self.sent = self.adapting()

    def stream(self, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, Tensor]]:
        """Full tensors by name; `sent` records what really went over. Those that are not `wanted` are gathered as well: all ranks must."""
        self.sent = []
        for name, tensor in self.policy.named_full_tensors():
            if wanted(name):
                self.sent.append(name)
                RANK.beat()
                yield name, tensor

    def most_alive(self) -> int:
        """Bytes of gathered parameters that are alive at once, at most; what the sampler's loaders hold of them comes on top."""
        if self.adapting is not None:
            return 0  # they are small, and the sampler has the base already
        size = getattr(torch, self.policy.settings.dtype).itemsize
        mesh = self.policy.ranks.mesh
        return most_alive({name: size * p.numel() for name, p in self.policy.model.named_parameters()}, mesh.size(mesh.ndim - 1))

    def probes(self, least: int) -> list[Sample]:
        """With at least so many tokens of the sampler's."""
        reply = self.reply if len(self.reply) + 2 <= self.room else self.reply[:0]
        turns = 2 if len(reply) else 1
        length = min(PROBE_TOKENS, self.room - len(reply)) // turns
        count = max(len(self.prompts), math.ceil(least / (turns * length)))
        draw = Draw(
            run_seed=self.sampler.engine, phase="probe", step=self.sampler.version, temperature=self.temperature, max_new_tokens=length
        )
        asked = [replace(draw.request(str(i), self.prompts[i % len(self.prompts)], 0), ignore_end=True) for i in range(count)]
        first = sorted(self.sampler.generate(asked), key=lambda r: int(r.prompt_id))
        if turns == 1:
            return [Sample.of(rollout) for rollout in first]
        asked = [
            replace(r, prompt_tokens=np.concatenate((r.prompt_tokens, turn.tokens, reply)), seed=seed_of_turn(r.seed, 1))
            for r, turn in zip(asked, first, strict=True)
        ]
        second = sorted(self.sampler.generate(asked), key=lambda r: int(r.prompt_id))
        return [Sample.of(joined(before, Reply(text=""), reply, turn)) for before, turn in zip(first, second, strict=True)]

    @TIMELINE.detail("gate")
    @torch.no_grad()
    def gate(self, least: int = PROBES * PROBE_TOKENS) -> GateResult:
        """Sample at least `least` tokens on each engine, over two turns where it may answer, and score them with the
        trainer's own packed forward pass."""
        agreement = Agreement(self.policy.routers, self.sampler.routes)
        with agreement.sampling():
            samples = [replace(sample, index=i) for i, sample in enumerate(self.probes(least))]
        worst, typical, known, left_out = self._gap(samples, self.temperature, agreement)
        untempered, routers = worst, agreement.shares(self.policy.ranks)
        if self.temperature != 1.0 and worst > self.limit:  # all ranks hold the same numbers; it says what is wrong, not whether
            untempered, *_ = self._gap(samples, 1.0)
        return GateResult(worst, untempered, known + left_out, int(self.policy.ranks.max(left_out)), typical, routers)

    def _gap(self, samples: Sequence[Sample], temperature: float, agreement: Agreement | None = None) -> tuple[float, float, int, int]:
        """Mean exp|Δ| and mean |Δ|, each on the engine where it is highest, with the trainer at `temperature`, and this engine's tokens
        with and without a log-probability. `agreement` looks at the trainer's routers meanwhile."""
        sums, known, left_out = torch.zeros(2, dtype=torch.float64), 0, 0
        # As many micro-batches on every rank: the lengths are the same.
        for batch in pack_all(samples, self.trainer.settings.microbatch_tokens, self.policy.ranks.device):
            sampler_R = batch.sampler_logprobs[batch.response_index]
            known_R = is_logprob(sampler_R)
            with agreement.scoring(batch) if agreement else nullcontext():
                logprob_R, _ = self.policy.response_logprobs(batch, temperature)
            gap_R = (logprob_R - sampler_R)[known_R].abs()
            sums += torch.stack((gap_R.exp().sum(), gap_R.sum())).cpu()
            known += int(known_R.sum())
            left_out += int((~known_R).sum())
        # A NaN must not pass, and a maximum over ranks would lose it.
        worst, typical = (self.policy.ranks.max(gap / known if known and math.isfinite(gap) else math.inf) for gap in sums.tolist())
        return worst, typical, known, left_out
