"""What is said on standard error: one line, to whoever still reads it, with the command that goes on."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from soundrl.fapo.printable import one_line

WARM_START = "warm_start"
"""Folder of checkpoints in the middle of a run's warm start; gone when that is whole."""


def say(text: str) -> None:
    """On standard error, to whoever still reads it: a terminal that was closed must not keep a rank from its end."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text + "\n")  # in one piece: ranks end at the same moment
        sys.stderr.flush()


class Heedless:
    """A stream that nobody may read any more: what a run does stands in its folder, and a closed terminal, or a `tee` that has heard the
    same Ctrl-C, must not keep it from saving."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.stream.flush()


def stopping(number: signal.Signals, grace: float) -> str:
    return f"stopping by {named(number)}: saves within {grace:g} s; a second signal ends at once"


def stopped(number: signal.Signals, rank: Any) -> str:
    """What is said of a stop that has not saved; `rank`, or the launcher's `Child`, tells where the run was."""
    return f"stopped by {named(number)} in {rank.where}{kept(rank.folder)}"


def named(number: signal.Signals) -> str:
    return number.name + (" (Ctrl-C)" if number == signal.SIGINT else "")


def kept(folder: Path | str | None) -> str:
    """`; kept: runs/x/checkpoints/step-000040; the same command goes on: python engine/train.py …`, by what stands in a run's folder."""
    for kind in ("checkpoints", WARM_START):
        saved = {path.parent for path in Path(folder).glob(f"{kind}/step-*[0-9]/manifest.json")} if folder is not None else ()
        if saved:
            return f"; kept: {max(saved, key=lambda path: path.name)}; the same command goes on: {command()}"
    return "; nothing was saved yet, the same command begins again"


def command() -> str:
    """This run's command line, without what would begin anew."""
    arguments = [argument for argument in sys.argv[1:] if argument not in ("--run.no-resume", "--no-run.resume")]
    return one_line(shlex.join(["python", sys.argv[0], *arguments]))
