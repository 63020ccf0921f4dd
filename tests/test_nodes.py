"""Several nodes: two network namespaces with a cable between them. Judges stay with their node, folders are looked at from both, misleading
host names are named, and a node that dies in mid run costs nothing but time."""

import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PATIENCE
from netns import Machine, network
from tiny import write_tiny

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
    started = [node.start(*command, **ALONE, RANK=str(rank), GROUP_RANK=str(rank), MASTER_ADDR=master) for rank, node in enumerate(nodes)]
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
        assert node["said"] == ["judge: serial phase (small GPU)"]  # of the second node, and so of all
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
