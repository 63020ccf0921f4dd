"""The task of a run: its environment's checks and its judge become rewards; or the training of a GenRM."""

from __future__ import annotations

from soundrl.engine.config import Config
from soundrl.engine.environments.environment import Environment, answers, trained_prompt
from soundrl.engine.judging.judges import BuiltJudge
from soundrl.engine.samplers.turns import LOST
from soundrl.fapo.records import Outcome
from soundrl.fapo.rewards import RewardSettings
from soundrl.fapo.task import ReasoningTask, Task
from soundrl.genrm.task import CriticTask


def build_task(config: Config, environment: Environment, built: BuiltJudge) -> Task:
    """With the judge that has been `built`, which belongs to the run."""
    settings, refill = reward_settings(config), config.rollout.refill
    if refill and settings.lam and built.phase is not None:
        raise ValueError(
            f"rollout.refill {refill} waits for verdicts while the policy is awake, but the judge sleeps then (the plan's reason: --plan); "
            "set --rollout.refill 0, give the judge memory of its own (genrm.urls on another machine), or --fapo.lam 0"
        )
    if config.run.critic and answers(environment):
        raise ValueError(f"run.task {config.run.task} trains on one turn, but data.train {config.data.environment} answers; use another")
    if config.run.critic:
        return CriticTask(settings, process=config.run.task == "critic", prompt=trained_prompt(config))
    return ReasoningTask(
        # What the machine has lost is no fault of the policy's.
        verify=lambda prompt, rollout: Outcome.UNKNOWN if rollout.finish_reason == LOST else environment.check(prompt, rollout),
        judge=built.judge,
        settings=settings,
        max_unknown=config.genrm.unknown[1],
        truth=environment.truth,
        split=environment.split,
        deadline=config.genrm.deadline[1],
        answered=answers(environment),
        judge_sleeps=built.phase is not None,
    )


def reward_settings(config: Config) -> RewardSettings:
    return RewardSettings(
        lam=config.fapo.lam,
        normalize_std=config.fapo.normalize_std,
        max_new_tokens=config.rollout.max_new_tokens,
        overlong_buffer=config.fapo.overlong[0],
        overlong_factor=config.fapo.overlong[1],
        drop_unknown=config.genrm.unknown[0] == "drop",
    )
