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
from soundrl.engine.launch.launch import be_quiet, parse_arguments
from soundrl.engine.samplers import torch_sampler  # noqa: F401


def run(rank: int, line: list[str], kill: str, witness: Path) -> None:
    point, which, nth = (kill or "start,none,0").split(",")
    if which in (str(rank), "all"):
        arm(point, which, int(nth), witness)
    train.main(parse_arguments(line))


def main(arguments: dict, out: Path) -> None:
    # What a run imports as it goes: once, here.
    folder = Path(parse_arguments(arguments["runs"][0]["line"]).model.path)
    load_tokenizer(folder)
    AutoModelForCausalLM.from_pretrained(folder)
    said = []
    for number, each in enumerate(arguments["runs"]):
        witness = out.parent / f"witness-{number}"
        statuses = forked(each["ranks"], lambda rank, each=each, witness=witness: run(rank, each["line"], each["kill"], witness))
        said.append({"statuses": statuses, "killed": witness.exists()})
        print(number, said[-1], flush=True)
    out.write_text(json.dumps(said))


be_quiet()
main(json.loads(sys.argv[1]), Path(sys.argv[2]))
