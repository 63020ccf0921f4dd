"""AdamW's moments: on the device beside the weights, or on the host for good, streamed through each update (`model.save_memory moments`).

    host  exp_avg │ … │ b │ b+1 │ b+2 │ …          per block b of BLOCK elements: in → AdamW on the device → out,
          exp_avg_sq  … │ b │ b+1 │ b+2 │ …        three places on the device, so that block b+1 comes while b computes and b−1 goes

Moments are two thirds of what training holds between steps (8 of 12 bytes a parameter); here the device has three blocks of them. A block
costs its bytes over the bus once in each direction, at the same time: 8 bytes a parameter ÷ ranks, each way, an optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import AdamW, adamw

from soundrl.engine.config import Optim
from soundrl.engine.memory.host_memory import HostMemory, Layout, streams
from soundrl.engine.policy import Policy

STATES = ("exp_avg", "exp_avg_sq")
BLOCK = 1 << 23
"""Elements that are on the device at a time and place: 32 MiB of each moment, 192 in the three places; a bus is at its full speed from a
few MiB on. A multiple of 16: torch's kernel for CPUs computes what is left over of a vector in another way."""
PLACES = 3


def optimizer_of(policy: Policy, optim: Optim) -> AdamW:
    """torch's fused AdamW on the policy's float32 master weights."""
    kind = HostAdamW if "moments" in policy.settings.save_memory else AdamW
    return kind(policy.trained.values(), lr=optim.lr, betas=optim.adamw[:2], weight_decay=optim.adamw[2], fused=True)


def local_rows(tensor: Tensor) -> Tensor:
    """What this rank holds of it, itself and no copy: of a moment on the host that is the whole tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def begun(optimizer: AdamW, parameter: nn.Parameter) -> dict[str, Any]:
    """The optimizer's state of a parameter; moments that were not there are zeros, of no step yet."""
    state: dict[str, Any] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=local_rows(parameter.detach()).device)
        if isinstance(optimizer, HostAdamW):
            state |= {kind: optimizer.rows(parameter, kind) for kind in STATES}
        else:
            state |= {kind: torch.zeros_like(parameter, memory_format=torch.preserve_format) for kind in STATES}
    return state


@dataclass
class Part:
    """Of a block: elements of one parameter that follow each other."""

    parameter: nn.Parameter
    first: int
    """In the parameter's rows of this rank"""
    place: int
    """In the block"""
    size: int


@dataclass
class Block:
    start: int
    """In each moment's block of host memory"""
    size: int
    parts: list[Part]


class HostAdamW(AdamW):
    """AdamW whose moments leave the host for the update of their block alone. The same kernel on the same numbers, and every element for
    itself: bit-equal to the optimizer that it extends.

    `state` of a parameter has `step`, a number on the device, and `exp_avg`, `exp_avg_sq`: this rank's rows, float32, on the host, made
    when the first gradient or a checkpoint comes. ValueError where the host does not lock so much.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], **settings: Any) -> None:
        super().__init__(parameters, **settings)
        self.first: dict[nn.Parameter, int] = {}
        size = 0
        for parameter in (p for p in self.param_groups[0]["params"] if p.requires_grad):
            self.first[parameter] = size
            size += local_rows(parameter.detach()).numel()
            self.device = local_rows(parameter.detach()).device
        self.size, self.memory = size, list[HostMemory]()

    def rows(self, parameter: nn.Parameter, kind: str) -> Tensor:
        """This rank's rows of a moment, on the host, in the parameter's shape."""
        local, start = local_rows(parameter.detach()), self.first[parameter]
        return self.reserve()[STATES.index(kind)][start : start + local.numel()].view(local.shape)

    def reserve(self) -> list[Tensor]:
        """Room on the host, where it is not taken yet: [elements] of each kind, of all parameters in their order."""
        if not self.memory:
            self.memory = [HostMemory([Layout(self.size, torch.float32)] * len(STATES), self.device)]
        return self.memory[0].tensors

    def blocks(self) -> Iterator[Block]:
        """Those of the parameters that have a gradient. One ends where it is full, and where a parameter without gradient lies between."""
        block = Block(0, 0, [])
        for parameter, start in self.first.items():
            if parameter.grad is None:
                continue
            done, size = 0, local_rows(parameter.detach()).numel()
            while done < size:
                if block.size == BLOCK or block.start + block.size != start + done:
                    if block.parts:
                        yield block
                    block = Block(start + done, 0, [])
                part = Part(parameter, done, block.size, min(size - done, BLOCK - block.size))
                block.parts.append(part)
                block.size, done = block.size + part.size, done + part.size
        if block.parts:
            yield block

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        steps = [begun(self, parameter)["step"] for parameter in self.first if parameter.grad is not None]
        of = streams(self.device)
        here, coming, going = of.current_stream(), of.Stream(), of.Stream()
        longest = min(BLOCK, self.size)
        places = [[torch.empty(longest, device=self.device) for _ in STATES] for _ in range(PLACES)]
        free: list[Any] = [None] * PLACES
        coming.wait_stream(here)  # what these places held before may still be read there
        for number, block in enumerate(self.blocks()):
            place = [tensor[: block.size] for tensor in places[number % PLACES]]
            host = [tensor[block.start : block.start + block.size] for tensor in self.reserve()]
            with of.stream(coming):
                if free[number % PLACES] is not None:
                    coming.wait_event(free[number % PLACES])  # the block that was here is on the host again
                for into, moment in zip(place, host, strict=True):
                    into.copy_(moment, non_blocking=True)
            here.wait_stream(coming)
            self._update(block, place)
            going.wait_stream(here)
            with of.stream(going):
                for moment, into in zip(host, place, strict=True):
                    moment.copy_(into, non_blocking=True)
                free[number % PLACES] = going.record_event()
        if steps:
            torch._foreach_add_(steps, 1)
        of.synchronize()  # whoever reads the host's memory next is no stream; and the places are given back

    def _update(self, block: Block, moments: Sequence[Tensor]) -> None:
        """AdamW on a block; `moments` [block.size] as in `STATES`."""
        group = self.param_groups[0]
        first, second = ([moment[p.place : p.place + p.size] for p in block.parts] for moment in moments)
        adamw(
            [local_rows(p.parameter.detach()).view(-1)[p.first : p.first + p.size] for p in block.parts],
            [local_rows(cast(Tensor, p.parameter.grad)).view(-1)[p.first : p.first + p.size] for p in block.parts],
            first,
            second,
            [],
            # Copies: a parameter may have several parts, and each would count a step.
            [self.state[p.parameter]["step"].clone() for p in block.parts],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
