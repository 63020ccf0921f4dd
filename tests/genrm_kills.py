"""`make genrm-kills`: a GenRM of the embedded world made while every stage is killed, one after the other: the same card as without.

Real all through, at tiny sizes: vLLM serves policy and checkpoints, two ranks train. Ten minutes on two quiet cores.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import QUIET, ROOT
from killed_make import POINTS

from soundrl.genrm.make.stages import STAGES, digests

WORLD = "soundrl.engine.environments.arithmetic"
WORDS = (
    *("--problems", f"{WORLD}.teacher:world", "--max-problems", 60, "--samples", 2, "--held-out", 0.3, 0.3, "--solution-tokens", 60),
    *("--policies", ROOT / "starts" / "policy", "--teacher", f"{WORLD}.teacher:teacher", "--base", ROOT / "starts" / "judge"),
    *("--max-tokens", 64, "--dtype", "float32", "--eager", "--recipe", "genrm-arith", "--steps", 2, "--every", 1, "--out", "genrm"),
    *("--", "--rollout.engine", "torch", "--rollout.prompts", 8, "--optim.minibatch-prompts", 8),
)
NTH = {
    **{"sampling": 40, "sampled": 1, "labelling": 1, "labelled": 1, "splitting": 3, "training": 1, "exporting": 2, "exported": 1},
    **{"benchmarking": 10, "one measured": 2, "choosing": 1, "reporting": 5, "writing": 1, "card": 1, "written": 1},
}


def made(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in `folder`, in a process group of its own."""
    command = [sys.executable, str(ROOT / "tests" / "workers" / "killed_make.py"), *map(str, WORDS)]
    own = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    # A file, not a pipe: what the killed one started may hold it for a moment.
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=own | QUIET | environment, stdout=log, stderr=log, start_new_session=True)
        process.wait()
    return subprocess.CompletedProcess(command, process.returncode, (folder / "log").read_text()[-3000:])


def card(folder: Path) -> dict:
    """Without what a clock has measured."""

    def timeless(value):
        if isinstance(value, dict):
            return {key: timeless(part) for key, part in value.items() if key != "seconds"}
        return [timeless(part) for part in value] if isinstance(value, list) else value

    return timeless(json.loads((folder / "genrm" / "card.json").read_text()))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    done = made(folder)
    assert done.returncode == 0, done.stdout
    return folder


def test_every_stage_is_killed():
    assert NTH.keys() == POINTS.keys() and {stage for stage, _ in POINTS.values()} == set(STAGES)


def test_killed_in_every_stage_it_ends_in_the_same_card(uninterrupted, tmp_path):
    for point, nth in NTH.items():
        witness = tmp_path / point.replace(" ", "-")
        killed = made(tmp_path, KILL=f"{point},{nth}", WITNESS=str(witness))
        assert witness.exists() and killed.returncode == -signal.SIGKILL, f"{point}: {killed.stdout}"
        stage = POINTS[point][0]
        ended = [name for name in STAGES if (tmp_path / "genrm.work" / name / "stage.json").exists()]
        assert ended == list(STAGES[: STAGES.index(stage)]), point  # witness: in this stage, and none is done twice
    done = made(tmp_path)
    assert done.returncode == 0, done.stdout
    assert card(tmp_path) == card(uninterrupted)
    assert digests(tmp_path / "genrm") == digests(uninterrupted / "genrm")
    assert not [*tmp_path.rglob("*.part")]
