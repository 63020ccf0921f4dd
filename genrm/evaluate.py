"""Judging the *judge*: verdicts on solutions whose first wrong step is known, and what they are worth. A policy is evaluated, and its
rollouts judged, by `soundrl.engine.evaluate`.

    python -m soundrl.genrm.evaluate --data gsm8k.json math.json --urls http://127.0.0.1:8000/v1 --model FAPO-GenRM-4B --out runs/judge

Each file of `data` is a subset; the average F1 is over subsets, as ProcessBench has it. Every verdict is written to `<out>/verdicts.jsonl`
when it comes, so that an interrupted evaluation goes on where it was; `<out>/scores.json` holds the scores with what they were made from.
What failed on the way (a server that was down) is no verdict: it is counted in `unfinished`, and the same command asks for it again.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from soundrl.fapo.corrected import Errors
from soundrl.fapo.named import is_named
from soundrl.fapo.records import Verdict
from soundrl.genrm.critic_data.labelled import Labelled, load_labelled, with_references
from soundrl.genrm.journal import Journal, counted, digest
from soundrl.genrm.pool.endpoint import extra_fields
from soundrl.genrm.pool.judge import EndpointJudge
from soundrl.genrm.prompts import PROMPTS
from soundrl.genrm.scores import Score, score
from soundrl.genrm.verdict import UNASKED, majority

Solution = tuple[str, Sequence[str], str | None]  # the problem, the paragraphs, a reference
AT_ONCE = 16_384


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a command asks a judge."""

    votes: int = 1
    """Replies a solution, of which the majority counts."""
    temperature: float = 0.0
    """Sampling temperature; above 0 for more than one vote."""
    max_tokens: int = 8192
    """Longest reply, in tokens."""
    concurrency: int = 64
    """Requests under way at once on each endpoint."""
    deadline: float = 1800.0
    """Seconds until a reply is given up."""
    allow_http: bool = False
    """Allow http without TLS to another machine (problems, answers and the token travel in the clear)."""
    prompt: str = ""
    """The judge's prompt, by name (genrm/prompts.py); empty = the one that its endpoint says it was trained on, else own."""
    body: str = ""
    """Further fields of every request, a JSON object, such as '{"top_p": 0.95, "chat_template_kwargs": {"enable_thinking": false}}'."""

    @property
    def extra(self) -> dict[str, Any]:
        return extra_fields(self.body, "--body")

    def judge(self, urls: Sequence[str], model: str, decide: Callable[[Sequence[Verdict]], Verdict] = majority) -> EndpointJudge:
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(Asking) if field.name != "body"}
        return EndpointJudge(urls, model, decide=decide, step_deadline=float("inf"), extra=self.extra, **settings)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a command judges, and where it writes."""

    data: tuple[str, ...]
    """ProcessBench or FAPO-Critic files, or functions that make rows (`module:name`); each is a subset."""
    out: Path
    """Folder of the verdicts and scores; what was begun there goes on."""
    references: str = ""
    """Problem file with answers, shown to the judge where the problem is found there (reference-assisted); `own` = those that stand in the
    rows; empty = the standard prompt."""
    rows: int = 0
    """Rows used of each file, the first ones; 0 = all."""


@dataclass(frozen=True, kw_only=True)
class Arguments(Judged, Asking):
    """Command line of `python -m soundrl.genrm.evaluate`."""

    urls: tuple[str, ...]
    """Base URLs of the judge."""
    model: str
    """Its name, as the endpoints list it under /models."""


def read_data(arguments: Arguments) -> dict[str, list[Labelled]]:
    """The subsets by name. Without `references` no row of a file has a reference answer; rows that a function makes keep
    theirs."""
    subsets: dict[str, list[Labelled]] = {}
    for source in arguments.data:
        rows = load_labelled(source, max_rows=arguments.rows or None)
        name = source.rpartition(":")[2] if is_named(source) else Path(source).stem
        if name in subsets:
            raise ValueError(f"two sources of --data are called {name}; rename one")
        if not is_named(source) and arguments.references != "own":
            unaided = [dataclasses.replace(row, answer=None) for row in rows]
            rows = with_references(rows, arguments.references) if arguments.references else unaided
        subsets[name] = rows
    return subsets


def stamp(arguments: Arguments, subsets: dict[str, list[Labelled]]) -> dict[str, Any]:
    """What the scores were made from; verdicts of another stamp are never mixed in. `arguments.prompt` is settled by then."""
    prompt = PROMPTS[arguments.prompt or "own"]
    return {
        "data": {name: len(rows) for name, rows in subsets.items()},
        "references": sum(row.answer is not None for rows in subsets.values() for row in rows),
        "data_sha256": digest([[dataclasses.astuple(row) for row in rows] for rows in subsets.values()]),
        "prompt": prompt.name,
        "prompt_sha256": prompt.digest,
        **{name: getattr(arguments, name) for name in ("model", "votes", "temperature", "max_tokens")},
        "body": arguments.extra,
    }


def answers(judge: EndpointJudge, questions: Sequence[tuple[str, Solution]]) -> Iterator[tuple[str, Verdict]]:
    """As they come. A question's text is held until it is answered, so at most `AT_ONCE` are asked."""
    for start in range(0, len(questions), AT_ONCE):
        asked = {judge.critique(*question): id for id, question in questions[start : start + AT_ONCE]}
        for future in as_completed([*asked]):
            yield asked.pop(future), future.result()


