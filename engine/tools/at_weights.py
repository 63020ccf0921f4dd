"""The weights that a saved step began with, on one rank: its loss computed once more, and the gradient of any scoring of its rollouts.

A checkpoint of the step before has all that the optimizer needs. An exported policy of it has the weights as they compute, which is enough
where the step is one mini-batch, or the optimizer's first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from soundrl.engine.checkpoints import restore
from soundrl.engine.exchange import StepBatch
from soundrl.engine.files.adapter_folder import ADAPTER, read_adapter
from soundrl.engine.files.checkpoint import CheckpointError, checkpoints, place_of
from soundrl.engine.files.model_folder import load_tokenizer, policy_folder
from soundrl.engine.policy import Policy
from soundrl.engine.ranks import Ranks
from soundrl.engine.reference import reference_folder, reference_of
from soundrl.engine.schedule import Minibatch
from soundrl.engine.telemetry.timeline import TIMELINE
from soundrl.engine.tools.export import check, export
from soundrl.engine.tools.recomputed import Recomputed
from soundrl.engine.trainer import Trainer
from soundrl.fapo.flips import between
from soundrl.fapo.records import Group

TOLERANCE = {"float32": 5e-4, "bfloat16": 2e-2}
"""Relative, where the bits are not the same: another number of ranks, of threads, or another processor adds in another order. In float32 as
tests/test_golden.py allows, which has measured 5e-5 at most; a changed formula moves figures by per cents."""
CROSSING = 1e-3
"""Absolute, of shares of tokens: rounding carries a token over a clip's edge."""


@dataclass(frozen=True)
class Start:
    """Where the weights are."""

    folder: Path
    """A policy's, or a checkpoint."""
    whole: bool
    """With moments and counters: a checkpoint, or the beginning of the optimizer."""

    @property
    def checkpoint(self) -> bool:
        return (self.folder / "state.json").is_file()


def start_of(step: Recomputed, ranks: Ranks) -> Start:
    """The best there is. ValueError, with what would keep them, where there is none."""
    run, config, last = step.run.path, step.config, step.step - 1
    faults = []
    for folder in checkpoints(run / "checkpoints"):
        if (place := place_of(folder)) and (place.step, place.within) == (last, 0):
            try:
                check(folder)
                return Start(folder, whole=True)
            except CheckpointError as error:
                faults.append(str(error))
    several = config.rollout.prompts > config.optim.minibatch_prompts
    exported = run / "policy" / f"step-{last:06d}"
    if last == 0 and not config.warm_start.steps:
        return Start(first_folder(step, ranks), whole=True)
    if exported.is_dir() and not (several and (last or config.model.dtype != "float32")):
        return Start(exported, whole=last == 0)
    found = {place.step for path in checkpoints(run / "checkpoints") if (place := place_of(path)) and not place.within}
    found |= set() if config.warm_start.steps else {0}
    found |= set() if several else {int(path.name[5:]) for path in run.glob("policy/step-*") if path.name[5:].isdecimal()}
    there = ", ".join(str(number + 1) for number in sorted(found) if number < config.run.steps) or "none"
    what = "; ".join(faults) or f"no checkpoint{'' if several else ' nor policy'} of step {last}"
    raise ValueError(f"{what} is there; steps that can be: {there}; keep every one by --run.save 1 {config.run.steps} 0")


def first_folder(step: Recomputed, ranks: Ranks) -> Path:
    """That of `model.path`; an environment's fresh weights are beside the run, wherever that is now."""
    return policy_folder(replace(step.config, run=replace(step.config.run, folder=str(step.run.path.parent))), ranks)


