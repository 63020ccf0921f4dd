"""Whether all nodes of a run write to one disk. Rollouts need not (copied together they read as one), but a checkpoint is whole where each
rank's rows stand beside the manifest, which rank 0 writes."""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from pathlib import Path

from soundrl.engine.config import Run
from soundrl.engine.ranks import Ranks

SECONDS = 5.0  # a network disk may show a new file late


def shared(folder: Path, ranks: Ranks) -> list[str]:
    """Hosts that do not see what rank 0 writes to `folder`, sorted; none where the disk is one. A collective. OSError where rank 0 cannot
    write."""
    name, words = f".shared-{secrets.token_hex(8)}", secrets.token_hex(8)
    try:
        if ranks.main:
            (folder / name).write_text(words)
        name, words = ranks.gather((name, words))[0]
        end, seen = time.monotonic() + SECONDS, False
        while not seen and time.monotonic() < end:
            with contextlib.suppress(OSError):
                seen = (folder / name).read_text() == words
            time.sleep(0.0 if seen else 0.1)
        return sorted(set(ranks.gather("" if seen else socket.gethostname())) - {""})
    finally:
        if ranks.main:
            (folder / name).unlink(missing_ok=True)


def keeps_checkpoints(run: Run, folder: Path, ranks: Ranks) -> bool:
    """Whether checkpoints of this run can be whole. A collective. ValueError where they cannot, but `run.save` asks for some."""
    blind = shared(folder, ranks)
    if blind and run.save[0] > 0:
        raise ValueError(
            f"run.folder {run.folder} is no disk that all nodes share: {', '.join(blind)} cannot see what the first one writes, so no "
            "checkpoint would be whole; name a folder on a shared disk, or set --run.save 0 1 0 for a run that keeps none and, once "
            "interrupted, begins anew"
        )
    return not blind
