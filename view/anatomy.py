"""A step on the wall clock: what each rank did, and what became of each rollout when."""

from __future__ import annotations

from typing import Any

import numpy as np

from soundrl.view.plain import NotThere, finite
from soundrl.view.run import Run
from soundrl.view.step import TIMES, Step

Json = dict[str, Any]
SLACK = 1e-4  # seconds by which an event may stand out of its step


def anatomy_page(run: Run, step: int) -> Json:
    """`<key>/step-000012/anatomy.json`"""
    trace = run.trace
    trace.look()
    marks = trace.of(step)
    held = held_of(run, step)
    if not marks:
        if held is None or np.isnan(held.columns["time_sampled"]).all():
            raise NotThere(trace.fault or f"trace.json says nothing of step {step}; it has {trace.steps()} steps")
    events = trace.events(step) if marks else []
    begin = min((mark.begin for mark in marks.values()), default=0.0) or float(np.nanmin(held.columns["time_sampled"]))  # pyright: ignore
    ranks = []
    for rank, mark in sorted(marks.items()):
        rows: dict[str, list[list[Any]]] = {"phase": [], "detail": []}
        for event in events:
            if event["pid"] != rank or event.get("ph") != "X" or event.get("cat") not in rows or event["name"] == "step":
                continue
            start, seconds = event["ts"] / 1e6, event["dur"] / 1e6
            if start >= mark.begin - SLACK and start + seconds <= mark.begin + mark.seconds + SLACK:
                rows[event["cat"]].append([event["name"], round(start - begin, 6), round(start + seconds - begin, 6)])
        ranks.append({"rank": rank, "phases": rows["phase"], "details": rows["detail"]})
    calls = calls_in(events)
    rollouts = [] if held is None else [line for line in lines_of(held, begin, calls) if any(value is not None for value in line[3:8])]
    faults = [fault for fault in (trace.fault, *(held.faults if held else ())) if fault]
    return {"begin": begin, "ranks": ranks, "rollouts": rollouts, "faults": faults}


def held_of(run: Run, step: int) -> Step | None:
    try:
        return run.step(step, "train")
    except NotThere:
        return None


def calls_in(events: list[Any]) -> dict[str, tuple[float, float]]:
    """Of judge calls, (handed to the judge, its verdict), Unix seconds, by "prompt id, blank, sample"."""
    begun: dict[str, float] = {}
    out: dict[str, tuple[float, float]] = {}
    for event in events:
        id = str(event.get("id"))
        if event.get("ph") == "b":
            begun[id] = event["ts"] / 1e6
        elif event.get("ph") == "e" and id in begun:
            out[event["name"]] = (begun[id], event["ts"] / 1e6)
    return out


def lines_of(held: Step, begin: float, calls: dict[str, tuple[float, float]]) -> list[list[Any]]:
    """[g, sample, rank, sampled, verified, asked, first token, answered, window], seconds after `begin`. By the rollout file's own times;
    of an older one by the trace, which knows the judge's calls alone."""
    times = np.stack([held.columns[f"time_{name}"] for name in TIMES], axis=1) - begin
    windows, samples = held.columns["window"], held.columns["sample"]
    out = []
    for g, head in enumerate(held.heads):
        for i in range(head.size):
            row = head.start + i
            said: list[float | None] = [None if value is None else round(value, 6) for value in map(finite, times[row].tolist())]
            if said == [None] * len(TIMES) and not np.isnan(samples[row]):
                asked, answered = calls.get(f"{head.prompt_id} {int(samples[row])}", (None, None))
                said[2], said[4] = (None if value is None else round(value - begin, 6) for value in (asked, answered))
            window = finite(float(windows[row]))
            out.append([g, i, held.rank(row), *said, None if window is None else int(window)])
    return out
