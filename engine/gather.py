"""Parameters put together from their shards, a bucket at a time: what weight sync and exports read.

    shards of bucket k+1 → cast → one all-gather, under way … while the caller takes bucket k, tensor by tensor

A bucket is one layer (embeddings, last norm and head are each their own), or a part of it where that is more than `BUCKET` bytes. FSDP2
cuts the first dimension into equal parts, rounded up, so that padding stands behind the last row alone: what all ranks send stands in each
output as the whole tensor does, and no copy puts it together (on CPU one does). Each tensor has memory of its own, so that one that the
caller keeps holds no bucket. Two buckets are alive at most: `most_alive`.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

BUCKET = 512 << 20
"""Bytes of a bucket at most (one tensor at least): far more than keeps a network busy, and two of them are little beside a card"""


def gathered(
    model: nn.Module | Iterable[tuple[str, nn.Parameter]], dtype: torch.dtype | None, limit: int = BUCKET
) -> Iterator[tuple[str, Tensor]]:
    """Every parameter of `model` (or each that is given by name), whole, in `dtype` (None: as it is held), by the model's name for it and
    in its order, tied ones once; on the device of its mesh, where a shard that lies on the host goes.

    A collective of the ranks of each parameter's mesh: all must take the same number of tensors, or end. Read what comes, never write it:
    where nothing is sharded, cast or moved it is the parameter itself. An iteration that is left early ends after the gather under way,
    which the others need. NotImplementedError for a parameter that is cut otherwise than FSDP2 and HSDP do by default.
    """
    named = dict(model.named_parameters() if isinstance(model, nn.Module) else model)
    sizes = {name: parameter.numel() * (dtype or parameter.dtype).itemsize for name, parameter in named.items()}
    under_way: deque[_Bucket] = deque()
    try:
        for names in buckets(sizes, limit):
            under_way.append(_Bucket([(name, named[name]) for name in names], dtype))
            if len(under_way) == 2:
                yield from under_way.popleft().tensors()
        while under_way:
            yield from under_way.popleft().tensors()
    finally:
        for bucket in under_way:
            # The others have begun it as well, so it ends; memory that it still writes must not become someone else's. It fails where one
            # of them has died too: what is on its way out of here already says more.
            with contextlib.suppress(RuntimeError):
                bucket.wait()


def buckets(sizes: Mapping[str, int], limit: int = BUCKET) -> list[list[str]]:
    """Consecutive names of one layer whose `sizes`, in bytes, are at most `limit` together, one at least.

    Worked example, limit 10: {embed.weight: 12, layers.0.q.weight: 4, layers.0.k.weight: 4, layers.0.v.weight: 4, layers.1.q.weight: 1,
    norm.weight: 1} → [embed.weight], [layers.0.q.weight, layers.0.k.weight], [layers.0.v.weight], [layers.1.q.weight], [norm.weight].
    """
    out: list[list[str]] = []
    last, total = "", 0
    for name, size in sizes.items():
        if out and module_of(name) == last and total + size <= limit:
            out[-1].append(name)
            total += size
        else:
            out.append([name])
            last, total = module_of(name), size
    return out


def most_alive(sizes: Mapping[str, int], ranks: int, limit: int = BUCKET) -> int:
    """Bytes alive at most while tensors of these `sizes` (bytes, in the type that is gathered) come from shards over `ranks`: two buckets
    that follow each other, and what this rank sends of them. What the caller keeps comes on top, and on CPU a copy of the same size, as it
    lands. Padding (at most a row a rank and tensor) is left out.

    Worked example: layers of 40 MiB after an embedding of 100 MiB, over 4 ranks: (100 + 40) · 5/4 = 175 MiB.
    """
    if ranks == 1:  # nothing is gathered: one tensor is cast at a time
        return max(sizes.values())
    held = [sum(sizes[name] for name in names) for names in buckets(sizes, limit)]
    two = max((a + b for a, b in pairwise(held)), default=held[0])
    return two + -(-two // ranks)


def module_of(name: str, below: int = 0) -> str:
    """The layer that a parameter is in, with `below` parts of its name more; of a parameter in no layer: its module.

    Worked example: `model.layers.7.mlp.up_proj.weight` → `model.layers.7`, with one below `model.layers.7.mlp`; `model.norm.weight` →
    `model.norm`.
    """
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return ".".join(parts[:-1] if number is None else parts[: number + 1 + below])


class _Bucket:
    """A gather under way of the parameters `named`."""

    @torch.no_grad()
    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], dtype: torch.dtype | None) -> None:
        self.parts: deque[tuple[str, Tensor, torch.device, torch.dtype]] = deque()
        sent: dict[tuple[dist.ProcessGroup, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
        for name, parameter in named:
            own, group, device = _shard(name, parameter)
            kind = dtype or parameter.dtype
            if group is not None:
                rows, size = len(parameter), group.size()
                own = _padded(_moved(own, device, kind), -(-rows // size))
                whole = torch.empty((len(own) * size, *own.shape[1:]), dtype=kind, device=device)
                outs, ins = sent.setdefault((group, kind), ([], []))
                outs.append(whole)
                ins.append(own)
                own = whole[:rows]
            self.parts.append((name, own, device, kind))
        # One exchange for all tensors of a group and type; NCCL makes one launch of them.
        of = {"cuda": _Launched, "cpu": _Landed}
        self.work = [of[outs[0].device.type](group, outs, ins) for (group, _), (outs, ins) in sent.items()]

    def wait(self) -> None:
        """On a GPU the stream that loads waits, not the host."""
        for work in self.work:
            work.wait()
        self.work = ()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        self.wait()
        while self.parts:  # none is kept here once it has been taken
            yield self._next()

    @torch.no_grad()
    def _next(self) -> tuple[str, Tensor]:
        name, tensor, device, kind = self.parts.popleft()
        return name, _moved(tensor, device, kind)


class _Launched:
    """`outs` from all ranks' `ins` by NCCL, which both stay for until they have arrived."""

    def __init__(self, group: dist.ProcessGroup, outs: list[Tensor], ins: list[Tensor]) -> None:
        self.held = outs, ins
        self.work = group.allgather_into_tensor_coalesced(outs, ins)

    def wait(self) -> None:
        self.work.wait()


