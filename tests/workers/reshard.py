"""Checkpoints read and written by this many ranks: `train` updates a new model, `read` fills one from each folder, `write` saves it.
Says the digest of all weights and moments, unsharded, after each."""

import hashlib
import json
import sys
from pathlib import Path

import torch
from tiny import fixed_samples, known, write_tiny
from torch.distributed.tensor import DTensor

from soundrl.engine.checkpoints import Checkpoints, restore
from soundrl.engine.config import Loss, Model, Optim
from soundrl.engine.files.checkpoint import Place
from soundrl.engine.files.model_folder import load_tokenizer
from soundrl.engine.launch.launch import be_quiet
from soundrl.engine.policy import Policy
from soundrl.engine.ranks import Ranks
from soundrl.engine.trainer import Trainer

be_quiet()


def digest(trainer: Trainer) -> str:
    out = hashlib.sha256()
    for name, parameter in trainer.policy.model.named_parameters():
        state = trainer.optimizer.state.get(parameter, {})
        parts = {"weight": parameter.detach()} | {kind: state[kind] for kind in ("exp_avg", "exp_avg_sq") if kind in state}
        for kind, value in parts.items():
            assert isinstance(value, DTensor)
            out.update(f"{name} {kind} {float(state.get('step', 0))}".encode() + value.full_tensor().numpy().tobytes())
    return out.hexdigest()


def main(arguments: dict, out: Path) -> None:
    ranks, root = Ranks.start(), Path(arguments["root"])
    folder = root / "model"
    if ranks.main and not folder.exists():
        torch.manual_seed(0)
        write_tiny(folder, "qwen3")
    ranks.barrier()

    def fresh() -> Trainer:
        policy = Policy(folder, load_tokenizer(folder), Model(path=str(folder), dtype="float32", max_length=128), ranks)
        return Trainer(policy, Optim(lr=3e-3, microbatch_tokens=256, warmup_steps=1), Loss(), 1.0)

    said, trainer = {}, fresh()
    for _ in range(arguments.get("train", 0)):
        trainer.train(known(ranks, fixed_samples()))
        said["trained"] = digest(trainer)
    for name in arguments.get("read", ()):
        trainer = fresh()
        said[f"before {name}"] = digest(trainer)
        state = restore(root / name / "step-000002", trainer, ranks)
        said[name], said[f"updates {name}"] = digest(trainer), [trainer.updates, state["within"]]
    if name := arguments.get("write"):
        checkpoints = Checkpoints(root / name, ranks, (1, 1, 0), print)
        checkpoints.save(Place(2), trainer, {"trainer": trainer.state()}, trainer.policy.files())
        checkpoints.wait()
    if ranks.main:
        out.write_text(json.dumps(said))
    ranks.barrier()
    ranks.stop()


main(json.loads(sys.argv[1]), Path(sys.argv[2]))
