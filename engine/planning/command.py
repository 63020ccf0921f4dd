"""`python engine/train.py fapo-7b --plan --gpus 32 --gpu-gib 80`: the plan of a configuration, printed, or as a run keeps it."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from soundrl.engine.config import Config
from soundrl.engine.environments.environment import environment_of, own_world
from soundrl.engine.planning.cards import table
from soundrl.engine.planning.known import known, write_known
from soundrl.engine.planning.network import between
from soundrl.engine.planning.parts import GIB
from soundrl.engine.planning.plan import GPUS_A_MACHINE, MemoryPlan, adapter_needs, judge_needs, memory_plan
from soundrl.engine.planning.shapes import Shapes, shapes


@dataclass(frozen=True)
class Planned:
    """A plan with the model that it is of."""

    plan: MemoryPlan
    of: Shapes
    ranks: int
    machine: int
    """GPUs of one"""
    known: str
    """The model's name where nothing was read, as it is well known"""


def planned(config: Config, gpus: int, gpu_gib: float | None) -> MemoryPlan:
    """The plan of a configuration; `gpus` 0 takes those that are there (on CPU the ranks that `NPROC` gives)."""
    return everything(config, gpus, gpu_gib).plan


def everything(config: Config, gpus: int, gpu_gib: float | None) -> Planned:
    total, device = memory_there(gpu_gib)
    ranks = gpus or int(os.environ.get("NPROC", torch.cuda.device_count() or min(2, os.cpu_count() or 1)))
    config.engines(ranks, device)
    with tempfile.TemporaryDirectory() as fresh:
        name, folder = "", Path(config.model.path)
        if own_world(config.model.path):
            environment_of(config.model.path).write_model(config, folder := Path(fresh) / "policy")
        elif not folder.exists() and (name := known(config.model.path)):
            folder = write_known(name, Path(fresh) / "policy")
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"model.path {folder} has no config.json, which is all a plan reads; name a Hugging Face model folder, or a well-known "
                "model: Qwen/Qwen3-8B"
            )
        genrm, judge = config.genrm, None
        if genrm.judge == "serve":
            if not Path(genrm.model).exists() and (other := known(genrm.model)):
                genrm = replace(genrm, model=str(write_known(other, Path(fresh) / "judge")))
            judge = judge_needs(replace(config, genrm=genrm), device)
        of = shapes(folder, getattr(torch, config.model.dtype), config.model.lora)
        if genrm.judge == "adapter":
            judge = adapter_needs(config, of, folder)
        machine = torch.cuda.device_count() if gpu_gib is None and device == "cuda" else min(ranks, GPUS_A_MACHINE)
        return Planned(memory_plan(config, of, ranks, total, device, machine, judge), of, ranks, machine, name)


def ledger(plan: MemoryPlan) -> dict[str, float]:
    """MiB by name, the peaks by phase as a run measures them (`sampling_mib`), and the highest: `rss_mib`, `gpu_mib`."""
    peaks = {f"{phase}_mib": peak for phase, peak in plan.peaks.items()}
    peaks["gpu_mib" if torch.cuda.is_available() else "rss_mib"] = plan.worst[1]
    return {name.strip(): round(size / 2**20, 1) for name, size in (plan.parts | peaks).items()}


def report(config: Config, found: Planned, each: str) -> str:
    """All that a person is told; `each`: GPU or rank."""
    lines = [f"memory plan of {config.run.name}, GiB on each {each}", found.plan.table()]
    lines += between(config, found.of, found.ranks, found.machine) if each == "GPU" else []
    lines += [f"  sizes are those of {found.known}, known by its name; nothing was read"] if found.known else []
    return "\n".join(lines)


def main(config: Config, gpus: int, gpu_gib: float | None, cards: bool = False) -> None:
    """Print the plan, or the table of cards; ValueError in one line where it cannot run."""
    if cards:
        print(table(config, gpu_gib or 80.0), flush=True)
        return
    found = everything(config, gpus, gpu_gib)
    print(report(config, found, "rank" if gpu_gib is None and not torch.cuda.is_available() else "GPU"), flush=True)
    found.plan.check()
    print("  it fits", flush=True)


def memory_there(gpu_gib: float | None) -> tuple[float, str]:
    """(bytes, device) of the GPU given, else of the one that is there, else of this machine's RAM."""
    if gpu_gib is not None:
        return gpu_gib * GIB, "cuda"
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory, "cuda"
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "cpu"
