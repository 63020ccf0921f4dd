"""Critic data: labelled solutions with right final answers, in FAPO-Critic's schema (arXiv 2510.22543 §4.1).

    python -m soundrl.genrm.critic_data planted --problems gsm8k-train.jsonl --out data/critic.jsonl          exact labels, no model needed
    python -m soundrl.genrm.critic_data sampled --problems dapo.parquet --policy-urls … --policy-models … \\
        --teacher-urls … --teacher-model Qwen3-32B --out data/critic.jsonl

`planted` puts flaws at known steps of GSM8K's reference solutions, or takes the rows that a function makes (`--problems module:name`).
`sampled` has policies solve the problems, keeps the right ones, and asks a teacher for the first error several times; rows on which all
replies agree are kept.
What was asked for is written to `<out>.work` as it comes, and a run that was interrupted goes on from there; what failed on the way (a
server that was down) is asked for again by the same command.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from soundrl.fapo.data.files import load_prompts
from soundrl.fapo.named import is_named
from soundrl.fapo.records import Outcome, Prompt, Verdict
from soundrl.fapo.verify.verifier import Verifier
from soundrl.genrm import evaluate
from soundrl.genrm.critic_data.gsm8k_flaws import KINDS, plant, sound
from soundrl.genrm.critic_data.labelled import Labelled, load_labelled, write_rows
from soundrl.genrm.journal import Journal, counted, digest
from soundrl.genrm.pool.endpoint import Endpoint, Failure, extra_fields
from soundrl.genrm.pool.scorer import ScorerPool
from soundrl.genrm.prompts import PROMPTS, split_paragraphs
from soundrl.genrm.verdict import unanimous


@dataclass(frozen=True, kw_only=True)
class Common:
    problems: str
    """Problem file (see `soundrl.fapo.data.files`); for `planted` also a function that makes rows (`module:name`)."""
    out: Path
    """The file to write, `.jsonl`."""
    max_problems: int = 0
    """Problems used, the first ones; 0 = all."""
    per_question: int = 5
    """Flawed and sound rows kept of one problem, at most so many of each."""
    seed: int = 0
    """Of planting, sampling and selection."""
    split: str = "train"
    """Written into `extra_info.split`."""


@dataclass(frozen=True, kw_only=True)
class Planted(Common):
    """Exact rows from reference solutions."""


@dataclass(frozen=True, kw_only=True)
class Sampled(Common, evaluate.Asking):
    """Rows from policies' solutions and a teacher's unanimous replies."""

    policy_urls: tuple[str, ...]
    """Base URLs of the policies, one each."""
    policy_models: tuple[str, ...]
    """Their names, in the same order."""
    teacher_urls: tuple[str, ...]
    """Base URLs of the teacher's endpoints."""
    teacher_model: str
    """The teacher's name."""
    policy_token_env: str = "SOUNDRL_GENRM_TOKEN"
    """Environment variable with the policies' token; the teacher's is $SOUNDRL_GENRM_TOKEN."""
    policy_body: str = ""
    """Further fields of every request to the policies, as `body` for the teacher."""
    samples: int = 4
    """Solutions of a problem from each policy."""
    votes: int = 3
    """Replies of the teacher that must all agree."""
    temperature: float = 1.0
    """Of policies and teacher."""

    def __post_init__(self) -> None:
        if not self.policy_urls or len(self.policy_urls) != len(self.policy_models):
            raise ValueError(
                f"{len(self.policy_urls)} --policy-urls for {len(self.policy_models)} --policy-models; give one of each a policy"
            )
        if self.votes > 1 and self.temperature <= 0:
            raise ValueError(f"--votes {self.votes} at temperature 0 are one reply {self.votes} times; set --temperature above 0")


def planted_rows(arguments: Planted) -> list[Labelled]:
    """The sound solution and one flaw of each kind that fits, of every problem."""
    if is_named(arguments.problems):
        return load_labelled(arguments.problems, max_rows=arguments.max_problems or None, seed=arguments.seed, split="train")
    rows = []
    for prompt in load_prompts(arguments.problems, max_rows=arguments.max_problems or None):
        rng = random.Random(f"{arguments.seed}/{prompt.id}")
        flawed = [plant(prompt, kind, rng) for kind in KINDS]
        rows += [sound(prompt), *(row for row in flawed if row is not None)]
    return rows


async def sample_solutions(arguments: Sampled, wanted: Sequence[tuple[str, Prompt, int]], work: Journal) -> None:
    """`work` gets the text of each wanted (id, problem, number of the policy), and whether it was cut; nothing of what fails on the way."""
    policies = [
        Endpoint(url, model, token_env=arguments.policy_token_env, allow_http=arguments.allow_http)
        for url, model in zip(arguments.policy_urls, arguments.policy_models, strict=True)
    ]
    extra = extra_fields(arguments.policy_body, "--policy-body")
    clients = [ScorerPool([endpoint], concurrency=arguments.concurrency, attempts=4) for endpoint in policies]

    async def one(key: str, prompt: Prompt, number: int) -> None:
        seed = int.from_bytes(hashlib.blake2b(f"{arguments.seed}/{key}".encode(), digest_size=4).digest(), "big") >> 1
        sampling = extra | {"temperature": arguments.temperature, "max_tokens": arguments.max_tokens, "seed": seed}
        messages = list(prompt.messages or ({"role": "user", "content": prompt.text},))
        try:
            reply, _ = await clients[number].complete(partial(policies[number].body, messages, **sampling), arguments.deadline)
            work.add({"id": key, "text": reply.text, "cut": reply.finish_reason != "stop"})
        except (Failure, TimeoutError) as fault:
            print(f"{key}: {fault or 'timeout'}", file=sys.stderr)

    for client in clients:
        await client.check()
    asked = [one(*solution) for solution in wanted if solution[0] not in work.known]
    for solved in counted(asyncio.as_completed(asked), len(asked), "solutions sampled"):
        await solved


