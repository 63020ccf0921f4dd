"""examples/launch: short, linted where there is a linter, their commands known to whom they are given; slurm.sh is run, with scripts in
place of Slurm's and vLLM's programs."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import PATIENCE, ROOT
from torch.distributed.run import get_args_parser

from soundrl.engine.launch.launch import parse_arguments

LAUNCH = ROOT / "examples" / "launch"
LIMITS = {"slurm.sh": 40, "skypilot.yaml": 25, "Dockerfile": 20}

# Notes what it was asked for, then does as much of it as a machine without Slurm, GPUs and a network can.
STUB = """#!{python}
import json, os, signal, subprocess, sys, time
name, given = os.path.basename(sys.argv[0]), sys.argv[1:]
token = os.environ.get("VLLM_API_KEY", "")
row = {{"name": name, "given": given, "shown": token and token in str(given)}}
row["token"] = bool(token) and token == os.environ["SOUNDRL_GENRM_TOKEN"]
row |= {{key: os.environ.get(key, "") for key in ("CUDA_VISIBLE_DEVICES", "GLOO_SOCKET_IFNAME")}}
with open(os.environ["NOTES"], "a") as notes:
    notes.write(json.dumps(row) + "\\n")
if name == "scontrol" and given[0] == "show":
    print("node-a\\nnode-b\\nlocalhost")
if name == "srun":  # hands signals on, as Slurm's does
    first = next(place for place, word in enumerate(given) if not word.startswith("--"))
    child = subprocess.Popen(given[first:])
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    sys.exit(child.wait())
if name == "vllm":
    time.sleep(1e6)
if name == "vllm-router":
    import socket
    with socket.create_server(("127.0.0.1", int(given[given.index("--port") + 1]))) as server:
        while True:
            server.accept()
if name == "torchrun" and os.environ["ENDS"]:
    sys.exit(int(os.environ["ENDS"]))
if name == "torchrun":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as torchrun ends, whatever its ranks' status
    print("training", flush=True)
    time.sleep(1e6)
"""


@pytest.mark.parametrize("name", LIMITS)
def test_an_example_is_short(name):
    assert len((LAUNCH / name).read_text().splitlines()) <= LIMITS[name]


def checked_torchrun(words: list[str]) -> None:
    """torchrun's own parser knows its words, ours the rest."""
    parsed = get_args_parser().parse_args(words)
    assert parsed.training_script == "engine/train.py" and parsed.rdzv_backend == "c10d" and parsed.max_restarts == 3
    config = parse_arguments(parsed.training_script_args)
    assert config.genrm.judge == "endpoint" and config.run.resume


