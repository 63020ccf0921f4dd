"""Evaluating a policy: any model folder or endpoint on any sets, with pass@k, soundness and intervals; every rollout is kept.

    python -m soundrl.engine.evaluate --model models/Qwen2.5-Math-7B --data aime24 aime25 --preset paper --out runs/eval-base
    python -m soundrl.engine.evaluate --model my-model --urls http://127.0.0.1:8000/v1 --data math500 --samples 4 --out runs/eval-served
    python -m soundrl.engine.evaluate --judge-again runs/eval-base --judge-urls http://127.0.0.1:8001/v1 --judge-model FAPO-GenRM-4B
    python -m soundrl.engine.evaluate --compare runs/eval-base runs/eval-fapo

The judge is the other one's business: `soundrl.genrm.evaluate` judges the *judge*, on solutions whose first wrong step is known.

One process, no FSDP, no optimizer. Seeds follow from seed, problem and sample, so that two calls, a killed one that goes on, and one that
asks in another order give the same rollouts.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from soundrl.engine.config import Config, Data, Fapo, Genrm, Model, Optim, Run
from soundrl.engine.config import Rollout as RolloutSettings
from soundrl.engine.evaluation import again
from soundrl.engine.evaluation.figures import compared, tell
from soundrl.engine.evaluation.kept import Kept, keeps, lacking
from soundrl.engine.evaluation.local import Local, alone
from soundrl.engine.evaluation.protocol import Protocol, settled
from soundrl.engine.evaluation.served import ERROR, Served
from soundrl.engine.evaluation.sets import ProblemSet, check, load_sets
from soundrl.engine.files.underway import RememberingJudge, Underway
from soundrl.engine.judges import BuiltJudge, build_judge
from soundrl.engine.launch.launch import be_quiet
from soundrl.engine.ranks import Ranks
from soundrl.engine.samplers.sampler import Draw, Request
from soundrl.engine.task import build_task
from soundrl.fapo.data.files import INSTRUCTION
from soundrl.fapo.judging import Judge
from soundrl.fapo.printable import printable
from soundrl.fapo.records import Group, Outcome, Rollout
from soundrl.fapo.task import ReasoningTask
from soundrl.genrm.evaluate import Asking, command
from soundrl.genrm.journal import counted
from soundrl.genrm.pool.endpoint import extra_fields
from soundrl.genrm.pool.judge import EndpointJudge
from soundrl.genrm.prompts import PROMPTS


ROOM = 1 << 20  # tokens, until lengths are known
OPTIONS = {f"data.{name}": f"--{name}" for name in ("columns", "form", "verifier", "reward", "instruction")}
OPTIONS |= {"data.train": "--data", "data.test": "--data", "rollout.turns": "--turns", "rollout.max_new_tokens": "--max-new-tokens"}
OPTIONS |= {f"genrm.{name}": f"--judge-{name}" for name in ("urls", "model", "max_tokens", "sampling")} | {"genrm.judge": "--judge"}
OPTIONS |= {"run.name": "--out", "rollout.memory": "--memory", "data.test_rows": "--rows"}
SETTING = re.compile("|".join(map(re.escape, sorted(OPTIONS, key=len, reverse=True))))
"""What a run calls a setting, and this command an option."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Who is evaluated."""

    model: str = ""
    """Model folder (safetensors), as an export of a run, `runs/x/policy/step-000080`; with --urls the name under which they serve it."""
    urls: tuple[str, ...] = ()
    """Base URLs of OpenAI-compatible servers of the model; a token, if any, is read from $SOUNDRL_MODEL_TOKEN. Empty = the folder, here."""
    engine: Literal["vllm", "torch"] = "vllm"
    """Sampler of a folder: vLLM in this process, or plain torch (slow)."""
    dtype: Literal["", "float32", "bfloat16"] = ""
    """Type of the weights as they compute; empty = bfloat16 on a GPU, float32 on CPU."""
    rope_base_length: int = 0
    """Overrides `max_position_embeddings` of the folder's config (the paper's 7B policies: 32768); 0 keeps it."""
    memory: float = 0.0
    """vLLM's share of the GPU's memory, or on CPU its KV cache in GiB; 0 = 0.85 or 1."""
    eager: bool = False
    """No compilation and no CUDA graphs in vLLM; on CPU always so."""
    body: str = ""
    """Further fields of every request to --urls, a JSON object, as '{"chat_template_kwargs": {"enable_thinking": false}}'."""
    concurrency: int = 64
    """Requests under way at once on each endpoint, of the model and of the judge."""
    deadline: float = 1800.0
    """Seconds until a reply is given up, of the model's and the judge's."""
    allow_http: bool = False
    """Allow http without TLS to another machine (problems, answers and tokens travel in the clear)."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What it is asked."""

    data: tuple[str, ...] = ()
    """Sets: aime24, aime25, math500, gsm8k, amc23, gpqa-diamond, olympiadbench; files, folders, Hub names, `rg:…` and environments as
    `data.test` takes them."""
    data_dir: str = "data"
    """Where the sets with a name are."""
    rows: int = 0
    """Problems used of each set, the first ones; 0 = all."""
    columns: tuple[str, ...] = ()
    """As `data.columns`: ours=theirs."""
    form: str = ""
    """As `data.form`: where answers stand in responses."""
    verifier: str = ""
    """As `data.verifier`: who checks a response; empty = as each row says."""
    reward: tuple[Literal["pool", "here"], float] = ("pool", 1.0)
    """As `data.reward`: where a verifier of one's own runs, and from which reward on a response is right."""
    instruction: str = INSTRUCTION
    """As `data.instruction`: follows a problem that is a text."""
    skip_unusable: bool = False
    """Go on without rows that cannot be used."""
    preset: Literal["", "paper", "paper-32b", "greedy"] = ""
    """Published protocol: paper = avg@32 (GPQA avg@4), temperature 1, top-p 0.7, 8,192 new tokens; paper-32b = 20,480; greedy."""
    samples: int | None = None
    """Responses a problem; overrides the preset, as the next three do. Without any: 1."""
    temperature: float | None = None
    """Sampling temperature, 0 = greedy; without any: 1."""
    top_p: float | None = None
    """Nucleus; without any: 1."""
    max_new_tokens: int | None = None
    """Longest response, in tokens; without any, or 0: what the model's context leaves, 8,192 at most."""
    turns: tuple[int, float] = (8, 10.0)
    """As `rollout.turns`: where an environment answers, most turns and the CPU seconds of a tool call."""
    seed: int = 0
    """Of all sampling."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Who judges the right responses."""

    judge: Literal["", "none", "oracle", "endpoint"] = ""
    """Nobody, an environment's oracle, or --judge-urls; empty = the last where it is given, else nobody."""
    judge_urls: tuple[str, ...] = ()
    """Base URLs of the judge; a token, if any, is read from $SOUNDRL_GENRM_TOKEN."""
    judge_model: str = ""
    """Its name, as the endpoints list it under /models."""
    judge_prompt: str = ""
    """Its prompt, by name (genrm/prompts.py); empty = the one that its endpoint says it was trained on, else own."""
    judge_votes: int = 1
    """Replies a solution, of which the majority counts."""
    judge_temperature: float = 0.0
    """Its sampling temperature; above 0 for more than one vote."""
    judge_max_tokens: int = 8192
    """Longest critique, in tokens."""
    judge_body: str = ""
    """Further fields of every request to it, a JSON object."""
    judge_reference: bool = True
    """Show it the reference answer."""
    judge_again: Path | None = None
    """Judge the rollouts of this run's or evaluation's folder once more, by another judge, and sample nothing."""
    judge_name: str = ""
    """Under which --judge-again keeps its verdicts; empty = by the judge's model."""
    step: int | None = None
    """Of the run that --judge-again names; without any: its last one."""
    kind: Literal["", "train", "eval"] = ""
    """Which rollouts of that step; empty = those of training where there are some, else of the evaluation."""


