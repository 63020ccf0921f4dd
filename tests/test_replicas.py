"""A run on 2 × 2 ranks (`model.replicas 2`, FSDP2 over gloo), killed in a step and while it saves, equals one that was not, bit by bit.
Every point under the real launcher, and ends on other numbers of ranks: `make kill-matrix`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from survival import assert_equal, everything

LINE = (
    *("arith", "--model.path", "starts/policy", "--warm-start.steps", 0, "--rollout.engine", "torch", "--data.test"),
    *("--rollout.prompts", 4, "--optim.minibatch-prompts", 4, "--rollout.samples", 4, "--rollout.max-new-tokens", 40),
    *("--optim.warmup-steps", 1, "--run.save", 1, 4, 0),
)


def run_of(root: Path, name: str, ranks: int, replicas: int, steps: int, kill: str = "", *more: str) -> dict:
    """For `workers/forked_runs.py`."""
    line = [*map(str, LINE), "--run.folder", str(root / name), "--model.replicas", str(replicas), "--run.steps", str(steps), *more]
    return {"ranks": ranks, "line": line, "kill": kill}


@pytest.fixture(scope="module")
def said(torchrun_once, tmp_path_factory) -> dict:
    root = tmp_path_factory.mktemp("replicas")
    runs = [
        run_of(root, "whole", 4, 2, 2),
        run_of(root, "killed", 4, 2, 2, "training,3,2"),  # a rank of the second copy, in step 2
        run_of(root, "killed", 4, 2, 2, "checkpoint: manifest,all,1"),  # while that is saved
        run_of(root, "killed", 4, 2, 2),
    ]
    return {"root": root, "ended": torchrun_once("forked_runs", 1, runs=runs)}


def state(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Weights and moments of a checkpoint, whole: rows of all files in the order of ranks."""
    parts: dict[str, list[torch.Tensor]] = {}
    for file in sorted((run / "checkpoints" / f"step-{step:06d}").glob("*-of-*.safetensors")):
        for name, rows in load_file(file).items():
            parts.setdefault(name, []).append(rows)
    return {name: torch.cat(rows) for name, rows in parts.items()}


def test_killed_in_a_step_and_while_it_saves_it_equals_a_run_that_was_not(said):
    ended = said["ended"]
    assert ended[0] == {"statuses": [0] * 4, "killed": False} and ended[3] == {"statuses": [0] * 4, "killed": False}
    for number in (1, 2):  # witness
        assert ended[number]["killed"] and -9 in ended[number]["statuses"] and 0 not in ended[number]["statuses"], ended
    whole, killed = (said["root"] / name / "arith" for name in ("whole", "killed"))
    assert_equal(everything(killed), everything(whole))
    one, other = state(whole, 2), state(killed, 2)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert len(one) == 3 * sum("/" not in name for name in one) > 30  # moments are there
    assert not any(torch.equal(one[name], before) for name, before in state(whole, 1).items())  # inverse: each of them moves in a step
    # Each row once: the second copy writes none.
    files = {path.name for path in (killed / "checkpoints" / "step-000002").glob("*.safetensors")}
    assert files == {f"{part}-0000{n}-of-00002.safetensors" for part in ("moments", "weights") for n in (0, 1)}
