"""The optimizer's side: forward, backward and step over packed micro-batches, with one denominator for all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from soundrl.engine.config import Loss, Optim
from soundrl.engine.exchange import StepBatch
from soundrl.engine.experts.balance import Balance
from soundrl.engine.memory.moments import HostAdamW, optimizer_of
from soundrl.engine.memory.offload import Offload
from soundrl.engine.packing import PackedBatch, Sample, micro_batches, pack
from soundrl.engine.policy import Policy
from soundrl.engine.ranks import Ranks
from soundrl.engine.schedule import Leave, Minibatch, number_windows
from soundrl.engine.telemetry.flops import Work
from soundrl.engine.telemetry.timeline import TIMELINE
from soundrl.engine.trained_values import TrainedValues
from soundrl.kernels.linear_logprob import Logprobs
from soundrl.kernels.loss_rule import LossRule
from soundrl.kernels.policy_loss import METRIC_SUMS

# (micro-batch, count) → loss, metric sums, log-probabilities [R]; see `Policy.response_loss`
LossFunction = Callable[[PackedBatch, float], tuple[Tensor, dict[str, Tensor], Logprobs]]


class Reference(Protocol):
    """Who says log-probabilities of packed samples."""

    ranks: Ranks

    def response_logprobs(self, batch: PackedBatch, temperature: float) -> tuple[Tensor, Tensor]: ...


# −log-prob with gradient: cispo of the first token's ratio, 1, and advantage 1.
SUPERVISED = LossRule(variant="cispo")

# What `Trainer.backward` adds up: tokens in micro-batches and how many of these there were, then the loss's own.
SUMS = ("packed", "batches", "loss", "entropy", *METRIC_SUMS)

MAX_SKIPPED_IN_A_ROW = 3


class NotFiniteError(RuntimeError):
    """The gradient was not finite several optimizer steps in a row."""


class Trainer:
    """AdamW on the policy's float32 master weights."""

    def __init__(self, policy: Policy, optim: Optim, loss: Loss, temperature: float, longest: int = 0) -> None:
        """`longest` response in tokens (`rollout.max_new_tokens`): what `dr_grpo` divides by."""
        self.policy, self.ranks, self.longest = policy, policy.ranks, longest
        self.settings, self.rule, self.temperature = optim, loss.rule(), temperature
        self.optimizer = optimizer_of(policy, optim)
        self.offload = Offload(policy.model, self.optimizer) if "offload" in policy.settings.save_memory else None
        self.balance = Balance(policy, loss.balance)
        self.updates = 0
        self.skipped_in_a_row = 0
        self.within, self.totals, self.late = 0, dict[str, float](), dict[int, np.ndarray]()
        """Of the step under way: mini-batches trained, what they add up to, and what `StepBatch.old_logprobs` was when it began."""
        self.leave: Leave = lambda batch, window: None
        self.values = TrainedValues()
        self.work = Work(policy.cost())
        self.reference: Reference | None = None
        """Of the KL term, where there is one"""

    def state(self) -> dict[str, Any]:
        """Plain JSON; with weights and moments all that the next step depends on."""
        lr = self.optimizer.param_groups[0]["lr"]
        return {"updates": self.updates, "skipped": self.skipped_in_a_row, "lr": lr, "totals": self.totals} | (
            {"base": self.policy.base} if self.policy.base else {}
        )

    def restore(self, state: dict[str, Any]) -> None:
        self.updates, self.skipped_in_a_row, self.totals = state["updates"], state["skipped"], state["totals"]
        for group in self.optimizer.param_groups:
            group["lr"] = state["lr"]

    def sleep(self) -> None:
        """Weights and moments to the host, where `model.save_memory` wants them there while others need the device. A forward pass without
        gradient, a gather of weights and a checkpoint are right from there as well."""
        if isinstance(self.optimizer, HostAdamW):
            self.optimizer.reserve()  # a host that has no room says so before the first step
        if self.offload is not None:
            self.offload.sleep()

    def wake(self) -> None:
        """Back to the device, to train; moments may be on their way until `arrive`."""
        if self.offload is not None:
            self.offload.wake()

    def arrive(self) -> None:
        if self.offload is not None:
            self.offload.arrive()

    def packed(self, samples: Sequence[Sample]) -> Iterator[PackedBatch]:
        """This rank's micro-batches of `samples`, which every rank knows: as many as any other has, empty ones among them."""
        self.work.train(samples)
        for each in micro_batches([s.length for s in samples], self.ranks.size, self.settings.microbatch_tokens):
            yield pack([samples[i] for i in each[self.ranks.rank]], self.ranks.device)

    def backward(self, batches: Iterable[PackedBatch], count: float, loss_function: LossFunction) -> dict[str, float]:
        """Accumulate the gradient of all micro-batches; returns metric sums over all ranks (`SUMS`), and the load of experts where there
        are any (`balance.LOAD`).

        `count` is the mini-batch's over all ranks. FSDP2 averages gradients over ranks, so each rank's loss is scaled by
        the world size: the sum over ranks is the gradient of one rank that holds everything.
        """
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.ranks.device)
        batches, closing = iter(batches), [pack((), self.ranks.device)] if self.ranks.replicas > 1 else []
        # One at least, so that a step without any signal is a step all the same. Replicas add up gradients once, in an empty one behind
        # the others: which of these is the last is known only when all verdicts are there.
        for batch in chain([next(batches, pack((), self.ranks.device))], batches, closing):
            last = any(batch is one for one in closing)
            self.policy.reduce_between_replicas(last)
            # A micro-batch with nothing to train has a differentiable 0: it runs backward for the collectives of the others.
            with TIMELINE.detail("micro-batch"):
                with self.balance.watched(batch):
                    loss, metrics, logprobs = loss_function(batch, count)
                (self.ranks.size * self.balance.added(loss)).backward()
                sums[2:] += torch.stack([loss.detach(), logprobs.entropy.sum(), *(metrics[name] for name in METRIC_SUMS)])
                self.values.keep(batch, logprobs)
            sums[0] += batch.tokens
            sums[1] += not last
        return self.ranks.total(dict(zip(SUMS, sums.tolist(), strict=True))) | self.balance.take()

    def update(self, lr: float) -> dict[str, float]:
        """Clip, check, step. A gradient that is not finite on any rank skips the step on all of them and is counted."""
        parameters = list(self.policy.trained.values())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        # The norm is global already (DTensor); full_tensor() makes every rank read the same bits, so all take the same branch. Each replica
        # adds up its own: in another order the last bit would part them for good.
        norm = self.ranks.as_first_copy(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        torch.nn.utils.clip_grads_with_norm_(parameters, self.settings.grad_clip, norm)
        grad_norm = norm.item()
        finite = math.isfinite(grad_norm)
        if finite:
            self.arrive()
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self.updates += 1
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        self.optimizer.zero_grad()
        if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise NotFiniteError(
                f"the gradient was not finite {self.skipped_in_a_row} optimizer steps in a row; the parameters are those of the last "
                "finite step. Lower optim.lr or look at the rollouts of this step"
            )
        return {"grad_norm": grad_norm, "skipped": float(not finite)}

    def learning_rate(self) -> float:
        """Linear warm-up over `optim.warmup_steps` updates, then constant."""
        return self.settings.lr * min(1.0, (self.updates + 1) / max(1, self.settings.warmup_steps))

    def policy_loss(self, batch: PackedBatch, count: float) -> tuple[Tensor, dict[str, Tensor], Logprobs]:
        return self.policy.response_loss(batch, self.temperature, self.rule, count)

    def supervised_loss(self, batch: PackedBatch, count: float) -> tuple[Tensor, dict[str, Tensor], Logprobs]:
        """Cross-entropy of the response tokens, mean over the whole batch."""
        return self.policy.response_loss(batch, self.temperature, SUPERVISED, count, supervised=True)

    def count(self, samples: Sequence[Sample]) -> float:
        """The loss's denominator of these samples (table in `kernels/loss_rule.py`); those without advantage count as well."""
        sequences = float(sum(s.own > 0 for s in samples))
        if self.rule.sequence_mean:
            return sequences
        if self.rule.variant == "dr_grpo":
            if self.longest < 1:
                raise ValueError("loss.variant dr_grpo divides by the longest response; give Trainer `longest` (rollout.max_new_tokens)")
            return sequences * self.longest
        return float(sum(s.own for s in samples))

    @torch.no_grad()
    def logprobs(self, policy: Reference, batch: StepBatch, indices: Sequence[int]) -> dict[int, np.ndarray]:
        """Log-probabilities of these samples under a policy's present weights, computed where they are dealt to, then on every rank."""
        lengths = [batch.samples[i].length for i in indices]
        self.work.score(lengths)
        rounds = micro_batches(lengths, self.ranks.size, self.settings.microbatch_tokens)
        own = [np.empty(0, dtype=np.float32)]
        for each in rounds:
            packed = pack([batch.samples[indices[i]] for i in each[self.ranks.rank]], policy.ranks.device)
            own.append(policy.response_logprobs(packed, self.temperature)[0].float().cpu().numpy())
        found = dict[int, np.ndarray]()
        for rank, values in enumerate(self.ranks.gather_array(np.concatenate(own))):
            order = [indices[i] for each in rounds for i in each[rank]]
            bounds = np.cumsum([batch.samples[i].own for i in order])
            found.update(zip(order, np.split(values, bounds[:-1]), strict=True))
        return found

    @TIMELINE("train")
    def train(self, minibatches: Sequence[Minibatch], rest: Callable[[], object] = lambda: None) -> dict[str, float]:
        """One optimizer step per mini-batch of the rollout batch. A collective; every rank has the same mini-batches.

        The first mini-batch trains on the weights that sampled (ratio exactly 1); for the others log-probabilities are taken before it,
        which needs no verdict. Each window waits for its own verdicts. Sequences without advantage have an
        exactly zero gradient: they count in the denominator and are not trained. Goes on where an interrupted step has stopped (`within`);
        `rest` waits for what trains nothing and belongs to the step (verdicts where λ = 0). Returns metrics over the whole batch.
        """
        self.values.begin()
        self.wake()
        batch, candidates = minibatches[0].batch, [minibatch.candidates() for minibatch in minibatches]
        self.work.begin(batch.samples, batch.groups)
        if self.reference is not None:
            with TIMELINE.detail("reference's log-probs"):  # of all, after a restart too: dealt alike, they are the same bits
                batch.reference_logprobs.update(self.logprobs(self.reference, batch, list(chain(*candidates))))
        if self.within:
            batch.old_logprobs.update(self.late)  # the weights that sampled are gone
        elif late := list(chain(*candidates[1:])):
            with TIMELINE.detail("old log-probs"):
                batch.old_logprobs.update(self.logprobs(self.policy, batch, late))
        totals = self.totals or dict.fromkeys((*SUMS, "grad_norm", "skipped", *self.balance.names), 0.0)
        for minibatch in minibatches[self.within :]:
            self.balance.count(self.packed(minibatch.samples), minibatch.samples)
            micro = (packed for window in minibatch.trained(self.leave) for packed in self.packed(window))
            stats = self.backward(micro, max(self.count(minibatch.samples), 1.0), self.policy_loss)
            with TIMELINE.detail("optimizer"):
                stats |= self.update(self.learning_rate())
            self.totals = totals = {name: totals[name] + stats[name] for name in totals}
            self.within += 1
        rest()
        number_windows(minibatches)
        self.leave(batch, ())
        self.within, self.totals, self.late = 0, {}, {}
        tokens, steps = max(totals["tokens"], 1.0), len(minibatches)
        known = max(totals["tokens"] - totals["not_finite"], 1.0)
        to_reference = {"loss/kl_reference": totals["reference_kl"] / tokens} if self.reference is not None else {}
        load = {name: totals[name] / steps for name in self.balance.names if name in totals}
        return (
            to_reference
            | load
            | {
                "loss/policy": totals["loss"] / steps,
                "loss/entropy": totals["entropy"] / tokens,
                "loss/clip_low": totals["clip_low"] / tokens,
                "loss/clip_high": totals["clip_high"] / tokens,
                "loss/dual_clip": totals["dual_clip"] / tokens,
                "loss/kl": totals["kl"] / tokens,
                "loss/corrected": totals["corrected"] / tokens,
                "mismatch/exp_abs_dlogp": totals["exp_abs_dlogp"] / known,
                "mismatch/kl": totals["sampler_kl"] / known,
                "mismatch/not_finite": totals["not_finite"],
                "optim/grad_norm": totals["grad_norm"] / steps,
                "optim/skipped": totals["skipped"],
                "optim/lr": self.optimizer.param_groups[0]["lr"],
                "tokens/trained": totals["tokens"],
                "tokens/fill": totals["packed"] / (totals["batches"] * self.settings.microbatch_tokens),
            }
        )

    def supervised_step(self, samples: Sequence[Sample], lr: float) -> dict[str, float]:
        """One supervised optimizer step (warm start) on samples that every rank knows."""
        count = float(sum(s.own for s in samples))
        self.balance.count(self.packed(samples), samples)
        return self.backward(self.packed(samples), max(count, 1.0), self.supervised_loss) | self.update(lr)
