"""What evaluations say, to people and files: `scores.json`, the table, a line of a leaderboard, the difference of two.

Of a policy; what a judge's verdicts are worth says `soundrl.genrm.evaluate`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from soundrl.engine.files.whole import whole
from soundrl.fapo.corrected import Errors
from soundrl.fapo.figures import Difference, figures, paired, taken
from soundrl.fapo.printable import one_line
from soundrl.fapo.samples import NONE, RIGHT, Samples
from soundrl.genrm.evaluate import print_table

FORMAT = 1
MADE_FROM = ("model", "prompt", "sampling", "versions")
"""What a file of scores says of itself: the model, with its digest or its endpoint; the prompt or template that asks it; the settings of
sampling; versions."""
WORDS = {
    "accuracy": "avg@n",
    "pass": "pass",
    "maj": "maj",
    "sound": "right and sound",
    "process_pass": "process-pass",
    "flawed_ratio": "flawed, of right",
    "flawed_corrected": "corrected",
    "cut": "cut",
    "tokens": "tokens",
}
"""Of figures, in the order in which they are shown."""


def scores_of(
    samples: Samples, ks: Sequence[int] | None = None, errors: Errors | None = None, judged: bool | None = None
) -> dict[str, Any]:
    """A set's scores as plain JSON: its `figures` (`soundrl.fapo.figures.figures` says what `ks`, `errors` and `judged` are, and raises
    ValueError), and what they are of: problems, rollouts, n (scored samples of the problem that has fewest), k, a digest of the data,
    `left` (problems without a scored sample), `unknown` (rollouts by reason), and of the judge how many of the right rollouts it gave a
    verdict on (`coverage`), and how many it was not asked of."""
    scored, ks = taken(samples, ks)
    found = figures(samples, ks, errors, judged)
    right = samples.outcome == RIGHT
    count = {
        "right": int(right.sum()),
        "told": int((right & samples.told).sum()),
        "unasked": int((right & (samples.verdict == NONE)).sum()),
    }
    return {
        "problems": len(samples.ids),
        "rollouts": len(samples.outcome),
        "n": int(scored.scored.min()),
        "k": ks,
        "data": samples.data,
        "left": len(samples.ids) - len(scored.ids),
        "unknown": dict(samples.reasons),
        "judge": {**count, "coverage": count["told"] / max(count["right"], 1)} if "sound" in found else None,
        "figures": {name: _plain(figure) for name, figure in found.items()},
    }


def _plain(figure: Any) -> dict[str, float | int | None]:
    """JSON has no NaN."""
    return {name: None if math.isnan(value) else value for name, value in figure._asdict().items()}


def write_scores(file: Path, made_from: Mapping[str, Any], sets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`scores.json`, whole or not at all: what the scores were made from (`MADE_FROM` at least, and whatever else there is to say: judge,
    commit, date), and each set's (`scores_of`). ValueError where one of these is missing. Returns what was written."""
    if missing := [name for name in MADE_FROM if not made_from.get(name)]:
        raise ValueError(f"scores must say what they were made from: {', '.join(missing)} is missing")
    found = {"format": FORMAT, "made_from": dict(made_from), "sets": {name: dict(scores) for name, scores in sets.items()}}
    text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file) as beside:
        beside.write_text(text)
    return found


