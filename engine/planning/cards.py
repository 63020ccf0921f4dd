"""Which settings for which cards: models × GPUs × ways to train, as a table (`--plan --table`, docs/which-settings.md).

python -m soundrl.engine.planning.cards docs/which-settings.md     writes the tables of the page anew
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from soundrl.engine.config import Config
from soundrl.engine.planning.known import write_known
from soundrl.engine.planning.parts import GIB
from soundrl.engine.planning.plan import MemoryPlan, plan_of
from soundrl.engine.planning.shapes import Shapes, shapes

MODELS = {
    "1.5B": "Qwen/Qwen2.5-1.5B",
    "4B": "Qwen/Qwen3-4B",
    "7B": "Qwen/Qwen2.5-7B",
    "8B": "Qwen/Qwen3-8B",
    "32B": "Qwen/Qwen3-32B",
    "30B-A3B": "Qwen/Qwen3-30B-A3B",
}
GPUS = (1, 2, 8, 32, 64)
MORE = (1, 2, 4, 8, 16, 32, 64, 128)
ADAPTERS = (32, 64.0, "")
WAYS = {
    "full": {"save_memory": ("recompute",)},
    "offload": {"save_memory": ("recompute", "offload", "moments")},
    "LoRA": {"save_memory": ("recompute", "offload"), "lora": ADAPTERS},
}
CARDS = (24, 80, 141)  # GiB: a 4090 or A10, an H100 or A100, an H200
SHARES = tuple(share / 20 for share in range(18, 2, -1))  # of rollout.memory, tried from the largest
ROOM = 0.97  # of a GPU that a plan may fill here
SEQUENCES = 4  # of model.max_length that an engine's KV cache must hold at once
RECIPE = "fapo-7b"


def fits(config: Config, of: Shapes, gpus: int, gib: float) -> Iterator[tuple[Config, MemoryPlan]]:
    """Settings that fit with room, and their plans: the fewest ranks an engine first, then the largest KV cache."""
    for parallel in (n for n in (1, 2, 4, 8) if gpus % n == 0 and of.heads % n == 0):
        tried = [replace(config, rollout=replace(config.rollout, memory=share, tensor_parallel=parallel)) for share in SHARES]
        most, least = (plan_of(each, of, gpus, gib * GIB, "cuda") for each in (tried[0], tried[-1]))
        if most.sequences < SEQUENCES or least.worst[1] > ROOM * least.total:
            continue  # nor does any share between them
        for each in tried:
            plan = plan_of(each, of, gpus, gib * GIB, "cuda")
            if plan.worst[1] <= ROOM * plan.total and plan.sequences >= SEQUENCES:
                yield each, plan


def cell(config: Config, of: Shapes, gpus: int, gib: float) -> str:
    """`.55`, `.40 tp 2`: with this `rollout.memory` and `rollout.tensor_parallel` it fits; else from how many GPUs on it does."""
    found = next(fits(config, of, gpus, gib), None)
    if found is None:
        enough = next((more for more in MORE if more > gpus and next(fits(config, of, more, gib), None)), 0)
        return f"from {enough} GPUs" if enough else "–"
    rollout = found[0].rollout
    return f"{rollout.memory:.2f}".lstrip("0") + (f" tp {rollout.tensor_parallel}" if rollout.tensor_parallel > 1 else "")


@cache
def counted(name: str, dtype: torch.dtype, adapted: bool) -> Shapes:
    with tempfile.TemporaryDirectory() as folder:
        return shapes(write_known(name, Path(folder)), dtype, ADAPTERS if adapted else (0, 1.0, ""))


def table(config: Config, gib: float) -> str:
    """Of `config` but for its model, as Markdown."""
    lines = ["| model | way | " + " | ".join(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in GPUS) + " |", "|---|---|" + "---|" * len(GPUS)]
    for short, name in MODELS.items():
        for way, settings in WAYS.items():
            of = counted(name, getattr(torch, config.model.dtype), "lora" in settings)
            tried = replace(config, model=replace(config.model, **settings))
            cells = [cell(tried, of, gpus, gib) for gpus in GPUS]
            lines.append(f"| {short} | {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(text: str, config: Config) -> str:
    """The page with its tables made anew: each stands after a mark `<!-- GiB: 80 -->`, up to the next empty line."""
    return re.sub(r"(<!-- GiB: (\d+) -->\n\n).*?\n\n", lambda mark: f"{mark[1]}{table(config, float(mark[2]))}\n\n", text, flags=re.DOTALL)


if __name__ == "__main__":
    from soundrl.engine.recipes import RECIPES

    target = Path(sys.argv[1])
    target.write_text(page(target.read_text(), RECIPES[RECIPE]()))
