"""The main job several times on several ranks (`forks.py`), killed where it is asked to be. Arguments: `runs`, each {"ranks", "line",
"kill"}, the last as `killed.py` reads KILL, or empty. Says how the ranks of each ended."""

import json
import sys
from pathlib import Path

import torch.profiler
import torch.utils.tensorboard  # noqa: F401 — imported by each run otherwise
from forks import forked
from killed import arm
from transformers import AutoModelForCausalLM

from soundrl.engine import train
from soundrl.engine.files.model_folder import load_tokenizer
from soundrl.engine.launch.last_words import RANK
from soundrl.engine.launch.launch import be_quiet, parse_arguments
from soundrl.engine.samplers import torch_sampler  # noqa: F401


def run(rank: int, last: int, line: list[str], kill: str, witness: Path) -> None:
    """A signal that asks for a stop (SIGTERM) is the `last` rank's."""
    point, which, nth = (kill or "start,none,0").split(",")
    if which in (str(rank), "all") or (which.startswith("SIG") and rank == last):
        arm(point, which, int(nth), witness)
    RANK.watch()
    with RANK.speaks():
        train.main(parse_arguments(line))


def main(arguments: dict, out: Path) -> None:
    # What a run imports as it goes: once, here.
    folder = Path(parse_arguments(arguments["runs"][0]["line"]).model.path)
    if folder.is_dir():
        load_tokenizer(folder)
        AutoModelForCausalLM.from_pretrained(folder)
    said = []
    for number, each in enumerate(arguments["runs"]):
        witness = out.parent / f"witness-{number}"
        last, given = each["ranks"] - 1, (each["line"], each["kill"], witness)
        statuses = forked(last + 1, lambda rank, last=last, given=given: run(rank, last, *given))
        said.append({"statuses": statuses, "killed": witness.exists()})
        print(number, said[-1], flush=True)
    out.write_text(json.dumps(said))


be_quiet()
main(json.loads(sys.argv[1]), Path(sys.argv[2]))
