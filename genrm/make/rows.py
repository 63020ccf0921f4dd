"""The first stages: solutions of policies, the teacher's labels, and the rows to train, to choose and to report by."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from soundrl.fapo.named import is_named, named
from soundrl.fapo.records import Outcome, Prompt, Verdict
from soundrl.genrm import evaluate
from soundrl.genrm.critic_data.critic_data import Sampled, sample_solutions, select
from soundrl.genrm.critic_data.labelled import Labelled, load_labelled, words, write_rows
from soundrl.genrm.journal import Journal, digest
from soundrl.genrm.make.stages import Found, file_digest, linked
from soundrl.genrm.make.world import World
from soundrl.genrm.serve.machine import served_length
from soundrl.genrm.serve.server import Workers
from soundrl.genrm.serve.servers import TOKEN_ENV, JudgeServers
from soundrl.genrm.verdict import UNASKED, unanimous

ROUNDS = 3
PARTS = ("train", "selection", "report")
PLAIN = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""Of a base model, which has no chat template: it reads the problem as it is, as in a run."""


@dataclass(frozen=True, kw_only=True)
class Making(evaluate.Asking, Workers):
    """What is sampled, labelled and split."""

    problems: str
    """Problem file (see `soundrl.fapo.data.files`), or a function that makes a `soundrl.genrm.make.world.World` (`module:name`)."""
    policies: tuple[str, ...]
    """Whose solutions are labelled: model folders, which are served one after the other, or `name@url` of an endpoint."""
    teacher: tuple[str, ...]
    """Who labels: a model folder, `name@url` of one or many endpoints, or a function `module:name` that gives a vote."""
    exclude: tuple[str, ...] = ()
    """Benchmark files (or functions that make rows): their problems are left out, known by their words."""
    report: tuple[str, ...] = ()
    """Further labelled files or functions on which the chosen checkpoint is measured; their problems are left out as well."""
    max_problems: int = 0
    """Problems used, the first ones; 0 = all (of a function: as many as it makes)."""
    samples: int = 4
    """Solutions of a problem from each policy."""
    votes: int = 3
    """Replies of the teacher that must all agree."""
    temperature: float = 1.0
    """Of policies and teacher."""
    solution_tokens: int = 8192
    """Longest solution, in tokens."""
    per_question: int = 5
    """Flawed and sound training rows of one problem, at most so many of each."""
    held_out: tuple[float, float] = (0.1, 0.1)
    """Share of the problems whose rows choose the checkpoint, and of those whose rows alone are reported."""
    policy_token_env: str = TOKEN_ENV
    """Environment variable with the token of policies' endpoints; the teacher's is $SOUNDRL_GENRM_TOKEN."""
    seed: int = 0
    """Of sampling, split and training."""

    def check(self) -> None:
        """ValueError for what cannot work, with the setting and the cure."""
        if not self.policies or not self.teacher:
            raise ValueError("name at least one of --policies and a --teacher")
        if self.votes > 1 and self.temperature <= 0:
            raise ValueError(f"--votes {self.votes} at temperature 0 are one reply {self.votes} times; set --temperature above 0")
        if self.samples < 1 or self.votes < 1 or self.per_question < 1:
            raise ValueError("--samples, --votes and --per-question must be at least 1")
        if not (min(self.held_out) > 0 and sum(self.held_out) < 1):
            raise ValueError(f"--held-out {self.held_out[0]} {self.held_out[1]} are shares above 0 that leave problems to train on")
        for who in (*self.policies, *(self.teacher if not is_named(self.teacher[0]) else ())):
            if "@http" not in who and not (Path(who) / "config.json").is_file():
                raise ValueError(f"{who} is no model folder (it has no config.json) and no endpoint, which is written name@url")
        if len({who.partition("@http")[0] for who in self.teacher}) > 1 or (len(self.teacher) > 1 and "@http" not in self.teacher[0]):
            raise ValueError(f"--teacher {' '.join(self.teacher)} are several; name endpoints of one model, one folder or one function")

    def asking(self, **more: Any) -> evaluate.Asking:
        """How teacher and judge are asked: by the settings that `Asking` has, with those of `more`."""
        own = vars(self) | more
        return evaluate.Asking(**{field.name: own[field.name] for field in fields(evaluate.Asking) if field.name in own})