class _Landed:
    """The same by gloo, as one tensor: two of its own coalesced gathers under way at once write into memory that is someone else's (torch
    2.13: "unaligned tcache chunk" within a few thousand; pytorch/pytorch#65231), and it copies as much itself."""

    def __init__(self, group: dist.ProcessGroup, outs: list[Tensor], ins: list[Tensor]) -> None:
        self.outs, self.sizes, self.sent = outs, [own.numel() for own in ins], torch.cat([own.flatten() for own in ins])
        self.landed = self.sent.new_empty(group.size(), len(self.sent))
        work = dist.all_gather_into_tensor(self.landed.view(-1), self.sent, group=group, async_op=True)
        assert work is not None
        self.work = work

    @torch.no_grad()
    def wait(self) -> None:
        self.work.wait()
        for out, part in zip(self.outs, self.landed.split(self.sizes, dim=1), strict=True):
            out.view(part.shape).copy_(part)


def _shard(name: str, parameter: nn.Parameter) -> tuple[Tensor, dist.ProcessGroup | None, torch.device]:
    """This rank's rows, the group that has the others (None: it has all), and the device of the whole tensor."""
    if not isinstance(parameter, DTensor):
        return parameter.detach(), None, parameter.device
    mesh, cut = parameter.device_mesh, [i for i, placement in enumerate(parameter.placements) if not placement.is_replicate()]
    device = torch.device("cuda", torch.cuda.current_device()) if mesh.device_type == "cuda" else torch.device(mesh.device_type)
    if [parameter.placements[i].is_shard(0) for i in cut] not in ([], [True]):
        raise NotImplementedError(
            f"{name} is placed as {parameter.placements} on {mesh}: rows over one dimension of the mesh can be gathered"
        )
    group = mesh.get_group(cut[0]) if cut and mesh.size(cut[0]) > 1 else None
    return parameter.to_local(), group, device


def _moved(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Moved first, as it is: `to` with both would cast on the host, and the copy from pinned memory would wait for that."""
    return tensor.to(device, non_blocking=True).to(dtype)


def _padded(own: Tensor, rows: int) -> Tensor:
    """With rows of zeros behind, where the last ranks have fewer than the first: all send as much."""
    if len(own) == rows:
        return own.contiguous()
    out = own.new_zeros(rows, *own.shape[1:])
    out[: len(own)] = own
    return out
