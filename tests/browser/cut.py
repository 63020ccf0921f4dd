"""Cuts a small run for the browser's tests out of a whole one: `python tests/browser/cut.py runs/small tests/browser/runs/small 0 7 8`.

Settings, metrics, disagreements and trace are kept; of the rollouts the steps that are named; no checkpoints, policies and logs.
"""

import json
import shutil
import sys
from pathlib import Path

FILES = ("metrics.jsonl", "disagreements.jsonl", "alarms.jsonl", "plan.json", "trace.json", "left_out.jsonl")


def cut(run: Path, out: Path, steps: list[int]) -> None:
    out.mkdir(parents=True)
    config = json.loads((run / "config.json").read_text("utf-8"))
    config["run"]["folder"] = "runs"
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in FILES:
        if (run / name).is_file():
            shutil.copy(run / name, out)
    for step in steps:
        name = f"rollouts/step-{step:06d}"
        shutil.copytree(run / name, out / name)


if __name__ == "__main__":
    cut(Path(sys.argv[1]), Path(sys.argv[2]), [int(step) for step in sys.argv[3:]])
