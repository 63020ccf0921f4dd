"""A mixture of experts and a real vLLM engine in this process: what it reads of an export, then seeded faults of expert tensors."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from soundrl.engine import weight_sync
from soundrl.engine.config import Loss, Model, Optim, Rollout
from soundrl.engine.files.model_folder import load_tokenizer
from soundrl.engine.launch.launch import be_quiet
from soundrl.engine.policy import Policy
from soundrl.engine.ranks import Ranks
from soundrl.engine.samplers import vllm_sampler
from soundrl.engine.samplers.sampler import Draw
from soundrl.engine.trainer import Trainer
from soundrl.engine.weight_sync import SyncError, WeightSync

EXPERTS = "model.layers.{}.mlp.experts."
RANDOM = torch.Generator().manual_seed(0)  # the sampler draws from torch's own
be_quiet()
weight_sync.AGAIN = 512  # the tokens of a second measurement: what is far off shows on fewer


def perturb(policy: Policy) -> None:
    """Every weight moves, and the rows of each router change places: a stale one is far off."""
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            local = parameter.to_local()
            local.add_(0.15 * local.abs().mean() * torch.randn(local.shape, generator=RANDOM))
            if name.endswith("mlp.gate.weight"):
                local.copy_(local.roll(1, 0))


def outcome(sync: WeightSync) -> dict:
    try:
        return sync()
    except SyncError as error:
        return {"failed": str(error)}


def rollouts(sampler: vllm_sampler.VllmSampler, prompts: list[np.ndarray]) -> list[list]:
    """What a fresh engine says of the folder that it has read itself."""
    draw = Draw(run_seed=1, phase="train", step=1, temperature=1.0, max_new_tokens=24)
    done = sampler.generate(draw.requests([(str(i), prompt) for i, prompt in enumerate(prompts)], 1))
    return [[r.prompt_tokens.tolist(), r.tokens.tolist(), r.logprobs.tolist()] for r in sorted(done, key=lambda r: r.prompt_id)]


def main(arguments: dict, out: Path) -> None:
    ranks = Ranks.start()
    folder, dtype = Path(arguments["folder"]), arguments.get("dtype", "float32")
    tokenizer = load_tokenizer(folder)
    model = Model(path=str(folder), dtype=dtype, max_length=224)
    sampler = vllm_sampler.VllmSampler(folder, tokenizer, model, Rollout(memory=1.0, eager=True), ranks, loads=True)
    prompts = [np.array([(7 * i + j * j) % 18 for j in range(150)], np.int32) for i in range(8)]  # longer than a block of the KV cache
    said: dict = {"read": rollouts(sampler, prompts[:4])}
    policy = Policy(folder, tokenizer, model, ranks)
    trainer = Trainer(policy, Optim(microbatch_tokens=1024), Loss(), 1.0)
    sync = WeightSync(policy, trainer, sampler, prompts, 1.0, limit=1.005 if dtype == "float32" else 1.5)
    said["start"] = outcome(sync)
    perturb(policy)
    said["healthy"] = outcome(sync)
    load = sampler.load

    def fault(name: str, change) -> None:
        """`change` of the stream, the first time it goes over, after the weights have moved."""
        calls = []

        def broken(tensors):
            calls.append(1)
            load(change(tensors) if len(calls) == 1 else tensors)

        perturb(policy)
        sampler.load = broken
        said[name] = outcome(sync)
        sampler.load = load

    def dropped(*names: str):
        return lambda tensors: ((n, t) for n, t in tensors if not n.startswith(names))

    def named_otherwise(*pairs: tuple[str, str]):
        def change(name: str) -> str:
            for a, b in pairs:
                if a in name or b in name:
                    return name.replace(a, b) if a in name else name.replace(b, a)
            return name

        return lambda tensors: ((change(n), t) for n, t in tensors)

    for name in arguments.get("faults", ()):
        one, zero = EXPERTS.format(1), EXPERTS.format(0)
        if name == "not loaded":
            fault(name, dropped(f"{one}3."))
        elif name == "swapped":
            fault(name, named_otherwise((f"{zero}2.", f"{zero}5.")))
        elif name == "gate and up":
            fault(name, named_otherwise((f"{one}4.gate_proj", f"{one}4.up_proj")))
        elif name == "stale router":
            fault(name, dropped("model.layers.1.mlp.gate."))
        elif name == "not packed":
            perturb(policy)
            real, vllm_sampler.experts_packed_anew = vllm_sampler.experts_packed_anew, nullcontext
            said[name] = outcome(sync)
            vllm_sampler.experts_packed_anew = real
        elif name == "never sent":
            perturb(policy)
            full, victim = policy.named_full_tensors, f"{zero}6.down_proj.weight"
            stream = sync.stream

            def faulty(*given, full=full, stream=stream):
                yield from stream(*given)
                policy.named_full_tensors = full

            sync.stream, policy.named_full_tensors = faulty, lambda full=full, v=victim: ((n, t) for n, t in full() if n != v)
            said[name] = outcome(sync)
            sync.stream, policy.named_full_tensors = stream, full
    said["recovered"] = outcome(sync)
    if ranks.main:
        out.write_text(json.dumps(said))


main(json.loads(sys.argv[1]), Path(sys.argv[2]))
