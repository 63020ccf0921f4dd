"""The processes of a run: rank, device, process group and the few collectives the engine uses outside FSDP2."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout

JOIN_SECONDS = 300.0  # until all ranks have found each other; a launcher has started them at the same time
GLOO = "GLOO_SOCKET_IFNAME"


@dataclass(frozen=True)
class Node:
    """The machine of a rank, as launchers count them: the ranks that one of them has started (torchrun's GROUP_RANK, LOCAL_RANK and
    LOCAL_WORLD_SIZE)."""

    number: int
    rank: int
    """Of this rank, among its node's."""
    ranks: int

    @classmethod
    def of(cls, rank: int, size: int) -> Node:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        return cls(int(os.environ.get("GROUP_RANK", rank // here)), int(os.environ.get("LOCAL_RANK", rank % here)), here)

    @property
    def first(self) -> bool:
        """Whether this rank starts what each node has one of."""
        return self.rank == 0


@dataclass(frozen=True)
class Ranks:
    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    """Over its last dimension parameters, gradients and optimizer state are sharded: all ranks, or, where there are `replicas`, those of
    one of them, and the first dimension goes over the replicas."""
    replicas: int = 1
    """Groups of consecutive ranks that hold a whole copy each (HSDP, arXiv 2304.11277 §3.2.2): those of one node meet in one group where
    the groups are as large as nodes, or several times so."""
    longest_wait: float = 1800.0

    @classmethod
    def start(cls, longest_wait: float = 1800.0, replicas: int = 1) -> Ranks:
        """Join the process group torchrun describes: NCCL where there are GPUs, gloo on CPU. A collective fails after `longest_wait`
        seconds: a rank may sample, or wait for verdicts, for long while others wait for it, and NCCL's 10 minutes are too short.
        ValueError where the ranks do not meet, or `replicas` does not divide them."""
        missing = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise ValueError(f"{', '.join(missing)} not set: start with `torchrun engine/train.py` or `python engine/train.py`")
        local_rank = int(os.environ["LOCAL_RANK"])
        device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            # Both backends on GPU: object collectives and the barrier of host work must not occupy the card.
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            try:
                _join(backend, longest_wait)
            except (RuntimeError, OSError) as error:  # no interface or route, or a rank that does not come
                place = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT', '')}"
                raise ValueError(
                    f"the ranks do not find each other at MASTER_ADDR {place} ({str(error).splitlines()[0][:200]}); set MASTER_ADDR "
                    "(torchrun: --local-addr on the first node) to an address of the first one that all reach, GLOO_SOCKET_IFNAME and "
                    "NCCL_SOCKET_IFNAME to its network interface"
                ) from error
        size = dist.get_world_size()
        return cls(dist.get_rank(), size, device, _mesh(device.type, size, replicas, longest_wait), replicas, longest_wait)

    def on_cpu(self) -> Ranks:
        """The same ranks, whose weights are on the host. A collective."""
        return replace(self, device=torch.device("cpu"), mesh=_mesh("cpu", self.size, self.replicas, self.longest_wait))

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def shards(self) -> int:
        """Ranks that hold one copy of weights and moments together."""
        return self.size // self.replicas

    @property
    def shard(self) -> int:
        """Which part of the copy is this rank's."""
        return self.rank % self.shards

    @property
    def first_copy(self) -> bool:
        """Whether this rank's part is that of the first replica, which speaks for all where they hold the same."""
        return self.rank < self.shards

    def as_first_copy(self, value: torch.Tensor) -> torch.Tensor:
        """`value`, in place, as the rank with the same part of the first replica has it. A collective."""
        if self.replicas > 1:
            dist.broadcast(value, group=self.mesh.get_group(0), group_src=0)
        return value

    @property
    def node(self) -> Node:
        return Node.of(self.rank, self.size)

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sum over ranks, in fp64 on the host."""
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def total(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Sums by name, which are the same on every rank and in the same order, over all ranks."""
        return dict(zip(sums, self.sum(list(sums.values())), strict=True))

    def max(self, value: float) -> float:
        tensor = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor.item()

    def gather(self, value: Any) -> list[Any]:
        """The picklable `value` of every rank, in rank order, on every rank (our own processes only, never outside data)."""
        out: list[Any] = [None] * self.size
        dist.all_gather_object(out, value)
        return out

    def of_node(self, value: Any) -> Any:
        """The picklable `value` of the first rank of this node, on all ranks of the node, and sent to no other. A collective of all."""
        if self.node.ranks == self.size:
            return self.gather(value)[0]
        nodes = self.gather(self.node.number)
        members = {number: [rank for rank, its in enumerate(nodes) if its == number] for number in sorted(set(nodes))}
        groups = {number: dist.new_group(ranks, backend="gloo") for number, ranks in members.items()}  # each is made by all, in one order
        box, own = [value], groups[self.node.number]
        assert isinstance(own, dist.ProcessGroup)
        dist.broadcast_object_list(box, src=members[self.node.number][0], group=own)
        dist.destroy_process_group(own)
        return box[0]

    def first_said(self, own: str) -> str:
        """The first rank's text that is not empty, on every rank: what is wrong with one is wrong for all. Empty: nobody says anything."""
        return next(filter(None, self.gather(own)), "")

    def first_row(self, rows: int) -> int:
        """Of this rank's part of a tensor that has so many: FSDP2 cuts the first dimension into equal parts, rounded up, so that the last
        ranks of a copy may have none.

        Worked example: of 5 rows ranks 0, 1 and 2 of 4 begin at 0, 2 and 4, and rank 3 has none; of two replicas of two ranks each, ranks 0
        and 2 begin at 0, ranks 1 and 3 at 3.
        """
        return min(self.shard * -(-rows // self.shards), rows)

    def gather_array(self, own: np.ndarray) -> list[np.ndarray]:
        """The one-dimensional array of every rank, in rank order, on every rank; lengths may differ, the type may not. Over the host."""
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(own)]))
        most = int(max(lengths))
        padded = torch.zeros(most, dtype=torch.from_numpy(own[:0]).dtype)
        padded[: len(own)] = torch.from_numpy(own)
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return [part[: int(length)].numpy() for part, length in zip(parts, lengths, strict=True)]

    def barrier(self) -> None:
        """Wait for every rank (on the host: a value is summed, no GPU is touched)."""
        self.sum([0.0])

    def describe(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        return f"{self.size} × {name}"

    def stop(self) -> None:
        if dist.is_initialized():  # vLLM takes the process group down with its engine
            dist.destroy_process_group()


@contextlib.contextmanager
def alone() -> Iterator[Ranks]:
    """A process group of one; that of this process where it has one."""
    if dist.is_initialized():
        yield Ranks.start()
        return
    own = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    before = {name: os.environ.get(name) for name in (*own, GLOO)}  # joining sets that as well, and children would listen on loopback
    os.environ |= own
    ranks = Ranks.start()
    try:
        yield ranks
    finally:
        ranks.stop()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def shards_of(ranks: int, replicas: int) -> int:
    """Ranks that hold one copy together. ValueError where `model.replicas` does not divide them."""
    if ranks % replicas:
        raise ValueError(f"model.replicas {replicas} does not divide the {ranks} ranks; start a multiple of it, or set --model.replicas 1")
    return ranks // replicas


def holders(rows: int, shards: int) -> int:
    """Of `shards` ranks those that hold any of a tensor with so many rows, as `Ranks.first_row` cuts it.

    Worked example: 8 rows over 64 ranks lie on 8 of them, 128 over 96 on 64 (two each), 5 over 4 on 3.
    """
    return -(-rows // -(-rows // shards))


def _mesh(device: str, ranks: int, replicas: int, longest_wait: float) -> DeviceMesh:
    shards = shards_of(ranks, replicas)
    if replicas == 1:
        return init_device_mesh(device, (ranks,))
    mesh = init_device_mesh(device, (replicas, shards), mesh_dim_names=("replicate", "shard"))
    for group in mesh.get_all_groups():  # made anew, with the backend's own patience
        _set_pg_timeout(timedelta(seconds=longest_wait), group)
    return mesh


def _join(backend: str, longest_wait: float) -> None:
    """The process group, in `JOIN_SECONDS`. On one node nothing of it listens where another machine reaches it, but for torchrun's own
    store. ValueError where gloo would give loopback to other nodes as its address."""
    rank, size, store = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), None
    limit, address = timedelta(seconds=JOIN_SECONDS), os.environ["MASTER_ADDR"]
    by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if one_node := int(os.environ.get("LOCAL_WORLD_SIZE", size == 1)) == size:
        os.environ[GLOO] = os.environ.get(GLOO) or "lo"  # and a host name need not resolve
    if one_node and address == "127.0.0.1" and not by_torchrun:
        store = (_listen if rank == 0 else _visit)(address, int(os.environ["MASTER_PORT"]), size)
    elif by_torchrun or not one_node:
        store, _, _ = next(dist.rendezvous("env://", timeout=limit))
    if by_torchrun and store is not None:
        store = _young(store, "127.0.0.1" if one_node else address, rank, size)
    if not one_node and store is not None:
        _check_addresses(store, rank, size, limit)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    _set_pg_timeout(timedelta(seconds=longest_wait))


def _listen(host: str, port: int, size: int) -> dist.TCPStore:
    """A store in this process. torch's own socket would listen on every interface, and asks nobody for a token."""
    family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
    server = socket.create_server((host if host == "127.0.0.1" else "", port), family=family)
    port, limit = server.getsockname()[1], timedelta(seconds=JOIN_SECONDS)
    return dist.TCPStore(host, port, size, True, limit, wait_for_workers=False, master_listen_fd=server.detach())


def _visit(host: str, port: int, size: int) -> dist.TCPStore:
    return dist.TCPStore(host, port, size, False, timedelta(seconds=JOIN_SECONDS), wait_for_workers=False)


def _young(torchrun: dist.Store, host: str, rank: int, size: int) -> dist.TCPStore:
    """A store of rank 0's, as young as itself: torchrun's outlives a restart, and in it stand the addresses of ranks that have died, where
    gloo would look for them."""
    if rank == 0:
        store = _listen(host, 0, size)
        torchrun.set("soundrl-store", str(store.port))
        return store
    end = time.monotonic() + JOIN_SECONDS
    while time.monotonic() < end:
        port = int(torchrun.get("soundrl-store"))
        with contextlib.suppress(OSError), socket.create_connection((host, port), 5.0):
            return _visit(host, port, size)
        time.sleep(0.1)  # of the start before: it has gone
    raise ConnectionError(f"rank 0 does not come to {host}")


def _check_addresses(store: dist.Store, rank: int, size: int, limit: timedelta) -> None:
    """gloo takes the address that the host name stands for, and many a machine's /etc/hosts says loopback: other nodes would wait for
    themselves there, or find it by luck, as who calls whom follows from the addresses' order."""
    host, inside = socket.gethostname(), _gloo_address().startswith(("127.", "::1"))
    store.set(f"soundrl-{rank}", f"{int(inside)}{host}")
    keys = [f"soundrl-{rank}" for rank in range(size)]
    store.wait(keys, limit)
    said = [store.get(key).decode() for key in keys]
    store.set(f"read-{rank}", "")
    if rank == 0:  # the store may end with this process
        store.wait([f"read-{rank}" for rank in range(size)], limit)
    closed = sorted({text[1:] for text in said if text[0] == "1"})
    if closed and len({text[1:] for text in said}) > 1:
        raise ValueError(
            f"gloo on {', '.join(closed)} would listen on loopback, which other nodes do not reach: set GLOO_SOCKET_IFNAME on each node to "
            "the network interface that they share (`ip addr`), and NCCL_SOCKET_IFNAME where there are GPUs"
        )


def _gloo_address() -> str:
    """The address at which gloo will listen, found as gloo does: that of `GLOO_SOCKET_IFNAME`, else the first of the host name's that can
    be bound, else loopback."""
    if name := os.environ.get(GLOO):
        return "127.0.0.1" if name == "lo" else name
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError:
        found = []
    for family, kind, _, _, address in found:
        with socket.socket(family, kind) as tried:
            try:
                tried.bind(address)
                return str(address[0])
            except OSError:
                continue
    return "127.0.0.1"
