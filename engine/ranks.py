"""The processes of a run: rank, device, process group and the few collectives the engine uses outside FSDP2."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


@dataclass(frozen=True)
class Ranks:
    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    """One dimension over all ranks: parameters, gradients and optimizer state are sharded over it."""

    @classmethod
    def start(cls, longest_wait: float = 1800.0) -> Ranks:
        """Join the process group torchrun describes: NCCL where there are GPUs, gloo on CPU. A collective fails after `longest_wait`
        seconds: a rank may sample, or wait for verdicts, for long while others wait for it, and NCCL's 10 minutes are too short."""
        missing = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR") if name not in os.environ]
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
                dist.init_process_group(backend, timeout=timedelta(seconds=longest_wait))
            except (RuntimeError, OSError) as error:  # no interface or route, or a rank that does not come
                place = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT', '')}"
                raise ValueError(
                    f"the ranks do not find each other at MASTER_ADDR {place} ({str(error).splitlines()[0][:200]}); set MASTER_ADDR "
                    "to an address of the first one that all reach, GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to its network interface"
                ) from error
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        return cls(dist.get_rank(), dist.get_world_size(), device, mesh)

    @property
    def main(self) -> bool:
        return self.rank == 0

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
