"""All settings of a run: frozen dataclasses, one line of help each, checked as a whole when they are built."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Literal, get_type_hints

from soundrl.engine.environments.environment import NAMED, environment_of
from soundrl.fapo.data.files import INSTRUCTION
from soundrl.kernels.loss_rule import LossRule


@dataclass(frozen=True, kw_only=True)
class Model:
    path: str
    """Folder in Hugging Face format with safetensors, or the name of an environment for its own model with fresh weights."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the forward and backward pass and of the sampler; master weights and optimizer state are always float32."""
    max_length: int = 4096
    """Longest prompt + response, in tokens."""
    rope_base_length: int = 0
    """Overrides `max_position_embeddings` of the folder's config (the paper's 7B recipe needs it); 0 keeps it."""
    attention: Literal["triton", "flash", "sdpa"] = "triton"
    """Attention over packed rows: our kernels (on CPU, where nothing compiles them, sdpa serves), flash-attn where installed, or sdpa."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass: about 30 % more time, activations of one layer instead of all."""


@dataclass(frozen=True, kw_only=True)
class Data:
    train: str
    """Training problems: a .jsonl, .json or .parquet file, `rg:<name>` for a reasoning-gym data set, or an environment's name."""
    test: tuple[str, ...] = ()
    """Evaluation sets, same forms; an environment's name stands for all of its own."""
    test_rows: int = 0
    """Problems used of each evaluation set, the first ones; 0 = all (of an endless source: 400)."""
    instruction: str = INSTRUCTION
    """Follows a blank line after the problem in rows of the form {problem, answer}."""
    skip_unusable: bool = False
    """Go on without rows that cannot be used (unreadable, too long, no comparable answer); off names them all and stops."""


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    steps: int = 0
    """Supervised steps on rows with a `solution` before the first rollout; 0 = none."""
    batch: int = 32
    """Rows a step, over all ranks."""
    lr: float = 1e-5
    """AdamW learning rate; linear warm-up over 2 % of the steps, linear decay to a tenth."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    engine: Literal["vllm", "torch"] = "vllm"
    """Sampler: vLLM in this process, or plain torch with a KV cache (slow; where vLLM cannot be installed)."""
    prompts: int = 512
    """Prompts a step, over all ranks."""
    samples: int = 8
    """Rollouts a prompt (the group size G)."""
    temperature: float = 1.0
    """Sampling temperature of training rollouts; top-p and top-k stay off, as they would bias the log-probabilities."""
    max_new_tokens: int = 1024
    """Longest response, in tokens."""
    memory: float = 0.4
    """vLLM's share of a GPU's memory; on CPU its KV cache in GiB."""
    tensor_parallel: int = 1
    """Ranks that share one vLLM engine."""
    eager: bool = False
    """No compilation and no CUDA graphs in vLLM: starts in seconds, decodes slower on a GPU."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    variant: str = "dapo"
    """dapo, grpo, dr_grpo, gspo, cispo or sapo: surrogate and denominator by the table in kernels/loss_rule.py."""
    clip_low: float = 0.2
    """Lower clip of the ratio: 1 − clip_low."""
    clip_high: float = 0.28
    """Upper clip of the ratio: 1 + clip_high (clip-higher, arXiv 2503.14476)."""
    dual_clip: float = 10.0
    """Bound on the loss of negative advantages, in multiples of the advantage."""
    correction: str = "tis"
    """Weight against the sampler's own log-probabilities: none, tis, icepop or sequence (kernels/policy_loss.py)."""
    correction_band: tuple[float, float] = (0.5, 2.0)
    """Edges, on either side of 1, of the icepop and sequence bands (of a probability ratio); the upper one caps tis."""

    def rule(self) -> LossRule:
        low, high = self.correction_band
        others = {name: value for name, value in dataclasses.asdict(self).items() if name != "correction_band"}
        return LossRule(**others, correction_low=low, correction_high=high)


@dataclass(frozen=True, kw_only=True)
class Optim:
    lr: float = 1e-6
    """AdamW learning rate, constant after warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW moment decays."""
    weight_decay: float = 0.1
    """AdamW weight decay."""
    warmup_steps: int = 10
    """Optimizer steps of linear warm-up."""
    grad_clip: float = 1.0
    """Largest global gradient norm."""
    minibatch_prompts: int = 32
    """Prompts (whole groups) per optimizer step, over all ranks."""
    microbatch_tokens: int = 16384
    """Tokens packed into one forward pass of a rank."""


@dataclass(frozen=True, kw_only=True)
class Fapo:
    lam: float = 1.0
    """λ: what a flawed positive loses of its reward (arXiv 2510.22543 Eq. 8); 0 is GRPO."""
    normalize_std: bool = True
    """Divide the advantage by the group's standard deviation; off = Dr. GRPO."""
    overlong: tuple[int, float] = (0, 1.0)
    """Length penalty: the tokens before `max_new_tokens` over which it grows linearly (0 = none), and its size there in units of reward."""


