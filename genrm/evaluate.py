"""Judging the judge: verdicts on solutions whose first wrong step is known, and what they are worth.

    python -m soundrl.genrm.evaluate --data gsm8k.json math.json --urls http://127.0.0.1:8000/v1 --model FAPO-GenRM-4B --out runs/judge

Each file of `data` is a subset; the average F1 is over subsets, as ProcessBench has it. Every verdict is written to `<out>/verdicts.jsonl`
when it comes, so that an interrupted evaluation goes on where it was; `<out>/scores.json` holds the scores with what they were made from.
What failed on the way (a server that was down) is no verdict: it is counted in `unfinished`, and the same command asks for it again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from soundrl.fapo.named import is_named
from soundrl.fapo.records import Verdict
from soundrl.genrm.critic_data.labelled import Labelled, load_labelled, with_references
from soundrl.genrm.pool.judge import EndpointJudge
from soundrl.genrm.prompts import critique_messages
from soundrl.genrm.scores import Score, score
from soundrl.genrm.verdict import UNASKED


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m soundrl.genrm.evaluate`."""

    data: tuple[str, ...]
    """ProcessBench or FAPO-Critic files, or functions that make rows (`module:name`); each is a subset."""
    urls: tuple[str, ...]
    """Base URLs of the judge."""
    model: str
    """Its name, as the endpoints list it under /models."""
    out: Path
    """Folder of the verdicts and scores; an evaluation that was begun there goes on."""
    references: str = ""
    """Problem file with answers, shown to the judge where the problem is found there (reference-assisted); empty = the standard prompt."""
    rows: int = 0
    """Rows used of each file, the first ones; 0 = all."""
    votes: int = 1
    """Replies a solution, of which the majority counts."""
    temperature: float = 0.0
    """Sampling temperature; above 0 for more than one vote."""
    max_tokens: int = 8192
    """Longest critique, in tokens."""
    concurrency: int = 64
    """Requests under way at once on each endpoint."""
    deadline: float = 1800.0
    """Seconds until a verdict is given up as unknown(timeout)."""
    allow_http: bool = False
    """Allow http without TLS to another machine (problems, answers and the token travel in the clear)."""


def read_data(arguments: Arguments) -> dict[str, list[Labelled]]:
    """The subsets by name. Without `references` no row of a file has a reference answer; rows that a function makes keep theirs."""
    subsets: dict[str, list[Labelled]] = {}
    for source in arguments.data:
        rows = load_labelled(source, max_rows=arguments.rows or None)
        name = source.rpartition(":")[2] if is_named(source) else Path(source).stem
        if arguments.references and not is_named(source):
            rows = with_references(rows, arguments.references)
        elif not is_named(source):
            rows = [dataclasses.replace(row, answer=None) for row in rows]
        if name in subsets:
            raise ValueError(f"two sources of --data are called {name}; rename one")
        subsets[name] = rows
    return subsets


