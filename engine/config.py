"""All settings of a run: frozen dataclasses, one line of help each, checked as a whole when they are built."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_type_hints

from soundrl.engine.conflicts import Way, conflicts
from soundrl.engine.environments.environment import is_environment
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
    save_memory: tuple[Way, ...] = ()
    """Time for memory, any of: recompute each layer in the backward pass (about 30 % more time, activations of one layer instead of all);
    offload weights and moments to the host while the policy samples; moments on the host for good, streamed through each update."""
    replicas: int = 1
    """Groups of ranks that hold a whole copy of weights and moments each (HSDP), for slow networks between nodes; divides the ranks."""
    lora: tuple[int, float, str] = (0, 32.0, "")
    """Low-rank adapters on a frozen base (arXiv 2106.09685): their rank (0 = none, every weight trains), alpha (they are scaled by alpha ÷
    rank), and the layers that have one, by name, with commas between them (`q_proj,v_proj`; empty = every linear layer but the head)."""


@dataclass(frozen=True, kw_only=True)
class Data:
    train: tuple[str, ...]
    """Training problems: files (.jsonl, .json, .csv, .parquet), folders of a downloaded set (`data/gsm8k/main#train`), names on the Hub
    (`openai/gsm8k@main#train`), generated sets (`rg:<name>`), several with weights (`a.jsonl:0.7 b.parquet:0.3`); or one environment: its
    name, or a path (`my_env.py:make`)."""
    test: tuple[str, ...] = ()
    """Evaluation sets, same forms; an environment's name stands for all of its own."""
    test_rows: int = 0
    """Problems used of each evaluation set, the first ones; 0 = all (of an endless source: 400)."""
    columns: tuple[str, ...] = ()
    """Names that the columns of all files have: ours=theirs, e.g. `question=task.text answer=target,label`: of several the first that is
    there; `name=`: a column that is not read."""
    form: str = ""
    """Where answers stand in responses: box, answer_line, hashes, tag, phrase, json or choice (fapo/verify/answer.py); empty = as each
    prompt asks for."""
    verifier: str = ""
    """Who rewards a response: math, choice, number, exact (fapo/verify/verifiers.py), or a function of one's own by its path,
    `my_checks.py:score`; empty = as each row says, else by its form: choice or math."""
    reward: tuple[Literal["pool", "here"], float] = ("pool", 1.0)
    """Where a verifier of one's own runs (pool: processes that are killed at their limits; here: trusted, in the trainer's process), and
    the reward from which a rollout counts as correct, so that it is judged."""
    difficulty: tuple[str, int] = ("", 0)
    """Curriculum: the column by which the first epoch goes from easy to hard (`-name`: it says how easy a row is; empty = none); and the
    visits in a row after which a prompt that trains nothing (all right and sound, or none right) comes in one epoch of four (0 = never)."""
    instruction: str = INSTRUCTION
    """Follows a blank line after the problem where it is a text; chat messages and questions with options have their own words."""
    skip_unusable: bool = False
    """Go on without rows that cannot be used (unreadable, too long, no comparable answer); off names them all and stops."""

    @property
    def environment(self) -> str:
        """The environment's name or path; empty = problem files and data sets."""
        return self.train[0] if len(self.train) == 1 and is_environment(self.train[0]) else ""


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
    """Longest response, in tokens; of several turns all of them."""
    memory: float = 0.4
    """vLLM's share of a GPU's memory; on CPU its KV cache in GiB."""
    turns: tuple[int, float] = (8, 10.0)
    """Where the environment answers: most turns of the policy in a rollout, which have `max_new_tokens` together, replies included; and CPU
    seconds that a tool call may take."""
    refill: int = 0
    """Response tokens a step that may be sampled to replace groups that train nothing, verdicts included, by the next prompts; 0 = none."""
    tensor_parallel: int = 1
    """Ranks that share one vLLM engine."""
    eager: bool = False
    """No compilation and no CUDA graphs in vLLM: starts in seconds, decodes slower on a GPU."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    variant: str = "dapo"
    """dapo, grpo, dr_grpo, gspo, cispo or sapo: surrogate and denominator by the table in kernels/loss_rule.py."""
    clip: tuple[float, float, float] = (0.2, 0.28, 10.0)
    """Clips of the ratio: down to 1 − the first, up to 1 + the second (clip-higher, arXiv 2503.14476), and a bound on the loss of negative
    advantages, in multiples of the advantage (dual clip)."""
    kl: tuple[float, Literal["k1", "k2", "k3"], Literal["sharded", "asleep", "cpu"]] = (0.0, "k3", "sharded")
    """KL to the policy that the run starts from, after its warm start: its weight in the loss (0 = none; with it every sample trains), the
    estimate, and where the reference's weights are: sharded over the devices, asleep on the host but for its pass, or on the CPU."""
    correction: tuple[str, float, float] = ("tis", 0.5, 2.0)
    """Weight against the sampler's own log-probabilities: none, tis, icepop or sequence
    (kernels/policy_loss.py); and the edges, on either side of 1, of the icepop and
    sequence bands (of a probability ratio); the upper one caps tis."""

    balance: float = 0.0
    """Mixture of experts: weight of the load-balance term (Switch, arXiv 2101.03961; engine/experts/routers.py), e.g. 0.001; every sample
    trains with it, after a forward pass that counts the experts' load over the mini-batch; 0 = the load is only measured."""

    @property
    def everything(self) -> bool:
        """Whether samples without an advantage train, too: terms that are of all that the policy samples."""
        return self.kl[0] > 0 or self.balance > 0

    def rule(self) -> LossRule:
        (low, high, dual), (correction, begin, end), (weight, estimate, _) = self.clip, self.correction, self.kl
        return LossRule(
            variant=self.variant,
            clip_low=low,
            clip_high=high,
            dual_clip=dual,
            kl=estimate if weight else "none",
            kl_coef=weight,
            correction=correction,
            correction_low=begin,
            correction_high=end,
        )


