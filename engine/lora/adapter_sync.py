"""Adapters on their way to a sampler that holds the base already (vLLM's own adapters): PEFT's folder, in memory, read and removed again.

gather float32 → first rank of each node writes the folder → every engine takes it under a new number → the old one goes → folder removed
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path

from soundrl.engine.launch.last_words import RANK
from soundrl.engine.policy import Policy
from soundrl.engine.samplers.sampler import Sampler
from soundrl.engine.samplers.shared_memory import MEMORY

PREFIX = "soundrl-adapter-"


def own_folder(place: Path) -> Path:
    """A folder of this process in `place`. It goes when the process ends, and where that was killed, when another one makes its own here:
    nobody holds its lock any more."""
    for other in place.glob(f"{PREFIX}*"):
        try:
            lock = os.open(other, os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # another user's, or gone by now
            continue
        with suppress(OSError):  # of a process that lives, or on a disk without locks, where what a kill left stays
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_uid == os.geteuid():
                shutil.rmtree(other, ignore_errors=True)
        os.close(lock)
    folder = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=place))
    with suppress(OSError):
        fcntl.flock(os.open(folder, os.O_DIRECTORY), fcntl.LOCK_EX)  # never closed: its end is that of this process
    own = folder.rename(place / folder.name[1:])  # under this name it was never without its lock
    gone = partial(shutil.rmtree, own, ignore_errors=True)
    atexit.register(gone)
    RANK.unfinished.append(gone)  # an end at once passes atexit by
    return own


class AdapterSync:
    """Of one policy and its sampler. Every method is a collective."""

    def __init__(self, policy: Policy, sampler: Sampler) -> None:
        assert policy.adapters is not None and policy.base is not None
        self.ranks, self.sampler, self.adapters, self.base = policy.ranks, sampler, policy.adapters, policy.base
        self.size = sum(layout.size for layout in self.adapters.layouts().values())
        self.folder: Path = self.ranks.of_node(own_folder(self._place()) if self.ranks.node.first else None)

    def _place(self) -> Path:
        """Memory where it holds the folder twice, as in a container it may not; else the usual place for what is temporary."""
        roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2 * self.size
        return MEMORY if roomy else Path(tempfile.gettempdir())

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
