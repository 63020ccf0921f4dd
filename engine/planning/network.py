"""What sharding costs between machines, and what `model.replicas` saves of it: seconds by bytes and bandwidth, predicted, not measured.

A ring of GPUs crosses each machine's link once, however many of them it has. So of a micro-batch's gathers (twice, in `model.dtype`) and of
its reduction (float32) the part that is not this machine's own comes over the link: (2·b·N + 4·n)·(1 − 1/M) bytes for N parameters, n of
them trained, b bytes each and M machines a copy. Between R replicas gradients are all-reduced once an optimizer step, 8·n·(1 − 1/R)/M.
Of a bfloat16 model that is trained whole both are 8·N: replicas of one machine each pay as soon as a mini-batch has two micro-batches.
"""

from __future__ import annotations

from soundrl.engine.config import Config
from soundrl.engine.planning.parts import element_size
from soundrl.engine.planning.shapes import Shapes
from soundrl.engine.policy import KEEP_GATHERED
from soundrl.engine.ranks import shards_of

SLOW, FAST = 100, 3200  # Gb/s of a machine: one card of a usual cluster, eight of 400
RATE = 400e12  # FLOP/s of a GPU while it trains: 40 % of an H100's peak (bfloat16)


def bytes_between(of: Shapes, size: int, ranks: int, machine: int, replicas: int) -> tuple[float, float]:
    """Over the link of one machine with `machine` ranks: each micro-batch, and each optimizer step."""
    machines = max(1.0, ranks / replicas / machine)
    trained = of.adapted or of.parameters
    gathers = 1 if of.parameters <= KEEP_GATHERED else 2
    return (gathers * size * of.parameters + 4 * trained) * (1 - 1 / machines), 8 * trained * (1 - 1 / replicas) / machines


def between(config: Config, of: Shapes, ranks: int, machine: int) -> list[str]:
    """Lines for the plan; none where one machine holds all."""
    if ranks <= machine:
        return []
    machines, tokens, replicas = ranks // machine, config.optim.microbatch_tokens, config.model.replicas
    shards_of(ranks, replicas)
    computing = (4 if of.adapters else 6) * of.active * tokens / RATE
    lines = [
        f"  between {machines} machines, predicted: seconds a micro-batch, and an optimizer step (computing: {computing:.2f} a micro-batch)"
    ]
    for copies in (1, machines if replicas == 1 else replicas):
        each = [sent * 8e-9 for sent in bytes_between(of, element_size(config), ranks, machine, copies)]
        said = "; ".join(f"{each[0] / rate:.2f} and {each[1] / rate:.2f} at {rate} Gb/s a machine" for rate in (SLOW, FAST))
        lines.append(f"    model.replicas {copies}: {said}")
    return lines