@dataclass(frozen=True, kw_only=True)
class Optim:
    lr: float = 1e-6
    """AdamW learning rate, constant after warm-up."""
    adamw: tuple[float, float, float] = (0.9, 0.999, 0.1)
    """AdamW's decays of the two moments, and of the weights."""
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
    judge: Literal["oracle", "endpoint", "serve", "adapter", "none"] = "endpoint"
    """Who judges correct rollouts: the embedded world's exact oracle, OpenAI endpoints, servers that the run starts, a second adapter of
    the policy's base in the policy's own vLLM (with `model.lora`), or nobody."""
    urls: tuple[str, ...] = ()
    """Base URLs of one or many endpoints, e.g. http://127.0.0.1:8000/v1; their token, if any, is read from $SOUNDRL_GENRM_TOKEN."""
    allow_http: bool = False
    """Allow http without TLS to another machine (problems, answers and the token travel in the clear)."""
    model: str = ""
    """Model name, as the endpoints list it under /models; with judge serve the model's folder; with judge adapter the adapter's, in
    PEFT's format."""
    workers: tuple[int, int] = (1, 1)
    """Servers that the run starts on each node (judge serve), and the GPUs that each takes, the next ones, which divide its weights and
    attention heads: a judge that does not fit on one needs several. On CPU each takes a thread."""
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
    alarm: Literal["tell", "pause", "stop"] = "tell"
    """What an alarm of the judge's watch does (those by the clock only tell): tell; stop (saved, status 2); or pause: saved, nothing trains
    until a probe finds the judge well again; where no probe can tell that, stop."""
    second: tuple[str, float] = ("", 0.05)
    """A second opinion on a seeded share of judged rollouts, which changes no reward: `oracle`, `votes`, `order` (the same judge, the
    solution before the problem), or another judge as `model@url` (token: $SOUNDRL_SECOND_TOKEN); empty = none."""
    probe: tuple[str, int, float] = ("", 10, 0.0)
    """Labelled solutions that watch the judge (a ProcessBench or FAPO-Critic file, or a function `module:name`; empty = none), steps
    between probes, and the F1 of `flawed` on them below which a run refuses its judge, before the first step (0 = any)."""
    unknown: tuple[Literal["drop", "rule"], float] = ("drop", 0.2)
    """A rollout without verdict leaves its group (drop), or keeps the rule reward as in the paper's released code (rule); and the share of
    judged rollouts without one above which, three steps in a row, the run stops (never where fapo.lam is 0)."""


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
    """Evaluation: rollouts a problem (avg@k), temperature (0 = greedy, of one rollout), and nucleus (top-p)."""
    overlap: bool = True
    """Train on groups whose verdicts are there while others are judged; off waits for all first, and on GPUs a served judge sleeps but for
    that phase, as it does where it and the policy do not fit at once. All compute the same, bit for bit."""
    save: tuple[int, int, int] = (20, 2, 0)
    """Checkpoints: steps between them (0 = only at the end), how many of the last are kept, and of the earlier ones each whose step is a
    multiple of the third (0 = none)."""
    resume: bool = True
    """Go on from the last checkpoint of this name; off moves an earlier run aside and begins anew (a job that is started again goes on)."""
    patience: tuple[float, float] = (60.0, 25.0)
    """Seconds without any progress on any rank after which the run says what each of them waits for, and ends with a status that restarts
    (longer in phases that were seen to take longer, and ten times as long in those not seen yet); and seconds of grace from the first
    SIGTERM, SIGHUP or Ctrl-C to the end: the step is finished or left, and the state saved; a second signal ends at once."""
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
        for conflict in conflicts(self):
            raise ValueError(conflict)

    def check_memory(self, device: str) -> None:
        """ValueError where `rollout.memory` cannot be what it means on `device` (cuda or cpu)."""
        if device != "cpu" and (share := self.rollout.memory) >= 1:
            raise ValueError(f"rollout.memory {share} is a share on a GPU, which the trainer needs as well; set e.g. --rollout.memory 0.4")

    def engines(self, ranks: int, device: str) -> int:
        """Sampling engines (tensor-parallel groups) of a run on `ranks` processes. ValueError where they, replicas or a GPU's share do not
        fit."""
        self.check_memory(device)
        parallel = self.rollout.tensor_parallel
        from soundrl.engine.ranks import shards_of  # torch, which settings do without

        shards_of(ranks, self.model.replicas)
        if ranks % parallel:
            raise ValueError(f"rollout.tensor_parallel {parallel} does not divide the {ranks} ranks; start a multiple of it")
        return ranks // parallel

    @property
    def max_prompt_tokens(self) -> int:
        return self.model.max_length - self.rollout.max_new_tokens

    @property
    def longest_wait(self) -> float:
        """Seconds that a rank may wait in a collective for one that samples, saves, or waits for its verdicts and then those of a probe."""
        return 1800.0 + (2 * self.genrm.deadline[1] if self.judged_elsewhere or self.genrm.judge == "adapter" else 0.0)

    @property
    def judged_elsewhere(self) -> bool:
        """Whether verdicts come from other processes, by HTTP."""
        return self.genrm.judge in ("endpoint", "serve")

    @property
    def own_adapters(self) -> bool:
        """Whether vLLM holds the base and takes the policy's adapters as its own; else every sync brings merged weights."""
        return self.genrm.judge == "adapter"


GROUPS: dict[str, type] = get_type_hints(Config)
