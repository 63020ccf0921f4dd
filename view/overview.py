"""The page of a run, and its curves."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from soundrl.engine.phases import PEAKS
from soundrl.view.advice import advice, alarms_of
from soundrl.view.metrics import Series
from soundrl.view.plain import NotThere, cleaned, depth
from soundrl.view.recipe import nearest
from soundrl.view.run import DEEPEST, Run
from soundrl.view.runs import entry_of
from soundrl.view.tail import object_of

Json = dict[str, Any]
PLAN = 1 << 20  # bytes of plan.json
LAST = 20  # steps that times are taken over


def run_page(run: Run) -> Json:
    """`<key>/run.json`"""
    entry = entry_of(run)
    train, evals = run.metrics.train, run.metrics.evals
    found = nearest(run.config)
    of_eval = [at for at in range(len(evals.steps)) if any(name.startswith("eval/") for name in evals.row(at))]
    ends = [{name.removeprefix("eval/"): value for name, value in evals.row(at).items() if name.startswith("eval/")} for at in of_eval]
    steps = run.steps()
    return entry | {
        "config": cleaned(run.config),
        "differs": None if found is None else found[1],
        "total": entry["steps"],
        "steps": {kind: steps[kind] for kind in ("train", "eval", "replaced")},
        "sets": sorted({name.split("/")[1] for name in evals.values if name.startswith("eval/")}),
        "advice": advice(run, entry["state"], entry["updated"]),
        "alarms": alarms_of(run),
        "before": ends[0] if ends else None,
        "after": ends[-1] if len(ends) > 1 else None,
        "memory": {"planned": planned(run), "measured": measured(train)},
        "time": times(run),
        "faults": [fault for fault in (run.fault, run.metrics.fault, run.disagreements.read().fault, run.trace.fault) if fault],
    }


def measured(train: Series) -> Json:
    """MiB by the plan's names: of the whole run, and the highest of each phase that was measured."""
    found: Json = {f"{name}_mib": train.last(f"memory/peak_{name}_mib") for name in ("rss", "gpu")}
    for phase in PEAKS:
        if values := [value for _, value in train.pairs(f"memory/{phase}_mib")]:
            found[f"{phase}_mib"] = max(values)
    return found


def planned(run: Run) -> Json | None:
    """MiB by name, as the run has planned at its start; None where it did not."""
    file = run.path / "plan.json"
    try:
        run.check(file)
        found = object_of(file.read_bytes()) if file.is_file() and file.stat().st_size < PLAN else None
    except (OSError, NotThere):
        return None
    return cleaned(found) if depth(found) <= DEEPEST else None


def times(run: Run) -> Json:
    """Of the last steps: [phase, seconds, share of the step], the share of judging that is hidden behind other work, and
    [phase, seconds] of the critical path; means."""
    run.trace.look()
    last = run.trace.steps()
    rows = [row for step in range(max(last - LAST, 0) + 1, last + 1) if (row := run.trace.row(step)) is not None]
    hidden = [value for _, value in run.metrics.train.pairs("genrm/overlap")][-LAST:]
    out: Json = {"phases": [], "hidden": fmean(hidden) if hidden else None, "path": [], "steps": len(rows)}
    if rows:
        mean = {name: fmean(row.get(name, 0.0) for row in rows) for name in dict.fromkeys(name for row in rows for name in row)}
        of = {name: fmean(row["seconds"] * row.get(name, 0.0) for row in rows) for name in mean}
        shares = [name for name in mean if name.startswith("share/")]
        out["phases"] = [[name[6:], of[name], mean[name]] for name in shares]
        out["path"] = [[name[5:], mean[name]] for name in mean if name.startswith("path/")]
    return out


def series_page(run: Run, after: int | None) -> Json:
    """`<key>/series.json?after=N`"""
    metrics = run.metrics.read()
    steps, series = metrics.train.after(after)
    eval_steps, eval_series = metrics.evals.after(after)
    return {"steps": steps, "series": series, "eval_steps": eval_steps, "eval_series": eval_series}
