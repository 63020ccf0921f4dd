"""What a run will hold in memory, from the model's config.json alone: `python engine/train.py fapo-7b --plan --gpus 32 --gpu-gib 80`.

Parameters and activations are counted on a copy of the model without storage (torch's meta device): its forward pass runs on shapes, and
what autograd saves is added up, so any architecture is known. The rest is counted: N parameters over W ranks cost 4 bytes each of master
weight, gradient and two moments in float32. What is alive is counted; on CPU glibc's heap keeps up to 40 % more of it. Shapes: T tokens of
a micro-batch, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM

from soundrl.engine.config import Config
from soundrl.engine.environments.environment import environment_of, own_world
from soundrl.engine.files.model_folder import load_config
from soundrl.engine.policy import KEEP_GATHERED
from soundrl.engine.samplers.vllm_sampler import MAX_BATCHED_TOKENS, MAX_SEQUENCES
from soundrl.genrm.serve.machine import cached_bytes, check_heads, positions, served_length
from soundrl.kernels.head_chunks import USUAL, head_memory

GIB = 2**30
ATTENTION = "soundrl_plan"
TRACED_TOKENS = 256
GPUS_A_MACHINE = 8  # of a machine that is planned for but not there; each has served judges of its own
JUDGE_BATCHED_TOKENS, JUDGE_SEQUENCES = 8192, 1024  # what vLLM's server takes at once on a large GPU
CONTEXT = {"cuda": 1.0 * GIB, "cpu": 1.1 * GIB}
"""CUDA context, NCCL's buffers and the allocator's slack, of a sleeping judge as well (its CUDA graphs stay); on CPU the
interpreter with torch, transformers and vLLM loaded (measured)."""


class _Attention(torch.autograd.Function):
    """Keeps what attention over packed sequences keeps: query, key, value, output, and the log-sum-exp of each row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out


def _fused(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, **kwargs: Any) -> tuple[Tensor, None]:
    return _Attention.apply(query, key, value).transpose(1, 2), None


AttentionInterface.register(ATTENTION, _fused)


@dataclass(frozen=True)
class Shapes:
    """What the plan needs to know of a model."""

    parameters: int
    layer: int  # parameters of one layer
    layers: int
    hidden: int
    vocabulary: int
    largest: int  # elements of the largest tensor
    cached: int  # elements of the KV cache, a token
    saved: float  # bytes that one token leaves for the backward pass, over all layers, without recomputation
    widest: float  # bytes of the largest single tensor among these, a token


def shapes(folder: Path, dtype: torch.dtype) -> Shapes:
    """Of the model in `folder`, whose config.json alone is read."""
    config = load_config(folder)
    config.use_cache = False
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION)
    model.tie_weights()
    model.get_output_embeddings().forward = lambda hidden: hidden.sum()[None, None]
    layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    with saved_bytes(model) as sizes:
        ids = torch.zeros(1, TRACED_TOKENS, dtype=torch.int64, device="meta")
        model(input_ids=ids, position_ids=ids, use_cache=False)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shapes(
        parameters=sum(p.numel() for p in model.parameters()),
        layer=sum(p.numel() for p in layers[0].parameters()),
        layers=len(layers),
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        largest=max(p.numel() for p in model.parameters()),
        cached=2 * len(layers) * heads * width,
        saved=sum(sizes) / TRACED_TOKENS,
        widest=max(sizes) / TRACED_TOKENS,
    )


