"""Judging rollouts that exist by another judge: those of an evaluation, or of a step of a training run. Nothing is sampled.

    <run>/judged/<judge>/step-000040-train/verdicts.jsonl    a line a right rollout, as it came
                                           scores.json       figures by this judge, and how far it agrees with every other one

A judge that is down has given no verdict: the same command asks again.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from soundrl.engine.config import Config
from soundrl.engine.environments.environment import Environment, build_environment, environment_of, is_environment
from soundrl.engine.evaluation.arguments import Arguments
from soundrl.engine.evaluation.scores import by_set, errors_in, show_agreement
from soundrl.engine.evaluation.table import scores_of, show_scores
from soundrl.engine.files.rollout_file import VERDICT
from soundrl.engine.files.run_reader import RunReader
from soundrl.engine.files.saved_step import config_of
from soundrl.engine.files.whole import whole
from soundrl.fapo.corrected import Errors
from soundrl.fapo.records import Prompt, Rollout, Turn, Verdict
from soundrl.fapo.resampled import intervals
from soundrl.genrm.evaluate import Solution, judge_all
from soundrl.genrm.journal import Journal, digest
from soundrl.genrm.prompts import split_paragraphs
from soundrl.genrm.verdict import UNASKED
from soundrl.genrm.watch.chance import kappa

OWN = "the run's own"
"""The verdicts that stand in the rollouts."""
COLUMNS = ("set", "prompt_id", "sample", "prompt", "answer", "text", "finish_reason", "policy_version", "turns", "outcome", "verdict")
Told = dict[str, Verdict]
"""Verdicts of right rollouts by their names, `name_of`."""


class Saved(NamedTuple):
    """One sampling of a run."""

    reader: RunReader
    step: int
    kind: str
    table: pa.Table

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The right ones, without their tokens."""
        return [row for row in self.table.select(COLUMNS).to_pylist() if row["outcome"] == "correct"]

    def folder(self, judge: str) -> Path:
        return self.reader.path / "judged" / judge / f"step-{self.step:06d}-{self.kind}"


def read(run: Path, step: int | None, kind: str) -> Saved:
    """ValueError where there are no such rollouts."""
    reader = RunReader(run)
    kind = kind or ("train" if reader.steps() else "eval")
    steps = reader.steps(kind)
    if step is None and not steps:
        raise ValueError(f"{run} has no rollouts ({kind}) that are whole; wait for its first ones, or name another folder")
    step = steps[-1] if step is None else step
    return Saved(reader, step, kind, reader.table(step, kind))


def name_of(row: Mapping[str, Any]) -> str:
    return f"{row['set']}/{row['prompt_id']}/{row['sample']}"


def environment_by_set(saved: Saved) -> Callable[[str], Environment | None]:
    """Who numbers the steps of a set's responses, and knows the truth of them; None: problem files, as everybody has them."""
    config, made = saved.reader.config, dict[str, Environment | None]()
    sets = (config.get("evaluation") or {}).get("sets", {})
    trained = config["data"]["train"][0]

    def on(source: str) -> Config:
        own = config_of(saved.reader)[0]
        return dataclasses.replace(own, data=dataclasses.replace(own.data, train=(source,), test=()))

    def of(name: str) -> Environment | None:
        source = sets[name]["source"] if name in sets else trained
        if source not in made:
            kind = environment_of(source if is_environment(source) else "")
            plain = kind is environment_of("") or isinstance(kind, type) and kind.split is Environment.split and kind.oracle is None
            made[source] = None if plain else build_environment(source, on(source), None)
        return made[source]

    return of


def judge_again(a: Arguments) -> dict[str, Any]:
    """The scores that are written."""
    assert a.judge_again is not None
    saved = read(a.judge_again, a.step, a.kind)
    errors = errors_in(a.judge_errors) if a.judge_errors else None
    rows, environment = saved.rows, environment_by_set(saved)
    questions: dict[str, Solution] = {}
    for row in rows:
        split = environment(row["set"])
        steps = (split.split if split is not None else split_paragraphs)(row["text"])
        questions[name_of(row)] = row["prompt"], steps, row["answer"]
    if len(questions) < len(rows):
        raise ValueError(f"{saved.reader.path}: a rollout of step {saved.step} ({saved.kind}) stands there twice; restore the files")
    rollouts = digest([[name, problem, list(steps), answer] for name, (problem, steps, answer) in questions.items()])
    what = {"step": saved.step, "kind": saved.kind, "rollouts": len(rows), "rollouts_sha256": rollouts}
    if a.judging == "oracle":
        name, made_from = a.judge_name or "oracle", {"judge": "oracle"} | what
        told = {name_of(row): oracle(row, environment(row["set"])) for row in rows}
        saved.folder(name).mkdir(parents=True, exist_ok=True)
        with whole(saved.folder(name) / "verdicts.jsonl") as beside, Journal(beside, made_from, "") as journal:
            for id_, v in told.items():
                journal.add({"id": id_, "verdict": [v.kind, v.step, v.reason], "tokens": 0, "seconds": 0.0})
    else:
        name = a.judge_name or re.sub(r"[^\w.-]+", "-", a.judge_model.partition("=")[0]).strip("-.") or "judge"
        with a.endpoint_judge() as judge:
            judge.check()
            print(f"the judge is asked by the prompt {judge.asked.name}, {judge.because}", file=sys.stderr)
            made_from = {"judge": a.judge_stamp(judge)} | what
            refusal = "holds verdicts of another judge, or of other rollouts; name another --judge-name"
            with Journal(saved.folder(name) / "verdicts.jsonl", made_from, refusal) as journal:
                records = judge_all(judge, questions, journal, "judged")
        told = {id_: Verdict(*record["verdict"]) for id_, record in records.items()}
    others = {OWN: {name_of(row): Verdict(**row["verdict"]) for row in rows if row["verdict"]}} | other_judges(saved, name)
    agreements = {other: by_set_too(theirs, told, rows) for other, theirs in others.items() if theirs.keys() & told.keys()}
    return tell_again(saved, name, made_from, told, agreements, errors)


