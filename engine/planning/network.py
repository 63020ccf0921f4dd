"""What sharding costs between machines, and what `model.replicas` saves of it: seconds by bytes and bandwidth, predicted, not measured.

A ring of GPUs crosses each machine's link once, however many of them it has. So of a micro-batch's gathers (twice, in `model.dtype`) and of
its reduction (float32) the part that is not this machine's own comes over the link: (2·b·N + 4·n)·(1 − 1/M) bytes for N parameters, n of
them trained, b bytes each and M machines a copy. With R replicas gradients are all-reduced between them, 8·n·(1 − 1/R)/M bytes, every
micro-batch. Of a bfloat16 model that is trained whole both are 8·N: replicas then save messages, no bytes; of LoRA they save all.
"""

from __future__ import annotations

from soundrl.engine.config import Config
from soundrl.engine.planning.parts import element_size, shared_by
from soundrl.engine.planning.shapes import Shapes
from soundrl.engine.policy import KEEP_GATHERED

SLOW, FAST = 100, 3200  # Gb/s of a machine: one card of a usual cluster, eight of 400
RATE = 400e12  # FLOP/s of a GPU while it trains: 40 % of an H100's peak (bfloat16)


def bytes_between(of: Shapes, size: int, ranks: int, machine: int, replicas: int) -> float:
    """Over the link of one machine with `machine` ranks, each micro-batch."""
    machines = max(1.0, ranks / replicas / machine)
    trained = of.adapted or of.parameters
    gathers = 1 if of.parameters <= KEEP_GATHERED else 2
    shared = (gathers * size * of.parameters + 4 * trained) * (1 - 1 / machines)
    return shared + 8 * trained * (1 - 1 / replicas) / machines


def between(config: Config, of: Shapes, ranks: int, machine: int) -> list[str]:
    """Lines for the plan; none where one machine holds all."""
    if ranks <= machine:
        return []
    shared_by(config, ranks)
    machines, tokens = ranks // machine, config.optim.microbatch_tokens
    computing = (4 if of.adapters else 6) * of.active * tokens / RATE
    ways = (1, machines) if config.model.replicas == 1 else (1, config.model.replicas)
    lines = [f"  between {machines} machines, predicted, seconds a micro-batch (computing takes {computing:.2f}):"]
    for replicas in ways:
        sent = bytes_between(of, element_size(config), ranks, machine, replicas) * 8e-9
        lines.append(f"    model.replicas {replicas}: {sent / SLOW:.2f} at {SLOW} Gb/s a machine, {sent / FAST:.2f} at {FAST}")
    return lines