@contextmanager
def saved_bytes(model: nn.Module) -> Iterator[list[int]]:
    """Sizes of the storages that autograd saves within, each once, parameters left out."""
    known = {id(storage): storage for storage in (p.untyped_storage() for p in model.parameters())}
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in known:
            known[id(storage)] = storage  # kept, so that no other gets its id
            sizes.append(storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


@dataclass(frozen=True)
class JudgeNeeds:
    """What a served judge takes of each of its GPUs (on CPU: of the machine's memory), in bytes."""

    weights: float
    work: float
    cached: int  # a token
    context: int  # tokens of its longest prompt and critique


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one GPU, one with a judge where there is any (on CPU: of one rank)."""

    parts: dict[str, float]
    peaks: dict[str, float]
    """While sampling, judging where that is a phase of its own, training, and syncing weights; on CPU nothing sleeps, and one peak holds
    all."""
    total: float
    sequences: float  # sequences of model.max_length that the KV cache holds at once
    serial: bool = False  # the served judge sleeps but for a phase of its own
    judging: str = ""  # the same in words, with the reason; empty where no judge is served
    critiques: float = math.inf  # of the judge's context, that its KV cache holds at once
    context: int = 0  # of the judge, in tokens; 0 where none is served

    @property
    def worst(self) -> tuple[str, float]:
        """The phase with the highest peak, and that."""
        return max(self.peaks.items(), key=lambda item: item[1])

    @property
    def fits(self) -> bool:
        return self.worst[1] <= self.total

    def check(self) -> None:
        """ValueError, one line with the cure, for a plan that cannot run."""
        name, peak = self.worst
        if self.sequences < 1:
            raise ValueError(
                f"rollout.memory leaves vLLM {self.parts['KV cache'] / GIB:.1f} GiB of KV cache, {self.sequences:.2f} of one sequence of "
                "model.max_length; raise rollout.memory or rollout.tensor_parallel, or lower model.max_length"
            )
        if self.critiques < 1:
            raise ValueError(
                f"rollout.memory leaves the judge {self.parts['  of which KV cache'] / GIB:.1f} GiB of KV cache, {self.critiques:.2f} of a "
                f"prompt and critique of {self.context} tokens; raise rollout.memory or genrm.workers' GPUs, or lower genrm.max_tokens"
            )
        if not self.fits:
            turns = ", though judge and policy take turns" if self.serial else ""
            raise ValueError(
                f"the run needs {peak / GIB:.1f} GiB while {name}{turns}, but there are {self.total / GIB:.1f}; use more GPUs, "
                "--model.save-memory recompute, a smaller optim.microbatch_tokens or rollout.memory, or a judge on another machine"
            )

    def table(self) -> str:
        lines = [f"  {name:<44} {size / GIB:8.2f}" for name, size in self.parts.items()]
        lines += [f"  peak while {name:<33} {size / GIB:8.2f}" for name, size in self.peaks.items()]
        lines += [
            f"  there are {'':<34} {self.total / GIB:8.2f}",
            f"  KV cache: {self.sequences:.1f} sequences of model.max_length at once",
            *([f"  judge: {self.judging}"] if self.judging else []),
            *([f"  judge's KV cache: {self.critiques:.1f} prompts and critiques of {self.context} tokens at once"] if self.context else []),
        ]
        return "\n".join(lines)


def judge_length(config: Config, folder: Path) -> int:
    """Tokens of the longest prompt and critique of the judge in `folder`. ValueError where its model takes fewer than may come."""
    longest, critique, own = config.model.max_length, config.genrm.max_tokens, positions(folder)
    if 0 < own < longest + critique:
        raise ValueError(
            f"genrm.model takes {own} tokens, but a prompt of model.max_length {longest} and a critique of genrm.max_tokens {critique} may "
            f"come; lower genrm.max_tokens{f' to {own - longest}' if own > longest else ' and model.max_length'}, or serve another judge"
        )
    # The judge counts other tokens than the policy, and tags around each paragraph.
    return served_length(folder, longest + longest // 2, critique)


def judge_needs(config: Config, device: str) -> JudgeNeeds | None:
    """Of the judge in `genrm.model`, whose config.json alone is read; None where there is no such file (yet)."""
    folder, parallel = Path(config.genrm.model), config.genrm.workers[1]
    if not (folder / "config.json").is_file():
        return None
    check_heads(folder, parallel)
    of, size = shapes(folder, getattr(torch, config.model.dtype)), element_size(config)
    return JudgeNeeds(
        weights=of.parameters * size / parallel,
        work=JUDGE_BATCHED_TOKENS * of.widest * 2 + JUDGE_SEQUENCES * of.vocabulary * 4 if device == "cuda" else 0.0,
        cached=cached_bytes(folder, size, parallel) or of.cached * size,
        context=judge_length(config, folder),
    )


def memory_plan(
    config: Config, of: Shapes, ranks: int, total: float, device: str, machine: int = GPUS_A_MACHINE, judge: JudgeNeeds | None = None
) -> MemoryPlan:
    """The plan of `config` on each of `ranks` GPUs with `total` bytes, `machine` of them on each machine, as are its own served judges
    (`device` cpu: on `ranks` processes that share `total`). A served judge stays awake where `run.overlap` wants it and both fit; else it
    has a serial phase. ValueError where `rollout.memory` is no share of a GPU, or judges take more GPUs than a machine has."""
    config.check_memory(device)
    g = config.genrm
    if g.judge != "serve":
        return plan_of(config, of, ranks, total, device)
    if device == "cuda" and (taken := math.prod(g.workers)) > machine:
        raise ValueError(f"genrm.workers {g.workers[0]} on {g.workers[1]} GPUs each take {taken}, but a machine has {machine}; set fewer")
    share = config.rollout.memory * (total if device == "cuda" else GIB)
    beside = judge.weights if judge and device == "cpu" else 0.0
    awake = replace(plan_of(config, of, ranks, total, device, share + beside), judging="awake throughout")
    if device == "cpu" or (config.run.overlap and awake.fits):
        return with_judge(awake, judge, share, device)
    name, peak = awake.worst
    why = f"both need {peak / GIB:.1f} GiB while {name}, but there are {total / GIB:.1f}" if config.run.overlap else "run.overlap is off"
    serial = replace(plan_of(config, of, ranks, total, device, share, serial=True), judging=f"serial phase ({why})")
    return with_judge(serial, judge, share, device)


def with_judge(plan: MemoryPlan, judge: JudgeNeeds | None, share: float, device: str) -> MemoryPlan:
    """What the judge does with its share: of a GPU's memory weights and work go first, on CPU it is the KV cache alone."""
    if judge is None:
        return replace(plan, judging=f"{plan.judging}; genrm.model has no config.json here, so what it holds itself is not planned")
    cache = max(0.0, share - (judge.weights + judge.work if device == "cuda" else 0.0))
    parts: dict[str, float] = {}
    for name, size in plan.parts.items():
        parts[name] = size
        if name == "served judges":
            parts |= {"  of which its weights": judge.weights, "  of which KV cache": cache}
    return replace(plan, parts=parts, critiques=cache / (judge.cached * judge.context), context=judge.context)


def element_size(config: Config) -> int:
    return 4 if config.model.dtype == "float32" else 2


def plan_of(config: Config, of: Shapes, ranks: int, total: float, device: str, judge: float = 0.0, serial: bool = False) -> MemoryPlan:
    """With a judge of so many bytes, awake throughout or in a serial phase."""
    size = element_size(config)
    tokens, on_gpu = config.optim.microbatch_tokens, device == "cuda"
    state = trainer_state(of, size, ranks)
    work = trainer_work(of, size, tokens, "recompute" in config.model.save_memory, on_gpu)
    weights = of.parameters * size / config.rollout.tensor_parallel
    vllm_work = MAX_BATCHED_TOKENS * of.widest * 2 + MAX_SEQUENCES * of.vocabulary * 4
    share = config.rollout.memory * total if on_gpu else weights + math.ceil(config.rollout.memory) * GIB
    cache = share - weights - (vllm_work if on_gpu else 0.0)
    beside = CONTEXT[device] if serial else judge
    largest = 2 * of.largest * size  # the cast shard, gathered, and vLLM's copy on its way
    reference = reference_state(config, of, size, ranks, on_gpu)
    resident = CONTEXT[device] + state["master weights, float32"] + state["AdamW moments, float32"] + reference.get("reference", 0.0)
    training = resident + state["gradients, float32"] + sum(work.values())
    parts = {"context": CONTEXT[device], **state, **reference, **work, "vLLM's share (rollout.memory)": share}
    parts |= {"  of which weights": weights, "KV cache": max(cache, 0.0), "served judges": judge, "weight sync: largest tensor": largest}
    if on_gpu:
        # The policy engine sleeps while the judge has its phase, and while training.
        peaks = {
            "sampling": resident + share + beside,
            **({"judging": resident + judge} if serial else {}),
            "training": training + beside,
            "syncing weights": resident + weights + largest + beside,
        }
    else:
        total /= ranks
        peaks = {"training (nothing sleeps on CPU)": training + share + judge * config.genrm.workers[0] / ranks}
    sequences = cache * config.rollout.tensor_parallel / (of.cached * size * config.model.max_length)
    return MemoryPlan(parts, peaks, total, sequences, serial)


def trainer_state(of: Shapes, size: int, ranks: int) -> dict[str, float]:
    """What one rank keeps of weights and optimizer, in bytes."""
    shard = of.parameters / ranks
    # Gathered for computing: everything where the model is small (ZeRO-2), else two layers and what is in no layer.
    outside = of.parameters - of.layers * of.layer
    gathered = of.parameters if of.parameters <= KEEP_GATHERED else 2 * of.layer + outside
    return {
        "master weights, float32": 4 * shard,
        "AdamW moments, float32": 8 * shard,
        "gradients, float32": 4 * shard,
        "gathered weights and one layer's gradient": gathered * size + max(of.layer, outside) * (size + 4),
    }


def reference_state(config: Config, of: Shapes, size: int, ranks: int, on_gpu: bool) -> dict[str, float]:
    """What one rank keeps of the KL term's reference, in bytes; nothing where there is no such term. Its pass needs less than training."""
    weight, _, place = config.loss.kl
    away = on_gpu and place != "sharded"
    return {f"reference{', on the host' if away else ''}": of.parameters * size / ranks} if weight else {}


def trainer_work(of: Shapes, size: int, tokens: int, recomputed: bool, on_gpu: bool) -> dict[str, float]:
    """What one micro-batch of `tokens` needs, in bytes: activations, their gradients on the way back, and the fused head."""
    whole, layer = of.saved * tokens, of.saved * tokens / of.layers
    kept = of.layers * of.hidden * size * tokens + layer if recomputed else whole
    head = head_memory(tokens, of.hidden, of.vocabulary, size, True, USUAL, on_gpu).peak  # fp32 logits, as `Policy` calls it
    name = "activations, recomputed layer by layer" if recomputed else "activations"
    return {name: kept, "gradients of activations": 2 * of.widest * tokens, "head: chunk of logits, gradient of its weight": head}


def planned(config: Config, gpus: int, gpu_gib: float | None) -> MemoryPlan:
    """The plan of a configuration; `gpus` 0 takes those that are there (on CPU the ranks that `NPROC` gives)."""
    total, device = memory_there(gpu_gib)
    ranks = gpus or int(os.environ.get("NPROC", torch.cuda.device_count() or min(2, os.cpu_count() or 1)))
    config.engines(ranks, device)
    with tempfile.TemporaryDirectory() as fresh:
        folder = Path(config.model.path)
        if own_world(config.model.path):
            environment_of(config.model.path).write_model(config, folder := Path(fresh))
        if not (folder / "config.json").is_file():
            raise ValueError(f"model.path {folder} has no config.json, which is all a plan reads; name a Hugging Face model folder")
        machine = torch.cuda.device_count() if gpu_gib is None and device == "cuda" else min(ranks, GPUS_A_MACHINE)
        judge = judge_needs(config, device) if config.genrm.judge == "serve" else None
        return memory_plan(config, shapes(folder, getattr(torch, config.model.dtype)), ranks, total, device, machine, judge)


def ledger(config: Config, ranks: int) -> dict[str, float]:
    """MiB by name, and the highest peak as a run measures it: `rss_mib`, `gpu_mib`. ValueError as `planned`."""
    plan = planned(config, ranks, None)
    peak = {"gpu_mib" if torch.cuda.is_available() else "rss_mib": plan.worst[1]}
    return {name.strip(): round(size / 2**20, 1) for name, size in (plan.parts | peak).items()}


def main(config: Config, gpus: int, gpu_gib: float | None) -> None:
    """Print the plan; ValueError in one line where it cannot run."""
    plan = planned(config, gpus, gpu_gib)
    print(f"memory plan of {config.run.name}, GiB on each {'GPU' if len(plan.peaks) > 1 else 'rank'}\n{plan.table()}", flush=True)
    plan.check()
    print("  it fits", flush=True)


def memory_there(gpu_gib: float | None) -> tuple[float, str]:
    """(bytes, device) of the GPU given, else of the one that is there, else of this machine's RAM."""
    if gpu_gib is not None:
        return gpu_gib * GIB, "cuda"
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory, "cuda"
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "cpu"
