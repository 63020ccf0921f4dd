"""The command line of an evaluation, and the judge that it names."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from soundrl.engine.config import Genrm
from soundrl.fapo.data.files import INSTRUCTION
from soundrl.genrm.evaluate import Asking
from soundrl.genrm.pool.judge import EndpointJudge
from soundrl.genrm.prompts import PROMPTS

OF_FOLDER = {"engine", "dtype", "rope_base_length", "memory", "eager"}
OF_BOTH = {"concurrency", "deadline", "allow_http"}
"""Of every endpoint, the model's and the judge's."""
OPTIONS = {f"data.{name}": f"--{name}" for name in ("columns", "form", "verifier", "reward", "instruction")}
OPTIONS |= {"data.train": "--data", "data.test": "--data", "rollout.turns": "--turns", "rollout.max_new_tokens": "--max-new-tokens"}
OPTIONS |= {f"genrm.{name}": f"--judge-{name}" for name in ("urls", "model", "max_tokens", "sampling")} | {"genrm.judge": "--judge"}
OPTIONS |= {"run.name": "--out", "rollout.memory": "--memory", "data.test_rows": "--rows"}
SETTING = re.compile(f"(?:--)?({'|'.join(map(re.escape, sorted(OPTIONS, key=len, reverse=True)))})")
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
    judge_errors: Path | None = None
    """The --out of `soundrl.genrm.evaluate` on this judge: corrects the flawed share for its errors."""
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
    """Two evaluations: the first's figures less the second's, paired by problem."""

    def check(self) -> None:
        """ValueError for an option that would change nothing beside the others."""
        names = {kind: {field.name for field in fields(kind)} for kind in (Policy, Asked, Judged)}
        of_again, of_judge = {"judge_again", "judge_name", "step", "kind"}, {n for n in names[Judged] if n.startswith("judge_")}
        if self.compare is not None:
            used, what = {"compare"}, "--compare"
        elif self.judge_again is not None:
            used, what = names[Judged] | OF_BOTH, "--judge-again"
        else:
            used = names[Policy] | names[Asked] | names[Judged] | {"out"}
            used, what = used - of_again - (OF_FOLDER if self.urls else {"body"}), "an endpoint" if self.urls else "a model folder"
        if self.judging != "endpoint" and self.compare is None:
            if self.judge_model and not self.judge_urls:
                raise ValueError(f"--judge-model {self.judge_model} needs --judge-urls, where it is served")
            used, what = used - (of_judge - of_again), f"{what}, judge {self.judging}"
            used -= OF_BOTH if not self.urls else set()
        for field in fields(self):
            if field.name not in used and getattr(self, field.name) != field.default:
                raise ValueError(f"--{field.name.replace('_', '-')} changes nothing for {what}; leave it out")

    @property
    def judging(self) -> Literal["none", "oracle", "endpoint"]:
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