@dataclass(frozen=True, kw_only=True)
class Genrm:
    judge: Literal["oracle", "endpoint", "serve", "none"] = "endpoint"
    """Who judges correct rollouts: the embedded world's exact oracle, OpenAI endpoints, servers that the run starts, or nobody."""
    urls: tuple[str, ...] = ()
    """Base URLs of one or many endpoints, e.g. http://127.0.0.1:8000/v1; their token, if any, is read from $SOUNDRL_GENRM_TOKEN."""
    allow_http: bool = False
    """Allow http without TLS to another machine (problems, answers and the token travel in the clear)."""
    model: str = ""
    """Model name, as the endpoints list it under /models; with judge serve the model's folder."""
    workers: int = 1
    """Servers that the run starts on each node (judge serve): each takes the next `genrm.tensor_parallel` GPUs; on CPU one thread."""
    max_tokens: int = 8192
    """Longest critique, in tokens."""
    sampling: tuple[float, int] = (0.0, 1)
    """Sampling temperature of the judge, and votes a solution, whose majority counts (more than one needs a temperature above 0)."""
    deadline: tuple[float, float] = (300.0, 3600.0)
    """Seconds until a verdict is given up as unknown(timeout): from its first request, and, the queue included, from the end of its
    rollout. A step waits no longer than the second from the end of its sampling, whatever the judge does."""
    concurrency: int = 128
    """Requests under way at once on each endpoint, over all ranks that ask it (each has at least one)."""
    prompt: Literal["", "own", "paper", "outcome", "own-read", "paper-read", "outcome-read"] = ""
    """The judge's prompt, by name (genrm/prompts.py), or with `run.task` critic the one that is trained on; -read: nothing is written, the
    verdict's probability is read. Empty = what its folder (card.json) or endpoint (`NAME@PROMPT` in /models) says, else own."""
    reference: bool = True
    """Show the reference answer to the judge."""
    min_f1: float = 0.0
    """F1 of `flawed` on the probe's solutions below which a run refuses its judge, before the first step; 0 = any."""
    alarm: Literal["tell", "pause", "stop"] = "tell"
    """What an alarm of the judge's watch does (those by the clock only tell): tell; stop (saved, status 2); or pause: saved, nothing trains
    until a probe finds the judge well again; where no probe can tell that, stop."""
    second: tuple[str, float] = ("", 0.05)
    """A second opinion on a seeded share of judged rollouts, which changes no reward: `oracle`, `votes`, `order` (the same judge, the
    solution before the problem), or another judge as `model@url` (token: $SOUNDRL_SECOND_TOKEN); empty = none."""
    tensor_parallel: int = 1
    """GPUs of one server (judge serve), which divide its weights and attention heads; a judge that does not fit on one needs several."""
    probe: tuple[str, int] = ("", 10)
    """Labelled solutions that watch the judge (a ProcessBench or FAPO-Critic file, or a function `module:name`; empty = none), and steps
    between probes."""
    unknown: Literal["drop", "rule"] = "drop"
    """A rollout without verdict leaves its group (drop), or keeps the rule reward as in the paper's released code (rule)."""
    max_unknown: float = 0.2
    """The run stops when a larger share of judged rollouts has no verdict, three steps in a row (never where fapo.lam is 0)."""


@dataclass(frozen=True, kw_only=True)
class Run:
    name: str
    """Run folder below `folder`; any letters, digits, spaces and signs but `/`."""
    task: Literal["reasoning", "critic", "critic-outcome"] = "reasoning"
    """What is trained: a policy that reasons, or a GenRM, with the full reward or without R_process (the ablation)."""
    folder: str = "runs"
    """Where run folders live."""
    steps: int = 200
    """Rollout batches to train on; 0 = the warm start alone, and what `data.test` says of it."""
    seed: int = 0
    """Seeds data order, sampling and fresh weights."""
    eval_every: int = 10
    """Steps between evaluations (one before the first and one after the last step as well); 0 = only those two."""
    eval_sampling: tuple[int, float, float] = (1, 1.0, 1.0)
    """Evaluation: rollouts a problem (avg@k), temperature, and nucleus (top-p)."""
    overlap: bool = True
    """Train on groups whose verdicts are there while others are judged; off waits for all first, and on GPUs a served judge sleeps but for
    that phase, as it does where it and the policy do not fit at once. All compute the same, bit for bit."""
    save: tuple[int, int, int] = (20, 2, 0)
    """Checkpoints: steps between them (0 = only at the end), how many of the last are kept, and of the earlier ones each whose step is a
    multiple of the third (0 = none)."""
    resume: bool = True
    """Go on from the last checkpoint of this name; off moves an earlier run aside and begins anew (a job that is started again goes on)."""
    grace: float = 25.0
    """Seconds from the first SIGTERM, SIGHUP or Ctrl-C to the end: the step is finished or left, and the state saved; a second one ends at
    once."""
    patience: float = 60.0
    """Seconds without any progress on any rank after which the run says what each of them waits for, and ends with a status that restarts;
    longer in phases that were seen to take longer, and ten times as long in those not seen yet."""
    gate: float = 1.05
    """After each weight sync the mean of exp|Δ log-prob| between sampler and trainer may not exceed this, or the run stops."""

    @property
    def critic(self) -> bool:
        return self.task != "reasoning"


