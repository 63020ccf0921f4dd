"""Evaluation: fresh samples of held-out problems, verified and judged like rollouts, trained on never."""

from __future__ import annotations

from collections.abc import Sequence

from soundrl.engine.config import Config
from soundrl.engine.encode import Encoder
from soundrl.engine.judging_phase import JudgingPhase
from soundrl.engine.ranks import Ranks
from soundrl.engine.samplers.sampler import Sampler, requests_for
from soundrl.engine.timeline import Timeline
from soundrl.engine.weight_sync import WeightSync
from soundrl.fapo.pending import PendingGroups
from soundrl.fapo.records import Prompt
from soundrl.fapo.task import Task


def evaluate(
    tests: dict[str, list[Prompt]],
    task: Task,
    sampler: Sampler,
    encode: Encoder,
    config: Config,
    ranks: Ranks,
    phases: Timeline,
    judging: JudgingPhase | None,
    sync: WeightSync,
) -> dict[str, float]:
    """`eval/<set>/<measure>`, the measures as the task has them (`Task.evaluation`).

    A collective: the problems of each set are split over the tensor-parallel groups. The same seeds at every call, so that two
    evaluations differ by the weights alone. A judge that sleeps gets its phase once all sets are sampled.
    """
    metrics: dict[str, float] = {}
    engines, own = ranks.size // config.rollout.tensor_parallel, ranks.rank // config.rollout.tensor_parallel
    sampled = {name: sample(prompts[own::engines], task, sampler, encode, config) for name, prompts in tests.items()}
    if judging is not None and judging.needed(sampled.values()):
        sampler.sleep()
        with judging.awake(phases.detail):
            for pending in [pending.ask() for pending in sampled.values()]:
                pending.groups()
        sync()  # its sleep took the sampler's weights
    for name, pending in sampled.items():
        groups = pending.groups()
        # Ranks of one tensor-parallel group hold the same samples: count them once.
        total = ranks.total(task.count(groups if ranks.rank % config.rollout.tensor_parallel == 0 else []))
        metrics |= {f"eval/{name}/{measure}": value for measure, value in task.evaluation(total).items()}
    return metrics


def sample(prompts: Sequence[Prompt], task: Task, sampler: Sampler, encode: Encoder, config: Config) -> PendingGroups:
    """This engine's problems; there may be none."""
    samples, temperature, top_p = config.run.eval_sampling
    requests = requests_for(
        [(prompt.id, encode(prompt)) for prompt in prompts],
        samples,
        run_seed=config.run.seed,
        phase="eval",
        step=0,
        temperature=temperature,
        max_new_tokens=config.rollout.max_new_tokens,
        top_p=top_p,
    )
    return task.collect(prompts, sampler.generate(requests) if requests else (), measuring=True)
