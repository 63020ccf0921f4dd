"""Training with weights and moments on the host, and with replicas, against the plain path: on four ranks, then three of them, then one,
each reading what the ones before have written. Rank 0 writes what was found; weights and moments go to files, whole."""

import hashlib
import json
import math
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tiny import fixed_samples, known
from torch import Tensor
from torch.distributed.tensor import DTensor

from soundrl.engine.checkpoints import Checkpoints, restore
from soundrl.engine.config import Loss, Model, Optim
from soundrl.engine.files.checkpoint import Place
from soundrl.engine.files.model_folder import load_tokenizer
from soundrl.engine.launch.launch import be_quiet
from soundrl.engine.memory import moments
from soundrl.engine.memory.moments import STATES, HostAdamW, local_rows
from soundrl.engine.packing import pack
from soundrl.engine.policy import Policy
from soundrl.engine.ranks import Ranks
from soundrl.engine.trainer import Trainer

be_quiet()
moments.BLOCK = 4096  # a tiny model has several, and parameters that are cut
SAMPLES = fixed_samples()
STEPS = 5
ALL = ("recompute", "offload", "moments")


class Work:
    """What one number of ranks does with the model in `root`/model."""

    def __init__(self, ranks: Ranks, root: Path, budget: int = 128) -> None:
        self.ranks, self.root, self.budget = ranks, root, budget

    def fresh(self, *save_memory: str) -> Trainer:
        folder = self.root / "model"
        model = Model(path=str(folder), dtype="float32", max_length=128, save_memory=save_memory)  # type: ignore[arg-type]
        policy = Policy(folder, load_tokenizer(folder), model, self.ranks)
        return Trainer(policy, Optim(lr=1e-3, microbatch_tokens=self.budget, warmup_steps=1, grad_clip=0.5), Loss(), 1.0)

    def train(self, trainer: Trainer, steps: int = STEPS) -> list[float]:
        """Steps of two mini-batches, asleep between them where it can be; gradient norms."""
        norms = []
        for _ in range(steps):
            norms.append(trainer.train(known(self.ranks, SAMPLES[:12], SAMPLES[12:]))["optim/grad_norm"])
            trainer.sleep()
        return norms

    def state(self, trainer: Trainer) -> dict[str, Tensor]:
        """Weights, moments and steps, whole, on every rank."""
        out = dict(trainer.policy.named_full_tensors(torch.float32))
        out = {name: tensor.clone() for name, tensor in out.items()}
        for name, parameter in trainer.policy.model.named_parameters():
            assert isinstance(parameter, DTensor)
            like = {"shape": parameter.shape, "stride": parameter.stride(), "run_check": False}
            for kind in STATES if parameter in trainer.optimizer.state else ():
                rows = local_rows(trainer.optimizer.state[parameter][kind])
                whole = DTensor.from_local(rows, parameter.device_mesh, parameter.placements, **like)
                out[f"{kind} {name}"] = whole.full_tensor().clone()
                out[f"step {name}"] = trainer.optimizer.state[parameter]["step"].clone()
        return out

    def digest(self, trainer: Trainer, file: str = "") -> str:
        state = self.state(trainer)
        if file and self.ranks.main:
            torch.save(state, self.root / f"{file}.pt")
        return hashlib.sha256(b"".join(name.encode() + tensor.numpy().tobytes() for name, tensor in state.items())).hexdigest()

    def own(self, trainer: Trainer) -> list[str]:
        """Digests of what each rank holds itself."""
        held = [local_rows(p.detach()) for p in trainer.policy.model.parameters()]
        held += [local_rows(state[kind]) for state in trainer.optimizer.state.values() for kind in STATES]
        return self.ranks.gather(hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in held)).hexdigest())

    def write(self, trainer: Trainer, name: str) -> None:
        checkpoints = Checkpoints(self.root / name, self.ranks, (1, 1, 0), print)
        checkpoints.save(Place(2), trainer, {"trainer": trainer.state()}, trainer.policy.files())
        checkpoints.wait()

    def read(self, trainer: Trainer, name: str) -> str:
        restore(self.root / name / "step-000002", trainer, self.ranks)
        return self.digest(trainer)


@contextmanager
def counted(trainer: Trainer) -> Iterator[dict[str, int]]:
    """How many micro-batches there are, and how many sums over replicas."""
    between, loss, all_reduce = trainer.ranks.mesh.get_group(0), trainer.policy.response_loss, dist.all_reduce
    out = {"micro-batches": 0, "sums": 0}

    def computed(*given: Any, **named: Any) -> Any:
        out["micro-batches"] += 1
        return loss(*given, **named)

    def summed(*given: Any, **named: Any) -> Any:
        out["sums"] += named.get("group") is between
        return all_reduce(*given, **named)

    trainer.policy.response_loss, dist.all_reduce = computed, summed  # type: ignore[method-assign]
    yield out
    dist.all_reduce = all_reduce


