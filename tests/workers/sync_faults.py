"""Seeded faults of the weight sync against a real vLLM engine in this process; writes what the gate says of each."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from evaluations import three
from tiny import write_tiny

from soundrl.engine.config import Loss, Model, Optim, Rollout
from soundrl.engine.encode import Encoder
from soundrl.engine.environments.environment import Environment
from soundrl.engine.files.model_folder import load_tokenizer
from soundrl.engine.launch.launch import be_quiet
from soundrl.engine.packing import Sample, pack
from soundrl.engine.policy import Policy
from soundrl.engine.ranks import Ranks
from soundrl.engine.samplers import vllm_sampler
from soundrl.engine.samplers.sampler import Draw
from soundrl.engine.samplers.turns import Turns
from soundrl.engine.trainer import Trainer
from soundrl.engine.weight_sync import SyncError, WeightSync
from soundrl.fapo.records import Prompt, Reply

TEMPERATURE = 0.7
RANDOM = torch.Generator().manual_seed(0)  # the sampler draws from torch's own
be_quiet()


def perturb(policy: Policy) -> None:
    """What an optimizer step does, only larger: every weight moves."""
    with torch.no_grad():
        for parameter in policy.model.parameters():
            local = parameter.to_local()
            local.add_(0.15 * local.abs().mean() * torch.randn(local.shape, generator=RANDOM))


def log_probabilities(worker, mode: str) -> None:
    worker.model_runner.sampler = type(worker.model_runner.sampler)(logprobs_mode=mode)


def uninitialised(worker) -> None:
    """vLLM gives a tensor that is not sent whatever its memory held before; here that is NaN, the worst of it."""
    from vllm.model_executor.model_loader.reload import layerwise

    def materialize(layer, info, real=layerwise.materialize_layer):
        real(layer, info)
        for parameter in layer.parameters(recurse=False):
            parameter.data.fill_(float("nan"))

    layerwise.materialize_layer = materialize


def nan_in_kv_memory(worker) -> int:
    return sum(int(layer.isnan().sum()) for layer in worker.model_runner.kv_caches)


def outcome(sync: WeightSync) -> str:
    try:
        return f"passed {sync()['mismatch/gate']:.6f}"
    except SyncError as error:
        return str(error)


def main(arguments: dict, out: Path) -> None:
    ranks = Ranks.start()
    folder = write_tiny(Path(arguments["folder"]), "qwen3", tied=True)
    tokenizer = load_tokenizer(folder)
    model = Model(path=str(folder), dtype="float32", max_length=224)
    policy = Policy(folder, tokenizer, model, ranks)
    trainer = Trainer(policy, Optim(microbatch_tokens=1024), Loss(), TEMPERATURE)
    generator = vllm_sampler.VllmSampler(folder, tokenizer, model, Rollout(memory=1.0, eager=True), ranks)
    generator.llm.collective_rpc(uninitialised)
    # Longer than one KV block of 128 tokens: shorter prompts are never cached, and a stale cache would have nothing to show.
    prompts = [tuple((7 * i + j * j) % 18 for j in range(150)) for i in range(8)]
    sync = WeightSync(policy, trainer, generator, prompts, TEMPERATURE, limit=1.05)
    said = {"start": outcome(sync)}
    for mode in ("raw_logprobs", "processed_logprobs"):  # as if the engine had been started so
        generator.llm.collective_rpc(log_probabilities, args=(mode,))
        said[mode] = outcome(sync)

    perturb(policy)
    said["healthy"] = outcome(sync)

    perturb(policy)
    full = policy.named_full_tensors
    victim = "model.layers.1.self_attn.v_proj.weight"
    policy.named_full_tensors = lambda: ((n, t) for n, t in full() if n != victim)
    said["never_sent"] = str(sync.sent == []) + outcome_with(sync, policy, full)
    said["nan_left"] = generator.llm.collective_rpc(nan_in_kv_memory)[0]
    seen, generator.poisoned = generator.poisoned, False  # inverse: as if nobody had seen the NaN
    sync.sampler.load(sync.stream())
    sync.sampler.reset_cache()
    said["nan_kept"] = sync.gate().blind
    generator.poisoned = seen
    said["after_never_sent"] = outcome(sync)

    perturb(policy)
    load, calls = generator.load, []

    def deaf(tensors):  # the sampler drops one tensor, the first time
        calls.append(1)
        load((n, t) for n, t in tensors if len(calls) > 1 or not n.startswith("model.layers.1.mlp"))

    generator.load = deaf
    said["not_taken"] = outcome(sync)
    generator.load = load

    perturb(policy)
    real = vllm_sampler.pack_tied_head
    vllm_sampler.pack_tied_head = lambda head, embedding: None
    said["old_tied_head"] = outcome(sync)
    vllm_sampler.pack_tied_head = real

    said["recovered"] = outcome(sync)
    said["rollouts"] = rollouts(generator, prompts)
    said["turns"] = turns(sync, prompts)
    perturb(policy)
    reset, resets = generator.reset_cache, []

    def lazy():  # skips the reset that belongs to the sync, not the doctor's
        resets.append(1)
        if len(resets) > 1:
            reset()

    generator.reset_cache = lazy
    said["stale_prefix_cache"] = outcome(sync)
    said["evaluations"] = three(generator, folder, Path(arguments["folder"]).parent)
    if ranks.main:
        out.write_text(json.dumps(said))


def rollouts(generator, prompts) -> dict:
    """The same requests together, in reverse, and one by one; and what a rollout holds."""
    draw = Draw(run_seed=1, phase="train", step=4, temperature=TEMPERATURE, max_new_tokens=24)
    requests = draw.requests([(f"p{i}", prompt[:20]) for i, prompt in enumerate(prompts[:3])], 2)

    def sample(part) -> list:
        done = sorted(generator.generate(part), key=lambda r: (r.prompt_id, r.sample))
        return [[r.prompt_id, r.sample, r.tokens.tolist(), r.finish_reason, r.policy_version, len(r.logprobs)] for r in done]

    return {
        "together": sample(requests),
        "reversed": sample(requests[::-1]),
        "alone": [row for request in requests for row in sample([request])],
        "end": generator.stop_tokens,
        "version": generator.version,
    }


class Asks(Environment):
    """Replies twice, from another thread where it is `late`, each in its own time."""

    problems = demonstrations = check = None

    def __init__(self, late: bool) -> None:
        self.thread = ThreadPoolExecutor(3) if late else None

    def respond(self, prompt, rollout):
        reply = Reply(text="6*7=42\n"[rollout.sample :], tool="t") if len(rollout.turns) < 5 else None
        if self.thread is None:
            return reply
        return self.thread.submit(lambda: time.sleep(0.01 * (hash((rollout.sample, len(rollout.turns))) % 5)) or reply)


def turns(sync: WeightSync, prompts) -> dict:
    """Gate and rollouts over turns: how far the sampler's log-probabilities of the policy's tokens are from the trainer's, and which tokens
    were sampled; and the same where what is sent back is not what was sampled."""
    generator, policy = sync.sampler, sync.policy
    encode, generate = Encoder(generator.tokenizer, 224), generator.generate
    requests = Draw(run_seed=1, phase="train", step=5, temperature=TEMPERATURE, max_new_tokens=60).requests(
        [(f"p{i}", np.array(prompt, np.int32)) for i, prompt in enumerate(prompts[:3])], 4
    )
    known = {f"p{i}": Prompt(id=f"p{i}", text="", answer="") for i in range(3)}

    def changed(new):  # as by a template that is rendered anew: the end of the turn before reads otherwise
        for r in new or ():
            if len(r.prompt_tokens) > 150:
                r.prompt_tokens[-5:] = (r.prompt_tokens[-5:] + 1) % 18
        return new

    def another(asked, leaving=lambda: False, more=lambda idle: None):
        return generate(changed(asked), leaving, lambda idle: changed(more(idle)))

    def sampled(late: bool = False) -> list:
        found = list(Turns(generator, encode, Asks(late), 8).generate(requests, known, lambda: False))
        return sorted(found, key=lambda r: (r.prompt_id, r.sample))

    def gap(rollouts) -> float:
        batch = pack([Sample.of(r) for r in rollouts], policy.ranks.device)
        with torch.no_grad():
            logprob_R, _ = policy.response_logprobs(batch, TEMPERATURE)
        return (logprob_R - batch.sampler_logprobs[batch.response_index]).abs().max().item()

    found = sampled()
    said: dict = {"tokens": [r.tokens.tolist() for r in found], "late": [r.tokens.tolist() for r in sampled(late=True)]}
    said |= {"turns": [len(r.turns) for r in found], "gap": gap(found), "one_turn": sync.gate().exp_abs_dlogp}
    sync.reply = encode.reply(Reply(text="6*7=42\n"))
    said["gate"] = sync.gate().exp_abs_dlogp
    generator.generate = another
    said |= {"other_gate": sync.gate().exp_abs_dlogp, "other_gap": gap(sampled())}
    sync.reply = sync.reply[:0]
    said["unseen"] = sync.gate().exp_abs_dlogp
    generator.generate = generate
    return said


def outcome_with(sync: WeightSync, policy: Policy, full) -> str:
    """The outcome of a sync whose stream lost a tensor; the doctor sees the full list again."""
    stream = sync.stream

    def faulty(*arguments):
        yield from stream(*arguments)
        policy.named_full_tensors = full

    sync.stream = faulty
    said = outcome(sync)
    sync.stream, policy.named_full_tensors = stream, full
    return said


main(json.loads(sys.argv[1]), Path(sys.argv[2]))
