"""Adapters in real vLLM engines of this process: the policy's, synced as adapters and merged, with seeded faults; and a judge's beside it,
asked the same as in an engine of its own. Writes what each says."""

import json
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lora import fresh, stir

from soundrl.engine import weight_sync
from soundrl.engine.config import Genrm, Rollout
from soundrl.engine.encode import Encoder
from soundrl.engine.environments.arithmetic.models import write_arith_critic
from soundrl.engine.judging.adapter_judge import AdapterJudge, AdapterPhase
from soundrl.engine.lora import lora as adapters_file
from soundrl.engine.packing import Sample, pack
from soundrl.engine.ranks import Ranks
from soundrl.engine.samplers.vllm_sampler import Room, VllmSampler
from soundrl.engine.tools.export import export_live
from soundrl.engine.weight_sync import SyncError, WeightSync
from soundrl.fapo.records import Prompt
from soundrl.fapo.records import Rollout as Sampled
from soundrl.genrm.prompts import PROMPTS, split_paragraphs

LENGTH = 224
LAYERS = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
weight_sync.AGAIN, weight_sync.PROBE_TOKENS = 256, 16  # an engine that is wrong here is wrong by much; more probes, fewer turns of decoding
PROBLEMS = [
    (f"{a}+{b}=?", f"{a}+{b}={(a + b) % 10}\n\n{a}*{b}={a * b % 10}", str((a + b) % 10))
    for a, b in zip(range(8), range(3, 11), strict=True)
]


def engine(folder: Path, trainer, **how) -> VllmSampler:
    policy = trainer.policy
    return VllmSampler(folder, policy.tokenizer, policy.settings, Rollout(memory=0.5, eager=True), trainer.ranks, **how)


def synced(trainer, sampler) -> WeightSync:
    vocabulary = trainer.policy.config.vocab_size
    prompts = [np.array([(7 * i + j * j) % vocabulary for j in range(150)], np.int32) for i in range(8)]
    return WeightSync(trainer.policy, trainer, sampler, prompts, 0.9, limit=1.05)


def outcome(sync: WeightSync) -> str:
    try:
        return f"passed {sync()['mismatch/gate']:.6f}"
    except SyncError as error:
        return str(error)


def gap(sync: WeightSync) -> float:
    """Largest difference of the sampler's and the trainer's log-probabilities."""
    batch = pack(sync.probes(256), sync.policy.ranks.device)
    with torch.no_grad():
        logprob_R, _ = sync.policy.response_logprobs(batch, sync.temperature)
    return (logprob_R - batch.sampler_logprobs[batch.response_index]).abs().max().item()


def taught(trainer, steps: int) -> None:
    """A judge that says of every other solution that it is sound, and of the rest that its paragraph 1 is wrong."""
    encode = Encoder(trainer.policy.tokenizer, LENGTH)
    samples = []
    for number, (problem, solution, answer) in enumerate(PROBLEMS):
        messages = PROMPTS["own"].messages(problem, split_paragraphs(solution), answer)
        tokens = encode(Prompt(id="", text="", answer="", messages=tuple(messages)))
        response = encode.response("\\boxed{1}" if number % 2 else "\\boxed{-1}")
        samples.append(Sample(prompt_tokens=tokens, tokens=response, logprobs=np.zeros(len(response), np.float32), advantage=1.0))
    for _ in range(steps):
        trainer.supervised_step(samples, 2e-2)


def verdicts(judge: AdapterJudge, generate) -> list[list]:
    """Of all solutions, two of them asked twice."""
    waiting: list[Future] = []
    for problem, solution, answer in (*PROBLEMS, *PROBLEMS[:2]):
        sampled: dict = {"prompt_tokens": (1,), "tokens": (1,), "logprobs": (0.0,), "finish_reason": "stop", "policy_version": 0}
        rollout = Sampled(prompt_id=problem, sample=0, text=solution, **sampled)
        waiting.append(judge.submit(Prompt(id=problem, text=problem, answer=answer), rollout))
    judge.answer(generate)
    return [[v.kind, v.step, v.reason, v.critique] for v in (future.result(timeout=0) for future in waiting)]


def main(root: Path) -> None:
    """Leaves `engines.json`."""
    ranks, said = Ranks.start(), {}
    base = root / "base"
    write_arith_critic(base, 0)
    teacher = fresh(base, ranks, (4, 8.0, "q_proj,v_proj,up_proj,down_proj"), max_length=LENGTH)
    teacher.settings = replace(teacher.settings, microbatch_tokens=1024)
    taught(teacher, 60)
    export_live(teacher.policy, teacher.policy.files(), root / "judge")

    trainer = fresh(base, ranks, max_length=LENGTH)
    stir(trainer, 0.1)
    export_live(trainer.policy, trainer.policy.files(), root / "policy")
    own = engine(base, trainer, adapters=Room((5, 4), 240, LAYERS))
    sync = synced(trainer, own)
    said["own"], said["own gap"] = outcome(sync), gap(sync)

    genrm = Genrm(judge="adapter", model=str(root / "judge" / "adapter"), max_tokens=12)
    judge = AdapterJudge(genrm, split_paragraphs)
    phase = AdapterPhase(judge, Path(genrm.model), ranks)
    phase.enter(own, trainer.policy.base)
    with own.judging():
        said["beside the policy"] = verdicts(judge, own.generate)
    said["metrics"] = judge.metrics()
    said["after"] = gap(sync)  # the policy's again, whatever the judge has left in the cache
    stir(trainer, 0.12)
    said["own again"], said["own again gap"] = outcome(sync), gap(sync)
    with own.judging():  # the policy has moved, the judge has not
        said["later"] = verdicts(AdapterJudgeOn(genrm, own), own.generate)
    said["under the policy"] = verdicts(AdapterJudgeOn(genrm, own), own.generate)

    real = own.adapt
    own.adapt = lambda folder: (real(folder), setattr(own, "wears", None))  # as if requests named no adapter
    said["not loaded"] = outcome(sync)
    own.adapt = real
    said["recovered"] = outcome(sync)
    write = adapters_file.write_adapter

    def lossy(target, shape, base, layouts, tensors, card):
        kept = [torch.zeros_like(t) if "layers.1.mlp" in name else t for name, t in zip(layouts, tensors, strict=True)]
        write(target, shape, base, layouts, kept, card)

    adapters_file.write_adapter = lossy
    said["one block"] = outcome(sync)
    adapters_file.write_adapter = write
    said["left"] = [str(path) for path in sync.adapting.folder.iterdir()]
    # Not closed before the end: an engine takes the process group with it.
    print(json.dumps(said), flush=True)

    second = engine(root / "judge", trainer, loads=True)
    alone = AdapterJudgeOn(genrm, second)
    said["alone"] = verdicts(alone, second.generate)
    merged = synced(trainer, second)
    said["merged"], said["merged gap"] = outcome(merged), gap(merged)
    if ranks.main:
        (root / "engines.json").write_text(json.dumps(said))
    ranks.stop()


def AdapterJudgeOn(genrm: Genrm, sampler: VllmSampler) -> AdapterJudge:
    """A judge that remembers nothing yet, asked in `sampler`."""
    judge = AdapterJudge(replace(genrm), split_paragraphs)
    judge.encode = Encoder(sampler.tokenizer, LENGTH - genrm.max_tokens)
    return judge
