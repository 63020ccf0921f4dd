"""The page of a run's judge."""

from __future__ import annotations

from typing import Any

from soundrl.view.advice import alarms_of
from soundrl.view.run import Run

Json = dict[str, Any]


def judge_page(run: Run) -> Json:
    """`<key>/judge.json`"""
    train, evals = run.metrics.read().train, run.metrics.evals
    said = run.disagreements.read()
    counts, agreement = dict(train.pairs("genrm/second_count")), dict(train.pairs("genrm/second_agreement"))
    of = sum(counts.values())
    agree = sum(count * agreement.get(step, 0.0) for step, count in counts.items())
    probes = sorted({name for series in (train, evals) for name in series.values if name.startswith("genrm/probe_")})
    labels = run.labels.all()
    rows = [
        {"id": f"{step}/{id}/{sample}", "step": step, "g": None, "sample": sample, "first": first, "second": second, "label": labels.get(f"{step}/{id}/{sample}")}
        for step, rows in sorted(said.by_step.items())
        for (id, sample), (first, second, _) in rows.items()
    ]  # fmt: skip
    return {
        "confusion": {
            "distance": dict(said.distance),
            "sound_called_flawed": said.harsh,
            "flawed_called_sound": said.missed,
            "agree": round(agree),
            "of": int(of),
            "by": "second",
        },  # fmt: skip
        "over_critic": [[step, value, None, None] for step, value in train.pairs("genrm/over_critic")],
        "probe": {
            name.removeprefix("genrm/probe_"): sorted([*map(list, train.pairs(name)), *map(list, evals.pairs(name))]) for name in probes
        },
        "canaries": None,
        "critiques": [],
        "disagreements": rows,
        "unknown": {
            name.removeprefix("genrm/unknown_"): int(sum(v for _, v in train.pairs(name)))
            for name in train.values
            if name.startswith("genrm/unknown_")
        },
        "alarms": alarms_of(run),
    }
