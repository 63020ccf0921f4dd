"""All that is looked at of adapters, each part a fork of this process: what all of them import costs more than what most of them do."""

import importlib
import json
import sys
from pathlib import Path

import lora
import lora_engines
import lora_runs
from forked import world

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
            said[f"on {ranks}"] = world(ranks, root / f"on-{ranks}.log", lora.main, root, cases, others)
        (root / "engines").mkdir()
        said["engines"] = world(1, root / "engines.log", lora_engines.main, root / "engines")
    said["runs"] = lora_runs.runs(root, tuple(arguments["runs"]))
    out.write_text(json.dumps(said))


main(json.loads(sys.argv[1]), Path(sys.argv[2]))