class AtWeights:
    """Policy and trainer as `step` began. ValueError where weights, tokenizer or data are gone, or are not those of the run."""

    def __init__(self, step: Recomputed, ranks: Ranks) -> None:
        if not step.saved.ranks:
            raise ValueError("format 1 rounds log-probabilities and keeps no prompt's length")
        self.step, self.ranks, config = step, ranks, step.config
        self.start = start_of(step, ranks)
        with tempfile.TemporaryDirectory() as beside:
            folder = Path(beside) / "policy" if self.start.checkpoint else self.start.folder
            if config.model.lora[0]:
                folder = first_folder(step, ranks)  # the base, whatever it wears
            elif self.start.checkpoint:
                export(self.start.folder, folder)
            self.policy = Policy(folder, load_tokenizer(folder), config.model, ranks, seed=config.run.seed)
            self.trainer = Trainer(self.policy, config.optim, config.loss, config.rollout.temperature, config.rollout.max_new_tokens)
            if self.start.checkpoint:
                restore(self.start.folder, self.trainer, ranks)
            elif self.policy.adapters is not None and (self.start.folder / ADAPTER).is_dir():
                self.policy.adapters.take(read_adapter(self.start.folder / ADAPTER), ranks)
        step.encoded(self.policy.tokenizer)
        TIMELINE.begin(0)
        if config.loss.kl[0]:
            first = Path() if config.warm_start.steps else first_folder(step, ranks)
            self.trainer.reference = reference_of(self.policy, reference_folder(config, first, step.run.path, True), config.loss.kl[2])

    def _batch(self, groups: Sequence[Group]) -> StepBatch:
        """In the global order, with prompts."""
        told = self.step.with_prompts([groups[i] for i in self.step.order], self.policy.tokenizer)
        return self.step.batch(told, self.ranks)

    def check_loss(self) -> None:
        """Train the step as it was trained. What this adds up on one rank, the run has added up on its own."""
        step, here = self.step, self._batch(self.step.groups)
        parts = [replace(part, batch=here) for part in step.planned()]
        said = self.trainer.train(parts)
        trained = {name: said[name] for name in ("loss/policy", "optim/grad_norm")} | said  # these first
        tokens = sum(sample.own for part in parts for sample in part.samples)
        weighed = sum(abs(here.advantages[i]) * here.samples[i].own for i in range(len(here.samples)))
        scale = weighed / max(tokens, 1)  # a loss is a difference of parts of this size
        shares = {f"loss/{name}": tolerance_floor(step.config.model.dtype) for name in ("clip_low", "clip_high", "dual_clip", "corrected")}
        floors = shares | {"loss/policy": scale, "loss/kl": 1e-3, "loss/kl_reference": 1e-3, "mismatch/kl": 1e-3}
        if not self.start.whole:
            trained.pop("optim/lr")  # counts updates
        for name in ("tokens/trained", "tokens/fill"):  # `check_packing`
            trained.pop(name)
        of = f"{step.saved.ranks} rank{'s' * (step.saved.ranks > 1)} of the run, one here"
        step.compare(trained, TOLERANCE[step.config.model.dtype], f"{of}; allowed {TOLERANCE[step.config.model.dtype]:g}", floors)

    def gradient(self, groups: Sequence[Group]) -> list[Tensor]:
        """Of the step's loss with the advantages of `groups`, at the weights that sampled (every ratio is 1): the mean over mini-batches, a
        tensor a parameter, whole."""
        batch = self._batch(groups)
        parts = self.step.parts(batch)
        if self.trainer.reference is not None:
            candidates = list(chain(*(part.candidates() for part in parts)))
            batch.reference_logprobs.update(self.trainer.logprobs(self.trainer.reference, batch, candidates))
        for part in parts:
            self.trainer.backward(self._packed(part), max(self.trainer.count(part.samples), 1.0), self.trainer.policy_loss)
        out = [torch.zeros_like(p) if p.grad is None else p.grad / len(parts) for p in self.policy.trained.values()]
        self.trainer.optimizer.zero_grad()
        return [each.full_tensor().cpu() for each in out]  # type: ignore[attr-defined]

    def _packed(self, part: Minibatch) -> Iterator:
        for window in part.trained():
            yield from self.trainer.packed(window)


def tolerance_floor(dtype: str) -> float:
    """The size of a share of tokens of which `CROSSING` is the tolerance."""
    return CROSSING / TOLERANCE[dtype]


def turned(before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[float, float]:
    """Cosine and ratio of norms (after ÷ before) of two gradients, in fp64.

    >>> turned([torch.tensor([3.0]), torch.tensor([4.0])], [torch.tensor([6.0]), torch.tensor([8.0])])
    (1.0, 2.0)
    """
    pairs = [(a.double().flatten(), b.double().flatten()) for a, b in zip(before, after, strict=True)]
    return between(*(sum(float(x @ y) for x, y in part) for part in (pairs, [(a, a) for a, _ in pairs], [(b, b) for _, b in pairs])))
