"""All that is looked at of adapters, each part a fork of this process: what all of them import costs more than what most of them do."""

import importlib
import json
import sys
from functools import partial
from pathlib import Path

import lora
import lora_engines
import lora_runs
from forks import forked

for name in ("vllm.v1.engine.llm_engine", "vllm.v1.worker.cpu_worker"):
    importlib.import_module(name)

ON = {3: (), 1: (3,), 2: (3, 1)}
"""Ranks, and whose checkpoints they read"""


def main(arguments: dict, out: Path) -> None:
    """How each part has ended: with `cases` those on several ranks and the engines, and the whole runs of these names."""
    root, said = Path(arguments["root"]), {}
    if "cases" in arguments:
        for ranks, others in ON.items():
            cases = {name: case for name, case in arguments["cases"].items() if ranks in arguments["on"].get(name, (1, 2))}
            part = partial(lora.main, root, cases, others)
            said[f"on {ranks}"] = forked(ranks, lambda _, part=part: part(), root / f"on-{ranks}.log")
        (root / "engines").mkdir()
        said["engines"] = forked(1, lambda _: lora_engines.main(root / "engines"), root / "engines.log")
    said["runs"] = lora_runs.runs(root, tuple(arguments["runs"]))
    out.write_text(json.dumps(said))


main(json.loads(sys.argv[1]), Path(sys.argv[2]))
