"""Two updates, an export, and the trainer's log-probabilities of fixed sequences; with `folder` of an export: vLLM's view of it."""

import json
import sys
from pathlib import Path

import torch
from tiny import fixed_samples, known, write_tiny

from soundrl.engine.build import load_tokenizer
from soundrl.engine.config import Loss, Model, Optim, Rollout
from soundrl.engine.launch import be_quiet
from soundrl.engine.packing import pack
from soundrl.engine.policy import Policy
from soundrl.engine.trainer import Trainer
from soundrl.engine.weight_sync import WeightSync
from soundrl.engine.world import World

be_quiet()


def main(arguments: dict, out: Path) -> None:
    world = World.start()
    target = Path(arguments["target"])
    fresh = target if arguments["vllm"] else target.with_name("start")
    if not arguments["vllm"] and world.main:
        write_tiny(fresh, arguments["kind"])
    world.barrier()
    tokenizer = load_tokenizer(fresh)
    model = Model(path=str(fresh), dtype="float32", max_length=128)
    policy = Policy(fresh, tokenizer, model, world)
    trainer = Trainer(policy, Optim(lr=3e-3, microbatch_tokens=256, warmup_steps=1), Loss(), 1.0)
    if arguments["vllm"]:
        from soundrl.engine.vllm_generator import VllmGenerator

        # A fresh engine, split over both ranks, that has read the exported folder itself: the gate's comparison, then a sync.
        generator = VllmGenerator(fresh, tokenizer, model, Rollout(memory=1.0, eager=True, tensor_parallel=world.size), world)
        sync = WeightSync(policy, trainer, generator, [s.prompt_tokens for s in fixed_samples()], 1.0, 1.05)
        said = [sync.gate().exp_abs_dlogp, sync()["mismatch/gate"]]
        if world.main:
            out.write_text(json.dumps(said))
        return
    samples = fixed_samples()
    for _ in range(2):
        trainer.train([known(samples[world.rank :: world.size])])
    with torch.no_grad():
        batch = pack(samples, world.device)
        logprob_R, _ = policy.response_logprobs(batch, 1.0)
    policy.export(target)
    if world.main:
        out.write_text(json.dumps(logprob_R.tolist()))
    world.barrier()
    world.stop()


main(json.loads(sys.argv[1]), Path(sys.argv[2]))
