"""What a person should know of a run first, and do about it: alarms; and advice where there is none."""

from __future__ import annotations

import time
from typing import Any

from soundrl.view.checks import CHECKS
from soundrl.view.looked import Looked
from soundrl.view.run import Run

Json = dict[str, Any]


def advice(run: Run, state: str, updated: float | None) -> list[Json]:
    """Alarms first; advice and notes where there is none of them."""
    looked = Looked(run, state, time.time() - updated if updated else 0.0)
    out: list[Json] = []
    for check in CHECKS:
        if check.level != "alarm" and any(found["level"] == "alarm" for found in out):
            break
        value, limit = check.value(looked), check.limit
        if value is not None and value >= (limit(looked) if callable(limit) else limit):
            what = check.what.format(value=value, more=check.more(looked))
            out.append({"level": check.level, "what": what, "why": check.why, "do": check.do, "link": link(run, check.link)})
    return out


def link(run: Run, page: str) -> str | None:
    """Of the page, as its routes are."""
    step = f"#/run/{run.key}/step/{run.metrics.train.steps[-1]}" if run.metrics.train.steps else ""
    if page == "judge":
        return f"#/run/{run.key}/judge"
    if not page or not step:
        return None
    return f"{step}/anatomy" if page == "anatomy" else step + page.removeprefix("step")


def alarms_of(run: Run) -> list[list[Any]]:
    """[step, text] of the judge's watch, when each began; of a run that wrote no texts, when their number grew."""
    if told := run.alarms.told():
        return told
    out, before = [], 0.0
    for step, value in run.metrics.train.pairs("genrm/alarm"):
        if value > before:
            out.append([step, f"{value:.0f} alarms of the judge's watch; the run's console says which"])
        before = value
    return out
