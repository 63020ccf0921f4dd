"""The warm start: supervised steps on worked solutions, by the same trainer that later runs RL."""

from __future__ import annotations

from dataclasses import replace

from soundrl.engine.config import Config
from soundrl.engine.policy import Policy
from soundrl.engine.problems import Demonstrations
from soundrl.engine.trainer import Trainer
from soundrl.engine.view.console import Progress

WARMUP_SHARE, FINAL_SHARE = 0.02, 0.1


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 2 % of the steps, then linear decay to a tenth of `peak` at the last step (`step` from 0)."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    left = (steps - 1 - step) / max(1, steps - 1 - warmup)
    return peak * (FINAL_SHARE + (1 - FINAL_SHARE) * left)


def warm_start(policy: Policy, config: Config, demonstrations: Demonstrations, progress: Progress) -> None:
    """Train `config.warm_start.steps` steps on response tokens, with moments of its own: RL begins with a fresh optimizer."""
    settings = config.warm_start
    trainer = Trainer(policy, replace(config.optim, lr=settings.lr), config.loss, temperature=1.0)
    for step in range(settings.steps):
        stats = trainer.supervised_step(demonstrations(step, settings.steps), learning_rate(step, settings.steps, settings.lr))
        progress.warm_start(step + 1, settings.steps, stats["loss"])
