"""Weights and AdamW's moments on the host while the sampler, or a judge, has the device (`model.save_memory offload`).

    train → sleep: device → host, the device's storages emptied → sync, gate, sampling, judging, saving → wake: filled again → train

What is asleep still serves: FSDP2 brings a layer's shard to the device when it gathers it, as its own CPU offload does, so the gate's
forward pass, and gathers of weights, need no more than a layer at a time; checkpoints are copied from the host. The device's storages are
emptied and filled in place, so that whatever else points at them (FSDP2's padded shards, the bases of views, tied parameters) is right when
they wake.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from soundrl.engine.host_memory import HostMemory, Layout, streams
from soundrl.engine.moments import STATES, local_rows
from soundrl.engine.timeline import TIMELINE


@dataclass
class Held:
    """A storage of the device, its copy on the host, and the tensors that are moved between the two."""

    storage: Tensor
    """[elements] of the whole storage"""
    fixed: bool
    """It never trains: what the host has once stays true"""
    members: list[tuple[Tensor, torch.Size, tuple[int, ...], int]] = field(default_factory=list)
    """Each with size, stride and offset within the storage"""
    host: Tensor | None = None
    copied: bool = False

    def place(self, whole: Tensor) -> None:
        """Let every member be a part of `whole`."""
        for tensor, size, stride, offset in self.members:
            tensor.data = whole.as_strided(size, stride, whole.storage_offset() + offset)


class Offload:
    """Of one model under FSDP2 and its optimizer; both are awake at first, and each rank moves its own part.

    ValueError where the host does not lock enough memory.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.device = next(local_rows(parameter.detach()).device for parameter in model.parameters())
        self.streams = streams(self.device)
        self.side = self.streams.Stream()
        self.held: dict[int, Held] = {}
        """By the identity of the storage's first tensor, which lives as long"""
        self.memory: list[HostMemory] = []
        self.asleep, self.coming = False, False

    def sleep(self) -> None:
        """To the host. When this returns, the device's memory is free: no kernel and no copy uses it any more."""
        if self.asleep:
            return
        with TIMELINE.detail("to the host"):
            self.arrive()
            self._find()
            for held in self.held.values():
                assert held.host is not None
                if not (held.fixed and held.copied):
                    held.host.copy_(held.storage, non_blocking=True)
                    held.copied = True
            self.streams.synchronize()
            for held in self.held.values():
                assert held.host is not None
                held.place(held.host)
                held.storage.untyped_storage().resize_(0)
            self._gather_from_host(True)
            self.asleep = True
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def wake(self) -> None:
        """Back to the device. Weights are there for what is queued on the current stream from now on, moments from `arrive` on."""
        if not self.asleep:
            return
        with TIMELINE.detail("from the host"):
            here = self.streams.current_stream()
            for held in self.held.values():
                held.storage.untyped_storage().resize_(held.storage.numel() * held.storage.element_size())
            self.side.wait_stream(here)  # what this memory held before may still be read there
            parameters = {id(tensor) for tensors, _ in self._weights() for tensor in tensors}
            for weights in (True, False):
                with self.streams.stream(self.side):
                    for key, held in self.held.items():
                        if (key in parameters) == weights:
                            assert held.host is not None
                            held.storage.copy_(held.host, non_blocking=True)
                if weights:
                    here.wait_stream(self.side)
            for held in self.held.values():
                held.place(held.storage)
            self._gather_from_host(False)
            self.asleep, self.coming = False, True

    def arrive(self) -> None:
        """Before moments are used on the current stream."""
        if self.coming:
            self.streams.current_stream().wait_stream(self.side)
            self.coming = False

    def _sharded(self) -> Iterator[Any]:
        """FSDP2's own record of each parameter. What it has is not in its public interface; the same from torch 2.11 to 2.13."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule) and (group := module._get_fsdp_state()._fsdp_param_group) is not None:
                group.lazy_init()  # shards are padded, and in new storages, from the first gather on: now
                yield from group.fsdp_params

    def _gather_from_host(self, host: bool) -> None:
        for each in self._sharded():
            each.offload_to_cpu = host

    def _weights(self) -> Iterator[tuple[list[Tensor], bool]]:
        """Tensors of each parameter's storage, and whether it never trains."""
        for each in self._sharded():
            yield [each._sharded_param_data, each.sharded_param._local_tensor], not each.sharded_param.requires_grad

    def _moments(self) -> Iterator[tuple[list[Tensor], bool]]:
        """Those of the parameters that have trained, where they are on the device."""
        for state in self.optimizer.state.values():
            for kind in STATES if state else ():
                if isinstance(local := getattr(state[kind], "_local_tensor", None), Tensor):
                    yield [local], False

    def _find(self) -> None:
        """What there is to move, with room on the host: moments come with the first update, and stay."""
        new: list[Held] = []
        for tensors, fixed in (*self._weights(), *self._moments()):
            first = tensors[0]
            if id(first) in self.held or not first.untyped_storage().nbytes():
                continue
            count = first.untyped_storage().nbytes() // first.element_size()
            whole = torch.empty(0, dtype=first.dtype, device=first.device).set_(first.untyped_storage(), 0, (count,), (1,))
            held = Held(whole, fixed, [(t, t.size(), t.stride(), t.storage_offset()) for t in tensors])
            assert all(t.untyped_storage().data_ptr() == whole.data_ptr() for t in tensors)
            self.held[id(first)] = held
            new.append(held)
        if new:
            self.memory.append(HostMemory([Layout(held.storage.numel(), held.storage.dtype) for held in new], self.device))
            for held, host in zip(new, self.memory[-1].tensors, strict=True):
                held.host = host
