"""What a run may do to its machine: it listens on loopback alone, shows its token to nobody, leaves no temporary files, and no text of a
model or a file is obeyed by the terminal."""

import ipaddress
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import PATIENCE, QUIET, ROOT
from netns import listening
from survival import SMALL
from tiny import write_tiny
from torch.distributed import TCPStore

from soundrl.engine.files.run_reader import RunReader
from soundrl.engine.telemetry.console import Progress

sys.path.insert(0, str(ROOT / "bench"))
import soak


def family(ancestor: int) -> list[int]:
    """The process and all below it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            children.setdefault(int(stat.read_text().rsplit(")", 1)[1].split()[1]), []).append(int(stat.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    out = [ancestor]
    for pid in out:
        out += children.get(pid, [])
    return out


def sockets_of(pid: int, found: dict[str, str]) -> list[str]:
    there = []
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link))
            if match and match[1] in found:
                there.append(found[match[1]])
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        pass
    return there


def read(pid: int | str, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def local(address: str) -> bool:
    where = ipaddress.ip_address(address.split()[1])
    return (getattr(where, "ipv4_mapped", None) or where).is_loopback


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> dict:
    """What was seen of a run with a served judge while it ran: sockets by process, its token, command lines that hold it; what it said."""
    folder = tmp_path_factory.mktemp("machine")
    (folder / "temporary").mkdir()
    judge = write_tiny(folder / "judge")
    command = [
        sys.executable,
        "tests/workers/machine.py",
        "arith",
        *map(str, SMALL),
        "--run.steps",
        "2",
        "--run.folder",
        str(folder / "runs"),
    ]
    command += ["--genrm.judge", "serve", "--genrm.model", str(judge), "--genrm.workers", "2", "1", "--genrm.max-tokens", "64"]
    away = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
        "GLOO_SOCKET_IFNAME",
        "SOUNDRL_GENRM_TOKEN",
        "TRITON_INTERPRET",
    )
    environment = {key: value for key, value in os.environ.items() if key not in away} | QUIET
    environment |= {"NPROC": "2", "TMPDIR": str(folder / "temporary")}
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)
    seen: set[tuple[str, str]] = set()
    tokens: set[bytes] = set()
    shown: set[str] = set()
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        found = listening()
        for pid in family(process.pid):
            line = read(pid, "cmdline")
            tokens |= set(re.findall(rb"(?:^|\0)VLLM_API_KEY=([^\0]+)", read(pid, "environ")))
            role = "judge" if b"fake_judge" in line else "rank" if b"-u\0" in line else "launcher"
            seen |= {(role, address) for address in sockets_of(pid, found)}
        for stat in Path("/proc").glob("[0-9]*"):
            line = read(stat.name, "cmdline")
            shown |= {line.decode(errors="replace") for token in tokens if token in line}
        time.sleep(0.2)
    assert process.returncode == 0, (folder / "said").read_text()[-3000:]
    return {"folder": folder, "seen": seen, "tokens": tokens, "shown": shown, "rows": RunReader(folder / "runs" / "arith").metrics()}


def test_every_socket_of_a_run_listens_on_loopback(watched):
    assert [address for _, address in watched["seen"] if not local(address)] == []
    by_role = {role: len({address for who, address in watched["seen"] if who == role}) for role in ("judge", "rank")}
    assert by_role["judge"] == 2 and by_role["rank"] >= 3, watched["seen"]  # witness: two servers; the store, gloo on each rank


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_socket_that_others_reach_would_be_found(host):
    """Inverse."""
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=kind) as server, socket.socket(kind, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind((host, 0))
        found = [address for address in sockets_of(os.getpid(), listening()) if not local(address)]
        ports = {server.getsockname()[1], datagrams.getsockname()[1]}
        assert ports <= {int(address.split()[2]) for address in found}


def test_the_store_that_torch_would_open_is_found():
    """Inverse: a run's own is given a socket that listens on loopback."""
    store = TCPStore("127.0.0.1", 0, 1, True)
    assert [address for address in sockets_of(os.getpid(), listening()) if not local(address) and int(address.split()[2]) == store.port]


def test_the_token_is_shown_to_nobody(watched):
    (token,) = watched["tokens"]
    asked = [row for row in watched["rows"] if "genrm/requests" in row]
    assert (
        len(token) >= 24 and asked[-1]["genrm/requests"] > 0 and all(row["genrm/unknown"] == 0 for row in asked)
    )  # witness: it was needed
    assert watched["shown"] == set()
    files = [path for path in watched["folder"].rglob("*") if path.is_file()]
    assert [path for path in files if token in path.read_bytes()] == []
    names = {path.name for path in files}
    assert {"said", "genrm-0.log", "config.json", "trace.json", "metrics.jsonl"} <= names  # witness: these were looked at


def test_no_temporary_file_stays(watched):
    assert [str(path) for path in (watched["folder"] / "temporary").rglob("*")] == []


HOSTILE = ["\x1b[2J\x1b]0;title\x07", "a\rb", "\x9b31m", "\u202ereversed", "[red]markup[/red]", "\ud800", "a\x00b", "\u2028"]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_no_text_is_obeyed_by_the_terminal(text, capsys):
    """Of a file's name, a model's card, a row that is left out."""
    progress = Progress(True, 1)
    progress.say(f"card: {text}")
    progress.summary({}, {f"eval/{text}/accuracy": 0.5}, {}, text)
    shown = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert "[red]markup[/red]" in shown or "\\" in shown


def test_growth_is_told_from_scatter():
    """As bench/soak.py judges: 0.05 MiB a step of 400 is seen in noise of 2 MiB, a descriptor every hundred steps without any."""
    steps, noise = list(range(1, 501)), np.random.default_rng(0).normal(0.0, 2.0, 500)
    flat, leak, warm = 400 + noise, 400 + noise + 0.05 * np.arange(500), 400 + noise - 90 * np.exp(-np.arange(500) / 15)
    assert [soak.fitted(steps, list(values))["grows"] for values in (flat, leak, warm)] == [False, True, False]
    assert soak.fitted(steps, [20.0 + step // 100 for step in steps])["grows"] is True
    assert soak.fitted(steps, [20.0] * 500) == {"last": 20.0, "rise": 0.0, "scatter": 0.0, "grows": False}


def test_a_launcher_and_its_ranks_are_looked_at():
    script = "import subprocess, sys; subprocess.Popen(['sleep', '60']); print('up', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        while not 0 < (seen := soak.figures(process.pid))["rank 0, MiB"] < seen["launcher, MiB"]:  # it has only just begun
            time.sleep(0.05)
        subprocess.run(["pkill", "-P", str(process.pid)], check=True)
    assert seen["launcher, children"] == 1 and seen["rank 0, threads"] == 1
    assert seen["launcher, descriptors"] >= 3 and soak.size(Path(__file__)) == Path(__file__).stat().st_size
