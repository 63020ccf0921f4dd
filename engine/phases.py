"""The phases of a step by name, and what their times say: plain numbers, for who records them and for who reads them later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Interval = tuple[float, float]
WAITS = ("judge_wait", "rank_wait")
SAMPLING = ("generate", "verify")
PHASES = (*SAMPLING, *WAITS, "judge_wake", "judge_sleep", "train", "sync")  # of a step
PEAKS = {"sampling": "sampling", "judging": "judging", "training": "training", "syncing": "syncing weights", "gate": "the gate compares"}
"""What the memory plan and its measurement tell apart, in words: "peak while …"."""
PEAK_OF = {
    "generate": "sampling",
    "verify": "sampling",
    "evaluate": "sampling",
    "judge_wake": "judging",
    "judge_sleep": "judging",
    "train": "training",
    "sync": "syncing",
    "gate": "gate",
}
"""Which of these a phase, or a detail, belongs to."""
WON = "longest first, seconds won (model)"
"""Counted once a step, by rank 0, see `soundrl.engine.rollouts`."""


def peak_phase(names: Sequence[str]) -> str:
    """Of open phases, the outermost first, what their memory is counted as; empty where it is nobody's.

    >>> peak_phase(["step", "train", "judge_wait"])
    'training'
    >>> peak_phase(["step", "sync", "gate"])
    'gate'
    """
    return next((PEAK_OF[name] for name in reversed(names) if name in PEAK_OF), "")


def union(spans: Iterable[Interval]) -> list[Interval]:
    """Overlapping intervals made one.

    >>> union([(3, 5), (0, 2), (1, 2.5)])
    [(0, 2.5), (3, 5)]
    """
    out: list[Interval] = []
    for start, end in sorted(spans):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def hidden(waits: Iterable[Interval], calls: Iterable[Interval]) -> tuple[float, float]:
    """(waited, judging): how long at least one judge call was under way, and for how much of that the trainer only waited.
    `genrm/overlap` is 1 − waited ÷ judging, summed over ranks.

    >>> hidden([(5, 6)], [(0, 3), (1, 4), (5, 6)])     # 5 s of judging, 1 s of which nothing else ran: 80 % hidden
    (1, 5)
    """
    busy = union(calls)
    waited = sum(max(0, min(b, d) - max(a, c)) for a, b in union(waits) for c, d in busy)
    return waited, sum(end - start for start, end in busy)


def shares(metrics: dict[str, float]) -> str:
    """A step in one line, from its metrics: `1.6 s: generate 56 %, train 30 %, judge wait 3 %, …, judging hidden 94 %`."""
    whole = metrics["time/step"]
    parts = {name: metrics.get(f"time/{name}", 0.0) / whole for name in PHASES}
    said = [f"{name.replace('_', ' ')} {share:.0%}" for name, share in sorted(parts.items(), key=lambda item: -item[1]) if share >= 0.005]
    judging = [f"judging hidden {metrics['genrm/overlap']:.0%}"] if "genrm/overlap" in metrics else []
    return f"{whole:.1f} s: " + ", ".join(said + judging)
