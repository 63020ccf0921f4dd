"""Evaluation: fresh samples of held-out problems, verified and judged like rollouts, trained on never."""

from __future__ import annotations

from collections.abc import Sequence

from soundrl.engine.build import Encoder
from soundrl.engine.config import Config
from soundrl.engine.generator import Generator, requests_for
from soundrl.engine.world import World
from soundrl.fapo.records import Group, Prompt
from soundrl.fapo.task import Task


def evaluate(
    tests: dict[str, list[Prompt]], task: Task, generator: Generator, encode: Encoder, config: Config, world: World
) -> dict[str, float]:
    """`eval/<set>/<measure>`, the measures as the task has them (`Task.evaluation`).

    A collective: the problems of each set are split over the tensor-parallel groups. The same seeds at every call, so that two
    evaluations differ by the weights alone.
    """
    metrics: dict[str, float] = {}
    engines, own = world.size // config.rollout.tensor_parallel, world.rank // config.rollout.tensor_parallel
    for name, prompts in tests.items():
        share = prompts[own::engines]
        groups = evaluate_share(share, task, generator, encode, config) if share else []
        # Ranks of one tensor-parallel group hold the same samples: count them once.
        sums = task.count(groups if world.rank % config.rollout.tensor_parallel == 0 else [])
        total = dict(zip(sums, world.sum(list(sums.values())), strict=True))
        metrics |= {f"eval/{name}/{measure}": value for measure, value in task.evaluation(total).items()}
    return metrics


def evaluate_share(prompts: Sequence[Prompt], task: Task, generator: Generator, encode: Encoder, config: Config) -> list[Group]:
    """This engine's problems, sampled and judged."""
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
    return task.collect(prompts, generator.generate(requests), measuring=True).groups()
