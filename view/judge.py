"""The page of a run's judge: where it errs, by whom, and what it costs."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from statistics import NormalDist
from typing import Any

import numpy as np

from soundrl.genrm.labels import id_of
from soundrl.view.advice import alarms_of
from soundrl.view.cells import CORRECT, FLAWED, SOUND
from soundrl.view.groups import letters_of
from soundrl.view.oracle import data_of, oracle_in, oracle_of
from soundrl.view.plain import NotThere
from soundrl.view.run import Run
from soundrl.view.step import Step

Json = dict[str, Any]
CANARY = "genrm/probe_canary_"
STEPS = 8  # that critiques and the oracle's confusion are taken of, spread over the run
CRITIQUES = 2000
TOLD = 300  # rollouts of a step that the oracle is asked of
QUEUE = 1000  # disagreements, the newest
SECONDS = 0.5  # for which steps are read so that the queue has its links
Z = NormalDist().inv_cdf(0.975)


def judge_page(run: Run) -> Json:
    """`<key>/judge.json`"""
    metrics, said = run.metrics.read(), run.disagreements.read()
    train, evals = metrics.train, metrics.evals
    chosen = spread(run.steps()["train"], STEPS)
    held = [step for step in (looked_at(run, each) for each in chosen) if step is not None]
    probes = sorted({name for series in (train, evals) for name in series.values if name.startswith("genrm/probe_")})
    reasons = sorted(name for name in train.values if name.startswith("genrm/unknown_"))
    unknown = {name.removeprefix("genrm/unknown_"): round(sum(value for _, value in train.pairs(name))) for name in reasons}
    return {
        "confusion": confusion(run, held),
        "over_critic": over_critic(run),
        "probe": {
            name.removeprefix("genrm/probe_"): sorted([*map(list, train.pairs(name)), *map(list, evals.pairs(name))]) for name in probes
        },
        "canaries": canaries(run),
        "critiques": critiques(held),
        "disagreements": queue(run),
        "unknown": {name: count for name, count in unknown.items() if count},
        "alarms": alarms_of(run),
        "steps": [step.step for step in held],
        "faults": [fault for fault in (metrics.fault, said.fault) if fault],
    }


def spread(steps: list[int], most: int) -> list[int]:
    """
    >>> spread([1, 2, 3, 4, 5], 3)
    [1, 3, 5]
    """
    if len(steps) <= most:
        return steps
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


def looked_at(run: Run, step: int) -> Step | None:
    try:
        return run.step(step, "train")
    except NotThere:
        return None


def confusion(run: Run, held: list[Step]) -> Json:
    """By the oracle, of some right rollouts of some steps; else by the second opinions, else by a person's labels. `distance` is of
    rollouts that both call flawed: the judge's step less the other's."""
    if oracle_in(data_of(run)) is not None and held:
        total: Counter[str] = Counter()
        for step in held:
            total.update(run.once(("confusion", step.step), len(step.disk), lambda step=step: by_oracle(run, step)))
        return shaped(total, "oracle")
    said, train = run.disagreements, run.metrics.train
    agreement = dict(train.pairs("genrm/second_agreement"))
    of = sum(count for _, count in train.pairs("genrm/second_count"))
    agree = sum(count * agreement.get(step, 0.0) for step, count in train.pairs("genrm/second_count"))
    if of or said.count:
        found = Counter({f"distance {distance}": count for distance, count in said.distance.items()})
        found.update(sound_called_flawed=said.harsh, flawed_called_sound=said.missed, agree=round(agree))
        found["of"] = max(round(of), said.count)
        return shaped(found, "second")
    return shaped(by_labels(run), "labels")


def shaped(found: Counter[str], by: str) -> Json:
    distance = {name.removeprefix("distance "): count for name, count in sorted(found.items()) if name.startswith("distance ")}
    return {"distance": distance, **{name: found[name] for name in ("sound_called_flawed", "flawed_called_sound", "agree", "of")}, "by": by}


def counted(first: tuple[str, int | None], other: tuple[str, int | None]) -> Counter[str]:
    """Of one rollout: the judge's (kind, step) and the other's."""
    out = Counter({"of": 1})
    if first[0] == other[0] == "flawed" and first[1] is not None and other[1] is not None:
        out[f"distance {first[1] - other[1]}"] = 1
    out["agree"] = int(first == other)
    out["sound_called_flawed"] = int((first[0], other[0]) == ("flawed", "sound"))
    out["flawed_called_sound"] = int((first[0], other[0]) == ("sound", "flawed"))
    return out


def by_oracle(run: Run, step: Step) -> Counter[str]:
    """Of the rollouts of one step that have a verdict, at most `TOLD`, from the first on."""
    verdict = step.columns["verdict"]
    rows = np.flatnonzero((step.columns["outcome"] == CORRECT) & ((verdict == SOUND) | (verdict == FLAWED)))[:TOLD]
    total: Counter[str] = Counter()
    for read in step.read(rows.tolist(), ("text", "prompt", "answer", "turns", "verdict")):
        told = oracle_of(run, read)
        if told is not None:
            total.update(counted((read["verdict"]["kind"], read["verdict"]["step"]), (told["kind"], told["step"])))
    return total


def by_labels(run: Run) -> Counter[str]:
    """Only of labels of disagreements, whose verdict is at hand."""
    total: Counter[str] = Counter()
    for id, label in run.labels.all().items():
        step, _, rest = id.partition("/")
        prompt, _, sample = rest.rpartition("/")
        if step.isdecimal() and sample.isdecimal() and (found := said_of(run, int(step), prompt, int(sample))):
            own = ("sound", None) if label < 0 else ("flawed", label)
            total.update(counted((found[0]["kind"], found[0]["step"]), own))
    return total


def said_of(run: Run, step: int, prompt: str, sample: int) -> tuple[Json, Json] | None:
    about = run.disagreements.about
    return about(step, "train", prompt, sample) or about(step, "eval", prompt, sample)


def over_critic(run: Run) -> list[list[float | None]]:
    """[step, share of sound rollouts called flawed, low, high]: by the oracle where the run has one, else by the probe; the interval
    (Wilson, 95 %) where the number of sound ones is known."""
    train, evals = run.metrics.train, run.metrics.evals
    if "genrm/over_critic" in train.values:
        told, true = (dict(train.pairs(name)) for name in ("fapo/told", "fapo/true_flawed_ratio"))
        number = {step: told[step] * (1 - true[step]) for step in told.keys() & true.keys()}
        return [[step, value, *wilson(value, number.get(step, 0.0))] for step, value in train.pairs("genrm/over_critic")]
    sound = dict([*train.pairs("genrm/probe_sound"), *evals.pairs("genrm/probe_sound")])
    values = sorted([*train.pairs("genrm/probe_over_critic"), *evals.pairs("genrm/probe_over_critic")])
    return [[step, value, *wilson(value, sound.get(step, 0.0))] for step, value in values]


def wilson(share: float, n: float) -> tuple[float | None, float | None]:
    """
    >>> [round(end, 3) for end in wilson(0.1, 100)], wilson(0.1, 0)
    ([0.055, 0.174], (None, None))
    """
    if n < 1 or not 0 <= share <= 1:
        return None, None
    middle, room = share + Z * Z / (2 * n), Z * (share * (1 - share) / n + Z * Z / (4 * n * n)) ** 0.5
    return max((middle - room) / (1 + Z * Z / n), 0.0), min((middle + room) / (1 + Z * Z / n), 1.0)


def canaries(run: Run) -> list[Json] | None:
    """Of the last probe: flawed solutions with an attack that the judge called sound, of how many, by attack; None where no probe has told
    them apart."""
    train, out = run.metrics.train, []
    for name in train.values:
        if name.startswith(CANARY) and name.endswith("_of"):
            accepted, of = (next(reversed(list(train.pairs(each))), (0, 0.0))[1] for each in (name.removesuffix("_of"), name))
            out.append({"attack": name[len(CANARY) : -3], "accepted": round(accepted), "of": round(of)})
    return out or None


def critiques(held: list[Step]) -> list[list[Any]]:
    """[tokens, seconds, cell] of what was judged, alike many of each step."""
    out: list[list[Any]] = []
    for step in held:
        tokens, seconds = step.columns["judge_tokens"], step.columns["judge_seconds"]
        rows = np.flatnonzero(~np.isnan(tokens) & ~np.isnan(seconds))
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), CRITIQUES // len(held))).astype(int)] if len(rows) else rows
        cells = letters_of(step)
        out += [[int(tokens[row]), float(seconds[row]), str(cells[row])] for row in rows.tolist()]
    return out


def queue(run: Run) -> list[Json]:
    """Disagreements, the newest first, those without a label before the others."""
    labels, until = run.labels.all(), time.monotonic() + SECONDS
    rows: list[Json] = []
    for step in sorted(run.disagreements.by_step, reverse=True):
        for (kind, prompt, sample), (first, second) in run.disagreements.of(step).items():
            id = id_of(step, prompt, sample)
            kind, g = place(run, step, kind, prompt, until)
            row = {"id": id, "step": step, "kind": kind, "g": g, "prompt_id": prompt, "sample": sample}
            rows.append(row | {"first": first, "second": second, "label": labels.get(id)})
        if len(rows) >= QUEUE:
            break
    return sorted(rows[:QUEUE], key=lambda row: row["label"] is not None)


def place(run: Run, step: int, kind: str, prompt: str, until: float) -> tuple[str, int | None]:
    """Kind and group; the step is read for it, where the page may still wait. What trained nothing may have been replaced."""
    for each in ("eval",) if kind == "eval" else ("train", "replaced"):
        if (step, each) not in run.prompts.seen and time.monotonic() < until:
            with contextlib.suppress(NotThere):
                run.step(step, each)
        for at, found, g in run.prompts.of(prompt):
            if (at, found) == (step, each):
                return each, g
    return kind, None
