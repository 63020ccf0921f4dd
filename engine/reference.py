"""The reference of `loss.kl`: the policy as the run starts, after its warm start; it never trains.

Nothing of it is in a checkpoint. It is read from the folder that the run starts from, or, where there is a warm start, from what that has
exported: `policy/step-000000` of the run's folder. Its log-probabilities of a step's samples are computed where the samples are dealt to.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from soundrl.engine.config import Config
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


def reference_of(policy: Policy, folder: Path, place: str) -> Policy:
    """The weights in `folder`, sharded as `policy` is, in the type that it computes in. `place` as `loss.kl` has it: sharded; asleep: its
    shards lie on the host, and each layer comes to the device for its pass; cpu: it computes there. On a CPU all three are one."""
    ranks, settings = policy.ranks, policy.settings
    if place == "cpu" and ranks.device.type == "cuda":
        # Kernels and flash-attn are the GPU's; plain attention computes here.
        ranks, settings = ranks.on_cpu(), replace(settings, attention="sdpa")
    return Policy(folder, policy.tokenizer, settings, ranks, frozen=True, asleep=place == "asleep" and ranks.device.type == "cuda")
