"""What a finished run's `trace.json` says: shares of a step, idle time, judging hidden, the critical path; a line a step.

python -m soundrl.engine.tools.trace runs/fapo-7b/trace.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soundrl.engine.phases import SAMPLING, WAITS, WON, Interval, hidden

Event = dict[str, Any]


def read_trace(path: Path) -> list[Event]:
    """The events of a trace; of one that was cut off, those of whole lines. ValueError for another kind of file."""
    lines = path.read_text().splitlines()
    if not lines or lines[0] != "[":
        raise ValueError(f"{path} is no trace of a run; name a run's trace.json")
    whole = lines[1:-1] if lines[-1] == "]" else [line for line in lines[1:] if line.endswith("},")]
    return [json.loads(line.rstrip(",")) for line in whole]


def steps_of(events: Sequence[Event]) -> list[dict[str, float]]:
    """Per step of the run, from the trace alone: `seconds`, `share/<phase>` (of the step, mean over ranks), `idle` (the share spent in
    `WAITS`), `overlap` where something was judged, and the critical path as `path/<phase>` in seconds: until the ranks meet after
    sampling, the phases of the rank that waited least for the others, from there on those of the rank that waited least for verdicts."""
    ranks: dict[int, list[Event]] = {}
    for event in events:
        if event.get("cat") == "phase":
            ranks.setdefault(event["pid"], []).append(event)
    begun = {event["id"]: event for event in events if event["ph"] == "b"}
    calls = [(event["pid"], begun[event["id"]]["ts"], event["ts"]) for event in events if event["ph"] == "e"]
    steps = [[event for event in own if event["name"] == "step"] for own in ranks.values()]
    return [step_of(dict(zip(ranks, of_ranks, strict=True)), ranks, calls) for of_ranks in zip(*steps, strict=False)]


def step_of(steps: dict[int, Event], ranks: dict[int, list[Event]], calls: Sequence[tuple[int, float, float]]) -> dict[str, float]:
    """One step, which is `steps[rank]` on each rank; `calls` of judges are (rank, start, end)."""
    spent: dict[int, dict[str, float]] = {}
    waited = judging = 0.0
    for rank, step in steps.items():
        begin, end = _span(step)
        inside = [event for event in ranks[rank] if event is not step and begin <= event["ts"] and _span(event)[1] <= end + 1]
        spent[rank] = exclusive(inside)
        judged = [(max(a, begin), min(b, end)) for of, a, b in calls if of == rank and a < end and b > begin]
        part = hidden([_span(event) for event in inside if event["name"] == "judge_wait"], judged)
        waited, judging = waited + part[0], judging + part[1]
    whole = sum(step["dur"] for step in steps.values())
    row = {"seconds": whole / len(steps) / 1e6}
    names = list(dict.fromkeys(name for own in spent.values() for name in own))
    row |= {f"share/{name}": sum(own.get(name, 0.0) for own in spent.values()) / whole for name in names}
    row["idle"] = sum(row.get(f"share/{name}", 0.0) for name in WAITS)
    if judging:
        row["overlap"] = 1 - waited / judging
    then, first = (min(spent.values(), key=lambda own, wait=wait: own.get(wait, 0.0)) for wait in WAITS)
    path = {name: (first if name in SAMPLING else then).get(name, 0.0) / 1e6 for name in names if name != "rank_wait"}
    return row | {f"path/{name}": seconds for name, seconds in path.items()}


def exclusive(events: Sequence[Event]) -> dict[str, float]:
    """Microseconds by phase, without those of phases inside it (`ts`, `dur` of nested events)."""
    out: dict[str, float] = {}
    for event in events:
        begin, end = _span(event)
        inner = [e["dur"] for e in events if begin <= e["ts"] and _span(e)[1] <= end and e["dur"] < event["dur"]]
        out[event["name"]] = out.get(event["name"], 0.0) + event["dur"] - sum(inner)
    return out


def _span(event: Event) -> Interval:
    return event["ts"], event["ts"] + event["dur"]


def main(path: str) -> None:
    events = read_trace(Path(path))
    for number, row in enumerate(steps_of(events), 1):
        parts = " ".join(f"{name[6:]} {row[name]:.0%}" for name in row if name.startswith("share/"))
        path_ = " → ".join(f"{name[5:]} {row[name]:.2f}" for name in row if name.startswith("path/"))
        judging = f"  judging hidden {row['overlap']:.0%}" if "overlap" in row else ""
        print(f"step {number}: {row['seconds']:.2f} s  {parts}  idle {row['idle']:.0%}{judging}\n        critical path: {path_} s")
    won = [event["args"][WON] for event in events if event["name"] == WON]
    print(f"sampling what is expected to be long first has won {sum(won):.1f} s of it, by a model: rounds of decoding take the same time")


if __name__ == "__main__":
    main(sys.argv[1])