def stamp(arguments: Arguments, subsets: dict[str, list[Labelled]]) -> dict[str, Any]:
    """What the scores were made from; verdicts of another stamp are never mixed in."""
    digest = hashlib.sha256()
    for rows in subsets.values():
        for row in rows:
            digest.update(json.dumps(dataclasses.astuple(row)).encode())
    prompt = json.dumps([critique_messages("problem", ["step"], reference) for reference in (None, "answer")])
    return {
        "model": arguments.model,
        "data": {name: len(rows) for name, rows in subsets.items()},
        "data_sha256": digest.hexdigest(),
        "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest(),
        "references": sum(row.answer is not None for rows in subsets.values() for row in rows),
        "votes": arguments.votes,
        "temperature": arguments.temperature,
        "max_tokens": arguments.max_tokens,
        "soundrl": _version("soundrl"),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def judge_all(
    judge: EndpointJudge, subsets: dict[str, list[Labelled]], file: Path, made_from: dict[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """A record a row, in the order of the rows: verdict, tokens, seconds, the critique. Those that `file` holds are not asked for again;
    it holds what the judge said, and no fault of the way there.

    Raises `ValueError` where `file` was made from something else.
    """
    done: dict[tuple[str, str], dict[str, Any]] = {}
    if file.exists():
        lines = file.read_text().splitlines(keepends=True)
        if not lines or json.loads(lines[0]) != made_from:
            raise ValueError(f"{file} holds verdicts of another judge, data or sampling; name another --out")
        for line in lines[1:]:
            if line.endswith("\n"):  # a killed evaluation leaves half a line
                record = json.loads(line)
                if record["verdict"][2] not in UNASKED:
                    done[record["subset"], record["id"]] = record
    beside = file.with_suffix(".part")
    beside.write_text("".join(json.dumps(line) + "\n" for line in [made_from, *done.values()]))
    beside.replace(file)
    with file.open("a") as sink:
        asked = {
            (name, row.id): (row.problem, row.steps, row.answer)
            for name, rows in subsets.items()
            for row in rows
            if (name, row.id) not in done
        }
        for number, ((name, id), critique) in enumerate(judge.each(asked), 1):
            verdict = critique.verdict
            record = {
                "subset": name,
                "id": id,
                "verdict": [verdict.kind, verdict.step, verdict.reason],
                "tokens": critique.tokens,
                "seconds": round(critique.seconds, 3),
                "critique": critique.text,
            }
            done[name, id] = record
            if verdict.reason not in UNASKED:
                sink.write(json.dumps(record) + "\n")
                sink.flush()
            if number % max(1, len(asked) // 20) == 0:
                print(f"{number}/{len(asked)} judged", file=sys.stderr, flush=True)
    return {name: [done[name, row.id] for row in rows] for name, rows in subsets.items()}


def summary(subsets: dict[str, list[Labelled]], records: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Scores by subset, and `all`: ProcessBench's average of the subsets' F1, and FlawedPositiveBench over all rows together."""
    out: dict[str, dict[str, Any]] = {}
    rows = [row for part in subsets.values() for row in part]
    for name, part, own in [*((n, r, records[n]) for n, r in subsets.items()), ("all", rows, [r for n in subsets for r in records[n]])]:
        scores = score(part, [Verdict(*record["verdict"]) for record in own])
        unknown: dict[str, int] = {}
        for record in own:
            if record["verdict"][0] == "unknown":
                unknown[record["verdict"][2]] = unknown.get(record["verdict"][2], 0) + 1
        out[name] = {
            **{measure: dataclasses.asdict(value) for measure, value in scores.items()},
            "rows": len(part),
            "tokens": sum(record["tokens"] for record in own) / len(own),
            "seconds": sum(record["seconds"] for record in own) / len(own),
            "unknown": unknown,
        }
    out["all"]["average_f1"] = sum(out[name]["f1"]["value"] for name in subsets) / len(subsets)
    return out


def print_table(scores: dict[str, dict[str, Any]]) -> None:
    """ProcessBench on the left, FlawedPositiveBench on the right; per cent with 95 % intervals, coverage beside each."""
    table = Table(title="Judge")
    columns = {
        "error acc.": "error_accuracy",
        "correct acc.": "correct_accuracy",
        "F1": "f1",
        "flawed: precision": "precision",
        "recall": "recall",
        "F1 (flawed)": "flawed_f1",
        "coverage": "coverage",
    }
    for heading in ("subset", "rows", *columns, "tokens"):
        table.add_column(heading)
    for name, part in scores.items():
        cells = [str(Score(**part[measure])) for measure in columns.values()]
        table.add_row(name, str(part["rows"]), *cells, f"{part['tokens']:.0f}")
    console = Console(width=200)
    console.print(table)
    console.print(f"average F1 over subsets {100 * scores['all']['average_f1']:.1f}; an unknown verdict counts as a wrong one")


def main(arguments: Arguments) -> dict[str, dict[str, Any]]:
    subsets = read_data(arguments)
    made_from = stamp(arguments, subsets)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with EndpointJudge(
        arguments.urls,
        arguments.model,
        temperature=arguments.temperature,
        votes=arguments.votes,
        max_tokens=arguments.max_tokens,
        concurrency=arguments.concurrency,
        deadline=arguments.deadline,
        allow_http=arguments.allow_http,
        step_deadline=float("inf"),
    ) as judge:
        judge.check()
        records = judge_all(judge, subsets, arguments.out / "verdicts.jsonl", made_from)
    scores = summary(subsets, records)
    unfinished = {reason: count for reason, count in scores["all"]["unknown"].items() if reason in UNASKED}
    found = {"made_from": made_from, "scores": scores, "unfinished": unfinished}
    (arguments.out / "scores.json").write_text(json.dumps(found, indent=2) + "\n")
    print_table(scores)
    if unfinished:
        print(f"no reply came for {sum(unfinished.values())} rows ({unfinished}); the same command asks for them again", file=sys.stderr)
    return scores


def command(run: Any, arguments: type, argv: Sequence[str] | None = None) -> None:
    """A command of this folder: a user's mistake ends it with one line and status 2."""
    try:
        run(tyro.cli(arguments, args=argv))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    command(main, Arguments)