def shown(name: str, figure: Mapping[str, Any]) -> str:
    """Per cent with the 95 % interval, tokens as they are.

    >>> shown("accuracy", {"value": 0.5, "low": 0.405, "high": 0.634})
    '50.0 [40.5, 63.4]'
    """
    scale = 1 if name == "tokens" else 100
    value, low, high = (f"{scale * figure[part]:.1f}" for part in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def ordered(names: Iterable[str]) -> list[str]:
    """Each once, as `WORDS` has them, by k; of one sample all are `accuracy` or `sound`.

    >>> ordered(["tokens", "pass@16", "pass@2", "pass@1", "accuracy", "pass@2"])
    ['accuracy', 'pass@2', 'pass@16', 'tokens']
    """
    kinds = list(WORDS)
    parts = sorted((kinds.index(kind), int(k or 0), name) for name in {*names} for kind, _, k in [name.partition("@")])
    return [name for _, k, name in parts if k != 1]


def show_scores(title: str, sets: Mapping[str, Mapping[str, Any]]) -> None:
    """A column a set, a row a figure; below what stands beside them."""
    rows = []
    for name in ordered(name for scores in sets.values() for name in scores["figures"]):
        kind, at, k = name.partition("@")
        figures = [scores["figures"].get(name) for scores in sets.values()]
        rows.append((WORDS[kind] + at + k, *("–" if figure is None else shown(name, figure) for figure in figures)))
    heads = [f"{_cell(name)} ({scores['problems']} × {scores['n']})" for name, scores in sets.items()]
    print_table(_cell(title), ("", *heads), rows)
    print("per cent, with 95 % intervals over problems; (problems × samples)")
    for name, scores in sets.items():
        for line in caveats(scores):
            print(one_line(f"{name}: {line}"))


def caveats(scores: Mapping[str, Any]) -> list[str]:
    """What stands beside a set's figures, a line each."""
    out = []
    if scores["unknown"]:
        out.append("rollouts that say nothing: " + ", ".join(f"{reason} {count}" for reason, count in scores["unknown"].items()))
    if scores["left"]:
        out.append(f"{scores['left']} of {scores['problems']} problems have no scored sample and are in no figure")
    if (judge := scores["judge"]) and judge["told"] < judge["right"]:
        out.append(f"the judge gave a verdict on {judge['told']} of {judge['right']} right rollouts; the others are not counted as sound")
    return out


def _cell(text: str) -> str:
    return escape(one_line(text))


def leaderboard(model: str, sets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Three lines of Markdown, the last of which is the model's: a column a set, avg@n with its interval, then pass@n and sound."""

    def cells(texts: Iterable[str]) -> str:
        return "| " + " | ".join(one_line(text).replace("|", "\\|") for text in texts) + " |"

    def said(scores: Mapping[str, Any]) -> str:
        names = [name for name in (f"pass@{scores['n']}", "sound") if name in scores["figures"] and name != "pass@1"]
        more = [f"{name} {100 * scores['figures'][name]['value']:.1f}" for name in names]
        return " · ".join([shown("accuracy", scores["figures"]["accuracy"]), *more])

    heads = [f"{name} avg@{scores['n']}, {scores['problems']} problems" for name, scores in sets.items()]
    return [cells(["model", *heads]), cells(["---"] * (1 + len(heads))), cells([model, *map(said, sets.values())])]


def compare(ours: Mapping[str, Samples], theirs: Mapping[str, Samples]) -> dict[str, dict[str, Difference]]:
    """Prints a table of paired differences, ours − theirs, of each set that both have, and returns them. ValueError where they have none in
    common, and as `soundrl.fapo.figures.paired`."""
    both = [name for name in ours if name in theirs]
    if not both:
        raise ValueError(f"no set in common: {', '.join(ours) or 'none'} and {', '.join(theirs) or 'none'}; evaluate both on the same")
    found = {name: paired(ours[name], theirs[name]) for name in both}
    rows = [
        (_cell(name), WORDS[kind] + at + k, str(d.problems), shown(measure, d._asdict()), f"{d.p:.4f}")
        for name, differences in found.items()
        for measure in ordered(differences)
        for (kind, at, k), d in [(measure.partition("@"), differences[measure])]
    ]
    print_table("First − second", ("set", "figure", "problems", "difference", "p"), rows)
    print("points of a per cent (tokens: tokens), paired by problem, with 95 % intervals; p of each by itself")
    for name in {**ours, **theirs}:
        if name not in both:
            print(f"{one_line(name)}: in one of the two alone")
    return found
