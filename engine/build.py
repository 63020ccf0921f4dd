"""From a configuration to the parts of a run: problems, verifier, judge, sampler. Everything a user can get wrong fails here."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from soundrl.engine.config import Config
from soundrl.engine.encode import Encoder
from soundrl.engine.environments.arithmetic import chains
from soundrl.engine.judges import build_judge, build_probe
from soundrl.engine.judging_phase import JudgingPhase
from soundrl.engine.model_folder import check_folder, read_json
from soundrl.engine.model_folder import load_tokenizer as load_tokenizer
from soundrl.engine.policy import Policy
from soundrl.engine.problems import Source
from soundrl.engine.problems import build_demonstrations as build_demonstrations
from soundrl.engine.ranks import Ranks
from soundrl.engine.samplers.sampler import Sampler
from soundrl.engine.weight_sync import PROBES
from soundrl.fapo.records import Outcome, Prompt, Rollout
from soundrl.fapo.rewards import RewardSettings
from soundrl.fapo.task import ReasoningTask, Task, done
from soundrl.fapo.verify.thinking import Thoughts
from soundrl.fapo.verify.verifier import Verifier
from soundrl.genrm.task import CriticTask


def build_verifier(config: Config) -> Verifier | None:
    """None for the embedded world, which compares by itself, and for critics, whose answer is a step."""
    return Verifier() if config.run.task == "reasoning" and config.data.train != "arith" else None


def build_task(
    config: Config, verifier: Verifier | None, ranks: Ranks, say: Callable[[str], None], tokenizer: Any
) -> tuple[Task, JudgingPhase | None]:
    """Verification and judge, and the phase of a judge that sleeps, which `say` tells. Endpoints have been checked (they answer); a judge
    that loads beside the policy is waited for by `Task.ready`. `tokenizer`: the policy's, which tells where thinking begins and ends."""
    settings = reward_settings(config)
    if config.run.task != "reasoning":
        return CriticTask(settings, process=config.run.task == "critic"), None
    if verifier is None:

        def verify(prompt: Prompt, rollout: Rollout) -> Future[Outcome]:
            return done(chains.verify(prompt.answer, rollout.text, rollout.finish_reason == "stop"))

        def close() -> None: ...

    else:
        thoughts = Thoughts(tokenizer)
        close = verifier.close

        def verify(prompt: Prompt, rollout: Rollout) -> Future[Outcome]:
            text = thoughts.text(rollout.text, rollout.tokens)
            return verifier.submit(text, prompt.answer, prompt.form, thoughts.opened_by(rollout.prompt_tokens))

    built = build_judge(config, ranks, say)

    def close_all() -> None:
        close()
        built.close()

    task = ReasoningTask(
        verify,
        built.judge,
        settings,
        config.genrm.max_unknown,
        truth=chains.oracle if config.data.train == "arith" else None,
        probe=build_probe(config, built.judge, ranks),
        ready=built.ready,
        close=close_all,
        deadline=config.genrm.deadline[1],
        judge_sleeps=built.phase is not None,
    )
    return task, built.phase


def engine_count(config: Config, ranks: Ranks) -> int:
    """Sampling engines of the run (tensor-parallel groups); ValueError where ranks, batches and the GPU's share do not fit."""
    config.check_memory(ranks.device.type)
    tensor_parallel, minibatch = config.rollout.tensor_parallel, config.optim.minibatch_prompts
    if ranks.size % tensor_parallel:
        raise ValueError(f"rollout.tensor_parallel {tensor_parallel} does not divide the {ranks.size} ranks; start a multiple of it")
    if minibatch % ranks.size:
        raise ValueError(f"optim.minibatch_prompts {minibatch} is no multiple of the {ranks.size} ranks; every rank trains on whole groups")
    return ranks.size // tensor_parallel


def model_folder(config: Config, ranks: Ranks) -> Path:
    """The folder the policy starts from; for `arith` rank 0 writes one with fresh weights."""
    if config.model.path != "arith":
        return check_folder(config.model.path)
    from soundrl.engine.environments.arithmetic.critic_model import write_arith_critic
    from soundrl.engine.environments.arithmetic.model import write_arith_model

    critic = config.run.task != "reasoning"
    folder = Path(config.run.folder) / "fresh" / f"arith-{'critic-' if critic else ''}seed{config.run.seed}"
    if ranks.main:
        (write_arith_critic if critic else write_arith_model)(folder, config.run.seed)
    ranks.barrier()
    return folder


def cards(config: Config) -> list[str]:
    """What the folders of policy and judge say of how they were made, in `says` of their `card.json` (`starts/` has some)."""
    folders = [config.model.path] + [config.genrm.model] * (config.genrm.judge == "serve")
    found = [read_json(card) | {"folder": folder} for folder in folders if (card := Path(folder) / "card.json").is_file()]
    return [f"{card['folder']}: {card['says']}" for card in found if "says" in card]  # other cards are not ours


def probe_prompts(source: Source, encode: Encoder) -> list[tuple[int, ...]]:
    """Token ids of the first training problems, for the gate of the weight sync."""
    first = source[:PROBES] if isinstance(source, list) else [source.prompt(i) for i in range(PROBES)]
    return [encode(prompt) for prompt in first]


def reward_settings(config: Config) -> RewardSettings:
    return RewardSettings(
        lam=config.fapo.lam,
        normalize_std=config.fapo.normalize_std,
        max_new_tokens=config.rollout.max_new_tokens,
        overlong_buffer=config.fapo.overlong[0],
        overlong_factor=config.fapo.overlong[1],
        drop_unknown=config.genrm.unknown == "drop",
    )


def build_sampler(config: Config, policy: Policy, ranks: Ranks) -> Sampler:
    if config.rollout.engine == "torch":
        from soundrl.engine.samplers.torch_sampler import TorchSampler

        return TorchSampler(policy.folder, policy.tokenizer, config.model, ranks)
    from soundrl.engine.samplers.vllm_sampler import VllmSampler

    return VllmSampler(policy.folder, policy.tokenizer, config.model, config.rollout, ranks)
