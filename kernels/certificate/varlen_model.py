"""What machine code lets one expect of packed attention's forward pass on Hopper, beside FA3. A model: nothing of it was timed.

It takes turns of the main loop from machine code (`row.clocks`: clocks of one multiprocessor in a turn for tensor cores, instruction issue
and special functions), adds what a turn waits for, a program's start and end, and the last programs' tail, and compares with FA3's
published rate (arXiv 2407.08608, figure 5: causal, D 128, 16,384 tokens in sequences of 2,048).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FA3 = 521e12
BAR = 0.75
TOKENS, LENGTH, HEADS, D, TILE = 16_384, 2_048, 32, 128, 128
FLOP = 2 * D * HEADS * TOKENS * (LENGTH + 1)
# Assumed clocks: of a turn, until two groups of products have drained, two barriers are passed and a maximum and a sum have gone through
# their shuffles; of a program, two reads of memory one after the other (the tile, then its rows) and its rows' way out.
WAITS, START, END = 400, 2 * 700, 600


@dataclass(frozen=True)
class VarlenPrediction:
    share: float
    """Of FA3's published rate."""
    waits_allowed: float
    """Clocks of waiting in a turn up to which `BAR` is reached: how far the assumption above may be wrong."""
    arithmetic: str


def clocks(turn: float, step: int, resident: int, gpu: Any) -> float:
    """Of one forward pass whose turns of `step` keys take `turn` clocks, with `resident` programs on a multiprocessor at once."""
    programs = [-(-tile * TILE // step) * turn + (START + END) / resident for tile in range(1, LENGTH // TILE + 1)]
    # Longest first: half a program of tail.
    return sum(programs) * HEADS * TOKENS / LENGTH / gpu.multiprocessors + max(programs) / 2


def varlen_prediction(row: Any, gpu: Any) -> VarlenPrediction:
    """Of a forward kernel's row (bf16, D 128, label ending in `<rows>x<keys>`) and its `Machine`.

    A turn takes the longest of what its instructions need: tensor cores at the rate a large product holds, issue, special functions, L2;
    and of the chain of one group of warps, its products, its other instructions and its waits. By pointers all warps are one chain; by
    descriptors there are two, and one's products run beside the other's softmax.
    """
    step, chains = int(row.label.rsplit("x", 1)[1].split()[0]), 2 if "tma" in row.kernel else 1
    needs = {
        "tensor": row.clocks["tensor"] / gpu.sustained,
        "issue": row.clocks["issue"],
        "special": row.clocks["special"],
        "L2": 2 * step * D * 2 / gpu.l2,
    }
    bound = max(needs, key=lambda name: needs[name])
    own = (needs["tensor"] + max(needs["issue"], needs["special"])) / chains
    turn = max(needs[bound], own + WAITS)
    resident = max(1, min(gpu.shared // max(row.shared, 1), gpu.registers // (row.registers * (384 if chains == 2 else 256))))
    reached = FLOP * gpu.clock / clocks(turn, step, resident, gpu)
    without, each = clocks(0, step, resident, gpu), clocks(1, step, resident, gpu) - clocks(0, step, resident, gpu)
    slowest = (FLOP * gpu.clock / (BAR * FA3) - without) / each
    return VarlenPrediction(
        share=round(reached / FA3, 3),
        waits_allowed=round(slowest - own),
        arithmetic=f"turn of {step} keys: max({', '.join(f'{name} {value:.0f}' for name, value in needs.items())}, chain {own:.0f} + waits "
        f"{WAITS}) = {turn:.0f} clk; {resident} program a multiprocessor, start and end {START + END} clk: {reached / 1e12:.0f} TFLOP/s "
        f"against {FA3 / 1e12:.0f}",
    )
