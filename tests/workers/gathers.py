"""Parameters gathered in buckets on four ranks: 2 × 2 (shards within, replicas between), 4 × 1, all four, and three of them; what differs
from `full_tensor()`, what is alive, and how the ranks end where one of them leaves."""

import contextlib
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.multiprocessing.reductions import StorageWeakRef

from soundrl.engine import gather
from soundrl.engine.gather import buckets, gathered, most_alive
from soundrl.engine.ranks import Ranks


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 5)  # uneven rows over 2, 3 and 4
        self.norm = nn.Parameter(torch.randn(1))  # fewer rows than ranks, one dimension
        self.experts = nn.Parameter(torch.randn(3, 2, 7))
        self.even = nn.Parameter(torch.randn(12, 3))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(19, 6)
        self.layers = nn.ModuleList(Layer() for _ in range(4))
        self.norm = nn.Parameter(torch.randn(7))
        self.head = nn.Linear(6, 19, bias=False)
        self.head.weight = self.embed.weight


def sharded(mesh: DeviceMesh) -> nn.Module:
    torch.manual_seed(0)
    model = Model()
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def differences(model: nn.Module) -> list[str]:
    """What is not as one `full_tensor()` a parameter says, bit by bit."""
    out = []
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        # As DTensor does it, first: its collectives must not stand between those of `gathered` on some ranks alone.
        wanted = [(name, p.detach().to(dtype).full_tensor()) for name, p in model.named_parameters()]
        for limit in (1, 100, 250, 1 << 30):
            found = list(gathered(model, dtype, limit))
            if [name for name, _ in found] != [name for name, _ in wanted]:
                out.append(f"names {dtype} {limit}")
            for (name, tensor), (_, expected) in zip(found, wanted, strict=True):
                if not (torch.equal(tensor, expected) and tensor.dtype is dtype and tensor.is_contiguous() and not tensor.requires_grad):
                    out.append(f"{name} {dtype} {limit}")
    return out


@contextlib.contextmanager
def watched():
    """The buckets that are made meanwhile: (itself, its tensors' storages, bytes)."""
    made, real = [], gather._Bucket

    class Watched(real):
        def __init__(self, named, dtype) -> None:
            super().__init__(named, dtype)
            storages = [tensor.untyped_storage() for _, tensor, *_ in self.parts]
            made.append((self, [(StorageWeakRef(s), s.nbytes()) for s in storages]))

    gather._Bucket = Watched
    try:
        yield made
    finally:
        gather._Bucket = real


def alive(model: nn.Module, keep: bool) -> dict:
    """Buckets and bytes of them that are alive at most, as seen at each tensor."""
    most, bytes_, kept = 0, 0, []
    with watched() as made:
        for _, tensor in gathered(model, torch.float32, 250):
            if keep:
                kept.append(tensor)
            del tensor
            held = [sum(size for storage, size in storages if not storage.expired()) for _, storages in made]
            most, bytes_ = max(most, sum(h > 0 for h in held)), max(bytes_, sum(held))
    return {"buckets": most, "bytes": bytes_, "made": len(made)}


def left_early(model: nn.Module) -> dict:
    """All leave at the same place; then everything is as before."""
    with watched() as made:
        tensors = gathered(model, torch.float32)
        next(tensors)
        tensors.close()
    total = torch.ones(1)
    dist.all_reduce(total)
    return {"under_way": sum(bool(bucket.work) for bucket, _ in made), "made": len(made), "sum": total.item(), "after": differences(model)}


def refused(*_) -> None:
    raise AssertionError("two coalesced gathers of gloo at once write into memory that is someone else's")


def main(out: Path) -> None:
    dist.ProcessGroup.allgather_into_tensor_coalesced = refused
    ranks = Ranks.start()
    said: dict = {}
    with torch.no_grad():
        dims = ("replicate", "shard")
        grid, lone = (DeviceMesh("cpu", rows, mesh_dim_names=dims) for rows in ([[0, 1], [2, 3]], [[0], [1], [2], [3]]))
        every = ranks.mesh
        for name, mesh in {"2x2": grid, "4": every, "4x1": lone}.items():
            said[name] = ranks.gather(differences(sharded(mesh)))
        three = DeviceMesh("cpu", [0, 1, 2])
        said["3"] = ranks.gather(differences(sharded(three)) if ranks.rank < 3 else [])
        model = sharded(every)
        sizes = {name: p.numel() * 4 for name, p in model.named_parameters()}
        said["alive"], said["kept"] = alive(model, keep=False), alive(model, keep=True)
        said["most"], said["largest"] = most_alive(sizes, 4, 250), max(sum(sizes[n] for n in names) for names in buckets(sizes, 250))
        said["whole"], said["tensors"] = sum(sizes.values()), len(sizes)
        said["left"] = left_early(model)
        single = sharded(lone)
        own = {name: p.to_local().data_ptr() for name, p in single.named_parameters()}
        said["copies"] = sum(tensor.data_ptr() != own[name] for name, tensor in gathered(single, torch.float32))
        mixed = [
            (f"layers.0.{t.dtype}", nn.Parameter(distribute_tensor(t, every, [Shard(0)])))
            for t in (torch.ones(5, 2), torch.ones(3).bfloat16())
        ]
        said["mixed"] = [[name, str(t.dtype), list(t.shape), t.sum().item()] for name, t in gathered(mixed, None)]
        odd = nn.Module()
        odd.columns = nn.Parameter(distribute_tensor(torch.zeros(4, 4), every, [Shard(1)]))
        try:
            list(gathered(odd, torch.float32))
        except NotImplementedError as error:
            said["columns"] = str(error)

        # Rank 2 fails while it takes the third bucket, and ends; the others find out instead of waiting for it.
        tensors, count = gathered(model, torch.float32, 250), 0
        try:
            for _ in tensors:
                count += 1
                if ranks.rank == 2 and count == 4:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            tensors.close()  # comes back
            sys.exit()
        except RuntimeError as error:
            said["dead"] = [count, str(error)[:500]]
    if ranks.main:
        out.write_text(json.dumps(said))


main(Path(sys.argv[2]))
