"""The memory that the ranks of vLLM's engine share on a CPU, under a name of its own.

vLLM (0.32) names it after the port of its process group, and an engine within torchrun's ranks has none: every run on a machine would have
the same name. A second run would meet the first one's memory, and a run that was killed would leave its own (4 MiB a rank), at which every
later one fails: "create shm in SHMManager failed. errno: 17".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

from soundrl.engine.ranks import Ranks

MEMORY = Path("/dev/shm")


@contextmanager
def named_apart(ranks: Ranks) -> Iterator[None]:
    """Around the start of an engine on a CPU: a collective of all ranks. Behind it the memory has no name any more: it is there while
    somebody has it, and nothing stays of ranks that are killed."""
    from vllm.distributed.device_communicators import cpu_communicator

    shared = cpu_communicator._CPUSHMDistributed
    named, token, names = shared.make_group_name, ranks.gather(uuid4().hex)[0], set[str]()

    def own(communicator: Any) -> str:
        name = f"soundrl-{token}-{named(communicator).lstrip('/')}"
        names.add(name)
        return name

    shared.make_group_name = staticmethod(own)
    try:
        yield  # to its end: all ranks of this engine have joined
    finally:
        shared.make_group_name = staticmethod(named)
        for name in names:
            for file in MEMORY.glob(f"{escape(name)}_*"):
                file.unlink(missing_ok=True)