@dataclass(frozen=True, kw_only=True)
class Arguments(Policy, Asked, Judged):
    """Command line of `python -m soundrl.engine.evaluate`."""

    out: Path | None = None
    """Folder of the evaluation; what was begun there goes on."""
    compare: tuple[Path, Path] | None = None
    """Two evaluations: the second's figures less the first's, paired by problem."""

    @property
    def judging(self) -> str:
        return self.judge or ("endpoint" if self.judge_urls else "none")

    @property
    def genrm(self) -> Genrm:
        """The judge as a run has it."""
        if self.judging != "endpoint":
            return Genrm(judge=self.judging)
        return Genrm(
            judge="endpoint",
            urls=self.judge_urls,
            model=self.judge_model,
            allow_http=self.allow_http,
            max_tokens=self.judge_max_tokens,
            sampling=(self.judge_temperature, self.judge_votes),
            concurrency=self.concurrency,
            reference=self.judge_reference,
        )

    def judge_stamp(self, judge: EndpointJudge) -> dict[str, Any]:
        """What its verdicts follow from; of a judge that has been checked."""
        how = {name: getattr(self, f"judge_{name}") for name in ("model", "votes", "temperature", "max_tokens", "body", "reference")}
        return how | {"prompt": judge.asked.name, "prompt_sha256": PROMPTS[judge.asked.name].digest}

    def endpoint_judge(self) -> EndpointJudge:
        """ValueError where it cannot work."""
        if not (self.judge_urls and self.judge_model):
            raise ValueError("a judge needs --judge-urls and --judge-model")
        asking = Asking(
            votes=self.judge_votes,
            temperature=self.judge_temperature,
            max_tokens=self.judge_max_tokens,
            concurrency=self.concurrency,
            deadline=self.deadline,
            allow_http=self.allow_http,
            prompt=self.judge_prompt,
            body=self.judge_body,
        )
        judge = asking.judge(self.judge_urls, self.judge_model)
        judge.with_reference = self.judge_reference
        return judge


