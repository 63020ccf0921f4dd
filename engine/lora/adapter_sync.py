"""Adapters on their way to a sampler that holds the base already (vLLM's own adapters): PEFT's folder, in memory, read and removed again.

gather float32 → first rank of each node writes the folder → every engine takes it under a new number → the old one goes → folder removed
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from soundrl.engine.policy import Policy
from soundrl.engine.samplers.sampler import Sampler

MEMORY = Path("/dev/shm")


class AdapterSync:
    """Of one policy and its sampler. Every method is a collective."""

    def __init__(self, policy: Policy, sampler: Sampler) -> None:
        assert policy.adapters is not None and policy.base is not None
        self.ranks, self.sampler, self.adapters, self.base = policy.ranks, sampler, policy.adapters, policy.base
        self.size = sum(layout.size for layout in self.adapters.layouts().values())
        # Removed when this process ends, in whatever way it does; what is written within is, after each sync.
        self.held = tempfile.TemporaryDirectory(prefix="soundrl-adapter-", dir=self._place()) if self.ranks.node.first else None
        self.folder = Path(self.ranks.of_node(self.held and self.held.name))

    def _place(self) -> Path | None:
        """Memory where it holds the folder twice, as in a container it may not; else the usual place for what is temporary."""
        return MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2 * self.size else None

    def __call__(self) -> list[str]:
        """The sampler computes with the adapters as they are now; returns their names."""
        target = self.folder / "adapter"
        self.adapters.write(target, self.base, here=self.ranks.node.first)
        self.ranks.barrier()
        self.sampler.adapt(target)
        self.ranks.barrier()
        if self.ranks.node.first:
            shutil.rmtree(target)
        return list(self.adapters.parameters())
