"""A head cut over the ranks, and weights that are DTensors, against the whole head on one rank. Says the largest differences.

Shapes: T rows, H hidden, V vocabulary, K ids a row.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, distribute_tensor

from soundrl.kernels.linear_logprob import linear_logprob
from soundrl.kernels.linear_policy_loss import linear_policy_loss
from soundrl.kernels.lm_head import LMHead
from soundrl.kernels.loss_rule import LossRule

T, H, V, K, R = 24, 12, 41, 3, 2
CU = torch.tensor([0, 9, 10, T])
RULES = (
    LossRule(correction="icepop", entropy_coef=0.02),
    LossRule(variant="gspo", correction="sequence"),
    LossRule(variant="cispo", kl="k3", kl_coef=0.1),
)
LEAVES = ("hidden", "weight", "bias", "a", "b")


def drawn() -> dict[str, Tensor]:
    """The same on every rank. The largest logits of a row lie in one slice; some lie far apart."""
    rng = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64).float()  # noqa: E731
    x = {"hidden": draw(T, H), "weight": draw(V, H) / 6, "bias": draw(V) / 3, "a": draw(R, H), "b": draw(V, R) / 6}
    x["hidden"][0] *= 20
    x |= {"targets": torch.randint(V - 12, V, (T,), generator=rng), "ids": torch.randint(V, (T, K), generator=rng)}
    x["targets"][[2, 11]] = -100
    x["ids"][2], x["ids"][5, 1], x["ids"][7, :2] = -100, -100, 30  # none; some; one twice
    x |= {name: draw(T) for name in ("advantages", "sampler", "old", "reference", "grad")}
    x["grad_ids"], x["temperature"] = draw(T, K), 0.5 + torch.rand(T, generator=rng)
    with torch.no_grad():
        whole = LMHead(x["weight"], x["bias"], 20.0, 1.3, (x["a"], x["b"], 0.7))
        exact = linear_logprob(x["hidden"], whole, x["targets"], x["temperature"]).logprob
    for name in ("sampler", "old", "reference"):
        x[name] = exact + 0.1 * x[name]
    return x


def results(x: dict[str, Tensor], cut: slice, group: object, budget: int | None) -> dict[str, Tensor]:
    """Everything a head gives, of this slice of the vocabulary; gradients of the slice's own rows."""
    out = {}

    def head() -> tuple[dict[str, Tensor], LMHead]:
        leaf = {n: (x[n][cut] if n in ("weight", "bias", "b") else x[n]).clone().requires_grad_() for n in LEAVES}
        return leaf, LMHead(leaf["weight"], leaf["bias"], 20.0, 1.3, (leaf["a"], leaf["b"], 0.7), group)

    for name in ("targets", "ids"):
        leaf, of = head()
        got = linear_logprob(leaf["hidden"], of, x[name], x["temperature"], memory_budget=budget)
        grad = x["grad"] if name == "targets" else x["grad_ids"]
        ((got.logprob * grad).sum() + (got.entropy * x["advantages"]).sum() + 0.3 * got.lse.sum()).backward()
        out |= {f"{name} {field}": value.detach().double() for field, value in got._asdict().items()}
        out |= {f"{name} d{n}": v.grad for n, v in leaf.items()}
    for rule in RULES:
        leaf, of = head()
        terms = (x["targets"], None if rule.variant == "cispo" else x["old"], x["advantages"], x["sampler"], 20.0)
        warm = {"temperature": x["temperature"], "memory_budget": budget}
        reference = x["reference"] if rule.kl != "none" else None
        loss, sums, _ = linear_policy_loss(leaf["hidden"], of, *terms, rule=rule, cu_seqlens=CU, reference_logprob=reference, **warm)
        loss.backward()
        out |= {f"{rule.variant} loss": loss.detach()} | {f"{rule.variant} {n}": s for n, s in sums.items()}
        out |= {f"{rule.variant} d{n}": v.grad for n, v in leaf.items()}
    with torch.no_grad():
        plain = LMHead(x["weight"][cut], x["bias"][cut], 20.0, group=group)
        streamed = linear_logprob(x["hidden"], plain, x["targets"], memory_budget=0)
    return out | {f"streamed {n}": v.double() for n, v in streamed._asdict().items()}


