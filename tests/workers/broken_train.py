"""The main job with a fault on one rank at a named moment: `FAULT="1 Trainer.count 2"` raises on rank 1 in the second call."""

import importlib.util
import os
from pathlib import Path

from soundrl.engine.launch import launch

if __name__ == "__main__":
    launch.leave_to_ranks()

from soundrl.engine.files.run_folder import RunFolder
from soundrl.engine.trainer import Trainer

rank, method, call = os.environ["FAULT"].split()
owner = {"Trainer": Trainer, "RunFolder": RunFolder}[method.split(".")[0]]
name = method.split(".")[1]
real, calls = getattr(owner, name), 0


def broken(*arguments, **settings):
    global calls
    calls += 1
    if calls == int(call):
        raise RuntimeError("a fault of the test")
    return real(*arguments, **settings)


if os.environ["RANK"] == rank:
    setattr(owner, name, broken)

if __name__ == "__main__":
    spec = importlib.util.spec_from_file_location("train", Path(__file__).resolve().parents[2] / "engine" / "train.py")
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    launch.run(train.main)
