"""The warm start: supervised steps on worked solutions, by the same trainer that later runs RL."""

from __future__ import annotations

import time
from dataclasses import replace

from soundrl.engine.checkpoints import Checkpoints, restore
from soundrl.engine.config import Config
from soundrl.engine.files.checkpoint import Place
from soundrl.engine.launch.last_words import RANK
from soundrl.engine.policy import Policy
from soundrl.engine.problems import Demonstrations
from soundrl.engine.telemetry.console import Progress
from soundrl.engine.trainer import Trainer

WARMUP_SHARE, FINAL_SHARE = 0.02, 0.1
SAVE_SECONDS = 120.0
"""Between checkpoints. Nothing that is computed hangs on them."""
STOP = 2.0
"""Above what a clock says, of all ranks' reasons to save."""


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 2 % of the steps, then linear decay to a tenth of `peak` at the last step (`step` from 0)."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    left = (steps - 1 - step) / max(1, steps - 1 - warmup)
    return peak * (FINAL_SHARE + (1 - FINAL_SHARE) * left)


def warm_start(
    policy: Policy, config: Config, demonstrations: Demonstrations, progress: Progress, kept: Checkpoints | None
) -> Place | None:
    """Train `config.warm_start.steps` steps on response tokens, with moments of its own: RL begins with a fresh optimizer. A long one is
    saved in `kept` on the way, and goes on from there with the same bits; None: nothing is saved. Where somebody asks for a stop, on any
    rank, it ends after the step under way, saved, and returns that step's place; None: it is whole."""
    settings, ranks = config.warm_start, policy.ranks
    trainer = Trainer(policy, replace(config.optim, lr=settings.lr), config.loss, temperature=1.0)
    begun = kept.find() if kept else None
    first, saved = restore(begun, trainer, ranks)["step"] if begun else 0, time.monotonic()
    for step in range(settings.steps):
        samples = demonstrations(step, settings.steps)  # of those before, too: a stream gives them in turn
        if step < first:
            continue
        stats = trainer.supervised_step(samples, learning_rate(step, settings.steps, settings.lr))
        progress.warm_start(step + 1, settings.steps, stats["loss"])
        if kept and (why := ranks.max(STOP if RANK.asked else float(time.monotonic() - saved > SAVE_SECONDS))):
            kept.save(place := Place(step + 1), trainer, {"trainer": trainer.state()}, {})
            saved = time.monotonic()
            if why == STOP:
                kept.wait()
                return place
    if kept:
        kept.wait()
    return None
