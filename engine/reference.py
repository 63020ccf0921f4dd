"""The reference of `loss.kl`: the policy as the run starts, after its warm start; it never trains.

Nothing of it is in a checkpoint. It is read from the folder that the run starts from, or, where there is a warm start, from what that has
exported: `policy/step-000000` of the run's folder. Of a policy with adapters it is the base with the adapters of step 0, no second copy.
Its log-probabilities of a step's samples are computed where the samples are dealt to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from soundrl.engine.config import Config
from soundrl.engine.files.adapter_folder import ADAPTER, read_adapter
from soundrl.engine.packing import PackedBatch
from soundrl.engine.policy import Policy


def reference_folder(config: Config, start: Path, run: Path, shared: bool) -> Path:
    """Where its weights are: `start` is the folder of the policy before any warm start, `run` the run's. ValueError where they are gone, or
    would be on the first node's disk alone (the run's folder is not `shared`)."""
    if not config.warm_start.steps:
        return start
    again = "make the warm start a run of its own (--run.steps 0), and start from its policy/step-000000 with --warm-start.steps 0"
    if not shared:
        raise ValueError(f"loss.kl: the nodes share no disk, so others than the first cannot read what the warm start has made; {again}")
    if not (folder := run / "policy" / "step-000000").is_dir():
        raise ValueError(f"loss.kl: {folder}, the policy that this run started from, is gone; restore it, or {again}")
    return folder


class AdapterReference:
    """The policy's own base with the adapters that it started from, as a reference is asked."""

    def __init__(self, policy: Policy, started: Mapping[str, Tensor] | None) -> None:
        """`started`: whole tensors by their parameters' names; None: there were none, the base alone."""
        assert policy.adapters is not None
        self.policy, self.ranks, self.adapters, self.rows = policy, policy.ranks, policy.adapters, None
        if started is not None:
            now = self.adapters.rows()
            self.adapters.take(started, policy.ranks)
            self.rows = self.adapters.rows()
            self.adapters.put(now)

    @torch.no_grad()
    def response_logprobs(self, batch: PackedBatch, temperature: float) -> tuple[Tensor, Tensor]:
        with self.adapters.without(self.adapters.layers) if self.rows is None else self.adapters.at(self.rows):
            return self.policy.response_logprobs(batch, temperature)


def reference_of(policy: Policy, folder: Path, place: str) -> Policy | AdapterReference:
    """The weights in `folder`, sharded as `policy` is, in the type that it computes in. `place` as `loss.kl` has it: sharded; asleep: its
    shards lie on the host, and each layer comes to the device for its pass; cpu: it computes there. On a CPU all three are one."""
    if policy.adapters is not None:  # `folder` is its base, or what its warm start has exported
        return AdapterReference(policy, read_adapter(folder / ADAPTER) if (folder / ADAPTER).is_dir() else None)
    ranks, settings = policy.ranks, policy.settings
    if place == "cpu" and ranks.device.type == "cuda":
        # Kernels and flash-attn are the GPU's; plain attention computes here.
        ranks, settings = ranks.on_cpu(), replace(settings, attention="sdpa")
    return Policy(folder, policy.tokenizer, settings, ranks, frozen=True, asleep=place == "asleep" and ranks.device.type == "cuda")
