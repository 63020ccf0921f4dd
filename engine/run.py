"""What a run is made of, started in this order: ranks, folder, problems, judge, policy and trainer, what was saved or a warm start,
sampler, first sync."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, NoReturn

from soundrl.engine.checkpoints import Checkpoints, restore
from soundrl.engine.config import Config
from soundrl.engine.encode import Encoder
from soundrl.engine.environments.environment import build_environment, trained_prompt
from soundrl.engine.exchange import StepBatch
from soundrl.engine.files.checkpoint import Place, place_of
from soundrl.engine.files.model_folder import cards, load_tokenizer, policy_folder
from soundrl.engine.files.run_folder import RunFolder
from soundrl.engine.files.shared import keeps_checkpoints
from soundrl.engine.files.underway import RememberingJudge, Underway, next_start, take_over
from soundrl.engine.judging.judges import build_judge
from soundrl.engine.launch.hang import watch_progress
from soundrl.engine.launch.last_words import RANK, ComeAgain, PlannedStop, remove
from soundrl.engine.launch.launch import users_mistakes
from soundrl.engine.launch.words import WARM_START, kept
from soundrl.engine.policy import Policy
from soundrl.engine.problems import Problems
from soundrl.engine.ranks import Ranks
from soundrl.engine.recorder import Recorder
from soundrl.engine.reference import reference_folder, reference_of
from soundrl.engine.rollouts import Rollouts
from soundrl.engine.samplers.sampler import build_sampler
from soundrl.engine.task import build_task
from soundrl.engine.telemetry.console import Progress
from soundrl.engine.telemetry.timeline import TIMELINE
from soundrl.engine.tools.export import export_live
from soundrl.engine.trainer import Trainer
from soundrl.engine.warm_start import warm_start
from soundrl.engine.weight_sync import WeightSync
from soundrl.fapo.data.prompt_stream import PromptStream
from soundrl.fapo.measures import JudgeGoneError, TooManyUnknownError
from soundrl.fapo.pending import PendingGroup, PendingGroups
from soundrl.fapo.records import Group, Prompt
from soundrl.genrm.verdict import UNASKED

FIRST_PAUSE, LONGEST_PAUSE = 10, 600  # seconds before a judge under an alarm is probed again


class Run:
    """One run on this rank. Everything here is a collective; a mistake of the user's ends it in one line."""

    def __init__(self, config: Config) -> None:
        with users_mistakes():
            self.ranks = ranks = Ranks.start(config.longest_wait, config.model.replicas)
            TIMELINE.begin(ranks.rank)
            self.watcher = watch_progress(ranks, config.run.patience[0])
        self.folder, progress = RunFolder(config, ranks), Progress(ranks.main, config.run.steps)
        self.say = progress.say
        with users_mistakes(), TIMELINE("prepare"), self.folder.claimed() as config:
            self.config = config
            config.engines(ranks.size, ranks.device.type)
            self.checkpoints = Checkpoints(self.folder.path / "checkpoints", ranks, config.run.save, progress.say)
            self.keeps = keeps_checkpoints(config.run, self.folder.path, ranks)
            saved = self.checkpoints.find() if self.folder.goes_on else None
            self.start = policy_folder(config, ranks)
            environment = build_environment(config.data.environment, config, tokenizer := load_tokenizer(self.start))
            self.encode = encode = Encoder(tokenizer, config.max_prompt_tokens, environment.schemas)
            self.problems = Problems(config, environment)
            self.problems.check(encode, ranks, progress.say)
            self.stream = PromptStream(self.problems.train, config.run.seed, config.data.difficulty)
            demonstrations = self.problems.demonstrations(encode) if config.warm_start.steps and not saved else None
            begins = saved is None or place_of(saved) == Place(0)
            self.judge = build_judge(config, environment, ranks, progress.say, begins)
            self.underway = Underway(self.folder.path / "underway", ranks)
            asked = RememberingJudge(self.judge.judge, self.underway) if config.judged_elsewhere and self.judge.judge else self.judge.judge
            self.task = build_task(config, environment, dataclasses.replace(self.judge, judge=asked))
            self.policy = Policy(self.start, encode.tokenizer, config.model, ranks, seed=config.run.seed)
            for line in cards(config):
                progress.say(line)
            self.recorder = Recorder(self.folder, self.task, self.judge, ranks, progress)
            self.trainer = Trainer(self.policy, config.optim, config.loss, config.rollout.temperature, config.rollout.max_new_tokens)
            self.trainer.leave = self.leave
            self.at: dict[str, Any] = {"step": 0, "version": 1, "marks": {}, "lengths": None, "silent": []}
            """What was true when the last step ended, beside weights and moments (`snapshot`)"""
            if saved:
                self._go_on(restore(saved, self.trainer, ranks))
                progress.goes_on(saved, self.step, self.left)
        if ranks.main:
            self.problems.left_out.write(self.folder.path / "left_out.jsonl")
            self.underway.start = next_start(self.underway.folder)
            take_over(self.folder.path / "rollouts", self.underway.folder, self.step, self.underway.start)
        self.underway.start = ranks.gather(self.underway.start)[0]  # nobody writes before
        progress.say(f"{config.run.name}: {self.policy.describe()} on {ranks.describe()}")
        if demonstrations is not None:
            RANK.grace, RANK.stops = config.run.patience[1], self.keeps
            with TIMELINE("warm_start"):
                kept = Checkpoints(self.folder.path / WARM_START, ranks, (0, 1, 0), progress.say) if self.keeps else None
                if place := warm_start(self.policy, config, demonstrations, progress, kept):
                    self._stop(f"after step {place.step} of the warm start", whole=kept is not None and kept.saved == place)
            self.at = self.snapshot(0, version=1)
            self.save()
            self.export()  # other settings can start from the very same policy: --model.path …/step-000000 --warm-start.steps 0
            self.leave()
            RANK.stops = False  # while the sampler and the judge start
        if ranks.gather((led := self.folder.path / WARM_START).exists())[0]:
            self.checkpoints.wait()
            if ranks.main and (self.checkpoints.saved or not config.run.save[0]):
                remove(led)  # what it led to is whole

    @property
    def step(self) -> int:
        """Of the last step that has ended."""
        return self.at["step"]

    @property
    def left(self) -> bool:
        """Whether there is anything to sample; there is not where the run is a warm start alone, or has come to its end before."""
        return self.step < self.config.run.steps or self.owes_evaluation(self.step)

    def owes_evaluation(self, step: int) -> bool:
        """The first, at the start, then every `run.eval_every` steps and at the last one; never twice."""
        last, run = self.recorder.evaluated, self.config.run
        return bool(self.problems.tests) and (last < 0 or (last < step and due(step, run.eval_every, run.steps)))

    def start_sampling(self) -> None:
        """The sampler, with the policy's weights, the reference and the judge."""
        config = self.config
        with users_mistakes(), TIMELINE("start_sampler"):
            if config.loss.kl[0]:
                folder = reference_folder(config, self.start, self.folder.path, self.keeps)
                self.trainer.reference = reference_of(self.policy, folder, config.loss.kl[2])
            self.trainer.sleep()  # the sampler takes its share of what is free
            self.sampler = build_sampler(config, self.policy, self.ranks)
            self.judge.enter(self.sampler, self.policy.base)
            probes = self.problems.probes(self.encode)
            self.sync = WeightSync(self.policy, self.trainer, self.sampler, probes, config.rollout.temperature, config.run.gate)
            self.sync.reply = self.problems.reply(self.encode)
            self.rollouts = Rollouts(self.task, self.sampler, self.encode, config, self.underway, self.problems.environment)
            if self.judge.watch is not None and self.judge.watch.second is not None:
                self.rollouts.beside = self.judge.watch.second.asks
            if self.at["lengths"]:
                self.rollouts.expected.restore(self.at["lengths"])
            self.sampler.version = self.at["version"] - 1  # the sync below is the one that the step had ended with
        with users_mistakes(), TIMELINE("start_judge"):
            self.recorder.plan(config)  # while a served judge starts
            self.judge.ready()
        self.sync()
        TIMELINE.take()
        self.at = self.snapshot(self.step)
        RANK.grace, RANK.stops = config.run.patience[1], True
        if (watch := self.judge.watch) is not None and watch.setting != "tell" and (watch.probed or watch.acting):
            self.wait_for_judge()  # it stopped, or was stopped, under this alarm

    def before_training(self, step: int, pending: PendingGroups) -> dict[str, float] | None:
        """The judge's phase where it has one, and then what it says of itself; None: it is awake throughout, and is asked later."""
        if (phase := self.judge.phase) is not None:
            return phase(pending, partial(self.judge.metrics, step))
        if not self.config.run.overlap:
            with TIMELINE("judge_wait"):
                pending.groups()
        return None

    def evaluate(self, step: int) -> None:
        """Where one is due: fresh samples of the held-out problems, verified and judged like rollouts, trained on never."""
        if not self.owes_evaluation(step):
            return
        tests, self.at = self.problems.tests, self.snapshot(step)
        with TIMELINE("evaluate"):
            pending = self.rollouts.evaluate([prompt for prompts in tests.values() for prompt in prompts], step)
            self.leave()
            if (phase := self.judge.phase) is not None and phase.needed(pending):
                self.sampler.sleep()
                with phase.awake(TIMELINE.detail):
                    groups = self._judged(phase.ask(pending), tests)
                self.sync()  # its sleep took the sampler's weights
            else:
                groups = self._judged(pending, tests)
            self.leave()
        self.recorder.evaluation(step, tests, groups)
        self.at = self.snapshot(step)

    def _judged(self, pending: PendingGroups, tests: Mapping[str, Sequence[Prompt]]) -> list[Group]:
        """An evaluation's groups, with their verdicts and second opinions."""
        groups = pending.groups(measuring=True)
        if self.judge.watch is not None:
            self.judge.watch.evaluated(tests)
        return groups

    def watch(self, step: int, metrics: dict[str, float]) -> None:
        """Ends a run that should not go on, with its state as it is now; or, saved, waits until its judge is well (`genrm.alarm`)."""
        watch = self.judge.watch
        with users_mistakes(TooManyUnknownError):
            try:
                self.task.watch(step, metrics)
                if watch is not None:
                    if watch.setting == "pause" and watch.acting and not watch.probed:
                        self._probe_again(step)
                    watch.check(step)
                paused = watch is not None and watch.pauses
            except TooManyUnknownError as error:
                paused = isinstance(error, JudgeGoneError) and watch is not None and watch.setting == "pause"
                if not paused:
                    self._stay(step)
                    raise
        if paused:
            self._stay(step)
            self.wait_for_judge()

    def _stay(self, step: int) -> None:
        self.at = self.snapshot(step)
        self.save()
        self.checkpoints.wait()

    def wait_for_judge(self) -> None:
        """Asks the probe with growing pauses until the judge is well; with `genrm.alarm` stop once. A stop that is asked for is heeded."""
        assert (watch := self.judge.watch) is not None
        seconds = FIRST_PAUSE
        with users_mistakes(TooManyUnknownError), TIMELINE("judge_alarm"):
            while not self._probe_again(self.step):
                watch.check(self.step)
                self.say(f"the run waits for a judge that is well, and asks it again in {seconds} s; its state is saved, Ctrl-C ends it")
                for _ in range(seconds):
                    time.sleep(1.0)
                    RANK.beat()
                    self.leave()
                seconds = min(2 * seconds, LONGEST_PAUSE)
        watch.forgive(self.step)

    def _probe_again(self, step: int) -> bool:
        """Whether the judge is well."""
        assert (watch := self.judge.watch) is not None
        if (phase := self.judge.phase) is None:
            return watch.again(step)
        self.sampler.sleep()
        with phase.awake(TIMELINE.detail):
            well = watch.again(step)
        self.sync()  # its sleep took the sampler's weights
        return well

    def leave(self, batch: StepBatch | None = None, window: Sequence[int] = (), waited: Sequence[PendingGroup] = ()) -> None:
        """Ends the run, saved as it is now, where somebody has asked for it on any rank, or no judge is left for verdicts of `window` or of
        the `waited` ones. Passed by all ranks at the same places: when sampling has ended, and before each window of a step trains."""
        own = [*waited, *(batch.owned[g] for g in window if batch is not None and g in batch.owned)]
        asked = 1.0 if RANK.asked else 2.0 if self._unjudged(own) else 0.0
        if not self.ranks.max(asked):
            return
        self.trainer.optimizer.zero_grad()  # of a mini-batch that is trained again
        if batch is not None:
            self.trainer.late = batch.old_logprobs
        self.underway.flush(sync=True)
        self.save()
        self.checkpoints.wait()
        self._stop(f"in step {self.step + 1}", whole=self.checkpoints.saved == self.place)

    def _stop(self, where: str, whole: bool) -> NoReturn:
        """The end of a run that was to save; `whole`: it has. A collective."""
        number = self.ranks.first_said(RANK.asked.name if RANK.asked else "")
        lost = "" if whole else ", and its state could not be saved"
        text = (f"stopped by {number} {where}" if number else f"no judge answers, {where}") + lost
        if number and whole:
            raise PlannedStop(text + kept(self.folder.path))
        raise ComeAgain(text)

    def _unjudged(self, own: Sequence[PendingGroup]) -> bool:
        lost = any(v is not None and v.reason in UNASKED for group in own for v in group.made().verdicts)
        return lost and self.judge.gone

    def ended(self, step: int) -> None:
        """The step is whole, with its evaluation; saved where that is due."""
        self.at = self.snapshot(step)
        self.underway.end()
        self.checkpoints.tell()
        if due(step, self.config.run.save[0], self.config.run.steps):
            self.save()

    def snapshot(self, step: int, version: int = 0) -> dict[str, Any]:
        """What the next step depends on, beside weights and moments; plain JSON. `version`: of the weights that sample next."""
        return {
            "step": step,
            "version": version or self.sampler.version,
            "stream": self.stream.state_dict(),
            "recorder": self.recorder.state(),
            "task": self.task.state(),
            "judge": self.judge.state(),
            "lengths": None if version else self.rollouts.expected.state(),
            "marks": self.folder.mark(step),
            "silent": self.at["silent"] if step == self.step else [],  # of the step under way, `refill.silent`
        }

    def _go_on(self, state: dict[str, Any]) -> None:
        self.at, self.folder.marks, TIMELINE.steps = {"silent": []} | state, state["marks"], state["step"]
        self.trainer.within = state["within"]
        self.underway.needed = str(self.checkpoints.folder / self.place.name) if self.place.within else ""
        self.stream.load_state_dict(state["stream"])
        self.recorder.restore(state["recorder"])
        self.task.restore(state["task"])
        self.judge.restore(state["judge"])

    @property
    def place(self) -> Place:
        return Place(self.step, self.trainer.within)

    def save(self) -> None:
        """The state as the last step left it, or in the middle of the next one; written beside what comes now. Nothing where the ranks
        share no disk."""
        if not self.keeps:
            return
        with TIMELINE("save"):
            said = {"trainer": self.trainer.state(), "config": dataclasses.asdict(self.config), "ranks": self.ranks.size}
            said["written"] = datetime.now(UTC).isoformat(timespec="seconds")
            self.checkpoints.save(self.place, self.trainer, self.at | said, self.files())

    def files(self) -> dict[str, bytes]:
        """What a Hugging Face folder of the policy has beside weights, by name, on rank 0; of a judge the prompt that it answers, too."""
        files = self.policy.files()
        if files and self.config.run.critic:
            files["card.json"] = (json.dumps({"prompt": trained_prompt(self.config)}) + "\n").encode()
        return files

    def export(self) -> None:
        """The policy as it is now, as a Hugging Face folder in the type that it computes in; rank 0 writes."""
        target = self.folder.path / "policy" / self.place.name
        if self.ranks.gather(target.exists())[0]:  # of a run that had come to its end before
            return
        with TIMELINE("save"):
            export_live(self.policy, self.files(), target)

    def end(self) -> None:
        if 0 < self.step == self.config.run.steps:
            self.export()
        self.checkpoints.wait()
        if self.ranks.main:
            remove(self.underway.folder)
        self.recorder.end()
        self.watcher.close()
        self.problems.environment.close()
        self.judge.close()
        if hasattr(self, "sampler"):
            self.sampler.close()
        self.ranks.stop()


def due(step: int, every: int, last: int) -> bool:
    """Every `every` steps (0 = never) and at the last one."""
    return step == last or (every > 0 and step % every == 0)
