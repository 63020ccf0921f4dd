"""Peak memory of a training step above what the process holds without it, and what the plan says of the same step."""

import ctypes
import json
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import torch
from tiny import known

from soundrl.engine.files.model_folder import load_tokenizer
from soundrl.engine.launch.launch import be_quiet
from soundrl.engine.memory.memory_watch import MEMORY, resident
from soundrl.engine.packing import Sample
from soundrl.engine.planning.parts import trainer_state, trainer_work
from soundrl.engine.planning.shapes import shapes
from soundrl.engine.policy import Policy
from soundrl.engine.ranks import Ranks
from soundrl.engine.recipes import arith
from soundrl.engine.trainer import Trainer

be_quiet()
# glibc's heap keeps what is freed (a third of the whole here); tensors in mappings of their own make the peak that of what is alive.
M_MMAP_THRESHOLD = -3
assert ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1_000_000) == 1


def samples(tokens: int) -> list[Sample]:
    """Like the world's rollouts: 30 to 60 tokens each, together just below `tokens`."""
    rng, out = Random(0), []
    while sum(sample.length for sample in out) < tokens - 80:
        length = rng.randint(20, 50)
        out.append(Sample(prompt_tokens=(1,) * 10, tokens=(2,) * length, logprobs=(-1.0,) * length))
    return out


def main(arguments: dict, out: Path) -> None:
    ranks, folder, config = Ranks.start(), Path(arguments["folder"]), arith()
    said = []
    for recomputed in (False, True):
        model = replace(config.model, save_memory=("recompute",) if recomputed else ())
        before = 2**20 * resident("VmRSS")
        policy = Policy(folder, load_tokenizer(folder), model, ranks)
        optim = replace(config.optim, microbatch_tokens=arguments["tokens"])
        trainer = Trainer(policy, optim, config.loss, 1.0)
        trainer.train(known(ranks, samples(200)))  # moments, buffers, thread pools
        held = 2**20 * resident("VmRSS")
        MEMORY.take()
        trainer.train(known(ranks, samples(arguments["tokens"])))
        of = shapes(folder, torch.float32)
        taken = MEMORY.take()["memory/training_mib"] * 2**20 - held
        work = sum(trainer_work(of, 4, arguments["tokens"], recomputed, on_gpu=False).values())
        state = sum(trainer_state(of, 4, 1).values())
        said.append(
            {
                "work": taken,
                "planned work": work,
                "state": held - before,
                "planned state": state,
            }
        )
        del trainer, policy
    if ranks.main:
        out.write_text(json.dumps(said))
    ranks.stop()


main(json.loads(sys.argv[1]), Path(sys.argv[2]))
