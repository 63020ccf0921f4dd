"""Several nodes: two network namespaces with a cable between them. Judges stay with their node, folders are looked at from both, misleading
host names are named, and a node that dies in mid run costs nothing but time."""

import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fake_judge
import pytest
from conftest import PATIENCE
from fake_judge import MODEL, Server, find_flaw
from netns import Machine, listening, network
from survival import SMALL, assert_equal, everything, job, said
from tiny import write_tiny

from soundrl.engine.ranks import GLOO, alone

ALONE = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "WORLD_SIZE": "2", "MASTER_PORT": "29500"}


def cabled(folder: Path, hosts: dict[str, str] | None = None) -> list[Machine]:
    try:
        return network(folder, hosts)
    except OSError as error:
        pytest.skip(f"this machine lets nobody make network namespaces: {error}")


@pytest.fixture
def nodes(tmp_path) -> Iterator[list[Machine]]:
    machines = cabled(tmp_path)
    yield machines
    for machine in machines:
        machine.kill()


def on_each(nodes: list[Machine], folder: Path, master: str = "10.77.0.1", **arguments) -> list[dict]:
    """What tests/workers/nodes.py says on each."""
    command = [sys.executable, "tests/workers/nodes.py", json.dumps({"folder": str(folder)} | arguments), str(folder / "out.json")]
    own = ALONE | {"SOUNDRL_GENRM_TOKEN": ""}  # each node draws one
    started = [node.start(*command, **own, RANK=str(rank), GROUP_RANK=str(rank), MASTER_ADDR=master) for rank, node in enumerate(nodes)]
    for process in started:
        text, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, text[-3000:]
    return [json.loads((folder / f"out-{rank}.json").read_text()) for rank in range(len(nodes))]


def test_each_node_has_judges_of_its_own_and_sees_whether_disks_are_one(nodes, tmp_path):
    (own := tmp_path / "own").mkdir()
    nodes[1].run("mount", "-t", "tmpfs", "none", str(own))
    found = on_each(nodes, tmp_path, own=str(own), judge=str(write_tiny(tmp_path / "judge")))
    cure = "own is no disk that all nodes share: node1 cannot see what the first one writes, .* or set --run.save 0 1 0 "
    for number, node in enumerate(found):
        assert "refused" not in node, node["refused"]
        assert node["host"] == f"node{number}" and node["node"] == {"number": number, "rank": 0, "ranks": 1}
        assert node["blind"] == [[], ["node1"]] and node["left"] == []
        assert node["without"] == ["True", "False"] and node["checkpoints"][0] == "True"
        assert re.search(cure.replace("own is", "run.folder .* is"), node["checkpoints"][1])
        assert "http://127.0.0.1:9/v1 is each machine's own loopback, but the run has ranks on 2" in node["endpoint"]
        # Its own two servers, on its own loopback, asked by its own rank with all places, in the phase alone.
        assert len(node["urls"]) == 2 and all(url.startswith("http://127.0.0.1:") for url in node["urls"]) and node["slots"] == [3, 3]
        for asked in node["witness"]:
            assert [kind for kind, _ in itertools.groupby(asked)] == ["asked", "sleep?level=1", "wake_up", "asked", "sleep?level=1"]
        # Until it was up, before it was asked and after it woke up each had a probe; between them two different solutions.
        assert sum(asked.count("asked") for asked in node["witness"]) == 2 * 3 + 2
        assert node["said"][-1:] == ["judge: serial phase (small GPU)"]  # of the second node, and so of all
        assert node["logs"] == [str(tmp_path / "logs" / f"node-{n}" / f"genrm-{i}.log") for n in (0, 1) for i in (0, 1)]
    assert found[0]["verdicts"] == found[1]["verdicts"] and len(set(found[0]["verdicts"])) == 2
    assert found[0]["token"] != found[1]["token"]


DEBIAN = {name: f"127.0.1.1 {name}\n10.77.0.{2 - number} node{1 - number}\n" for number, name in enumerate(("node0", "node1"))}


@pytest.mark.parametrize("checks", [True, False])
def test_host_names_that_stand_for_loopback_are_named(checks, tmp_path):
    """As many an /etc/hosts says. Inverse: without the look at them ranks wait for each other until the time is up."""
    nodes = cabled(tmp_path, DEBIAN)
    try:
        found = on_each(nodes, tmp_path, checks=checks, wait=60 if checks else 6)
    finally:
        for node in nodes:
            node.kill()
    for node in found:
        if checks:
            assert node["refused"].startswith(
                "gloo on node0, node1 would listen on loopback, which other nodes do not reach: set GLOO_SOCKET_IFNAME"
            )
        else:
            assert node["refused"].startswith("the ranks do not find each other at MASTER_ADDR 10.77.0.1:29500 (")
            assert "GLOO_SOCKET_IFNAME" in node["refused"] and "--local-addr" in node["refused"]