def oracle(row: Mapping[str, Any], environment: Environment | None) -> Verdict:
    """What the environment knows of a right rollout. ValueError where it knows nothing."""
    known = None if environment is None else type(environment).oracle
    if known is None:
        raise ValueError(f"--judge oracle: the set {row['set']} has none; name a judge by --judge-urls")
    own = {name: row[name] for name in ("prompt_id", "sample", "text", "finish_reason", "policy_version")}
    nothing: dict[str, Any] = dict.fromkeys(("prompt_tokens", "tokens", "logprobs"), ())
    rollout = Rollout(**own, **nothing, turns=tuple(Turn(**turn) for turn in row["turns"] or ()))
    return known(Prompt(id=row["prompt_id"], text=row["prompt"], answer=row["answer"]), rollout)


def other_judges(saved: Saved, but: str) -> dict[str, Told]:
    """Verdicts of those that have judged the same rollouts before, by name."""
    found: dict[str, Told] = {}
    for folder in sorted((saved.reader.path / "judged").glob("*")):
        file = saved.folder(folder.name) / "verdicts.jsonl"
        if folder.name == but or not file.is_file():
            continue
        _, *lines = file.read_text("utf-8").split("\n")[:-1]
        try:
            records = [json.loads(line) for line in lines]
            found[folder.name] = {record["id"]: Verdict(*record["verdict"]) for record in records}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is damaged ({error}); remove it, and let that judge judge again") from None
    return found


def agreement(first: Told, second: Told) -> dict[str, Any]:
    """Of rollouts of which both have a verdict, how many both call sound or both flawed: `share` with its 95 % interval over problems, and
    Cohen's `kappa`; `same_step`, of those that both call flawed; and how many are `unknown` to either.

    >>> one = {"a/1/0": Verdict.sound(), "a/1/1": Verdict.flawed(2), "a/2/0": Verdict.flawed(0)}
    >>> two = {"a/1/0": Verdict.sound(), "a/1/1": Verdict.flawed(2), "a/2/0": Verdict.sound()}
    >>> found = agreement(one, two)
    >>> found["n"], round(found["share"], 3), found["table"], found["same_step"]
    (3, 0.667, [1, 0, 1, 1], 1.0)
    """
    both = sorted(first.keys() & second.keys())
    pairs = {id_: (first[id_], second[id_]) for id_ in both if "unknown" not in (first[id_].kind, second[id_].kind)}
    table = [0] * 4
    by_problem: dict[str, list[int]] = {}
    for id_, (one, two) in pairs.items():
        table[2 * (one.kind == "flawed") + (two.kind == "flawed")] += 1
        counts = by_problem.setdefault(id_.rpartition("/")[0], [0, 0])
        counts[0] += one.kind == two.kind
        counts[1] += 1
    out: dict[str, Any] = {"n": len(pairs), "problems": len(by_problem), "unknown": len(both) - len(pairs), "table": table}
    if pairs:
        part, of = np.array(list(by_problem.values()), np.float64).T[:, :, None]
        (span,) = intervals(part, of, list(by_problem))
        out |= {"share": (table[0] + table[3]) / len(pairs), "low": span.low, "high": span.high, "kappa": kappa(*table)}
        alike = [one.step == two.step for one, two in pairs.values() if (one.kind, two.kind) == ("flawed", "flawed")]
        out["same_step"] = sum(alike) / len(alike) if alike else None
    return out


def by_set_too(first: Told, second: Told, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`agreement`, and that of each set where there are several."""
    sets: dict[str, set[str]] = {}
    for row in rows:
        sets.setdefault(row["set"], set()).add(name_of(row))
    each = {name: agreement({id_: v for id_, v in first.items() if id_ in ids}, second) for name, ids in sorted(sets.items())}
    return agreement(first, second) | ({"sets": each} if len(each) > 1 else {})


def tell_again(
    saved: Saved, name: str, made_from: dict[str, Any], told: Told, agreements: dict[str, Any], errors: Errors | None
) -> dict[str, Any]:
    """Writes and prints them."""
    names = map(name_of, saved.table.select(["set", "prompt_id", "sample"]).to_pylist())
    verdicts = [None if v is None else {"kind": v.kind, "step": v.step, "reason": v.reason} for v in map(told.get, names)]
    place = saved.table.schema.get_field_index("verdict")
    table = saved.table.set_column(place, "verdict", pa.array(verdicts, VERDICT))
    scores = {part: scores_of(samples, errors=errors, judged=True) for part, samples in by_set(table).items()}
    unfinished = Counter(v.reason for v in told.values() if v.reason in UNASKED)
    show_scores(f"{saved.reader.path.name}, step {saved.step} ({saved.kind}), judged by {name}", scores)
    show_agreement(name, agreements)
    found = {"made_from": made_from, "sets": scores, "agreement": agreements, "unfinished": dict(unfinished)}
    with whole(saved.folder(name) / "scores.json") as beside:
        beside.write_text(json.dumps(found, indent=2) + "\n")
    if unfinished:
        print(
            f"no reply came for {unfinished.total()} rollouts ({dict(unfinished)}); the same command asks for them again", file=sys.stderr
        )
    return found