def judge_all(
    judge: EndpointJudge, questions: Mapping[str, Solution], journal: Journal, what: str, keep_text: bool = True
) -> dict[str, dict[str, Any]]:
    """A record a question, by its id: verdict, tokens, seconds, and with `keep_text` the critique. Those in `journal` are not asked again;
    it holds what the judge said, and no fault of the way there."""
    records = {id: journal.known[id] for id in questions if id in journal.known}
    left = [(id, question) for id, question in questions.items() if id not in records]
    for id, verdict in counted(answers(judge, left), len(left), what):
        records[id] = {"id": id, "verdict": [verdict.kind, verdict.step, verdict.reason], "tokens": verdict.tokens}
        records[id] |= {"seconds": round(verdict.seconds, 3)} | ({"critique": verdict.critique} if keep_text else {})
        if verdict.reason not in UNASKED:
            journal.add(records[id])
    return records


def summary(subsets: dict[str, list[Labelled]], records: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Scores by subset, and `all`: ProcessBench's average of the subsets' F1, and FlawedPositiveBench over all rows together."""
    out: dict[str, dict[str, Any]] = {}
    for name, names in [*((name, [name]) for name in subsets), ("all", list(subsets))]:
        rows = [row for part in names for row in subsets[part]]
        own = [records[f"{part}/{row.id}"] for part in names for row in subsets[part]]
        verdicts = [Verdict(*record["verdict"]) for record in own]
        out[name] = {measure: dataclasses.asdict(value) for measure, value in score(rows, verdicts).items()}
        out[name] |= {mean: sum(record[mean] for record in own) / len(own) for mean in ("tokens", "seconds")}
        out[name] |= {"rows": len(rows), "unknown": dict(Counter(verdict.reason for verdict in verdicts if verdict.kind == "unknown"))}
        out[name]["errors"] = errors(rows, verdicts)._asdict()
    out["all"]["average_f1"] = sum(out[name]["f1"]["value"] for name in subsets) / len(subsets)
    return out


def errors(rows: Sequence[Labelled], verdicts: Sequence[Verdict]) -> Errors:
    """By which a flawed share is corrected that this judge has found: of rows with a right final answer and a verdict."""
    told = [(row.label >= 0, v.kind == "flawed") for row, v in zip(rows, verdicts, strict=True) if row.right and v.kind != "unknown"]
    table = Counter(told)
    flawed, sound = (table[truth, True] + table[truth, False] for truth in (True, False))
    return Errors(found=table[True, True], flawed=flawed, alarms=table[False, True], sound=sound)


def print_table(title: str, headings: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    table = Table(*headings, title=title)
    for row in rows:
        table.add_row(*row)
    Console(width=200).print(table)


def report(scores: dict[str, dict[str, Any]]) -> None:
    """ProcessBench on the left, FlawedPositiveBench on the right; per cent with 95 % intervals, coverage beside each."""
    columns = {"error acc.": "error_accuracy", "correct acc.": "correct_accuracy", "F1": "f1"}
    columns |= {"flawed: precision": "precision", "recall": "recall", "F1 (flawed)": "flawed_f1", "coverage": "coverage"}
    rows = [
        (name, str(part["rows"]), *(str(Score(**part[measure])) for measure in columns.values()), f"{part['tokens']:.0f}")
        for name, part in scores.items()
    ]
    print_table("Judge", ("subset", "rows", *columns, "tokens"), rows)
    print(f"average F1 over subsets {100 * scores['all']['average_f1']:.1f}; an unknown verdict counts as a wrong one")


def main(arguments: Arguments) -> dict[str, dict[str, Any]]:
    subsets = read_data(arguments)
    refusal = "holds verdicts of another judge, data or sampling; name another --out"
    with arguments.judge(arguments.urls, arguments.model) as judge:
        judge.check()
        print(f"the judge is asked by the prompt {judge.asked.name}, {judge.because}", file=sys.stderr)
        made_from = stamp(dataclasses.replace(arguments, prompt=judge.asked.name), subsets)
        questions = {f"{name}/{row.id}": (row.problem, row.steps, row.answer) for name, rows in subsets.items() for row in rows}
        with Journal(arguments.out / "verdicts.jsonl", made_from, refusal) as journal:
            records = judge_all(judge, questions, journal, "judged")
    scores = summary(subsets, records)
    unfinished = {reason: count for reason, count in scores["all"]["unknown"].items() if reason in UNASKED}
    found = {"made_from": made_from, "scores": scores, "unfinished": unfinished}
    (arguments.out / "scores.json").write_text(json.dumps(found, indent=2) + "\n")
    report(scores)
    if unfinished:
        print(f"no reply came for {sum(unfinished.values())} rows ({unfinished}); the same command asks for them again", file=sys.stderr)
    return scores


def command(run: Any, arguments: Any, argv: Sequence[str] | None = None) -> None:
    """A command of this folder: a user's mistake ends it with one line and status 2."""
    try:
        run(tyro.cli(arguments, args=argv))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    command(main, Arguments)
