"""Two updates, an export and the trainer's log-probabilities of fixed sequences (`train`: model kinds); vLLM's view of exports (`read`)."""

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

SAID = {
    "generation_config.json": {"eos_token_id": [18, 7], "do_sample": True, "temperature": 0.7, "top_k": 20, "repetition_penalty": 1.05},
    "config.json": {"use_cache": True, "house_rule": {"kept": [1, 2]}, "attention_dropout": 0.1},
}


def trained(target: Path, kind: str, world: World) -> list[float]:
    """Two updates of a new model, exported to `target`; what it started from stands in `start` beside it, and what a policy that started
    from the export exports in `again`."""
    fresh = target.with_name("start")
    if world.main:
        write_tiny(fresh, kind)
        for name, more in SAID.items():
            (fresh / name).write_text(json.dumps(json.loads((fresh / name).read_text()) | more))
        (fresh / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    world.barrier()
    policy, trainer = load(fresh, world)
    samples = fixed_samples()
    for _ in range(2):
        trainer.train([known(samples[world.rank :: world.size])])
    with torch.no_grad():
        logprob_R, _ = policy.response_logprobs(pack(samples, world.device), 1.0)
    (target.with_name(target.name + ".part")).mkdir(exist_ok=True)  # as an export that was interrupted leaves it
    (target.with_name(target.name + ".part") / "model-00001-of-00002.safetensors").touch()
    world.barrier()
    policy.export(target)
    load(target, world)[0].export(target.with_name("again"))
    return logprob_R.tolist()


def read(folder: Path, world: World) -> list[float]:
    """A fresh engine, split over both ranks, that has read the exported folder itself: the gate's comparison, then a sync."""
    from soundrl.engine.vllm_generator import VllmGenerator

    policy, trainer = load(folder, world)
    settings = Rollout(memory=1.0, eager=True, tensor_parallel=world.size)
    generator = VllmGenerator(folder, policy.tokenizer, model_at(folder), settings, world)
    sync = WeightSync(policy, trainer, generator, [s.prompt_tokens for s in fixed_samples()], 1.0, 1.05)
    return [sync.gate().exp_abs_dlogp, sync()["mismatch/gate"]]


def model_at(folder: Path) -> Model:
    return Model(path=str(folder), dtype="float32", max_length=128)


def load(folder: Path, world: World) -> tuple[Policy, Trainer]:
    policy = Policy(folder, load_tokenizer(folder), model_at(folder), world)
    return policy, Trainer(policy, Optim(lr=3e-3, microbatch_tokens=256, warmup_steps=1), Loss(), 1.0)


def main(arguments: dict, out: Path) -> None:
    world, root = World.start(), Path(arguments["root"])
    said = {kind: trained(root / kind / "policy", kind, world) for kind in arguments["train"]}
    said |= {kind: read(root / kind / "policy", world) for kind in arguments["read"]}
    if world.main:
        out.write_text(json.dumps(said))
    if not arguments["read"]:  # vLLM takes the process group down with its engine
        world.barrier()
        world.stop()


main(json.loads(sys.argv[1]), Path(sys.argv[2]))
