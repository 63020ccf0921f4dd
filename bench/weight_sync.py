"""What a weight sync costs, stage by stage, against the copy of its bytes: parameters gathered one by one and a layer at a time, vLLM's
loaders, the head, the gate.

    python bench/weight_sync.py                                       # SmolLM2-135M's shape, random weights; a quarter of an hour
    python bench/weight_sync.py --layers 2 --hidden 64 --rounds 1 --ranks 1 --dtypes float32
    torchrun --nproc-per-node 8 bench/weight_sync.py --here bfloat16 --folder models/Qwen3-8B      # on GPUs, any model

Each round takes, in turns that swap, `copy` (as many bytes from one place of memory to another), `gather each` (one `full_tensor()` a
parameter, as before there were buckets), `gather` (engine/gather.py), `sync each` and `sync` (the same through vLLM's loaders, up to the
head). `seconds` are medians over rounds of the slowest rank's wall time; `cpu` of the processor time that all ranks spend, which a busy
machine changes less (on a GPU: of the hosts alone). `pairs` are medians of `each` ÷ bucketed within a round. The parts of vLLM's side are
of the bucketed syncs.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import tyro
from record import ROOT, machine
from small_model import write_model
from torch import Tensor
from torch.distributed.tensor import DTensor

from soundrl.genrm.serve.machine import reserve_port


@dataclass(frozen=True)
class Arguments:
    layers: int = 30
    hidden: int = 576
    rounds: int = 5
    ranks: tuple[int, ...] = (1, 2)
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    here: str = ""
    """One measurement in this type by the ranks that torchrun has started; nothing else is started"""
    folder: Path = Path()
    """Of a model; none: one of this many layers is made, with random weights"""
    gate: bool = True
    """bf16 has no instructions on many a CPU: there the gate alone takes minutes"""
    out: Path = ROOT / "bench" / "results" / "weight_sync.jsonl"


class Clock:
    """Wall and processor seconds by what they were spent on."""

    def __init__(self, device: torch.device) -> None:
        self.spent: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.parts: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        self.device = device

    def now(self) -> tuple[float, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        wall, cpu = self.now()
        yield
        end, busy = self.now()
        self.spent[name].append((end - wall, busy - cpu))

    def part(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, whose time is added up; without waiting for a GPU, so as not to change what overlaps."""

        @functools.wraps(call)
        def timed(*positional: Any, **named: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                return call(*positional, **named)
            finally:
                before = self.parts[name]
                self.parts[name] = before[0] + time.perf_counter() - wall, before[1] + time.process_time() - cpu

        return timed


def watch_vllm(clock: Clock) -> None:
    """Times the parts of vLLM's layerwise reload in this process."""
    from vllm.model_executor.layers import utils
    from vllm.model_executor.model_loader import reload
    from vllm.model_executor.model_loader.reload import layerwise

    begins = getattr(reload, "inplace", layerwise)  # where they are called by name: a module of its own since 0.32
    for module, name, part in (
        (layerwise, "get_numel_loaded", "vllm: counts elements"),
        (layerwise, "_layerwise_process", "vllm: loads, packs, places"),
        (utils, "dispatch_cpu_unquantized_gemm", "vllm: of which packs (CPU)"),
        (begins, "initialize_layerwise_reload", "vllm: begins"),
        (begins, "finalize_layerwise_reload", "vllm: ends"),
    ):
        if hasattr(module, name):
            setattr(module, name, clock.part(part, getattr(module, name)))


def pack_heads(worker: Any) -> None:
    """Runs in vLLM's worker."""
    from soundrl.engine.samplers.vllm_sampler import tied_heads

    for head, _ in tied_heads(worker.model_runner.get_model()):
        head.quant_method.process_weights_after_loading(head)


def measure(arguments: Arguments, folder: Path, dtype: str) -> dict[str, Any] | None:
    """The row, on rank 0."""
    from soundrl.engine.config import Loss, Model, Optim, Rollout
    from soundrl.engine.files.model_folder import load_tokenizer
    from soundrl.engine.launch.launch import be_quiet
    from soundrl.engine.policy import Policy
    from soundrl.engine.ranks import Ranks
    from soundrl.engine.samplers import vllm_sampler
    from soundrl.engine.trainer import Trainer
    from soundrl.engine.weight_sync import WeightSync

    be_quiet()
    ranks = Ranks.start()
    tokenizer, kind = load_tokenizer(folder), getattr(torch, dtype)
    settings = Model(path=str(folder), dtype=cast(Any, dtype), max_length=512)
    policy = Policy(folder, tokenizer, settings, ranks)
    trainer = Trainer(policy, Optim(microbatch_tokens=1024), Loss(), 1.0)
    on_cpu = ranks.device.type == "cpu"
    sampler = vllm_sampler.VllmSampler(folder, tokenizer, settings, Rollout(memory=1.0 if on_cpu else 0.5, eager=True), ranks)
    sync = WeightSync(policy, trainer, sampler, [np.arange(2, 34, dtype=np.int32) + i for i in range(8)], 1.0, limit=1.05)
    clock = Clock(ranks.device)
    size = sum(p.numel() for p in policy.model.parameters()) * kind.itemsize
    source, place = (torch.zeros(size, dtype=torch.uint8, device=ranks.device) for _ in range(2))

    def each() -> Iterator[tuple[str, Tensor]]:
        for name, parameter in policy.model.named_parameters():
            yield name, cast(DTensor, parameter.detach().to(kind)).full_tensor()

    def timed(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        step = clock.part("sync: gathers", lambda: next(tensors, None))
        while (found := step()) is not None:
            yield found

    def take(tensors: Iterator[tuple[str, Tensor]]) -> None:
        for _ in tensors:
            pass

    turns: list[tuple[str, Callable[[], object]]] = [
        ("copy", lambda: place.copy_(source)),
        ("gather each", lambda: take(each())),
        ("gather", lambda: take(policy.named_full_tensors())),
        ("sync each", lambda: sampler.load(each())),
        ("sync", lambda: sampler.load(timed(sync.stream()))),
    ]
    for _, turn in turns:  # pages are there, and connections
        turn()
    watch_vllm(clock)
    packed = vllm_sampler.pack_tied_head
    loads = 0
    for number in range(arguments.rounds):
        for name, turn in turns if number % 2 else turns[::-1]:
            if name == "sync":
                loads += 1
                vllm_sampler.pack_tied_head = clock.part("sync: head", packed)
            else:
                kept, clock.parts = clock.parts, defaultdict(lambda: (0.0, 0.0))
            ranks.barrier()
            with clock(name):
                turn()
            if name == "sync":
                vllm_sampler.pack_tied_head = packed
            else:
                clock.parts = kept
    with clock("prefix cache"):
        sampler.reset_cache()
    with clock("head, packed again as before"):
        sampler.llm.collective_rpc(pack_heads)
    if arguments.gate:
        clock.parts |= {"gate: trainer": (0.0, 0.0)}
        policy.response_logprobs = clock.part("gate: trainer", policy.response_logprobs)  # type: ignore[method-assign]
        with clock("gate"):
            gate = sync.gate()
        assert gate.passes(1.05), gate
        clock.spent["gate: trainer"] = [clock.parts.pop("gate: trainer")]
    clock.spent |= {name: [(wall / loads, cpu / loads)] for name, (wall, cpu) in clock.parts.items()}
    found = ranks.gather(dict(clock.spent))
    if not ranks.main:
        return None
    # By round: the slowest rank's wall time, everybody's processor time.
    wall = {name: [max(values) for values in zip(*([w for w, _ in of[name]] for of in found), strict=True)] for name in found[0]}
    cpu = {name: [sum(values) for values in zip(*([c for _, c in of[name]] for of in found), strict=True)] for name in found[0]}
    pairs = {
        f"{name} {what}": statistics.median(a / b for a, b in zip(of[f"{name} each"], of[name], strict=True))
        for name in ("gather", "sync")
        for what, of in (("seconds", wall), ("cpu", cpu))
    }
    return {
        **{"bench": "weight_sync", "ranks": ranks.size, "dtype": dtype, "rounds": arguments.rounds},
        **{"parameters": size // kind.itemsize, "mib": round(size / 2**20, 1), "gathered_mib_alive": round(sync.most_alive() / 2**20, 1)},
        "seconds": {name: round(statistics.median(values), 4) for name, values in wall.items()},
        "cpu": {name: round(statistics.median(values), 4) for name, values in cpu.items()},
        "pairs": {name: round(value, 3) for name, value in pairs.items()},
        "stamp": machine(ranks.device.type) | {"vllm": sys.modules["vllm"].__version__, "load": round(os.getloadavg()[0], 1)},
    }


def write(row: dict[str, Any], out: Path) -> None:
    print(json.dumps(row, indent=1), flush=True)
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def main(arguments: Arguments) -> None:
    if arguments.here:
        row = measure(arguments, arguments.folder, arguments.here)
        if row is not None:
            write(row, arguments.out)
        sys.stdout.flush()
        os._exit(0)  # vLLM's engine takes the process group down with it
    with tempfile.TemporaryDirectory(dir=arguments.out.parent) as scratch:
        folder = arguments.folder
        if folder == Path():
            write_model(folder := Path(scratch) / "model", arguments.layers, arguments.hidden)
        options = ["--folder", str(folder), "--rounds", str(arguments.rounds), "--out", str(arguments.out)]
        options += [] if arguments.gate else ["--no-gate"]
        for ranks in arguments.ranks:
            for dtype in arguments.dtypes:
                command = [sys.executable, __file__, *options, "--here", dtype]
                with reserve_port() as reserved:
                    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(reserved.getsockname()[1])}
                    where |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
                    started = [
                        subprocess.Popen(command, env=os.environ | where | {"RANK": str(n), "LOCAL_RANK": str(n)}) for n in range(ranks)
                    ]
                    if any([process.wait() for process in started]):
                        sys.exit(f"{ranks} ranks in {dtype} failed")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
