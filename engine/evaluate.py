"""Evaluation: fresh samples of held-out problems, verified and judged like rollouts, trained on never."""

from __future__ import annotations

from collections.abc import Sequence

from soundrl.engine.build import Encoder
from soundrl.engine.config import Config
from soundrl.engine.generator import Generator, requests_for
from soundrl.engine.world import World
from soundrl.fapo.measures import count
from soundrl.fapo.records import Prompt
from soundrl.fapo.task import ReasoningTask


def evaluate(
    tests: dict[str, list[Prompt]], task: ReasoningTask, generator: Generator, encode: Encoder, config: Config, world: World
) -> dict[str, float]:
    """`eval/<set>/accuracy` (avg@k), `…/flawed_ratio` (flawed ÷ correct) and `…/sound` (correct and judged sound, of all).

    A collective: the problems of each set are split over the tensor-parallel groups. The same seeds at every call, so that two
    evaluations differ by the weights alone.
    """
    metrics: dict[str, float] = {}
    engines, own = world.size // config.rollout.tensor_parallel, world.rank // config.rollout.tensor_parallel
    for name, prompts in tests.items():
        share = prompts[own::engines]
        sums = evaluate_share(share, task, generator, encode, config) if share else {}
        # Ranks of one tensor-parallel group hold the same samples: count them once.
        counted = sums if world.rank % config.rollout.tensor_parallel == 0 else {}
        names = ("rollouts", "correct", "flawed", "unknown", "tokens")
        total = dict(zip(names, world.sum([counted.get(key, 0.0) for key in names]), strict=True))
        metrics[f"eval/{name}/accuracy"] = total["correct"] / total["rollouts"]
        metrics[f"eval/{name}/tokens"] = total["tokens"] / total["rollouts"]
        if task.judge is not None:
            metrics[f"eval/{name}/flawed_ratio"] = total["flawed"] / max(total["correct"], 1.0)
            metrics[f"eval/{name}/sound"] = (total["correct"] - total["flawed"] - total["unknown"]) / total["rollouts"]
    return metrics


def evaluate_share(
    prompts: Sequence[Prompt], task: ReasoningTask, generator: Generator, encode: Encoder, config: Config
) -> dict[str, float]:
    """Sums over this engine's problems."""
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
    return count(task.collect(prompts, generator.generate(requests)).groups(), config.fapo.lam)