def slurm(folder: Path, ends: str) -> subprocess.Popen[str]:
    (folder / "bin").mkdir()
    for name in ("scontrol", "srun", "vllm", "vllm-router", "torchrun"):
        stub = folder / "bin" / name
        stub.write_text(STUB.format(python=sys.executable))
        stub.chmod(0o755)
    (folder / "notes").touch()
    own = {"SLURM_JOB_NODELIST": "node-[a-b],x", "SLURM_NNODES": "3", "SLURM_JOB_ID": "81", "SLURM_GPUS_ON_NODE": "2", "PORT": free_port()}
    own |= {"NOTES": str(folder / "notes"), "ENDS": ends, "IFNAME": "ib0", "PATH": f"{folder}/bin:{os.environ['PATH']}"}
    command = ["bash", str(LAUNCH / "slurm.sh"), "fapo-7b", "--genrm.model", "models/judge", "--run.folder", "/shared/runs"]
    return subprocess.Popen(
        command, env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def free_port() -> str:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def noted(folder: Path) -> list[dict]:
    """What the stubs have written so far; the last line may be under way."""
    whole, _, _ = (folder / "notes").read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def ended(job: subprocess.Popen[str], folder: Path) -> list[dict]:
    """What was noted; whatever the job has started ends with it, as with Slurm's."""
    try:
        job.wait(timeout=PATIENCE)
    finally:
        os.killpg(job.pid, signal.SIGKILL)
    return noted(folder)


def test_slurm_starts_judges_and_trainers_and_requeues_what_was_stopped(tmp_path):
    """The signal comes before the time is up, and after the judges, which start beside the trainers, have been asked for."""
    job = slurm(tmp_path, "")
    assert job.stdout is not None and job.stdout.readline() == "training\n"
    until = time.monotonic() + PATIENCE
    while sum(row["name"].startswith("vllm") for row in noted(tmp_path)) < 3 and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(job.pid, signal.SIGTERM)
    notes = ended(job, tmp_path)
    (torchrun,) = [row for row in notes if row["name"] == "torchrun"]
    port = re.search(r"localhost:(\d+)/v1", " ".join(torchrun["given"]))
    assert port is not None and torchrun["GLOO_SOCKET_IFNAME"] == "ib0" and torchrun["token"]
    checked_torchrun(torchrun["given"])
    assert "--rdzv-endpoint node-a:29500" in " ".join(torchrun["given"]) and torchrun["given"][:2] == ["--nnodes", "2"]
    judges = sorted((row for row in notes if row["name"] == "vllm"), key=lambda row: row["CUDA_VISIBLE_DEVICES"])
    assert [row["CUDA_VISIBLE_DEVICES"] for row in judges] == ["0", "1"] and all(row["token"] for row in judges)
    asked = [f"http://127.0.0.1:{row['given'][row['given'].index('--port') + 1]}" for row in judges]
    (router,) = [row for row in notes if row["name"] == "vllm-router"]
    assert router["given"][router["given"].index("--worker-urls") + 1 :] == asked
    places = [shlex.join(row["given"]) for row in notes if row["name"] == "srun"]
    assert (
        len(places) == 2 and "--nodelist=localhost bash" in places[0] and "--exclude=localhost --kill-on-bad-exit=1 torchrun" in places[1]
    )
    assert [row["given"] for row in notes if row["name"] == "scontrol"][1:] == [["requeue", "81"]] and job.returncode != 0
    assert not any(row["shown"] for row in notes)


@pytest.mark.parametrize("status", [0, 1])
def test_slurm_requeues_nothing_that_has_ended_by_itself(status, tmp_path):
    job = slurm(tmp_path, ends=str(status)) if status else slurm(tmp_path, ends="00")
    notes = ended(job, tmp_path)
    assert job.returncode == status and [row["given"][0] for row in notes if row["name"] == "scontrol"] == ["show"]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck here")
def test_slurm_is_clean_to_shellcheck():
    done = subprocess.run(["shellcheck", LAUNCH / "slurm.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_skypilots_task_has_known_fields_and_starts_the_run():
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert set(task) == {"name", "num_nodes", "workdir", "resources", "volumes", "envs", "secrets", "setup", "run"}
    assert set(task["resources"]) == {"accelerators", "use_spot", "job_recovery"}
    own = {
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "SKYPILOT_TASK_ID": "sky-7",
        "SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6",
    }
    own |= {name: value or "https://judges.example:8000/v1" for name, value in task["envs"].items()}
    run = task["run"].replace(".venv/bin/torchrun", "printf '%s\\n'")
    words = subprocess.run(["bash", "-euc", run], env=own | {"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True).stdout
    assert "10.0.0.5:29500" in words and "sky-7" in words
    checked_torchrun([*words.splitlines(), "--genrm.model", "judge"])
    assert shlex.split(task["setup"])[1] == "requirements/install.py" and (ROOT / "requirements" / "install.py").exists()


def test_the_dockerfile_copies_what_is_there_and_ends_in_exec_form():
    steps = [line.partition(" ") for line in (LAUNCH / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    assert {word for word, _, _ in steps} <= {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "ENTRYPOINT"}
    assert json.loads(steps[-1][2]) == ["python", "engine/train.py"] and steps[-1][0] == "ENTRYPOINT"
    install = next(rest for word, _, rest in steps if word == "RUN" and "install.py" in rest).split()
    assert install[0] == "python" and (ROOT / install[1]).exists() and install[2:] == [".venv", "gpu"]
