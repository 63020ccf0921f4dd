"""The main job: prompts → generate → verify → judge → reward → advantage → pack → forward/backward → optimizer → sync weights.

torchrun engine/train.py [recipe] [--group.setting value …]        one process a GPU; `python engine/train.py` starts them itself
`--plan [--gpus N] [--gpu-gib 80]` says what the run will hold in memory, and starts nothing.
"""

from __future__ import annotations

from functools import partial

from soundrl.engine.launch import launch

if __name__ == "__main__":
    launch.leave_to_ranks()

from soundrl.engine.config import Config
from soundrl.engine.encode import Encoder
from soundrl.engine.environments.environment import environment_of
from soundrl.engine.evaluate import evaluate
from soundrl.engine.exchange import exchange
from soundrl.engine.files.model_folder import cards, load_tokenizer, policy_folder
from soundrl.engine.files.run_folder import RunFolder
from soundrl.engine.judges import over_ranks
from soundrl.engine.launch.launch import users_mistakes
from soundrl.engine.policy import Policy
from soundrl.engine.problems import Problems
from soundrl.engine.ranks import Ranks
from soundrl.engine.rollouts import rollout
from soundrl.engine.samplers.sampler import build_sampler
from soundrl.engine.schedule import minibatches
from soundrl.engine.task import build_task
from soundrl.engine.timeline import Timeline
from soundrl.engine.trainer import Trainer
from soundrl.engine.view.console import SUMMARY, Progress, peak_memory
from soundrl.engine.warm_start import warm_start
from soundrl.engine.weight_sync import WeightSync
from soundrl.fapo.data.prompt_stream import PromptStream, distinct
from soundrl.fapo.measures import TooManyUnknownError


def main(config: Config) -> None:
    with users_mistakes():
        ranks = Ranks.start(config.longest_wait)
    phases, progress = Timeline(ranks.rank), Progress(ranks.main, config.run.steps)
    folder = RunFolder(config, ranks)
    with users_mistakes(), phases("prepare"), folder.claimed() as config:
        config.engines(ranks.size, ranks.device.type)
        start = policy_folder(config, ranks)
        encode = Encoder(load_tokenizer(start), config.max_prompt_tokens)
        environment = environment_of(config.data.train)(config, encode.tokenizer)
        problems = Problems(config, environment)
        problems.check(encode, ranks, progress.say)
        stream = PromptStream(problems.train, config.run.seed)
        demonstrations = problems.demonstrations(encode) if config.warm_start.steps else None
        task, judging = build_task(config, environment, ranks, progress.say)
        policy = Policy(start, encode.tokenizer, config.model, ranks)
        for line in cards(config):
            progress.say(line)
    if ranks.main:
        problems.left_out.write(folder.path / "left_out.jsonl")
    trainer = Trainer(policy, config.optim, config.loss, config.rollout.temperature, phases.detail, config.rollout.max_new_tokens)
    progress.say(f"{config.run.name}: {policy.describe()} on {ranks.describe()}")
    if demonstrations is not None:
        with phases("warm_start"):
            warm_start(policy, config, demonstrations, progress)
        with phases("save"):  # other settings can start from the very same policy: --model.path …/step-000000 --warm-start.steps 0
            policy.export(folder.path / "policy" / "step-000000")
    if not config.run.steps and not problems.tests:  # nothing to sample
        progress.summary({}, {}, phases.spent(), str(folder.path))
        folder.close()
        task.close()
        ranks.stop()
        return
    with users_mistakes(), phases("start_sampler"):
        sampler = build_sampler(config, policy, ranks)
        sync = WeightSync(policy, trainer, sampler, problems.probes(encode), config.rollout.temperature, config.run.gate)
    with users_mistakes(), phases("start_judge"):
        task.ready()
    with phases("sync"):
        sync()
    phases.take()
    measure = partial(evaluate, problems.tests, task, sampler, encode, config, ranks, phases, judging, sync)
    with phases("evaluate"):
        before = evaluation = measure()
    progress.evaluation(0, before)
    folder.log(0, before)

    metrics: dict[str, float] = {}
    for step in range(1, config.run.steps + 1):
        with phases("step"):
            updates = config.rollout.prompts // config.optim.minibatch_prompts
            prompts = distinct(stream.take(updates * config.optim.minibatch_prompts))
            pending = rollout(prompts, task, sampler, encode, config, ranks, step, phases)
            sampler.sleep()
            with phases("rank_wait"):
                batch = exchange(prompts, pending, ranks)
            said = {} if judging is None else judging(pending, partial(task.judge_metrics, step), phases)
            if judging is None and not config.run.overlap:
                with phases("judge_wait"):
                    pending.groups()
            with phases("train"):
                parts = minibatches(batch, config.optim.minibatch_prompts, config.optim.microbatch_tokens)
                trained = trainer.train(parts, partial(phases, "judge_wait"))
            with phases("judge_wait"):  # verdicts that change no advantage: λ = 0
                own = pending.groups()
            with phases("sync"):
                gate = sync()
        measured = task.rates(ranks.total(task.count(own)))
        measured |= phases.judged(pending.calls(), ranks)
        said = over_ranks(ranks.gather(said or task.judge_metrics(step)))  # every rank stops by what all see
        metrics = measured | trained | gate | said | phases.take() | peak_memory()
        before = measured | before
        folder.log(step, metrics)
        folder.save_rollouts(step, own)
        folder.save_trace(event for part in ranks.gather(phases.drain()) for event in part)
        progress.step(step, metrics)
        with users_mistakes(TooManyUnknownError):  # this step is on disk, and so is its policy
            try:
                task.watch(step, metrics)
            except TooManyUnknownError:
                policy.export(folder.path / "policy" / f"step-{step:06d}")
                raise
        if due(step, config.run.export_every, config.run.steps):
            with phases("save"):
                policy.export(folder.path / "policy" / f"step-{step:06d}")
        if due(step, config.run.eval_every, config.run.steps):
            with phases("evaluate"):
                evaluation = measure()
            progress.evaluation(step, evaluation)
            folder.log(step, evaluation)

    after = evaluation | {name: metrics[name] for name in SUMMARY if name in metrics}
    folder.save_trace(event for part in ranks.gather(phases.drain()) for event in part)
    progress.summary(before, after, phases.spent(), str(folder.path))
    folder.close()
    task.close()
    sampler.close()
    ranks.stop()


def due(step: int, every: int, last: int) -> bool:
    """Every `every` steps (0 = never) and at the last one."""
    return step == last or (every > 0 and step % every == 0)


if __name__ == "__main__":
    launch.run(main)
