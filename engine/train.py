"""The main job: prompts → generate → verify → judge → reward → advantage → pack → forward/backward → optimizer → sync weights.

torchrun engine/train.py [recipe] [--group.setting value …]        one process a GPU; `python engine/train.py` starts them itself
`--plan [--gpus N] [--gpu-gib 80]` says what the run will hold in memory, and starts nothing; `--profile STEP` leaves a profile of
that step. A run that was interrupted goes on.
"""

from __future__ import annotations

from soundrl.engine.launch import launch

if __name__ == "__main__":
    launch.leave_to_ranks()

from soundrl.engine.config import Config
from soundrl.engine.exchange import exchange
from soundrl.engine.refill import learned, refilled
from soundrl.engine.run import Run
from soundrl.engine.schedule import minibatches
from soundrl.engine.telemetry.profiler import profiled
from soundrl.engine.telemetry.timeline import TIMELINE
from soundrl.fapo.data.prompt_stream import distinct


def main(config: Config) -> None:
    run = Run(config)
    if run.left:
        run.start_sampling()
        run.evaluate(run.step)
        for step in range(run.step + 1, config.run.steps + 1):
            train_step(run, step)
    run.end()


def train_step(run: Run, step: int) -> None:
    config, ranks = run.config, run.ranks
    with profiled(run, step), TIMELINE("step"):
        prompts = distinct(run.stream.take(config.rollout.prompts))  # of the global order, whatever the number of ranks
        pending = run.rollouts(prompts, step)  # each rollout is verified and judged as it finishes
        run.leave()  # saves and stops where somebody has asked for it; so do the windows of training
        prompts, filled = refilled(run, prompts, pending, step)  # what trains nothing gives way to the next prompts
        run.sampler.sleep()
        # Every rank: tokens, log-probabilities and outcomes of all rollouts. With a KL or balance term all of them train.
        batch = exchange(prompts, pending, ranks, everything=config.loss.everything)
        judge = run.before_training(step, pending)
        parts = minibatches(batch, config.optim.minibatch_prompts, config.optim.microbatch_tokens)
        trained = run.trainer.train(parts, TIMELINE("judge_wait")(pending.groups))
        run.rollouts.learn(prompts, batch)
        filled |= learned(run, pending)
        gate = run.sync()
    run.folder.save_trained(step, run.trainer.values.take(prompts, batch))
    metrics = run.recorder.step(step, pending, judge, run.trainer.work, filled, trained, gate)
    run.watch(step, metrics)
    run.evaluate(step)
    run.ended(step)


if __name__ == "__main__":
    launch.run(main)
