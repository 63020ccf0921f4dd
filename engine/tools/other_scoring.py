"""The same rollouts under another λ, other verdicts or another verifier: what would have been trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from soundrl.engine.config import Config
from soundrl.engine.environments.environment import build_environment, is_environment
from soundrl.engine.environments.files import ProblemFiles
from soundrl.engine.judging.judges import endpoint_judge
from soundrl.engine.samplers.turns import LOST
from soundrl.engine.tools.recomputed import Recomputed, fresh
from soundrl.fapo.judging import Judge
from soundrl.fapo.pending import done
from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Said, Verdict
from soundrl.fapo.task import OracleJudge
from soundrl.fapo.verify.verifiers import KNOWN, is_verifier

UNJUDGED = "not judged"
Verify = Callable[[Prompt, Rollout], Said | Future[Said]]


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is another; empty and None: as the run had it. All at once, where there are several."""

    lam: float | None = None
    """Another λ."""
    judge: str = ""
    """Other verdicts: by `oracle` (the world's own), by another environment's oracle (its name or path), by `model@url` (its token, if any,
    is read from $SOUNDRL_GENRM_TOKEN), or by nobody: `none`."""
    verifier: str = ""
    """Other outcomes: by math, choice, number, exact, or a function of one's own, `my_checks.py:score`."""
    allow_http: bool = False
    """Allow http without TLS to another machine (problems, answers and the token travel in the clear)."""

    def __str__(self) -> str:
        lam = "" if self.lam is None else f"λ = {self.lam:.4g}"
        return " and ".join(filter(None, (lam, self.judge and f"judge {self.judge}", self.verifier and f"verifier {self.verifier}")))

    def __bool__(self) -> bool:
        return bool(str(self))


@dataclass(frozen=True)
class Scoring:
    groups: list[Group]
    config: Config
    notes: list[str]


def scored_otherwise(step: Recomputed, change: Change) -> Scoring:
    """The step's groups with one thing, or several, changed. ValueError where that cannot be, or where a judge does not answer."""
    config, groups, notes = step.config, fresh(step.groups), list[str]()
    if config.run.critic:
        raise ValueError(f"run.task {config.run.task} has neither λ nor a judge nor a verifier; its replay is the equality alone")
    if change.lam is not None:
        if not change.lam >= 0 or change.lam == float("inf"):
            raise ValueError(f"--lam {change.lam} is no λ; use a number from 0 on")
        config = replace(config, fapo=replace(config.fapo, lam=change.lam))
    with ExitStack() as stack:
        judge = judge_of(step, change, stack)
        if change.verifier:
            groups = verified(step.with_prompts(groups, step.tokenizer), verify_of(step, change.verifier, stack))
        if change.judge or change.verifier:
            nobody = config.genrm.judge == "none" or change.judge == "none"
            groups, missing = judged(groups, judge, bool(change.judge), None if nobody else Verdict.unknown(UNJUDGED))
            if missing:
                notes.append(f"{missing} rollouts are right now and were never judged: their verdict is unknown; name a --judge")
    if change.judge == "none":
        notes.append("without a judge nothing is flawed: this is GRPO, whatever λ is")
    if config.fapo.lam and not any(verdict for group in groups for verdict in group.verdicts) and change.judge != "none":
        notes.append("no rollout of this step has a verdict, so that λ changes nothing; name a --judge")
    step.task(config).assign(groups)
    return Scoring(groups, config, notes)


def judge_of(step: Recomputed, change: Change, stack: ExitStack) -> Judge | None:
    """Who is asked for verdicts; None: nobody. `stack` closes it."""
    config, name = step.config, change.judge or ("oracle" if step.config.genrm.judge == "oracle" else "")
    if name in ("", "none"):
        return None
    if name == "oracle" or is_environment(name):
        environment = step.environment if name == "oracle" else build_environment(name, config, step.tokenizer)
        if (oracle := type(environment).oracle) is None:
            raise ValueError(f"--judge {name}: {config.data.environment if name == 'oracle' else name} has no oracle; name model@url")
        return OracleJudge(oracle)
    model, _, url = name.rpartition("@")
    if not model:
        raise ValueError(f"--judge {name}; use oracle, none, an environment with an oracle, or model@url")
    g = config.genrm
    prompt = g.prompt if url in g.urls else ""  # as another endpoint says
    judge = endpoint_judge(g, (url,), model, step.environment.split, prompt=prompt, allow_http=change.allow_http)
    stack.enter_context(judge)
    judge.check()
    return judge


def judged(groups: Sequence[Group], judge: Judge | None, again: bool, without: Verdict | None) -> tuple[list[Group], int]:
    """The groups with verdicts of all right rollouts: asked anew with `again`, else where there is none yet; `without` where nobody is
    there to ask. And how many of these are unknown."""
    asked, missing = list[list[Future[Any]]](), 0
    for place, group in enumerate(groups):
        asked.append([])
        for rollout, outcome, verdict in zip(group.rollouts, group.outcomes, group.verdicts, strict=True):
            right = outcome is Outcome.CORRECT
            if not right or (verdict is not None and not again):
                asked[-1].append(done(verdict if right else None))
            elif judge is not None:
                asked[-1].append(judge.submit(group.prompt, rollout, place))
            else:
                asked[-1].append(done(without))
                missing += without is not None
    return [replace(group, verdicts=[each.result() for each in row]) for group, row in zip(groups, asked, strict=True)], missing


def verify_of(step: Recomputed, name: str, stack: ExitStack) -> Verify:
    """A verifier by name or path, whatever the environment checks by. `stack` closes it."""
    if not is_verifier(name):
        raise ValueError(f"--verifier {name}; {KNOWN}")
    config: Any = SimpleNamespace(data=replace(step.config.data, verifier=name), run=step.config.run)
    if not step.config.data.environment:  # a function of one's own reads all columns of a row
        config = replace(step.config, data=config.data)
    checks = ProblemFiles(config, step.tokenizer)
    stack.callback(checks.close)
    found = step.sampled if step.config.data.environment else step.sampled_from(checks)
    checks.ready(found[0])
    prompts = {prompt.id: prompt for prompt in found}
    return lambda prompt, rollout: checks.check(prompts[prompt.id], rollout)


def verified(groups: Sequence[Group], verify: Verify) -> list[Group]:
    """The groups with other outcomes; what the machine had lost stays so."""
    asked = [[Outcome.UNKNOWN if r.finish_reason == LOST else verify(group.prompt, r) for r in group.rollouts] for group in groups]
    said = [[each.result() if isinstance(each, Future) else each for each in row] for row in asked]
    return [
        replace(
            group,
            outcomes=[each.outcome for each in row],
            scores=[each.reward for each in row],
            extracted=[each.extracted for each in row],
            reasons=[each.reason for each in row],
        )
        for group, row in zip(groups, said, strict=True)
    ]
