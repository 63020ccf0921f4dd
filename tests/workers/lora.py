"""Adapters on this many ranks: gradients, updates, a checkpoint and what is read of it, exports, the reference; says what tests compare."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tiny import fixed_samples, known

from soundrl.engine.checkpoints import Checkpoints, restore
from soundrl.engine.config import Loss, Model, Optim
from soundrl.engine.files.checkpoint import CheckpointError, Place
from soundrl.engine.files.model_folder import load_tokenizer
from soundrl.engine.launch.launch import be_quiet
from soundrl.engine.packing import pack
from soundrl.engine.policy import Policy
from soundrl.engine.ranks import Ranks
from soundrl.engine.reference import reference_of
from soundrl.engine.tools.export import export, export_live
from soundrl.engine.tools.export import main as export_main
from soundrl.engine.trainer import Trainer

be_quiet()
LORA = (5, 9.0, "")


def fresh(folder: Path, ranks: Ranks, lora=LORA, seed: int = 3, **changes) -> Trainer:
    model = replace(Model(path=str(folder), dtype="float32", max_length=128, lora=lora), **changes)
    policy = Policy(folder, load_tokenizer(folder), model, ranks, seed=seed)
    return Trainer(policy, Optim(lr=3e-3, microbatch_tokens=model.max_length, warmup_steps=1), Loss(), 0.9)


def stir(trainer: Trainer, size: float = 0.1) -> None:
    """Adapters as after long training; the same on any number of ranks."""
    adapters = trainer.policy.adapters
    generator = torch.Generator().manual_seed(7)
    tensors = {name: size * torch.randn(p.shape, generator=generator) for name, p in adapters.parameters().items()}
    adapters.take(tensors, trainer.ranks)


def digest(tensors) -> str:
    out = hashlib.sha256()
    for name, tensor in tensors:
        out.update(name.encode() + tensor.float().numpy().tobytes())
    return out.hexdigest()


def state_of(trainer: Trainer) -> str:
    moments = [
        (f"{name} {kind}", trainer.optimizer.state[p][kind].full_tensor())
        for name, p in trainer.policy.trained.items()
        for kind in ("exp_avg", "exp_avg_sq")
        if p in trainer.optimizer.state
    ]
    return digest([*trainer.policy.adapters.full(), *moments]) + f" {trainer.updates}"


def gradients(trainer: Trainer) -> dict:
    ranks, everything = trainer.ranks, fixed_samples()
    batch = known(ranks, everything)[0].batch
    batches = list(trainer.packed([batch.trained(i) for i in batch.live([0])]))
    stats = trainer.backward(batches, float(sum(len(s.tokens) for s in everything)), trainer.policy_loss)
    found = {name: p.grad.full_tensor().double() for name, p in trainer.policy.trained.items()}
    idle = [name for name, p in trainer.policy.base_parameters() if p.grad is not None or p.requires_grad]
    trainer.optimizer.zero_grad()
    return {"gradients": found, "loss": stats["loss"], "idle": idle}


def logprobs(policy) -> list[float]:
    with torch.no_grad():
        return policy.response_logprobs(pack(fixed_samples(), policy.ranks.device), 1.0)[0].tolist()


def saved(trainer: Trainer, folder: Path) -> Path:
    policy = trainer.policy
    checkpoints = Checkpoints(folder, trainer.ranks, (1, 9, 0), print)
    checkpoints.save(
        Place(trainer.updates), trainer, {"trainer": trainer.state(), "config": {"model": asdict(policy.settings)}}, policy.files()
    )
    checkpoints.wait()
    return folder / Place(trainer.updates).name


def error(work, *arguments) -> str:
    try:
        work(*arguments)
    except (CheckpointError, ValueError) as found:
        return str(found)
    return ""


def main(root: Path, cases: dict[str, dict], others: tuple[int, ...]) -> None:
    """Leaves `said.json` and `tensors.pt` in a folder of its own; reads what as many ranks as `others` have saved."""
    ranks, said = Ranks.start(), {}
    tensors = {}
    for name, case in cases.items():
        case = dict(case)
        trainer = fresh(Path(case.pop("folder")), ranks, tuple(case.pop("lora", LORA)), **case)
        began = {name: tensor.clone() for name, tensor in trainer.policy.adapters.full()}
        stir(trainer)
        tensors[name] = gradients(trainer) | {"began": began, "adapters": dict(trainer.policy.adapters.full())}
        said[name] = trainer.policy.describe()
    folder, own = root / "qwen3", root / f"on-{ranks.size}"
    samples = fixed_samples()

    # Two updates, a checkpoint, two more; and the same from the checkpoint of as many ranks, and of others.
    trainer = fresh(folder, ranks)
    begun = logprobs(trainer.policy)
    for _ in range(2):
        trainer.train(known(ranks, samples))
    checkpoint = saved(trainer, own)
    middle = state_of(trainer)
    reference = reference_of(trainer.policy, folder, "sharded")
    said["reference"] = logprobs(reference) == begun
    said["moved"] = max(abs(a - b) for a, b in zip(logprobs(trainer.policy), begun, strict=True))
    stirred = fresh(folder, ranks)
    stir(stirred)
    there = logprobs(stirred.policy)
    export_live(stirred.policy, stirred.policy.files() | {"card.json": b'{"prompt": "own"}'}, own / "started")
    reference = reference_of(trainer.policy, own / "started", "sharded")
    said["started"] = logprobs(reference) == there
    said["unmoved"] = state_of(trainer) == middle
    for _ in range(2):
        trainer.train(known(ranks, samples))
    said["end"] = state_of(trainer)
    # The same with weights and moments on the host, asleep after each update.
    held = fresh(folder, ranks, save_memory=("offload", "moments"))
    for _ in range(4):
        held.train(known(ranks, samples))
        held.sleep()
    said["held"] = digest(held.policy.named_full_tensors()) == digest(trainer.policy.named_full_tensors())
    said["asleep"] = logprobs(reference_of(held.policy, own / "started", "sharded")) == there and held.offload.asleep
    again = fresh(folder, ranks, seed=4)
    restore(checkpoint, again, ranks)
    said["restored"] = state_of(again) == middle
    for _ in range(2):
        again.train(known(ranks, samples))
    said["again"] = state_of(again)
    said["middle"], said["of others"] = middle, {}
    for other in others:
        restore(root / f"on-{other}" / checkpoint.name, again, ranks)
        said["of others"][other] = state_of(again)
    said["other base"] = error(restore, checkpoint, fresh(root / "other", ranks), ranks)
    tensors["end"] = {name: tensor.clone() for name, tensor in trainer.policy.adapters.full()}
    said["logprobs"] = logprobs(trainer.policy)

    tensors["merged"] = {name: tensor.clone() for name, tensor in trainer.policy.named_full_tensors()}
    last = saved(trainer, own)
    if ranks.main:
        torch.save(tensors, own / "tensors.pt")
        said["card"] = json.loads((own / "started" / "adapter" / "card.json").read_text())["prompt"]
        said["files"] = sorted(file.name for file in last.iterdir() if file.is_file())
        export(last, own / "merged")
        export_main("write", last, own / "adapter", adapter=True)
        folder.rename(moved := folder.with_name("moved"))
        said["gone"] = error(export, last, own / "nowhere")
        export(last, own / "elsewhere", base=moved)
        moved.rename(folder)
        (own / "said.json").write_text(json.dumps(said))
    ranks.barrier()
    ranks.stop()
