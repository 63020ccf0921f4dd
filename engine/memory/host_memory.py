"""Memory of the host that a device copies to and from beside its kernels, in large blocks that live as long as a run."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

ALIGNED = 64  # bytes: a cache line, and more than any vector or element


class Layout(NamedTuple):
    elements: int
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """In bytes, with what follows up to the next cache line."""
        return -(-self.elements * self.dtype.itemsize // ALIGNED) * ALIGNED


def streams(device: torch.device) -> ModuleType:
    """Where `Stream`, `Event`, `stream` and `current_stream` of a device are: on a CPU they do nothing, and all happens in order."""
    return torch.cuda if device.type == "cuda" else torch.cpu


class HostMemory:
    """One block that holds tensors of one dimension, zeros at first; locked in memory where `device` is a GPU.

    torch's own pinned memory rounds each block up to a power of two, and of 30 GB that can be as much again: the block is registered as it
    is. ValueError where the host does not lock so much.
    """

    def __init__(self, layouts: Sequence[Layout], device: torch.device) -> None:
        block = torch.zeros(sum(layout.size for layout in layouts), dtype=torch.uint8)
        if device.type == "cuda" and len(block):
            runtime: Any = torch.cuda.cudart()
            fault = int(runtime.cudaHostRegister(block.data_ptr(), len(block), 1))  # 1: for every device
            if fault:
                raise ValueError(
                    f"model.save_memory: this machine does not lock {len(block) / 2**30:.1f} GiB more of its memory for a GPU (CUDA error "
                    f"{fault}); give it more, raise `ulimit -l`, use more GPUs, or leave offload and moments out"
                )
            # With this object: the tensors may live on, in memory that is no longer locked. At exit CUDA goes first.
            weakref.finalize(self, _unlock, block.data_ptr()).atexit = False
        self.tensors: list[Tensor] = []
        """[elements] of each layout, in their order, on the host"""
        start = 0
        for layout in layouts:
            self.tensors.append(block[start : start + layout.elements * layout.dtype.itemsize].view(layout.dtype))
            start += layout.size


def _unlock(address: int) -> None:
    torch.cuda.synchronize()  # a copy may still be on its way
    runtime: Any = torch.cuda.cudart()
    runtime.cudaHostUnregister(address)