STARTED = "from soundrl.engine.ranks import Ranks; Ranks.start(); print('up', flush=True); input()"


@pytest.mark.parametrize("name", ["", "net0"])
def test_a_run_on_one_node_listens_on_loopback_whatever_its_name_stands_for(name, nodes):
    """Its name stands for its address on the network, where gloo would listen: it does where it is asked to (inverse)."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    process = nodes[0].start(sys.executable, "-c", STARTED, **alone, GLOO_SOCKET_IFNAME=name)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    found = {address.split()[1] for address in listening(lambda table: nodes[0].run("cat", f"/proc/net/{table}")).values()}
    assert found == ({"127.0.0.1", "10.77.0.1"} if name else {"127.0.0.1"})
    assert nodes[0].run("hostname", "-i").strip() == "10.77.0.1"  # witness


def test_a_process_group_of_one_leaves_the_environment_as_it_was(monkeypatch):
    """Or whatever is started after an evaluation or a replay would look for other machines on loopback."""
    monkeypatch.delenv(GLOO, raising=False)
    before = dict(os.environ)
    with alone():
        assert os.environ[GLOO] == "lo" and os.environ["MASTER_PORT"] == "0"  # witness
    assert dict(os.environ) == before


JUDGE = "import sys, time; sys.path.insert(0, 'tests'); import fake_judge; fake_judge.FLAW = '7'; "
JUDGE += "fake_judge.Server(fake_judge.find_flaw, 8000, '10.77.0.2'); print('serving', flush=True); time.sleep(1e6)"
STEPS = ("--run.steps", 3, "--run.save", 1, 2, 0, "--data.test")


def judged_at(url: str) -> tuple:
    asked = ("--genrm.judge", "endpoint", "--genrm.urls", url, "--genrm.model", MODEL, "--genrm.allow-http")
    return (*STEPS, *asked, "--genrm.deadline", 60, 60)


def begin(nodes: list[Machine], folder: Path) -> list[subprocess.Popen[str]]:
    """The judge on the second node, and the run on both, as `examples/launch/slurm.sh` starts it."""
    judge = nodes[1].start(sys.executable, "-c", JUDGE)
    assert judge.stdout is not None and judge.stdout.readline() == "serving\n"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    launcher += ["--rdzv-endpoint", "10.77.0.1:29500", "--rdzv-id", "7", "engine/train.py", "arith"]
    settings = (*SMALL, *judged_at("http://10.77.0.2:8000/v1"), "--run.folder", folder)
    return [node.start(*launcher, *map(str, settings)) for node in nodes]


def a_node_dies(tmp_path, monkeypatch):
    """With the judge on it, in mid run; both are started again with the same command, as after a requeue. Run by `kill_matrix.py`."""
    monkeypatch.setattr(fake_judge, "FLAW", "7")
    nodes = cabled(tmp_path)
    folder = tmp_path / "runs"
    metrics, saved = folder / "arith" / "metrics.jsonl", folder / "arith" / "checkpoints" / "step-000001"
    try:
        first, second = begin(nodes, folder)
        end = time.monotonic() + PATIENCE
        while not saved.exists():
            assert time.monotonic() < end and first.poll() is None, first.communicate()[0][-3000:]
            time.sleep(0.05)
        nodes[1].kill()
        lost = first.communicate(timeout=PATIENCE)[0]
        assert first.returncode != 0 and "lost the connection to another rank" in lost, lost[-3000:]
        assert second.wait() != 0 and '"step": 3, ' not in metrics.read_text()  # witness: it died before the end
        nodes[0].kill()
        nodes = cabled(tmp_path)
        said_again = ""
        for process in begin(nodes, folder):
            said_again += process.communicate(timeout=PATIENCE)[0]
            assert process.returncode == 0, said_again[-3000:]
        assert "goes on from " in said_again
    finally:
        for node in nodes:
            node.kill()
    server = Server(find_flaw)
    done = job(tmp_path / "whole", *judged_at(server.url), worker="engine/train.py")
    server.stop()
    assert done.returncode == 0, said(done)
    runs = [everything(path / "arith") for path in (folder, tmp_path / "whole")]
    assert any(row.get("fapo/flawed_ratio") for row in runs[0]["metrics"])
    assert_equal(*runs)
