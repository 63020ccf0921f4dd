"""What is written beside its name and takes it at once, so that under a name stands nothing half written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from soundrl.engine.launch.last_words import remove, undone


@contextlib.contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A path beside `target` to write a file or a folder to, which takes the target's name when the block ends; if it does not end, nothing
    of it stays, nor of an earlier one that was killed."""
    beside = target.with_name(target.name + ".part")
    with undone(lambda: remove(beside)):
        remove(beside)
        yield beside
        os.replace(beside, target)