@contextmanager
def asked_at(who: Sequence[str], making: Making, longest: int, work: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Name and base URLs of an endpoint, or of a folder, which is served until the block ends; `longest`: of its texts, in tokens."""
    if "@http" in who[0]:
        yield who[0].partition("@http")[0], tuple("http" + one.partition("@http")[2] for one in who)
        return
    folder = _with_template(Path(who[0]), work)
    length = served_length(folder, longest, 0)
    serving = making.serving(folder, length)
    with JudgeServers(serving, logs=work) as servers:
        servers.wait()
        yield serving.name, tuple(servers.urls)


def _with_template(folder: Path, work: Path) -> Path:
    """The folder; where it has no chat template, one of links to its files with `PLAIN`."""
    file = folder / "tokenizer_config.json"
    inside = json.loads(file.read_text(encoding="utf-8")).get("chat_template") if file.is_file() else None
    if inside or any(folder.glob("chat_template.*")):
        return folder
    return linked(folder, work / f"plain-{folder.name}", "chat_template.jinja", PLAIN)


def sampled(making: Making, world: World, folder: Path) -> Found:
    """`solutions.jsonl`: the text of each solution, and whether it was cut. ValueError where some did not come, `ROUNDS` times."""
    with journal(folder, "solutions") as work:
        policies = range(len(making.policies))
        for policy in policies:
            who, keys = making.policies[policy], wanted(making, world, policy)
            if all(key in work.known for key, _ in keys):
                continue
            longest = max(len(prompt.text) for prompt in world.problems) + making.solution_tokens
            with asked_at((who,), making, longest, folder / f"policy-{policy}") as (name, urls):
                own = {field.name: getattr(making, field.name) for field in fields(Sampled) if hasattr(making, field.name)}
                own |= {"policy_urls": urls, "policy_models": (name,) * len(urls), "teacher_urls": (), "teacher_model": "", "out": folder}
                own |= {"max_tokens": making.solution_tokens} | ({} if "@http" in who else {"policy_token_env": TOKEN_ENV})
                for _ in range(ROUNDS):
                    # Dealt to the workers; what is sampled follows from the key alone.
                    if left := [(key, prompt, i % len(urls)) for i, (key, prompt) in enumerate(keys) if key not in work.known]:
                        asyncio.run(sample_solutions(Sampled(**own), left, work))
            if left := sum(key not in work.known for key, _ in keys):
                raise ValueError(f"{left} of {len(keys)} solutions of {who} did not come; the same command asks for them again")
        known = [work.known[key] for policy in policies for key, _ in wanted(making, world, policy)]
        return {"solutions": len(known), "cut": sum(record["cut"] for record in known), "sha256": digest(known)}


def wanted(making: Making, world: World, policy: int) -> list[tuple[str, Prompt]]:
    return [(f"solution/{prompt.id}/{policy}/{i}", prompt) for prompt in world.problems for i in range(making.samples)]


def journal(folder: Path, what: str) -> Journal:
    """The stage's stamp says what it is made from."""
    return Journal(folder / f"{what}.jsonl", {"of": what}, "is no such file; remove it")


def labelled(making: Making, world: World, folder: Path) -> Found:
    """`rows.jsonl`: solutions with a right final answer on whose first wrong step all of the teacher's votes agree."""
    counts, right = Counter[str](), dict[str, tuple[Prompt, list[str]]]()
    with journal(folder.parent / "sampled", "solutions") as work:
        solutions = work.known
    for key, prompt in (pair for policy in range(len(making.policies)) for pair in wanted(making, world, policy)):
        outcome = Outcome.NO_ANSWER if solutions[key]["cut"] else world.check(prompt, text := solutions[key]["text"])
        counts[f"solutions {outcome.value}"] += 1
        if outcome is Outcome.CORRECT:
            right[key] = (prompt, list(world.split(text)))
    verdicts = (_votes if is_named(making.teacher[0]) else _asked)(making, right, folder)
    rows = []
    for key, (prompt, steps) in right.items():
        verdict = verdicts[key]
        counts[f"labels {verdict.reason or verdict.kind}"] += 1
        if verdict.kind != "unknown":
            label = -1 if verdict.step is None else verdict.step
            rows.append(Labelled(id=key, problem=prompt.text, steps=tuple(steps), label=label, answer=prompt.answer))
    if not rows:
        raise ValueError(f"{folder}: no row is left ({_said(counts)}); both right solutions and labels that agree are needed")
    write_rows(folder / "rows.jsonl", rows, "all")
    return {"rows": len(rows), **counts, "sha256": file_digest(folder / "rows.jsonl")}


def _votes(making: Making, right: dict[str, tuple[Prompt, list[str]]], folder: Path) -> dict[str, Verdict]:
    """Of a function `(problem, steps, reference, seed) → Verdict`."""
    vote = named(making.teacher[0])
    return {
        key: unanimous([vote(prompt.text, steps, prompt.answer, f"{making.seed}/{key}/{i}") for i in range(making.votes)])
        for key, (prompt, steps) in right.items()
    }


def _asked(making: Making, right: dict[str, tuple[Prompt, list[str]]], folder: Path) -> dict[str, Verdict]:
    """Of a model. ValueError where a fault of the way kept back some verdicts, `ROUNDS` times."""
    questions = {f"label/{key}": (prompt.text, steps, prompt.answer) for key, (prompt, steps) in right.items()}
    longest = max((len(json.dumps(question)) for question in questions.values()), default=0)
    with journal(folder, "labels") as work:
        records = {id: work.known[id] for id in questions if id in work.known}
        if len(records) < len(questions):
            with asked_at(making.teacher, making, longest + making.max_tokens, folder / "teacher") as (name, urls):
                for _ in range(ROUNDS):
                    if len(work.known) < len(questions):
                        with making.asking(prompt="own").judge(urls, name, unanimous) as teacher:
                            teacher.check()
                            records = evaluate.judge_all(teacher, questions, work, "solutions labelled", keep_text=False)
            left = Counter(record["verdict"][2] for record in records.values() if record["verdict"][2] in UNASKED)
            if left:
                raise ValueError(
                    f"{left.total()} of {len(questions)} labels did not come ({dict(left)}); the same command asks for them again"
                )
    return {id.removeprefix("label/"): Verdict(*record["verdict"]) for id, record in records.items()}


def split(making: Making, folder: Path) -> Found:
    """`train.jsonl`, half of it flawed, and `selection.jsonl` and `report.jsonl`, as flawed as they come; no problem is in two of them."""
    rows = load_labelled(str(folder.parent / "labelled" / "rows.jsonl"))
    problems = sorted({words(row.problem) for row in rows})
    random.Random(f"{making.seed}/split").shuffle(problems)
    ends = [round(len(problems) * sum(making.held_out[:n])) for n in (1, 2)]
    places = {"selection": problems[: ends[0]], "report": problems[ends[0] : ends[1]], "train": problems[ends[1] :]}
    part_of = {problem: part for part, own in places.items() for problem in own}
    found: Found = {}
    for part in PARTS:
        own = [row for row in rows if part_of[words(row.problem)] == part]
        kept, left = select(own, making.per_question, making.seed) if part == "train" else (_distinct(own), Counter[str]())
        flawed = sum(row.label >= 0 for row in kept)
        if not 0 < flawed < len(kept):
            raise ValueError(
                f"{len(places[part])} problems leave {flawed} flawed of {len(kept)} {part} rows, both kinds are needed: more problems "
                "(--max-problems), more solutions (--samples) or a larger --held-out"
            )
        file = folder / f"{part}.jsonl"
        write_rows(file, kept, part)
        found[part] = {"problems": len(places[part]), "rows": len(kept), "flawed": flawed, "sha256": file_digest(file)}
        found[part] |= {f"left out, {reason}": count for reason, count in left.items()}
    return found


def _distinct(rows: Sequence[Labelled]) -> list[Labelled]:
    """One of each text: several votes of a wrong answer that is sampled often would count as many."""
    return list({(row.problem, row.steps): row for row in rows}.values())


def _said(counts: Counter[str]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items()) or "no solution"
