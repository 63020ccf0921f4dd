"""A step's rollouts: sampled, verified, and on their way to the judge."""

from __future__ import annotations

from collections.abc import Sequence

from soundrl.engine.config import Config
from soundrl.engine.encode import Encoder
from soundrl.engine.ranks import Ranks
from soundrl.engine.samplers.sampler import Sampler, requests_for
from soundrl.engine.timeline import Timeline
from soundrl.fapo.pending import PendingGroups
from soundrl.fapo.records import Prompt
from soundrl.fapo.task import Task


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
    """Sample and verify this rank's part of `prompts`, the step's in their global order; each correct rollout goes to the judge as it
    finishes, while the others are still sampled.

    Engines take turns at the prompts, and so do the ranks that share an engine, which all pass it the same requests: each keeps, verifies
    and judges groups of its own. Where a rollout is sampled changes nothing in it.
    """
    shared = config.rollout.tensor_parallel
    prompts = prompts[ranks.rank // shared :: ranks.size // shared]
    requests = requests_for(
        [(prompt.id, encode(prompt)) for prompt in prompts],
        config.rollout.samples,
        run_seed=config.run.seed,
        phase="train",
        step=step,
        temperature=config.rollout.temperature,
        max_new_tokens=config.rollout.max_new_tokens,
    )
    own = {prompt.id: prompt for prompt in prompts[ranks.rank % shared :: shared]}
    with phases("generate"):
        pending = task.collect(list(own.values()), (r for r in (sampler.generate(requests) if requests else ()) if r.prompt_id in own))
    with phases("verify"):
        pending.outcomes()
    return pending
