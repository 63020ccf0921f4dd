"""Weights and AdamW's moments on the host while the sampler, or a judge, has the device (`model.save_memory offload`).

    train → sleep: device → host, the device's storages emptied → sync, gate, sampling, judging, saving → wake: filled again → train

What is asleep still serves: FSDP2 brings a layer's shard to the device when it gathers it, as its own CPU offload does, so the gate's
forward pass, and gathers of weights, need no more than a layer at a time; checkpoints are copied from the host. The device's storages are
emptied and filled in place, so that whatever else points at them (FSDP2's padded shards, the bases of views, tied parameters) is right when
they wake.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import AdamW

from soundrl.engine.memory.host_memory import HostMemory, Layout, streams
from soundrl.engine.memory.moments import STATES, HostAdamW, local_rows
from soundrl.engine.telemetry.timeline import TIMELINE


@dataclass
class Held:
    """A storage of the device, its copy on the host, and the tensors that are moved between the two."""

    storage: Tensor
    """[elements] of the whole storage"""
    host: Tensor
    """[elements]"""
    members: list[tuple[Tensor, torch.Size, tuple[int, ...], int]]
    """Each with size, stride and offset within the storage"""
    moment: bool
    fixed: bool
    """It never trains: what the host has once stays true"""
    copied: bool = False

    def place(self, whole: Tensor) -> None:
        """Let every member be a part of `whole`."""
        for tensor, size, stride, offset in self.members:
            tensor.data = whole.as_strided(size, stride, whole.storage_offset() + offset)


class Offload:
    """Of one model under FSDP2 and its optimizer; both are awake at first, and each rank moves its own part."""

    def __init__(self, model: nn.Module, optimizer: AdamW) -> None:
        self.model, self.optimizer = model, optimizer
        self.device = next(local_rows(parameter.detach()).device for parameter in model.parameters())
        self.streams = streams(self.device)
        self.side = self.streams.Stream()
        self.memory: HostMemory | None = None
        self.held: list[Held] = []
        self.room: dict[tuple[nn.Parameter, str], Tensor] = {}
        """On the host, of moments that are not there yet"""
        self.asleep, self.coming = False, False

    def sleep(self) -> None:
        """To the host. When this returns, the device's memory is free: no kernel and no copy uses it any more. ValueError where the host
        does not lock so much memory."""
        if self.asleep:
            return
        with TIMELINE.detail("to the host"):
            self.arrive()
            self._find()
            for held in self.held:
                if not (held.fixed and held.copied):
                    held.host.copy_(held.storage, non_blocking=True)
                    held.copied = True
            self.streams.synchronize()
            for held in self.held:
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
            for held in self.held:
                held.storage.untyped_storage().resize_(held.storage.numel() * held.storage.element_size())
            self.side.wait_stream(here)  # what this memory held before may still be read there
            for moment in (False, True):
                with self.streams.stream(self.side):
                    for held in (held for held in self.held if held.moment == moment):
                        held.storage.copy_(held.host, non_blocking=True)
                if not moment:
                    here.wait_stream(self.side)
            for held in self.held:
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

    def _find(self) -> None:
        """What there is to move. Moments come with the first update; room for them is taken at once, so that a host that has none says so
        before the first step."""
        if self.memory is None:
            weights = [[each._sharded_param_data, each.sharded_param._local_tensor] for each in self._sharded()]
            fixed = [not each.sharded_param.requires_grad for each in self._sharded()]
            trained = [] if isinstance(self.optimizer, HostAdamW) else [p for p in self.model.parameters() if p.requires_grad]
            layouts = [Layout(elements(tensors[0]), tensors[0].dtype) for tensors in weights]
            layouts += [Layout(local_rows(p.detach()).numel(), p.dtype) for p in trained for _ in STATES]
            self.memory = HostMemory(layouts, self.device)
            room = iter(self.memory.tensors)
            for tensors, never in zip(weights, fixed, strict=True):
                self._hold(tensors, next(room), moment=False, fixed=never)
            self.room = {(p, kind): next(room) for p in trained for kind in STATES}
        for parameter, kind in list(self.room):
            if state := self.optimizer.state.get(parameter):
                self._hold([state[kind]._local_tensor], self.room.pop((parameter, kind)), moment=True, fixed=False)

    def _hold(self, tensors: list[Tensor], host: Tensor, *, moment: bool, fixed: bool) -> None:
        """`tensors` share one storage."""
        first, count = tensors[0], elements(tensors[0])
        if not count:
            return  # a rank without rows
        whole = torch.empty(0, dtype=first.dtype, device=first.device).set_(first.untyped_storage(), 0, (count,), (1,))
        assert all(t.untyped_storage().data_ptr() == whole.data_ptr() for t in tensors) and len(host) == count
        members = [(t, t.size(), t.stride(), int(t.storage_offset())) for t in tensors]
        self.held.append(Held(whole, host, members, moment, fixed))


def elements(tensor: Tensor) -> int:
    """Of its whole storage."""
    return tensor.untyped_storage().nbytes() // tensor.element_size()