def apart(ours: dict[str, Tensor], whole: dict[str, Tensor], cut: slice) -> dict[str, float]:
    """‖difference‖ / ‖whole‖ of each, of what this rank has."""
    own = {n: x[cut] if n.split(" ")[1] in ("dweight", "dbias", "db") else x for n, x in whole.items()}
    return {n: float((ours[n] - own[n]).norm() / x.norm().clamp(min=1.0)) for n, x in whole.items()}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.lm_head = nn.Linear(H, H), nn.Linear(H, V)

    def forward(self, x_TH: Tensor) -> Tensor:
        return torch.tanh(self.trunk(x_TH))


def of_dtensors(x: dict[str, Tensor], rank: int, size: int) -> dict[str, object]:
    """FSDP2 shards the head, and the loss outside of it takes the sharded parameters: gradients against one rank with all rows."""
    torch.manual_seed(1)
    model, other = Model(), Model()
    other.load_state_dict(model.state_dict())
    own, mesh = slice(rank * T // size, (rank + 1) * T // size), init_device_mesh("cpu", (size,))

    def loss_of(model: Model, rows: slice, count: float) -> Tensor:
        head = LMHead(model.lm_head.weight, model.lm_head.bias)
        return linear_policy_loss(model(x["hidden"][rows]), head, x["targets"][rows], None, x["advantages"][rows], None, count)[0]

    loss_of(other, slice(None), 20.0).backward()
    fully_shard(model, mesh=mesh)
    (size * loss_of(model, own, 20.0)).backward()  # FSDP2 averages
    said: dict[str, object] = {}
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        said[name] = float((p.grad.full_tensor() - q.grad).abs().max())  # type: ignore[union-attr]
    # Copies on each rank: as tensor parallelism has them, and with rows of their own.
    weight = distribute_tensor(x["weight"], mesh, [Replicate()]).requires_grad_()
    hidden = distribute_tensor(x["hidden"], mesh, [Replicate()]).requires_grad_()
    plain = [x[n].clone().requires_grad_() for n in ("hidden", "weight")]
    for h, w in ((hidden, weight), plain):
        linear_logprob(h, w, x["targets"]).logprob.sum().backward()
    said["replicated"] = max(float((a.grad.full_tensor() - b.grad).abs().max()) for a, b in zip((hidden, weight), plain, strict=True))
    sharded = next(model.lm_head.parameters())
    for name, w in (("plain", sharded.full_tensor()), ("cast", sharded.full_tensor().double())):  # type: ignore[attr-defined]
        try:
            linear_logprob(x["hidden"].to(w.dtype), w, x["targets"])
            said[f"refused {name}"] = "taken"
        except ValueError as error:
            said[f"refused {name}"] = str(error)
    return said


def main(out: Path) -> None:
    """On four ranks: the vocabulary cut over all of them, and over each pair."""
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    pairs, x = [dist.new_group([first, first + 1]) for first in range(0, ranks, 2)], drawn()
    double = {name: v.double() if v.is_floating_point() else v for name, v in x.items()}
    worst = {}
    for given, budget in ((x, 4 * 33 * 5), (double, None)):
        whole = results(given, slice(None), None, budget)
        # Uneven slices; a rank that holds none of the first targets, and, on four, one with a single entry.
        for group, own, bounds in ((dist.group.WORLD, rank, [0, 7, 8, 30, V]), (pairs[rank // 2], rank % 2, [0, 29, V])):
            cut = slice(bounds[own], bounds[own + 1])
            worst[f"{len(bounds) - 1} {given['hidden'].dtype}"] = apart(results(given, cut, group, budget), whole, cut)
    said: list = [None] * ranks
    dist.all_gather_object(said, {"apart": worst, "dtensors": of_dtensors(x, rank, ranks)})
    if rank == 0:
        out.write_text(json.dumps(said))
    dist.barrier()
    dist.destroy_process_group()


main(Path(sys.argv[2]))
