"""What a checkpoint costs a run: seconds that training stands still, until it is on the disk, and what the writing takes from steps.

    python bench/checkpoint.py                                   # SmolLM2's shape, 135 M parameters; some minutes
    python bench/checkpoint.py --layers 2 --hidden 64 --tokens 64 --rounds 1

One rank on CPU. In turns: a step alone, a step beside the writing of a checkpoint, and the same state by torch.distributed.checkpoint,
which blocks and has no digests. `share` is what a save every 20 steps takes of the steps' time: (blocked + what a step loses beside the
writing) ÷ 20 steps. For 7 B parameters on 8 GPUs the same is predicted, from the bytes a rank, the speed of hashing and writing measured
here, and 20 GB/s from a GPU to pinned memory.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
import tyro
from record import machine
from small_model import write_model

from soundrl.engine.checkpoints import Checkpoints
from soundrl.engine.config import Loss, Model, Optim
from soundrl.engine.files.checkpoint import Place
from soundrl.engine.packing import Sample
from soundrl.engine.policy import Policy
from soundrl.engine.ranks import Ranks
from soundrl.engine.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
EVERY = 20  # steps between saves, `run.save`
LARGE = {"parameters": 7.6e9, "ranks": 8, "pinned": 20e9, "step_seconds": 205.0}
"""Qwen2.5-Math-7B, and the seconds a step that its plan of work says (an estimate)"""


@dataclass(frozen=True)
class Arguments:
    layers: int = 30
    hidden: int = 576
    tokens: int = 2048
    """Of a step: four sequences; a real step has a hundred times as many, and the share is as much smaller."""
    rounds: int = 5
    out: Path = ROOT / "bench" / "results" / "checkpoint.jsonl"


def trainer_of(arguments: Arguments, folder: Path, ranks: Ranks) -> Trainer:
    tokenizer = write_model(folder, arguments.layers, arguments.hidden)
    policy = Policy(folder, tokenizer, Model(path=str(folder), dtype="float32", max_length=2048), ranks)
    return Trainer(policy, Optim(microbatch_tokens=arguments.tokens), Loss(), 1.0)


def samples(arguments: Arguments) -> list[Sample]:
    length = arguments.tokens // 4 - 4
    return [Sample(prompt_tokens=[1, 2], tokens=[(7 * i + j) % 997 for j in range(length)], logprobs=[0.0] * length) for i in range(4)]


def main(arguments: Arguments) -> None:
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    ranks = Ranks.start()
    found: dict[str, list[float]] = {name: [] for name in ("step", "step_beside", "blocked", "written", "dcp")}
    with tempfile.TemporaryDirectory(dir=arguments.out.parent) as scratch:
        root = Path(scratch)
        trainer = trainer_of(arguments, root / "model", ranks)
        batch = samples(arguments)
        trainer.supervised_step(batch, 1e-6)  # moments are there
        saved = Checkpoints(root / "checkpoints", ranks, (EVERY, 1, 0), print)

        def step() -> float:
            start = time.perf_counter()
            trainer.supervised_step(batch, 1e-6)
            return time.perf_counter() - start

        def save(number: int) -> float:
            start = time.perf_counter()
            saved.save(Place(number), trainer, {"trainer": trainer.state(), "written": ""}, trainer.policy.files())
            return time.perf_counter() - start

        for number in range(arguments.rounds):
            found["step"].append(step())
            start = time.perf_counter()
            found["blocked"].append(save(2 * number + 1))
            saved.wait()
            found["written"].append(time.perf_counter() - start)
            save(2 * number + 2)
            found["step_beside"].append(step())
            saved.wait()
            found["dcp"].append(dcp(trainer, root / f"dcp-{number}"))
        size = sum(file.stat().st_size for file in (root / "checkpoints").rglob("*") if file.is_file())
    dist.destroy_process_group()
    middle = {name: statistics.median(values) for name, values in found.items()}
    lost = middle["blocked"] + max(0.0, middle["step_beside"] - middle["step"])
    parameters = sum(p.numel() for p in trainer.policy.model.parameters())
    row = {
        **{"bench": "checkpoint", "parameters": parameters, "bytes": size, "tokens": arguments.tokens, "rounds": arguments.rounds},
        **{f"{name}_seconds": round(value, 4) for name, value in middle.items()},
        **{"share": round(lost / (EVERY * middle["step"]), 5), "blocked_share": round(middle["blocked"] / (EVERY * middle["step"]), 5)},
        "predicted_7b_8_gpus": predicted(size / middle["written"]),
        "stamp": machine("cpu"),
    }
    print(json.dumps(row, indent=1))
    with arguments.out.open("a") as out:
        out.write(json.dumps(row) + "\n")


def dcp(trainer: Trainer, folder: Path) -> float:
    """Seconds of torch.distributed.checkpoint for the same weights and moments."""
    from torch.distributed.checkpoint import save

    model = dict(trainer.policy.model.named_parameters())
    state = {name: trainer.optimizer.state[parameter] for name, parameter in model.items()}
    start = time.perf_counter()
    save({"model": model, "optimizer": state}, checkpoint_id=str(folder))
    for file in folder.rglob("*"):  # to the disk, as our own; os.sync() would wait for what others write
        with file.open("rb") as written:
            os.fsync(written.fileno())
    return time.perf_counter() - start


def predicted(speed: float) -> dict[str, float]:
    """Seconds, by a model: 12 bytes a parameter in equal parts, every rank writing at the speed measured here (bytes a second)."""
    each = 12 * LARGE["parameters"] / LARGE["ranks"]
    blocked = each / LARGE["pinned"]
    return {
        "gigabytes_a_rank": round(each / 1e9, 1),
        "blocked_seconds": round(blocked, 2),
        "written_seconds": round(each / speed, 1),
        "blocked_share": round(blocked / (EVERY * LARGE["step_seconds"]), 6),
    }


if __name__ == "__main__":
    main(tyro.cli(Arguments))
