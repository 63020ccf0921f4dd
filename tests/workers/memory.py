"""Peak memory of a training step above what a process holds without it, and what the plan says of the same step, of each case (`forks.py`):
{"folder", "ranks", "tokens", "save_memory", "lora", "dtype"}."""

import ctypes
import gc
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import torch
from forks import forked
from tiny import known

from soundrl.engine.files.model_folder import load_tokenizer
from soundrl.engine.launch.launch import be_quiet
from soundrl.engine.memory.memory_watch import MEMORY, resident
from soundrl.engine.packing import Sample
from soundrl.engine.planning.parts import at_once, trainer_state, trainer_work
from soundrl.engine.planning.shapes import shapes
from soundrl.engine.policy import Policy
from soundrl.engine.ranks import Ranks
from soundrl.engine.recipes import arith
from soundrl.engine.trainer import Trainer

be_quiet()
# glibc's heap keeps what is freed (a third of the whole here); tensors in mappings of their own make the peak that of what is alive.
M_MMAP_THRESHOLD = -3
LIBC = ctypes.CDLL(None)
assert LIBC.mallopt(M_MMAP_THRESHOLD, 1 << 17) == 1
ADDED = ("gradients, float32", "gathered weights and one layer's gradient")
"""Of what the plan calls state, what is there during a step alone"""


def samples(tokens: int) -> list[Sample]:
    """Like the world's rollouts: 30 to 60 tokens each, together just below `tokens`."""
    rng, out = Random(0), []
    while sum(sample.length for sample in out) < tokens - 60:
        length = rng.randint(20, 50)
        out.append(Sample(prompt_tokens=(1,) * 10, tokens=(2,) * length, logprobs=(-1.0,) * length, advantage=1.0))
    return out


def measure(rank: int, case: dict, out: Path) -> None:
    ranks, folder, config = Ranks.start(), Path(case["folder"]), arith()
    tokens, dtype, saved = case["tokens"], case.get("dtype", "float32"), tuple(case.get("save_memory", ()))
    lora = tuple(case.get("lora", (0, 8.0, "")))
    model = replace(config.model, path=str(folder), dtype=dtype, save_memory=saved, lora=lora)
    before = 2**20 * resident("VmRSS")
    policy = Policy(folder, load_tokenizer(folder), model, ranks)
    trainer = Trainer(policy, replace(config.optim, microbatch_tokens=tokens), config.loss, 1.0)
    trainer.train(known(ranks, samples(200 * ranks.size)))  # moments, buffers, thread pools
    gc.collect()
    LIBC.malloc_trim(0)  # what that has left free would be used again, and not seen
    held = 2**20 * resident("VmRSS")
    MEMORY.take()
    trainer.train(known(ranks, samples(tokens * ranks.size)))
    taken = MEMORY.take()["memory/training_mib"] * 2**20 - held
    of, size = shapes(folder, getattr(torch, dtype), lora), getattr(torch, dtype).itemsize
    state, work = trainer_state(of, size, ranks.size), trainer_work(of, size, tokens, "recompute" in saved, on_gpu=False)
    planned = at_once(work) + sum(state.pop(name) for name in ADDED)
    said = {"work": taken, "planned work": planned, "parts": work, "state": held - before, "planned state": sum(state.values())}
    out.with_suffix(f".{rank}").write_text(json.dumps(case | said))
    ranks.stop()


def main(arguments: dict, out: Path) -> None:
    said = []
    for case in arguments["cases"]:
        ranks = case.get("ranks", 1)
        assert forked(ranks, partial(measure, case=case, out=out)) == [0] * ranks
        said.append([json.loads(out.with_suffix(f".{rank}").read_text()) for rank in range(ranks)])
    out.write_text(json.dumps(said))


main(json.loads(sys.argv[1]), Path(sys.argv[2]))