def on_four(plain: Work, replicas: Work) -> dict:
    said, trainer = {}, plain.fresh()
    said["four norms"], said["four"] = plain.train(trainer), plain.digest(trainer, "four")
    trainer = replicas.fresh()
    with counted(trainer) as said["counted"]:
        said["replicas norms"] = replicas.train(trainer)
    said["replicas"] = replicas.digest(trainer, "replicas")
    said["own"] = replicas.own(trainer)
    some = list(trainer.policy.model.parameters())[:3]
    said["rows"] = [replicas.ranks.gather(len(local_rows(p.detach()))) for p in some]
    said["whole"] = [p.shape[0] for p in some]
    trainer = replicas.fresh(*ALL)
    replicas.train(trainer, 3)
    said["asleep when it was written"] = trainer.offload is not None and trainer.offload.asleep
    said["written by replicas"] = replicas.digest(trainer)
    replicas.write(trainer, "a")
    replicas.train(trainer, 2)
    said["replicas that save memory"] = replicas.digest(trainer)
    return said


def on_three(work: Work) -> dict:
    trainer = work.fresh("moments")
    said = {"read by three": work.read(trainer, "a")}
    work.train(trainer, 1)
    said["written by three"] = work.digest(trainer)
    work.write(trainer, "b")
    return said


def on_one(work: Work) -> dict:
    said: dict = {}
    for ways in ((), ("offload",), ("moments",), ("offload", "moments")):
        trainer = work.fresh(*ways)
        if "offload" in ways:
            trainer.sleep()  # before anything has computed, as a run does when its sampler starts
        said[" ".join(("one", *ways))] = [work.train(trainer), work.digest(trainer, " ".join(("one", *ways)))]
    said["blocks"], said["parameters"] = len(list(blocks_of(trainer))), len(trainer.optimizer.state)
    said |= asleep(work, trainer) | broken(work, trainer)
    trainer = work.fresh("offload")
    trainer.sleep()
    trainer.wake()
    said["read by one"] = work.read(trainer, "b")
    trainer = work.fresh("moments", "offload")
    said["read from replicas"] = work.read(trainer, "a")
    work.train(trainer, 2)
    work.digest(trainer, "gone on")
    trainer = work.fresh("moments")
    work.read(trainer, "a")
    for state in trainer.optimizer.state.values():
        state["exp_avg"].zero_()
    work.train(trainer, 2)
    work.digest(trainer, "gone on without")
    return said


def blocks_of(trainer: Trainer) -> list[moments.Block]:
    """As if every parameter had a gradient."""
    assert isinstance(trainer.optimizer, HostAdamW)
    for parameter in trainer.optimizer.first:
        parameter.grad = torch.zeros_like(parameter)
    blocks = list(trainer.optimizer.blocks())
    trainer.optimizer.zero_grad()
    return blocks


def asleep(work: Work, trainer: Trainer) -> dict:
    """Of a trainer that has trained and sleeps: what its device holds, and what can still be computed."""
    assert trainer.offload is not None
    batch = pack(SAMPLES[:8], work.ranks.device)
    sizes = lambda: sum(held.storage.untyped_storage().nbytes() for held in trainer.offload.held)  # type: ignore[union-attr]  # noqa: E731
    said: dict = {"bytes asleep": sizes()}
    with torch.no_grad():
        slept = trainer.policy.response_logprobs(batch, 1.0)
        trainer.wake()
        trainer.arrive()
        said["bytes awake"] = sizes()
        awake = trainer.policy.response_logprobs(batch, 1.0)
        said["asleep computes the same"] = all(torch.equal(a, b) for a, b in zip(slept, awake, strict=True))
        trainer.sleep()
        for held in trainer.offload.held:
            held.host.zero_()
        lost = trainer.policy.response_logprobs(batch, 1.0)
        said["from the host"] = not torch.equal(lost[0], awake[0])
    return said


def broken(work: Work, trainer: Trainer) -> dict:
    """A gradient that is not finite, with moments on the host: nothing moves."""
    trainer = work.fresh("moments")
    work.train(trainer, 1)
    before = work.digest(trainer)
    samples = [replace(s, advantage=math.nan) if i == 3 else s for i, s in enumerate(SAMPLES)]
    said = {"skipped": trainer.train(known(work.ranks, samples))["optim/skipped"], "unmoved": work.digest(trainer) == before}
    work.train(trainer, 1)
    return said | {"moved": work.digest(trainer) != before}


def fewer(ranks: Ranks, size: int, port: int) -> Ranks:
    """The first `size` of the ranks, in a process group of their own; the others end."""
    ranks.stop()
    if ranks.rank >= size:
        sys.exit()
    os.environ |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_PORT": str(port)}
    return Ranks.start()


def main(arguments: dict, out: Path) -> None:
    root, ranks = Path(arguments["root"]), Ranks.start()
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = ranks.gather([held.getsockname()[1] for held in (one, other)])[0]
    said = on_four(Work(ranks, root), Work(Ranks.start(replicas=2), root, budget=64))  # several micro-batches an update
    said |= on_three(Work(ranks := fewer(ranks, 3, ports[0]), root))
    said |= on_one(Work(ranks := fewer(ranks, 1, ports[1]), root))
    out.write_text(json.dumps(said))
    ranks.stop()


main(json.loads(sys.argv[1]), Path(sys.argv[2]))