def right_solutions(wanted: Sequence[tuple[str, Prompt, int]], work: Journal, counts: Counter[str]) -> dict[str, tuple[Prompt, list[str]]]:
    """Problem and paragraphs of each solution whose final answer is right, by its key in `work`."""
    right = {}
    with Verifier() as verifier:
        for key, prompt, _ in wanted:
            if key not in work.known:
                counts["solutions unreached"] += 1
            else:
                text = work.known[key]["text"]
                outcome = Outcome.NO_ANSWER if work.known[key]["cut"] else verifier.verify(text, prompt.answer)
                counts[f"solutions {outcome.value}"] += 1
                if outcome is Outcome.CORRECT:
                    right[key] = (prompt, split_paragraphs(text))
    return right


def sampled_rows(arguments: Sampled, counts: Counter[str]) -> list[Labelled]:
    """Solutions of the policies with a right final answer and the teacher's unanimous verdict; `counts` says what became of the others."""
    prompts = load_prompts(arguments.problems, max_rows=arguments.max_problems or None)
    names = ("policy_models", "teacher_model", "samples", "votes", "temperature", "max_tokens", "seed", "prompt")
    made_from = {name: getattr(arguments, name) for name in names}
    made_from |= {"body": arguments.extra, "policy_body": extra_fields(arguments.policy_body, "--policy-body")}
    # What was read: a file may be edited, or be another one under the same name.
    made_from["problems_sha256"] = digest([(prompt.id, prompt.text, prompt.messages, prompt.answer) for prompt in prompts])
    made_from["prompt_sha256"] = PROMPTS[arguments.prompt or "own"].digest
    file = arguments.out.with_name(arguments.out.name + ".work")
    policies, samples = range(len(arguments.policy_urls)), range(arguments.samples)
    wanted = [(f"solution/{prompt.id}/{policy}/{i}", prompt, policy) for prompt in prompts for policy in policies for i in samples]
    with (
        Journal(file, made_from, "was begun with other arguments; remove it or name another --out") as work,
        arguments.judge(arguments.teacher_urls, arguments.teacher_model, unanimous) as teacher,
    ):
        asyncio.run(sample_solutions(arguments, wanted, work))
        right = right_solutions(wanted, work, counts)
        teacher.check()
        if not teacher.asked.locates:
            raise ValueError(f"the teacher is asked by the prompt {teacher.asked.name}, which finds no step; name another by --prompt")
        questions = {f"label/{key}": (prompt.text, parts, prompt.answer) for key, (prompt, parts) in right.items()}
        records = evaluate.judge_all(teacher, questions, work, "solutions labelled", keep_text=False)
    rows = []
    for key, (prompt, paragraphs) in right.items():
        verdict = Verdict(*records[f"label/{key}"]["verdict"])
        counts[f"labels {verdict.reason or verdict.kind}"] += 1
        label = -1 if verdict.kind == "sound" else verdict.step
        if label is not None:
            rows.append(Labelled(id=key, problem=prompt.text, steps=tuple(paragraphs), label=label, answer=prompt.answer))
    return rows


def select(rows: Iterable[Labelled], per_question: int, seed: int) -> tuple[list[Labelled], Counter[str]]:
    """Rows to keep, in a seeded order, and how many were left out by reason.

    Left out: a `duplicate` (same problem and steps), a row that `conflicts` with one of the same text and another label (both go), rows
    above `cap` (at most `per_question` flawed and as many sound ones of a problem), and the surplus of the larger class (`balance`).

    Example: three flawed and one sound solution of one problem, `per_question` 2 → one flawed, one sound; left out: cap 1, balance 1.
    """
    texts: dict[tuple[str, tuple[str, ...]], list[Labelled]] = {}
    for row in rows:
        texts.setdefault((row.problem, row.steps), []).append(row)
    agreed = [same[0] for same in texts.values() if len({row.label for row in same}) == 1]
    random.Random(seed).shuffle(agreed)
    taken: Counter[tuple[str, bool]] = Counter()
    classes: dict[bool, list[Labelled]] = {True: [], False: []}
    for row in agreed:
        place = (row.problem, row.label >= 0)
        taken[place] += 1
        if taken[place] <= per_question:
            classes[row.label >= 0].append(row)
    capped = sum(map(len, classes.values()))
    kept = [row for part in classes.values() for row in part[: min(map(len, classes.values()))]]
    random.Random(seed + 1).shuffle(kept)
    left = Counter(duplicate=sum(len(same) - 1 for same in texts.values()), conflict=len(texts) - len(agreed))
    return kept, +(left + Counter(cap=len(agreed) - capped, balance=capped - len(kept)))


def main(arguments: Planted | Sampled) -> list[Labelled]:
    """Write the file, and say what was kept and what was left out, and why."""
    counts: Counter[str] = Counter()
    rows = sampled_rows(arguments, counts) if isinstance(arguments, Sampled) else planted_rows(arguments)
    kept, left = select(rows, arguments.per_question, arguments.seed)
    if not kept:
        raise ValueError(f"{arguments.problems}: no row is left of {len(rows)}; both flawed and sound solutions are needed")
    write_rows(arguments.out, kept, arguments.split)
    parts = [*counts.items(), *((f"left out, {reason}", count) for reason, count in left.items())]
    print(f"{len(kept)} rows in {arguments.out}, half of them flawed; " + ", ".join(f"{name}: {count}" for name, count in parts))
    return kept


def command(argv: Sequence[str] | None = None) -> None:
    evaluate.command(main, Planted | Sampled, argv)