class Evaluation:
    """One, of checked arguments, written to `kept`."""

    def __init__(self, arguments: Arguments, protocol: Protocol, kept: Kept, ranks: Ranks) -> None:
        self.arguments, self.protocol, self.kept, self.ranks = arguments, protocol, kept, ranks
        a, on_cpu = arguments, ranks.device.type == "cpu"
        dtype = a.dtype or ("float32" if on_cpu else "bfloat16")
        self.model = Model(path=a.model, dtype=dtype, max_length=ROOM, rope_base_length=a.rope_base_length)
        self.memory, self.eager = a.memory or (1.0 if on_cpu else 0.85), a.eager or on_cpu
        extra = extra_fields(a.body, "--body")
        self.policy = (
            Served(a.urls, a.model, concurrency=a.concurrency, deadline=a.deadline, extra=extra, allow_http=a.allow_http)
            if a.urls
            else Local(self.model, a.engine, ranks)
        )
        self.judge: EndpointJudge | None = None
        self.errors: Counter[str] = Counter()
        """Rollouts that the way to the model has lost, by reason"""

    def config_of(self, place: str) -> Config:
        """A run on one set; its lengths are known when its prompts are."""
        a, protocol = self.arguments, self.protocol
        data = {name: getattr(a, name) for name in ("columns", "form", "verifier", "reward", "instruction", "skip_unusable")}
        try:
            return Config(
                model=self.model,
                data=Data(train=(place,), test=(place,), test_rows=a.rows, **data),
                rollout=RolloutSettings(
                    engine=a.engine, max_new_tokens=protocol.max_new_tokens or 1, memory=self.memory, eager=self.eager, turns=a.turns
                ),
                optim=Optim(microbatch_tokens=ROOM),
                fapo=Fapo(lam=0.0),  # nothing is trained, so nobody needs a judge
                genrm=a.genrm,
                run=Run(
                    name=self.kept.path.name,
                    folder=str(self.kept.path.parent),
                    steps=0,
                    seed=a.seed,
                    eval_sampling=(protocol.samples, protocol.temperature, protocol.top_p),
                ),
            )
        except ValueError as error:
            raise ValueError(SETTING.sub(lambda found: OPTIONS[found[0]], str(error))) from None

    def __call__(self) -> dict[str, Any]:
        """The scores."""
        a, policy = self.arguments, self.policy
        sets, left_out = load_sets(a.data, a.data_dir, self.config_of, policy.tokenizer)
        try:
            asked = self.protocol.max_new_tokens
            beside = self.kept.path.with_name(f"{self.kept.path.name}.left_out.jsonl")
            for line in check(sets, left_out, lambda part: policy.encoder(part, asked), beside):
                say(line)
            self.length, self.new_tokens = policy.lengths(sets, asked)
            if a.judging == "endpoint":
                self.judge = a.endpoint_judge()
                self.judge.check()
                say(f"the judge is asked by the prompt {self.judge.asked.name}, {self.judge.because}")
            made_from = self.made_from(sets)
            self.kept.begin(self.config(sets), made_from)
            say(f"{self.kept.path}: {', '.join(f'{part.name} {len(part.prompts)} × {self.samples(part)}' for part in sets)}, {self.said()}")
            self.checked = False
            found = {part.name: self.groups(part, sets) for part in sets}
        finally:
            for part in sets:
                part.environment.close()
        return tell(self.kept, sets, found, made_from, self.errors)

    def samples(self, part: ProblemSet) -> int:
        return self.protocol.samples_of(part.name)

    def said(self) -> str:
        p = self.protocol
        how = "greedy" if p.temperature == 0 else f"temperature {p.temperature:g}, top-p {p.top_p:g}"
        return f"{how}, {self.new_tokens} new tokens at most, judge {self.arguments.judging}"

    def config(self, sets: Sequence[ProblemSet]) -> Config:
        """What stands in config.json: of the first set, with all of them under `data.test`."""
        first = sets[0].config
        return replace(
            first,
            model=replace(first.model, max_length=self.length),
            data=replace(first.data, test=tuple(dict.fromkeys(part.config.data.test[0] for part in sets))),
            rollout=replace(first.rollout, max_new_tokens=self.new_tokens),
        )

    def made_from(self, sets: Sequence[ProblemSet]) -> dict[str, Any]:
        """What must be the same for an evaluation to go on, by content."""
        a, p, judge = self.arguments, self.protocol, self.judge
        how = {"seed": a.seed, "temperature": p.temperature, "top_p": p.top_p, "max_new_tokens": self.new_tokens, "turns": a.turns}
        who = a.judging if judge is None else a.judge_stamp(judge)
        checked = {"verifier": a.verifier, "reward": a.reward}
        of_sets = {p.name: {"source": p.source, "samples": self.samples(p), "rows": len(p.prompts), "sha256": p.sha256} for p in sets}
        return self.policy.made_from | how | checked | {"judge": who, "sets": of_sets}

    def groups(self, part: ProblemSet, sets: Sequence[ProblemSet]) -> list[Group]:
        """A set's groups, in the order of its problems: what is known already, and the rest sampled; verified and judged as it comes."""
        p, config, underway = self.protocol, self.config(sets), self.kept.underway(part)
        draw = Draw(
            run_seed=self.arguments.seed,
            phase="eval",
            step=0,
            temperature=p.temperature,
            max_new_tokens=self.new_tokens,
            top_p=p.top_p,
        )
        requests = draw.requests([(prompt.id, part.tokens[prompt.id]) for prompt in part.prompts], self.samples(part))
        known = self.kept.known(part, underway)
        missing = lacking(requests, known, self.policy.part)
        if known:
            say(f"{part.name}: {len(known)} of {len(requests)} responses are there")
        if missing and not self.checked:
            self.policy.check(sets)
            self.checked = True
        task = build_task(part.config, part.environment, BuiltJudge(self.judge_of(part, underway)))
        assert isinstance(task, ReasoningTask)
        verify = task.verify
        task.verify = lambda prompt, rollout: Outcome.NO_ANSWER if rollout.finish_reason.startswith(ERROR) else verify(prompt, rollout)
        try:
            pending = task.collect(part.prompts, chain(known.values(), self.sampled(part, config, missing, underway)))
            groups = pending.groups(measuring=True)
        finally:
            underway.flush()
            underway.close()
        self.errors += Counter(r.finish_reason for group in groups for r in group.rollouts if not keeps(r))
        self.kept.save(part, groups)
        underway.end()
        return groups

    def sampled(self, part: ProblemSet, config: Config, missing: Sequence[Request], underway: Underway) -> Iterator[Rollout]:
        for rollout in counted(self.policy.sample(part, config, missing), len(missing), f"responses to {part.name}"):
            if keeps(rollout):
                underway.add(rollout)
                if self.policy.remote:  # each has cost somebody something
                    underway.flush()
            yield rollout

    def judge_of(self, part: ProblemSet, underway: Underway) -> Judge | None:
        if self.judge is None:
            return build_judge(part.config, part.environment, self.ranks, say).judge
        self.judge.split = part.environment.split
        return RememberingJudge(self.judge, underway)

    def close(self) -> None:
        self.policy.close()
        if self.judge is not None:
            self.judge.close()


def say(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)


def main(arguments: Arguments) -> dict[str, Any]:
    """The scores, or what is compared. ValueError, one line, for a mistake of the user's."""
    a = arguments
    if a.compare is not None:
        return compared(*a.compare)
    if a.judge_again is not None:
        return again.judge_again(a)
    if missing := [name for name in ("model", "data", "out") if not getattr(a, name)]:
        raise ValueError(f"--{missing[0]} is missing; an evaluation needs --model, --data and --out (or --judge-again, or --compare)")
    protocol = settled(a.preset, a.samples, a.temperature, a.top_p, a.max_new_tokens)
    assert a.out is not None
    with alone() as ranks, Kept(a.out, ranks) as kept:
        evaluation = Evaluation(a, protocol, kept, ranks)
        try:
            return evaluation()
        finally:
            evaluation.close()


if __name__ == "__main__":
    be_quiet()
    command(main, Arguments)
