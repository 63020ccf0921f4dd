"""What a run is made of, started in this order: ranks, folder, problems, judge, policy and trainer, warm start, sampler, first sync."""

from __future__ import annotations

from functools import partial

from soundrl.engine.config import Config
from soundrl.engine.encode import Encoder
from soundrl.engine.environments.environment import environment_of
from soundrl.engine.files.model_folder import cards, load_tokenizer, policy_folder
from soundrl.engine.files.run_folder import RunFolder
from soundrl.engine.judges import build_judge
from soundrl.engine.launch.launch import users_mistakes
from soundrl.engine.policy import Policy
from soundrl.engine.problems import Problems
from soundrl.engine.ranks import Ranks
from soundrl.engine.recorder import Recorder
from soundrl.engine.rollouts import Rollouts
from soundrl.engine.samplers.sampler import build_sampler
from soundrl.engine.task import build_task
from soundrl.engine.timeline import TIMELINE
from soundrl.engine.trainer import Trainer
from soundrl.engine.view.console import Progress
from soundrl.engine.warm_start import warm_start
from soundrl.engine.weight_sync import WeightSync
from soundrl.fapo.data.prompt_stream import PromptStream
from soundrl.fapo.measures import TooManyUnknownError
from soundrl.fapo.pending import PendingGroups


class Run:
    """One run on this rank. Everything here is a collective; a mistake of the user's ends it in one line."""

    def __init__(self, config: Config) -> None:
        with users_mistakes():
            self.ranks = ranks = Ranks.start(config.longest_wait)
            TIMELINE.begin(ranks.rank)
        self.folder, progress = RunFolder(config, ranks), Progress(ranks.main, config.run.steps)
        with users_mistakes(), TIMELINE("prepare"), self.folder.claimed() as config:
            self.config = config
            config.engines(ranks.size, ranks.device.type)
            start = policy_folder(config, ranks)
            self.encode = encode = Encoder(load_tokenizer(start), config.max_prompt_tokens)
            environment = environment_of(config.data.train)(config, encode.tokenizer)
            self.problems = Problems(config, environment)
            self.problems.check(encode, ranks, progress.say)
            self.stream = PromptStream(self.problems.train, config.run.seed)
            demonstrations = self.problems.demonstrations(encode) if config.warm_start.steps else None
            self.judge = build_judge(config, environment, ranks, progress.say)
            self.task = build_task(config, environment, self.judge)
            self.policy = Policy(start, encode.tokenizer, config.model, ranks)
            for line in cards(config):
                progress.say(line)
        if ranks.main:
            self.problems.left_out.write(self.folder.path / "left_out.jsonl")
        self.recorder = Recorder(self.folder, self.task, self.judge, ranks, progress)
        self.trainer = Trainer(self.policy, config.optim, config.loss, config.rollout.temperature, config.rollout.max_new_tokens)
        progress.say(f"{config.run.name}: {self.policy.describe()} on {ranks.describe()}")
        if demonstrations is not None:
            with TIMELINE("warm_start"):
                warm_start(self.policy, config, demonstrations, progress)
            self.export(0)  # other settings can start from the very same policy: --model.path …/step-000000 --warm-start.steps 0

    @property
    def samples(self) -> bool:
        """Whether there is anything to sample, or the run is a warm start alone."""
        return self.config.run.steps > 0 or bool(self.problems.tests)

    def start_sampling(self) -> None:
        """The sampler, with the policy's weights, and the judge."""
        config = self.config
        with users_mistakes(), TIMELINE("start_sampler"):
            self.sampler = build_sampler(config, self.policy, self.ranks)
            probes = self.problems.probes(self.encode)
            self.sync = WeightSync(self.policy, self.trainer, self.sampler, probes, config.rollout.temperature, config.run.gate)
            self.rollouts = Rollouts(self.task, self.sampler, self.encode, config, self.ranks)
        with users_mistakes(), TIMELINE("start_judge"):
            self.judge.ready()
        self.sync()
        TIMELINE.take()

    def before_training(self, step: int, pending: PendingGroups) -> dict[str, float] | None:
        """The judge's phase where it has one, and then what it says of itself; None: it is awake throughout, and is asked later."""
        if (phase := self.judge.phase) is not None:
            return phase(pending, partial(self.judge.metrics, step))
        if not self.config.run.overlap:
            with TIMELINE("judge_wait"):
                pending.groups()
        return None

    def evaluate(self, step: int) -> None:
        """Fresh samples of the held-out problems, verified and judged like rollouts, trained on never."""
        tests = self.problems.tests
        if not tests:
            return
        with TIMELINE("evaluate"):
            pending = self.rollouts.evaluate([prompt for prompts in tests.values() for prompt in prompts])
            if (phase := self.judge.phase) is not None and phase.needed(pending):
                self.sampler.sleep()
                with phase.awake(TIMELINE.detail):
                    pending.ask().groups(measuring=True)
                self.sync()  # its sleep took the sampler's weights
            groups = pending.groups(measuring=True)
        self.recorder.evaluation(step, tests, groups)

    def watch(self, step: int, metrics: dict[str, float]) -> None:
        """Ends a run that should not go on, with the policy as it is now."""
        with users_mistakes(TooManyUnknownError):
            try:
                self.task.watch(step, metrics)
            except TooManyUnknownError:
                self.export(step)
                raise

    def export(self, step: int) -> None:
        with TIMELINE("save"):
            self.policy.export(self.folder.path / "policy" / f"step-{step:06d}")

    def end(self) -> None:
        self.recorder.end()
        self.problems.environment.close()
        self.judge.close()
        if self.samples:
            self.sampler.close()
        self.ranks.stop()
