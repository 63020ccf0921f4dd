"""Send a run to a dashboard: wandb or trackio, from the run's folder alone, while it goes on or after.

python -m soundrl.view.sink runs/arith-genrm wandb              # offline, unless WANDB_MODE says otherwise; then `wandb sync`
python -m soundrl.view.sink runs/arith-genrm trackio --follow   # until the run has ended; `trackio show`
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from soundrl.view.sinks import Sink

LOOK = 2.0  # seconds between looks at a run under way


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m soundrl.view.sink`."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    to: Annotated[Literal["wandb", "trackio"], tyro.conf.Positional]
    """Where to."""
    follow: bool = False
    """Go on until the run has ended."""
    project: str = "soundrl"
    """Where the dashboard puts it."""
    rollouts: int = 16
    """Rollouts of each step that are sent as a table; 0 = none."""
    all: bool = False
    """Every series, and not the usual ones alone."""


def main(argv: list[str] | None = None) -> None:
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    try:
        if arguments.rollouts < 0:
            raise ValueError(f"--rollouts {arguments.rollouts} is no number of rollouts; give 0 or more")
        with Sink(arguments.run, arguments.to, arguments.project, arguments.rollouts, everything=arguments.all) as sink:
            while sink.send() and arguments.follow:
                time.sleep(LOOK)
        print(f"{arguments.run}: {sink.said()}")
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"stopped; the same command goes on: {arguments.run}")


if __name__ == "__main__":
    main()
