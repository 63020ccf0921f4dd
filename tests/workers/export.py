"""Two updates, an export and the trainer's log-probabilities of fixed sequences (`train`: model kinds); vLLM's view of one
of the exports (`read`)."""

import json
import sys
from pathlib import Path

import torch
from tiny import fixed_samples, known, write_tiny

from soundrl.engine.checkpoints import Checkpoints
from soundrl.engine.config import Loss, Model, Optim, Rollout
from soundrl.engine.files.checkpoint import Place
from soundrl.engine.files.model_folder import load_tokenizer
from soundrl.engine.launch.launch import be_quiet
from soundrl.engine.packing import pack
from soundrl.engine.policy import Policy
from soundrl.engine.ranks import Ranks
from soundrl.engine.tools.export import export
from soundrl.engine.trainer import Trainer
from soundrl.engine.weight_sync import WeightSync

be_quiet()

SAID = {
    "generation_config.json": {"eos_token_id": [18, 7], "do_sample": True, "temperature": 0.7, "top_k": 20, "repetition_penalty": 1.05},
    "config.json": {"use_cache": True, "house_rule": {"kept": [1, 2]}, "attention_dropout": 0.1},
}


def trained(target: Path, kind: str, ranks: Ranks) -> list[float]:
    """Two updates of a new model, exported to `target`; what it started from stands in `start` beside it, and what a policy that started
    from the export exports in `again`."""
    fresh = target.with_name("start")
    if ranks.main:
        write_tiny(fresh, kind)
        for name, more in SAID.items():
            (fresh / name).write_text(json.dumps(json.loads((fresh / name).read_text()) | more))
        (fresh / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    ranks.barrier()
    policy, trainer = load(fresh, ranks)
    samples = fixed_samples()
    for _ in range(2):
        trainer.train(known(ranks, samples))
    with torch.no_grad():
        logprob_R, _ = policy.response_logprobs(pack(samples, ranks.device), 1.0)
    (target.with_name(target.name + ".part")).mkdir(exist_ok=True)  # as an export that was interrupted leaves it
    (target.with_name(target.name + ".part") / "model-00001-of-00002.safetensors").touch()
    ranks.barrier()
    written(trainer, target)
    written(load(target, ranks)[1], target.with_name("again"))
    return logprob_R.tolist()


def written(trainer: Trainer, target: Path) -> None:
    """As a run exports: from a checkpoint, by rank 0."""
    ranks = trainer.ranks
    checkpoints = Checkpoints(target.with_name(f"{target.name}-checkpoints"), ranks, (1, 1, 0), print)
    checkpoints.save(Place(2), trainer, {"trainer": trainer.state()}, trainer.policy.files())
    checkpoints.wait()
    if ranks.main:
        export(checkpoints.folder / "step-000002", target)
    ranks.barrier()


def read(folder: Path, ranks: Ranks) -> dict:
    """A fresh engine, split over both ranks, that has read the exported folder itself: the gate's comparison, then a sync; and the memory
    that they share, by name."""
    from soundrl.engine.samplers.vllm_sampler import VllmSampler

    policy, trainer = load(folder, ranks)
    settings = Rollout(memory=1.0, eager=True, tensor_parallel=ranks.size)
    generator = VllmSampler(folder, policy.tokenizer, model_at(folder), settings, ranks, loads=True)
    sync = WeightSync(policy, trainer, generator, [s.prompt_tokens for s in fixed_samples()], 1.0, 1.05)
    shared = [line.split(maxsplit=5)[5] for line in Path("/proc/self/maps").read_text().splitlines() if "cpushm" in line]
    return {"gates": [sync.gate().exp_abs_dlogp, sync()["mismatch/gate"]], "shared": shared}


def model_at(folder: Path) -> Model:
    return Model(path=str(folder), dtype="float32", max_length=128)


def load(folder: Path, ranks: Ranks) -> tuple[Policy, Trainer]:
    policy = Policy(folder, load_tokenizer(folder), model_at(folder), ranks)
    return policy, Trainer(policy, Optim(lr=3e-3, microbatch_tokens=256, warmup_steps=1), Loss(), 1.0)


def main(arguments: dict, out: Path) -> None:
    ranks, root = Ranks.start(), Path(arguments["root"])
    said = {kind: trained(root / kind / "policy", kind, ranks) for kind in arguments["train"]}
    said["read"] = read(root / arguments["read"] / "policy", ranks)
    if ranks.main:  # vLLM takes the process group down with its engine
        out.write_text(json.dumps(said))


main(json.loads(sys.argv[1]), Path(sys.argv[2]))
