"""A step's rollouts: sampled, verified, and on their way to the judge."""

from __future__ import annotations

from collections.abc import Sequence

from soundrl.engine.config import Config
from soundrl.engine.encode import Encoder
from soundrl.engine.ranks import Ranks
from soundrl.engine.samplers.sampler import Sampler, requests_for
from soundrl.engine.timeline import Timeline
from soundrl.fapo.records import Prompt
from soundrl.fapo.task import PendingGroups, Task


def share(prompts: Sequence[Prompt], updates: int, engine: int, engines: int) -> list[Prompt]:
    """One engine's block of each of the step's `updates` mini-batches: which prompts share an optimizer step, and what they are called,
    does not depend on the number of ranks.

    >>> share("abcdefgh", 2, 1, 2)
    ['c', 'd', 'g', 'h']
    """
    block = len(prompts) // (updates * engines)
    return [prompt for part in range(engine, updates * engines, engines) for prompt in prompts[part * block : (part + 1) * block]]


def rollout(
    prompts: Sequence[Prompt],
    task: Task,
    sampler: Sampler,
    encode: Encoder,
    config: Config,
    ranks: Ranks,
    step: int,
    phases: Timeline,
) -> PendingGroups:
    """Sample and verify; each correct rollout goes to the judge as it finishes, while the others are still sampled. Of an engine that
    several ranks share, each rank keeps, verifies and judges its own groups."""
    requests = requests_for(
        [(prompt.id, encode(prompt)) for prompt in prompts],
        config.rollout.samples,
        run_seed=config.run.seed,
        phase="train",
        step=step,
        temperature=config.rollout.temperature,
        max_new_tokens=config.rollout.max_new_tokens,
    )
    own = {prompt.id: prompt for prompt in prompts[ranks.rank % config.rollout.tensor_parallel :: config.rollout.tensor_parallel]}
    with phases("generate"):
        pending = task.collect(list(own.values()), (rollout for rollout in sampler.generate(requests) if rollout.prompt_id in own))
    with phases("verify"):
        pending.outcomes()
    return pending
