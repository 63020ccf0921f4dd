"""What a run will hold in memory, phase by phase: the parts (`parts`) that are there while it samples, judges, trains and syncs.

What is alive is counted; on CPU glibc's heap keeps up to 40 % more of it, and nothing sleeps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from soundrl.engine.config import Config
from soundrl.engine.conflicts import HEAD
from soundrl.engine.files.adapter_folder import Shape, adapted, read_shape
from soundrl.engine.phases import PEAKS
from soundrl.engine.planning.parts import (
    CONTEXT,
    GIB,
    at_once,
    communicators,
    element_size,
    engine_work,
    gate_work,
    gathered,
    in_flight,
    on_host,
    reference_state,
    slots,
    trainer_state,
    trainer_work,
)
from soundrl.engine.planning.shapes import Shapes, shapes, shard
from soundrl.engine.ranks import holders, shards_of
from soundrl.engine.samplers.vllm_sampler import Room
from soundrl.engine.weight_sync import AGAIN, PROBE_TOKENS
from soundrl.genrm.serve.machine import cached_bytes, check_heads, positions, served_length

UNEVEN = 1.1  # times an even part, from which on a plan says why
GPUS_A_MACHINE = 8  # of a machine that is planned for but not there; each has served judges of its own
JUDGE_BATCHED_TOKENS, JUDGE_SEQUENCES = 8192, 1024  # what vLLM's server takes at once on a large GPU


@dataclass(frozen=True)
class JudgeNeeds:
    """What a served judge takes of each of its GPUs (on CPU: of the machine's memory), in bytes."""

    weights: float
    work: float
    cached: int  # a token
    context: int  # tokens of its longest prompt and critique


@dataclass(frozen=True)
class AdapterNeeds:
    """What a judge takes that is asked in the policy's own engine, as its second adapter."""

    slots: int  # elements of vLLM's room for both adapters
    context: int  # tokens of its longest prompt and critique
    said: str


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one GPU, one with a judge where there is any (on CPU: of one rank)."""

    parts: dict[str, float]
    peaks: dict[str, float]
    """By phase, as `PEAKS` names them; judging where that is one of its own. A run measures the same (`memory_watch`)."""
    total: float
    sequences: float  # sequences of model.max_length that the KV cache holds at once
    serial: bool = False  # the served judge sleeps but for a phase of its own
    judging: str = ""  # the same in words, with the reason; empty where no judge is planned for
    critiques: float = math.inf  # of the judge's context, that its KV cache holds at once
    context: int = 0  # of the judge, in tokens; 0 where none is planned for
    host: float = 0.0  # pinned memory of each machine, for what `model.save_memory` keeps there, and a base that sleeps
    uneven: str = ""  # why a rank holds more than its even part of the model, and what helps; empty where it does not

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
            served = self.parts.get("  of which KV cache")
            cache, more = (self.parts["KV cache"], "") if served is None else (served, " or genrm.workers' GPUs")
            raise ValueError(
                f"rollout.memory leaves the judge {cache / GIB:.1f} GiB of KV cache, {self.critiques:.2f} of a "
                f"prompt and critique of {self.context} tokens; raise rollout.memory{more}, or lower genrm.max_tokens"
            )
        if not self.fits:
            turns = ", though judge and policy take turns" if self.serial else ""
            more = f"more GPUs hold no less each ({self.uneven}): use " if self.uneven else "use more GPUs, "
            raise ValueError(
                f"the run needs {peak / GIB:.1f} GiB while {PEAKS[name]}{turns}, but there are {self.total / GIB:.1f}; {more}"
                "--model.save-memory recompute offload moments, --model.lora, a smaller optim.microbatch_tokens or rollout.memory, or a "
                "judge on another machine"
            )

    def table(self) -> str:
        lines = [f"  {name:<44} {size / GIB:8.2f}" for name, size in self.parts.items()]
        lines += [f"  peak while {PEAKS[name]:<33} {size / GIB:8.2f}" for name, size in self.peaks.items()]
        lines += [
            f"  there are {'':<34} {self.total / GIB:8.2f}",
            *([f"  on the host of each machine, pinned {'':<9} {self.host / GIB:8.2f}"] if self.host else []),
            *([f"  shards are uneven: {self.uneven}"] if self.uneven else []),
            f"  KV cache: {self.sequences:.1f} sequences of model.max_length at once",
            *([f"  judge: {self.judging}"] if self.judging else []),
            *([f"  judge's KV cache: {self.critiques:.1f} prompts and critiques of {self.context} tokens at once"] if self.context else []),
        ]
        return "\n".join(lines)


def judge_length(config: Config, folder: Path) -> int:
    """Tokens of the longest prompt and critique of the judge in `folder`, which of an adapter is the policy's. ValueError where its model
    takes fewer than may come."""
    longest, critique, own = config.model.max_length, config.genrm.max_tokens, positions(folder)
    if config.genrm.judge == "adapter":  # it has the policy's own positions
        own = config.model.rope_base_length or own
    if 0 < own < longest + critique:
        raise ValueError(
            f"genrm.model takes {own} tokens, but a prompt of model.max_length {longest} and a critique of genrm.max_tokens {critique} may "
            f"come; lower genrm.max_tokens{f' to {own - longest}' if own > longest else ' and model.max_length'}, or serve another judge"
        )
    # The judge counts other tokens than the policy, and tags around each paragraph.
    return served_length(folder, longest + longest // 2, critique, own)


def judge_needs(config: Config, device: str) -> JudgeNeeds | None:
    """Of the judge in `genrm.model`, whose config.json alone is read; None where there is no such file (yet)."""
    folder, parallel = Path(config.genrm.model), config.genrm.workers[1]
    if not (folder / "config.json").is_file():
        return None
    check_heads(folder, parallel)
    of, size = shapes(folder, getattr(torch, config.model.dtype)), element_size(config)
    return JudgeNeeds(
        weights=of.parameters * size / parallel,
        work=engine_work(of, False, JUDGE_BATCHED_TOKENS, JUDGE_SEQUENCES) if device == "cuda" else 0.0,
        cached=cached_bytes(folder, size, parallel) or of.cached * size,
        context=judge_length(config, folder),
    )


def adapter_needs(config: Config, of: Shapes, folder: Path) -> AdapterNeeds:
    """Of the judge in `genrm.model`, an adapter of the policy in `folder`; where it is not there yet it is taken to be as the policy's own.
    ValueError for what is no adapter, or too short for question and critique."""
    shape, judge = Shape(*config.model.lora), Path(config.genrm.model)
    names = {name.rpartition(".")[2] for name in shape.names} or {*of.linear} - {HEAD}
    held, said = (shape.rank, shape.rank), ", taken to be as the policy's: genrm.model is not here"
    if judge.is_dir():
        held, said = (shape.rank, read_shape(judge, "genrm.model").rank), ""
        names |= {*adapted(judge)}
    room = Room(held).rank
    said = f"the second adapter of the policy's engine, in a phase of its own; room for {len(held)} of rank {room}{said}"
    return AdapterNeeds(slots(of, names, room, len(held)), judge_length(config, folder), said)


def memory_plan(
    config: Config,
    of: Shapes,
    ranks: int,
    total: float,
    device: str,
    machine: int = GPUS_A_MACHINE,
    judge: JudgeNeeds | AdapterNeeds | None = None,
) -> MemoryPlan:
    """The plan of `config` on each of `ranks` GPUs with `total` bytes, `machine` of them on each machine, as are its own served judges
    (`device` cpu: on `ranks` processes that share `total`). A served judge stays awake where `run.overlap` wants it and both fit; else it
    has a serial phase. ValueError where `rollout.memory` is no share of a GPU, or judges take more GPUs than a machine has."""
    config.check_memory(device)
    g = config.genrm
    if isinstance(judge, AdapterNeeds):
        plan = plan_of(config, replace(of, slots=judge.slots), ranks, total, device)
        critiques = plan.parts["KV cache"] / (of.cached * element_size(config) * judge.context)
        return replace(plan, judging=judge.said, critiques=critiques, context=judge.context)
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
    why = (
        f"both need {peak / GIB:.1f} GiB while {PEAKS[name]}, but there are {total / GIB:.1f}"
        if config.run.overlap
        else "run.overlap is off"
    )
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


def plan_of(config: Config, of: Shapes, ranks: int, total: float, device: str, judge: float = 0.0, serial: bool = False) -> MemoryPlan:
    """With a judge of so many bytes, awake throughout or in a serial phase."""
    size, shared, saved = element_size(config), shards_of(ranks, config.model.replicas), config.model.save_memory
    tokens, on_gpu = config.optim.microbatch_tokens, device == "cuda"
    state = trainer_state(of, size, shared, saved)
    reference = reference_state(config, of, size, shared, on_gpu)
    work = trainer_work(of, size, tokens, "recompute" in saved, on_gpu)
    weights, share, cache = engine_share(config, of, total, on_gpu)
    nccl = communicators(config, ranks, on_gpu)
    largest = 4 * of.adapted if config.own_adapters else in_flight(of, size, shared)  # float32, on their way to a file
    probing = gate_work(of, size, min(tokens, AGAIN // PROBE_TOKENS * (config.max_prompt_tokens + PROBE_TOKENS)), on_gpu)
    kept = reference.get("reference", 0.0)
    resident = kept + state.get("frozen weights", 0.0) + state["master weights, float32"] + state["AdamW moments, float32"]
    # Weights and moments are away from the end of training on: sync and gate gather them from the host, a layer at a time.
    asleep = kept if on_gpu and "offload" in saved else resident
    base = CONTEXT[device] + sum(nccl.values())
    beside = CONTEXT[device] if serial else judge * (1 if on_gpu else config.genrm.workers[0] / ranks)
    # The policy engine sleeps while the judge has its phase, and while training; on CPU nothing does.
    awake, loading = (0.0, weights) if on_gpu else (share, share)
    peaks = {
        "sampling": base + asleep + share + beside,
        **({"judging": base + asleep + judge} if serial else {}),
        **({"judging": base + asleep + share} if config.own_adapters else {}),
        "training": base + resident + sum(state[name] for name in list(state)[-2:]) + at_once(work) + awake + beside,
        "syncing": base + asleep + loading + largest + beside,
        "gate": base + asleep + share + gathered(of, size, shared) + probing + beside,
    }
    parts = {"context": CONTEXT[device], **nccl, **state, **reference, **work, "vLLM's share (rollout.memory)": share}
    parts |= {"  of which weights": weights, "KV cache": max(cache, 0.0), "served judges": judge, "weight sync: on its way": largest}
    parts |= {"gate: its own forward pass": probing}
    a_machine = min(ranks, GPUS_A_MACHINE)
    # A base under adapters is loaded once, and waits on the host while vLLM sleeps.
    host = on_host(of, size, shared, a_machine, saved) + a_machine * weights * config.own_adapters if on_gpu else 0.0
    sequences = cache * min(config.rollout.tensor_parallel, of.key_heads) / (of.cached * size * config.model.max_length)
    return MemoryPlan(parts, peaks, total if on_gpu else total / ranks, sequences, serial, host=host, uneven=uneven(of, shared))


def uneven(of: Shapes, shared: int) -> str:
    """What to say where `shared` ranks of a copy hold more than `UNEVEN` times an even part each: FSDP2 cuts the first dimension alone, and
    that of a mixture's largest tensors is the experts."""
    own = shard(of.tensors, shared)
    if own * shared <= UNEVEN * of.parameters:
        return ""
    rows, *_ = max(of.tensors, key=lambda size: (-(-size[0] // shared) * shared - size[0]) * size[1] * size[2])
    held = holders(rows, shared)
    said = f"{rows} experts lie on {held} of {shared} ranks, so these hold {own * shared / of.parameters:.1f} times an even part"
    copies = shared // held
    if copies < 2 or shared % copies:
        return said
    other = shard(of.tensors, shared // copies) / own
    return f"{said}; --model.replicas {copies} takes {other:.2f} times as much a rank and gathers from {shared // copies}"


def engine_share(config: Config, of: Shapes, total: float, on_gpu: bool) -> tuple[float, float, float]:
    """vLLM's weights with its room for adapters, all that it takes, and what of it is KV cache, in bytes of a rank."""
    weights = (of.parameters + of.slots) * element_size(config) / config.rollout.tensor_parallel
    if not on_gpu:
        cache = config.rollout.memory * GIB
        return weights, weights + cache, cache
    share = config.rollout.memory * total
    return weights, share, share - weights - engine_work(of, config.rollout.eager)
