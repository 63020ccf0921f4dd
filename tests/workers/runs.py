"""The main job several times in one process, because starting a process costs more than a tiny run: what a user would be told of each,
None where it went through. Then saved steps of them are replayed: what is said of each."""

import contextlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed

from soundrl.engine.launch.launch import PROFILED, UserError, be_quiet, parse_arguments, profile_argument
from soundrl.engine.ranks import Ranks
from soundrl.engine.tools.other_scoring import Change
from soundrl.engine.tools.recomputed import Recomputed
from soundrl.engine.tools.replay import otherwise, replayed

be_quiet()
ENTRY = Path(__file__).resolve().parents[2] / "engine" / "train.py"


def main(arguments: dict, out: Path) -> None:
    spec = importlib.util.spec_from_file_location("train", ENTRY)
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    said: list[Any] = []
    # The group serves all runs: a second one over the same store may meet the first one's addresses, and wait for ever.
    Ranks.stop = lambda self: None
    for line in arguments["runs"]:
        try:
            PROFILED.step, line = profile_argument(line)
            train.main(parse_arguments(line))
            said.append(None)
        except UserError as error:
            said.append(str(error))
    for folder, number, lam in arguments.get("replays", ()):
        with contextlib.ExitStack() as stack:
            step = Recomputed(Path(folder), number)
            _, weights = replayed(step, stack)
            told = list(otherwise(step, Change(lam=lam), weights)) if lam is not None else []
            if weights is not None:
                weights.check_loss()
            said.append(vars(step.found) | {"otherwise": told})
    if os.environ["RANK"] == "0":  # where a preparation fails, it undoes what others may still look at
        out.write_text(json.dumps(said))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


main(json.loads(sys.argv[1]), Path(sys.argv[2]))