@dataclass(frozen=True, kw_only=True)
class Config:
    """A complete run. `engine/recipes.py` holds named ones; any setting can be overridden on the command line."""

    model: Model
    data: Data
    run: Run
    rollout: Rollout = field(default_factory=Rollout)
    warm_start: WarmStart = field(default_factory=WarmStart)
    loss: Loss = field(default_factory=Loss)
    optim: Optim = field(default_factory=Optim)
    fapo: Fapo = field(default_factory=Fapo)
    genrm: Genrm = field(default_factory=Genrm)

    def __post_init__(self) -> None:
        for conflict in self._conflicts():
            raise ValueError(conflict)

    def _conflicts(self) -> Iterator[str]:
        """Each names the setting, what is wrong with it and the cure."""
        model, run, rollout, optim, loss, genrm = self.model, self.run, self.rollout, self.optim, self.loss, self.genrm
        for setting in POSITIVE:
            if not (value := attrgetter(setting)(self)) > 0:  # NaN is none of these either
                yield f"{setting} is {value}, but must be > 0"
        for setting in NOT_NEGATIVE:
            if not (value := attrgetter(setting)(self)) >= 0:
                yield f"{setting} is {value}, but must be ≥ 0"
        if rollout.prompts % optim.minibatch_prompts:
            yield (
                f"rollout.prompts {rollout.prompts} is no multiple of optim.minibatch_prompts {optim.minibatch_prompts}; "
                "mini-batches hold whole groups of one rollout batch: set one a multiple of the other"
            )
        if rollout.samples < 2:
            yield f"rollout.samples {rollout.samples} leaves no group to compare with; set at least 2"
        if rollout.max_new_tokens >= model.max_length:
            yield (
                f"rollout.max_new_tokens {rollout.max_new_tokens} leaves no room for a prompt in model.max_length {model.max_length}; "
                "raise model.max_length or shorten responses"
            )
        if optim.microbatch_tokens < model.max_length:
            yield (
                f"optim.microbatch_tokens {optim.microbatch_tokens} cannot hold one sequence of model.max_length {model.max_length}; "
                "raise optim.microbatch_tokens or lower model.max_length"
            )
        try:
            loss.rule()
        except ValueError as error:
            yield f"loss.{error}"
        if loss.variant == "bnpo":
            yield "loss.variant bnpo divides by each micro-batch's own tokens, so packing would change the gradient; use dapo"
        if not self.fapo.lam >= 0:
            yield f"fapo.lam {self.fapo.lam} would reward flaws; use a value ≥ 0 (the paper's range is 0 … 2)"
        if not 0 <= (begin := self.fapo.overlong[0]) < (longest := rollout.max_new_tokens):
            yield f"fapo.overlong begins {begin} tokens before the end; that must be below rollout.max_new_tokens {longest}"
        asked = f"genrm.judge is {genrm.judge}"
        if genrm.judge == "none" and self.fapo.lam != 0:
            yield f"{asked}, so fapo.lam {self.fapo.lam} has no verdicts to act on; set --fapo.lam 0 or name a judge"
        if genrm.judge == "endpoint" and not genrm.urls:
            yield f"{asked}, but genrm.urls is empty; give one or more, e.g. --genrm.urls http://127.0.0.1:8000/v1"
        if self.judged_elsewhere and not genrm.model:
            yield f"{asked}, but genrm.model is empty; name the model as the endpoint lists it under /models, or its folder"
        if "oracle" in (genrm.judge, genrm.second[0]) and environment_of(self.data.train).oracle is None:
            which = "judge" if genrm.judge == "oracle" else "second"
            yield f"genrm.{which} is oracle, which knows the embedded world only, but data.train is {self.data.train}; use another"
        if run.critic and genrm.judge != "none":
            yield f"run.task {run.task} needs no judge, but {asked}; set --genrm.judge none --fapo.lam 0"
        name, every = genrm.probe
        if name and (every < 1 or not self.judged_elsewhere):
            yield f"genrm.probe is {name} {every}, but {asked}; probes need judge endpoint or serve, and at least 1 step"
        if (genrm.min_f1 or genrm.alarm == "pause") and not name:
            yield f"genrm.min_f1 is {genrm.min_f1} and genrm.alarm {genrm.alarm}, but genrm.probe, which tells, is empty; name a file there"
        if ((who := genrm.second[0]) or genrm.alarm != "tell") and not self.judged_elsewhere:
            yield f"genrm.second is {who or 'empty'} and genrm.alarm {genrm.alarm}, but {asked}; both need judge endpoint or serve"
        if who and not (0 < genrm.second[1] <= 1 and (who in ("oracle", "votes", "order") or all(who.rpartition("@")))):
            yield f"genrm.second is {who} {genrm.second[1]}; use oracle, votes, order or model@url, and a share above 0 up to 1"
        name = run.name
        if not name.isprintable() or name != name.strip(" .") or name in ("", "fresh", "logs") or name[0] == "-" or "/" in name:
            yield (
                f"run.name is {ascii(name)}; use letters, digits, spaces and signs but /, no - in front, no space or point at either end, "
                "and not fresh or logs, which stand there already"
            )
        if len(name.encode()) > 200:
            yield f"run.name is {len(name.encode())} bytes long; use at most 200"
        if not (0 <= genrm.max_unknown <= 1 and 0 <= genrm.min_f1 <= 1):
            yield f"genrm.max_unknown {genrm.max_unknown} is a share, and genrm.min_f1 {genrm.min_f1}; use 0 … 1"
        every, last, multiple = run.save
        if not (every >= 0 and last >= 1 and multiple >= 0):
            yield f"run.save is {every} {last} {multiple}; use steps ≥ 0, at least 1 checkpoint kept, and a third number ≥ 0"
        if not run.gate > 1:
            yield f"run.gate {run.gate} can never be met; use e.g. 1.05"
        k, t, p = run.eval_sampling
        if not (k >= 1 and t > 0 and 0 < p <= 1):
            yield f"run.eval_sampling is {k} {t} {p}; use at least 1 rollout, a temperature above 0 and a top-p in (0, 1]"
        first, last = genrm.deadline
        if not 0 < first <= last <= WEEK:
            yield f"genrm.deadline is {first} {last}; use seconds above 0, the second not below the first, up to {WEEK}"
        t, votes = genrm.sampling
        if not (t >= 0 and votes >= 1 and (votes == 1 or t > 0)):
            yield f"genrm.sampling is {t} {votes}; use a temperature of at least 0, above 0 for more than one vote"
        if model.path in NAMED and model.path != self.data.train:
            yield (
                f"model.path {model.path} knows only the characters of its own problems, but data.train is {self.data.train}; "
                f"name a model folder, or set --data.train {model.path}"
            )

    def check_memory(self, device: str) -> None:
        """ValueError where `rollout.memory` cannot be what it means on `device` (cuda or cpu)."""
        if device != "cpu" and (share := self.rollout.memory) >= 1:
            raise ValueError(f"rollout.memory {share} is a share on a GPU, which the trainer needs as well; set e.g. --rollout.memory 0.4")

    def engines(self, ranks: int, device: str) -> int:
        """Sampling engines (tensor-parallel groups) of a run on `ranks` processes. ValueError where they or a GPU's share do not fit."""
        self.check_memory(device)
        parallel = self.rollout.tensor_parallel
        if ranks % parallel:
            raise ValueError(f"rollout.tensor_parallel {parallel} does not divide the {ranks} ranks; start a multiple of it")
        return ranks // parallel

    @property
    def max_prompt_tokens(self) -> int:
        return self.model.max_length - self.rollout.max_new_tokens

    @property
    def longest_wait(self) -> float:
        """Seconds that a rank may wait in a collective for one that samples, saves, or waits for its verdicts and then those of a probe."""
        return 1800.0 + (2 * self.genrm.deadline[1] if self.judged_elsewhere else 0.0)

    @property
    def judged_elsewhere(self) -> bool:
        """Whether verdicts come from other processes, by HTTP."""
        return self.genrm.judge in ("endpoint", "serve")


WEEK = 604_800
POSITIVE = (
    "model.max_length rollout.prompts rollout.samples rollout.temperature rollout.max_new_tokens rollout.memory rollout.tensor_parallel "
    "optim.lr optim.grad_clip warm_start.batch warm_start.lr genrm.max_tokens genrm.concurrency genrm.workers "
    "genrm.tensor_parallel run.grace run.patience"
).split()
NOT_NEGATIVE = (
    "data.test_rows model.rope_base_length warm_start.steps optim.warmup_steps optim.weight_decay run.steps run.eval_every"
).split()
GROUPS: dict[str, type] = get_type_hints(Config)
