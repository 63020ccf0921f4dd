"""What contradicts itself in a run's settings; each conflict names the setting, what is wrong with it and the cure."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import TYPE_CHECKING, Literal, get_args

from soundrl.engine.environments.environment import answers, environment_of, is_environment, own_world
from soundrl.fapo.data.columns import Columns
from soundrl.fapo.data.puzzles import PREFIX
from soundrl.fapo.data.rows import file_id
from soundrl.fapo.data.sources import weighed
from soundrl.fapo.named import is_named
from soundrl.fapo.verify.answer import FORMS
from soundrl.fapo.verify.verifiers import KNOWN, is_verifier

if TYPE_CHECKING:
    from soundrl.engine.config import Config

WEEK = 604_800
Way = Literal["recompute", "offload", "moments"]
"""Of `model.save_memory`"""
WAYS: tuple[Way, ...] = get_args(Way)
HEAD = "lm_head"
POSITIVE = (
    "model.max_length model.replicas rollout.prompts rollout.samples rollout.temperature rollout.max_new_tokens rollout.memory "
    "rollout.tensor_parallel optim.lr optim.grad_clip warm_start.batch warm_start.lr genrm.max_tokens genrm.concurrency"
).split()
NOT_NEGATIVE = ("data.test_rows model.rope_base_length rollout.refill warm_start.steps optim.warmup_steps run.steps run.eval_every").split()


def of_sources(config: Config) -> Iterator[str]:
    """What `data.train` and `data.test` name, and how it is read."""
    data, train = config.data, list[str]()
    for source in data.train:
        try:
            train.append(source if own_world(source) else weighed(source)[0])  # what a name alters may hold a colon, and is no weight
        except ValueError as error:
            yield str(error)
    if odd := next(
        (source for source, name in zip(data.train, train, strict=False) if name != data.environment and is_environment(name)), None
    ):
        yield f"data.train names the environment {odd} beside others or with a weight; an environment stands alone"
    places = [name if name.startswith(PREFIX) else file_id(name) for name in train]
    if twice := next((place for place in places if places.count(place) > 1), None):
        yield f"data.train names {twice} twice; name it once, where it shall come more often with a weight: {twice}:2"
    for source in data.test:
        try:
            name, weight = (source, None) if own_world(source) else weighed(source)
        except ValueError:
            name, weight = source.rpartition(":")[0], 0
        if weight is not None:
            yield f"data.test {source} has a weight, but all of an evaluation set is asked; write {name}"
    try:
        Columns.of(data.columns)
    except ValueError as error:
        yield str(error)
    files = [name for name in (*train, *data.test) if not (is_environment(name) or name.startswith(PREFIX))]
    if data.columns and (config.run.critic or not files):
        what = f"run.task {config.run.task} reads the columns of its own kinds of files" if files else "no file is read"
        yield f"data.columns is {' '.join(data.columns)}, but {what}; leave it empty"


def of_adapters(config: Config) -> Iterator[str]:
    """What `model.lora` says, and what goes with it."""
    (rank, alpha, layers), place = config.model.lora, config.loss.kl[2]
    said = f"model.lora is {rank} {alpha} {layers or 'empty'}"
    if not (rank >= 0 and 0 < alpha < float("inf")):
        yield f"{said}; use a rank of at least 1 (0 = no adapters), and an alpha above 0"
    if rank == 0 and layers:
        yield f"{said}, but rank 0 makes no adapter; set a rank, e.g. --model.lora 16 32 {layers}"
    if rank and place != "sharded":
        yield f"loss.kl {place} is a place for a second copy of the weights; with model.lora the reference is the base itself: use sharded"
    genrm, rollout = config.genrm, config.rollout
    if genrm.judge != "adapter":
        return
    asked = f"genrm.judge is adapter, of {genrm.model or 'nothing'}"
    if not genrm.model:
        yield f"{asked}: genrm.model is empty; name the adapter's folder (PEFT's format)"
    if not rank:
        yield f"{asked}, but model.lora is off: every weight of its base would move under it; set --model.lora 32 64 '' or another judge"
    if rollout.engine != "vllm" or rollout.tensor_parallel > 1:
        yield (
            f"{asked}, but rollout.engine is {rollout.engine} with rollout.tensor_parallel {rollout.tensor_parallel}; it is asked in vLLM, "
            "each rank's own engine: set vllm and 1, or serve the judge"
        )
    if HEAD in layers:
        yield f"{said}, but {asked} beside it in vLLM, whose adapters leave the head alone; leave {HEAD} out"
    if genrm.prompt.endswith("-read"):
        yield f"{asked}, which writes its verdicts, but genrm.prompt {genrm.prompt} reads them; use {genrm.prompt.removesuffix('-read')}"


def conflicts(config: Config) -> Iterator[str]:
    """Each names the setting, what is wrong with it and the cure."""
    model, run, rollout, optim, loss, genrm = config.model, config.run, config.rollout, config.optim, config.loss, config.genrm
    data, trained = config.data, " ".join(config.data.train)
    for setting in POSITIVE:
        if not (value := attrgetter(setting)(config)) > 0:  # NaN is none of these either
            yield f"{setting} is {value}, but must be > 0"
    for setting in NOT_NEGATIVE:
        if not (value := attrgetter(setting)(config)) >= 0:
            yield f"{setting} is {value}, but must be ≥ 0"
    if rollout.prompts % optim.minibatch_prompts:
        yield (
            f"rollout.prompts {rollout.prompts} is no multiple of optim.minibatch_prompts {optim.minibatch_prompts}; "
            "mini-batches hold whole groups of one rollout batch: set one a multiple of the other"
        )
    if not data.train:
        yield "data.train is empty; name a file, a data set or an environment"
    yield from of_sources(config)
    if data.form and data.form not in FORMS:
        yield f"data.form is {data.form}; use one of {', '.join(filter(None, FORMS))}, or leave it empty: as each prompt asks"
    if not is_verifier(data.verifier):
        yield f"data.verifier is {data.verifier}; {KNOWN}"
    if data.verifier == "reasoning-gym" and not all(path.startswith(PREFIX) for path in (*data.train, *data.test)):
        yield "data.verifier reasoning-gym scores its own problems alone (rg:<name>), which have it by themselves; leave it empty"
    own = next((f"data.{name} {value}" for name, value in (("verifier", data.verifier), ("form", data.form)) if value), "")
    if own and (run.critic or data.environment):
        why = f"run.task {run.task} reads verdicts" if run.critic else f"{data.environment} checks by itself"
        yield f"{own} is for problem files and data sets, but {why}; leave it empty"
    where, threshold = data.reward
    if where == "here" and not is_named(data.verifier):
        yield f"data.reward here is for a verifier of one's own, but data.verifier is {data.verifier or 'empty'}; use pool"
    if threshold != threshold or abs(threshold) == float("inf"):
        yield f"data.reward {where} {threshold} is no reward that a rollout could earn; use a number"
    theirs = is_named(data.verifier) or (data.environment and not own_world(data.environment))
    if threshold != 1.0 and not (theirs or any(path.startswith(PREFIX) for path in (*data.train, *data.test))):
        yield (
            f"data.reward {where} {threshold} is a threshold for rewards that are numbers, which only verifiers and environments of one's "
            f"own and rg: sets give; use {where} 1.0"
        )
    if data.difficulty[1] < 0:
        yield f"data.difficulty {data.difficulty[1]} is a number of visits; use at least 1, or 0 for a prompt that comes in every epoch"
    most, seconds = rollout.turns
    if not (most >= 1 and seconds > 0):
        yield f"rollout.turns is {most} {seconds}; use at least 1 turn, and seconds above 0"
    if rollout.turns != type(rollout).turns and not answers(environment_of(data.environment)):
        yield f"rollout.turns is {most} {seconds}, but data.train {trained} answers nothing; leave it out, or name an environment that does"
    if rollout.samples < 2:
        yield f"rollout.samples {rollout.samples} leaves no group to compare with; set at least 2"
    if rollout.max_new_tokens >= model.max_length:
        yield (
            f"rollout.max_new_tokens {rollout.max_new_tokens} leaves no room for a prompt in model.max_length {model.max_length}; "
            "raise model.max_length or shorten responses"
        )
    ways = model.save_memory
    if odd := next((way for way in ways if way not in WAYS or ways.count(way) > 1), None):
        what = "twice" if odd in WAYS else "which is no way"
        yield f"model.save_memory names {odd} {what}; name any of {', '.join(WAYS)}, each once"
    if optim.microbatch_tokens < model.max_length:
        yield (
            f"optim.microbatch_tokens {optim.microbatch_tokens} cannot hold one sequence of model.max_length {model.max_length}; "
            "raise optim.microbatch_tokens or lower model.max_length"
        )
    if not (0 <= optim.adamw[0] < 1 and 0 <= optim.adamw[1] < 1 and optim.adamw[2] >= 0):
        yield "optim.adamw is {} {} {}; use moment decays in [0, 1) and a weight decay ≥ 0".format(*optim.adamw)
    yield from of_adapters(config)
    if not 0 <= loss.kl[0] < float("inf"):
        yield f"loss.kl {loss.kl[0]} would reward leaving the reference, or is no number; use a weight ≥ 0"
    if not 0 <= loss.balance < float("inf"):
        yield f"loss.balance {loss.balance} would crowd the experts, or is no number; use a weight ≥ 0, e.g. 0.001"
    try:
        loss.rule()
    except ValueError as error:
        yield f"loss.{error}"
    if loss.variant == "bnpo":
        yield "loss.variant bnpo divides by each micro-batch's own tokens, so packing would change the gradient; use dapo"
    if not config.fapo.lam >= 0:
        yield f"fapo.lam {config.fapo.lam} would reward flaws; use a value ≥ 0 (the paper's range is 0 … 2)"
    if not 0 <= (begin := config.fapo.overlong[0]) < (longest := rollout.max_new_tokens):
        yield f"fapo.overlong begins {begin} tokens before the end; that must be below rollout.max_new_tokens {longest}"
    asked = f"genrm.judge is {genrm.judge}"
    if genrm.judge == "none" and config.fapo.lam != 0:
        yield f"{asked}, so fapo.lam {config.fapo.lam} has no verdicts to act on; set --fapo.lam 0 or name a judge"
    if genrm.judge == "endpoint" and not genrm.urls:
        yield f"{asked}, but genrm.urls is empty; give one or more, e.g. --genrm.urls http://127.0.0.1:8000/v1"
    if config.judged_elsewhere and not genrm.model:
        yield f"{asked}, but genrm.model is empty; name the model as the endpoint lists it under /models, or its folder"
    if "oracle" in (genrm.judge, genrm.second[0]) and getattr(environment_of(data.environment), "oracle", None) is None:
        which = "judge" if genrm.judge == "oracle" else "second"
        yield f"genrm.{which} is oracle, which knows the embedded world only, but data.train is {trained}; use another"
    if run.critic and genrm.judge != "none":
        yield f"run.task {run.task} needs no judge, but {asked}; set --genrm.judge none --fapo.lam 0"
    name, every, least = genrm.probe
    if name and (every < 1 or not config.judged_elsewhere):
        yield f"genrm.probe is {name} {every}, but {asked}; probes need judge endpoint or serve, and at least 1 step"
    if (least or genrm.alarm == "pause") and not name:
        yield f"genrm.probe names no file, but its F1 is {least} and genrm.alarm {genrm.alarm}, which need one; name it there"
    if ((who := genrm.second[0]) or genrm.alarm != "tell") and not config.judged_elsewhere:
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
    if not (0 <= genrm.unknown[1] <= 1 and 0 <= least <= 1):
        yield f"genrm.unknown {genrm.unknown[1]} is a share, and genrm.probe's F1 {least}; use 0 … 1"
    if not min(run.patience) > 0:
        yield "run.patience is {} {}; use seconds above 0".format(*run.patience)
    if min(genrm.workers) < 1:
        yield f"genrm.workers is {genrm.workers[0]} {genrm.workers[1]}; use at least 1 server of at least 1 GPU"
    every, last, multiple = run.save
    if not (every >= 0 and last >= 1 and multiple >= 0):
        yield f"run.save is {every} {last} {multiple}; use steps ≥ 0, at least 1 checkpoint kept, and a third number ≥ 0"
    if not run.gate > 1:
        yield f"run.gate {run.gate} can never be met; use e.g. 1.05"
    k, t, p = run.eval_sampling
    if not (k >= 1 and t >= 0 and (k == 1 or t > 0) and 0 < p <= 1):
        yield (
            f"run.eval_sampling is {k} {t} {p}; use at least 1 rollout, a temperature of at least 0 (greedy, of one rollout alone) and a "
            "top-p in (0, 1]"
        )
    first, last = genrm.deadline
    if not 0 < first <= last <= WEEK:
        yield f"genrm.deadline is {first} {last}; use seconds above 0, the second not below the first, up to {WEEK}"
    t, votes = genrm.sampling
    if not (t >= 0 and votes >= 1 and (votes == 1 or t > 0)):
        yield f"genrm.sampling is {t} {votes}; use a temperature of at least 0, above 0 for more than one vote"
    if own_world(model.path) and model.path.partition("?")[0] != data.environment.partition("?")[0]:
        yield (
            f"model.path {model.path} knows only the characters of its own problems, but data.train is {trained}; "
            f"name a model folder, or set --data.train {model.path}"
        )
