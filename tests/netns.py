"""Two machines in one: namespaces with their own loopback, host name, /etc/hosts and processes, and a cable between them."""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from conftest import QUIET, ROOT


class Machine:
    """`name` at `address`; ends, with every process on it, by `kill`."""

    def __init__(self, name: str, address: str, hosts: Path) -> None:
        self.name, self.address = name, address
        own = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        boot = f"hostname {name} && mount --bind {hosts} /etc/hosts && ip link set lo up && echo up && exec sleep infinity"
        self.init = subprocess.Popen(
            [*own, "sh", "-c", boot], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.init.stdout is not None and self.init.stderr is not None
        if self.init.stdout.readline() != "up\n":
            raise OSError(self.init.stderr.read().strip())
        self.pid = int(Path(f"/proc/{self.init.pid}/task/{self.init.pid}/children").read_text())

    def command(self, *command: str) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "--net", "--mount", "--uts", "--pid", f"--wd={ROOT}", *command]

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        away = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TRITON_INTERPRET", "GLOO_SOCKET_IFNAME")
        kept = {key: value for key, value in os.environ.items() if key not in away}
        return subprocess.Popen(
            self.command(*command),
            env=kept | QUIET | {"TRITON_INTERPRET": "0"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str) -> str:
        return subprocess.run(self.command(*command), check=True, capture_output=True, text=True).stdout

    def kill(self) -> None:
        """As if its power were cut, but that its connections are closed."""
        if self.init.poll() is None:
            os.kill(self.pid, signal.SIGKILL)  # its first process: the kernel kills the others
        self.init.wait()


def network(folder: Path, hosts: dict[str, str] | None = None) -> list[Machine]:
    """`node0` at 10.77.0.1 and `node1` at 10.77.0.2, which know each other's names; `hosts`: what /etc/hosts of each says instead. OSError
    where this machine lets nobody make namespaces."""
    if not all(map(shutil.which, ("ip", "unshare", "nsenter"))):
        raise OSError("no ip, unshare or nsenter")
    machines: list[Machine] = []
    try:
        for number in (0, 1):
            name = f"node{number}"
            file = folder / f"hosts-{name}"
            file.write_text("127.0.0.1 localhost\n" + (hosts or {}).get(name, "10.77.0.1 node0\n10.77.0.2 node1\n"))
            machines.append(Machine(name, f"10.77.0.{number + 1}", file))
        connect(*machines)
    except (OSError, subprocess.CalledProcessError) as error:
        for machine in machines:
            machine.kill()
        raise OSError(str(getattr(error, "stderr", "") or error)) from error
    return machines


def connect(one: Machine, other: Machine) -> None:
    """A cable. The address is a bridge's, which stays when the cable goes with the other machine."""
    cable = ["ip", "link", "add", "name", "plug", "type", "veth", "peer", "name", "plug", "netns", str(other.pid)]
    subprocess.run(["nsenter", "-t", str(one.pid), "--net", *cable], check=True, capture_output=True, text=True)
    for machine in (one, other):
        machine.run("ip", "link", "add", "name", "net0", "type", "bridge")
        machine.run("ip", "address", "add", f"{machine.address}/24", "dev", "net0")
        machine.run("ip", "link", "set", "plug", "master", "net0")
        for name in ("plug", "net0"):
            machine.run("ip", "link", "set", name, "up")


LISTENS = "0A"


def listening(table: Callable[[str], str] = lambda name: Path(f"/proc/net/{name}").read_text()) -> dict[str, str]:
    """Protocol, address and port by inode of each TCP socket of a machine that listens, and each bound UDP socket without a peer; `table`
    reads a file of its /proc/net."""
    out = {}
    for name in ("tcp", "tcp6", "udp", "udp6"):
        for line in table(name).splitlines()[1:]:
            _, local, remote, state, *_, inode = line.split()[:10]
            if state == LISTENS or (name.startswith("udp") and not remote.strip("0:")):
                number, port = local.split(":")
                words = b"".join(bytes.fromhex(number[i : i + 8])[::-1] for i in range(0, len(number), 8))
                out[inode] = f"{name} {ipaddress.ip_address(words)} {int(port, 16)}"
    return out
