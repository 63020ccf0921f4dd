"""What a step and an evaluation leave behind: figures over all ranks, rollouts, trace, a line on the console, alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from soundrl.engine.config import Config
from soundrl.engine.files.run_folder import RunFolder
from soundrl.engine.judging.judges import BuiltJudge, over_ranks
from soundrl.engine.memory.memory_watch import MEMORY
from soundrl.engine.phases import PEAKS
from soundrl.engine.planning.command import ledger, planned
from soundrl.engine.ranks import Ranks
from soundrl.engine.telemetry.console import SUMMARY, Progress
from soundrl.engine.telemetry.flops import Work, peak_of
from soundrl.engine.telemetry.timeline import TIMELINE
from soundrl.fapo.corrected import Errors
from soundrl.fapo.pending import PendingGroups, scored
from soundrl.fapo.records import Group, Prompt
from soundrl.fapo.samples import Samples, joined
from soundrl.fapo.task import Task
from soundrl.genrm.watch.probe import PROBED

Metrics = dict[str, float]


class Recorder:
    """Writes to `folder` and shows `progress`. Every method is a collective."""

    def __init__(self, folder: RunFolder, task: Task, judge: BuiltJudge, ranks: Ranks, progress: Progress) -> None:
        self.folder, self.task, self.judge, self.ranks, self.progress = folder, task, judge, ranks, progress
        self.before: Metrics = {}
        """What was measured first: the evaluation before training, the rollouts of the first step"""
        self.after: Metrics = {}
        self.rollouts: Metrics = {}
        self.evaluated = -1
        """The step of the last evaluation"""
        self.planned: Metrics = {}
        """Peaks by phase in MiB, on rank 0"""
        self.highest: Metrics = {}
        """The same as measured, over all steps and ranks so far"""
        self.errors: Errors | None = None
        """The judge's, at its last probe"""

    def state(self) -> dict[str, Any]:
        """Plain JSON."""
        names = ("before", "after", "rollouts", "evaluated", "errors")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.errors = Errors(*self.errors) if self.errors else None

    def plan(self, config: Config) -> None:
        """What the run will hold in memory, by rank 0 alone; a run whose plan cannot be made goes on without."""
        if self.ranks.main:
            try:
                plan = planned(config, self.ranks.size, None)
                self.planned = {phase: size / 2**20 for phase, size in plan.peaks.items()}
                self.folder.save_plan(ledger(plan))
            except ValueError as error:
                self.progress.say(f"no memory plan: {error}")

    def step(self, step: int, pending: PendingGroups, judge: Metrics | None, work: Work, *measured: Metrics) -> Metrics:
        """All metrics of a step that has ended, those `measured` in it among them, and how fast its `work` was done; `judge` is what the
        judge says of itself, None: it is asked now, and probed where that is due."""
        trained, replaced = pending.groups(), scored(pending.replaced, whole=True)
        groups = trained + replaced  # all that the policy has said of its data: without the latter it would look worse than it is
        # Every rank stops by what all see.
        judged = over_ranks(self.ranks.gather(self.judge.metrics(step) if judge is None else judge))
        if PROBED[0] in judged:
            self.errors = Errors(*(int(judged[name]) for name in PROBED))
        figures = self.task.rates(self.ranks.total(self.task.count(groups)), self.judge.errors("") or self.errors)
        figures |= TIMELINE.judged(pending.calls(), self.ranks)
        metrics = dict(figures)
        for part in (*measured, judged, self._everyday(work), MEMORY.process()):
            metrics |= part
        if self.judge.watch is not None:
            metrics |= self.judge.watch.step(step, groups, metrics)
            self.folder.alarms(step, self.judge.watch.standing)
            self.folder.disagree(step, self.judge.watch.disagreements)
        self.before = figures | self.before
        self.rollouts = {name: metrics[name] for name in SUMMARY if name in metrics}
        self.folder.log(step, metrics)
        self.folder.save_rollouts(step, trained)
        if self.folder.config.rollout.refill:
            self.folder.save_rollouts(step, replaced, "replaced")
        self.folder.save_trace(TIMELINE.drain())
        self.progress.step(step, metrics)
        return metrics

    def evaluation(self, step: int, tests: Mapping[str, Sequence[Prompt]], groups: Sequence[Group]) -> None:
        """`eval/<set>/<measure>`, the measures as the task has them (`Task.evaluation`); `groups` are this rank's, of all sets."""
        own = {group.prompt.id: group for group in groups}
        measures: Metrics = {}
        for name, prompts in tests.items():
            part = [own[prompt.id] for prompt in prompts if prompt.id in own]
            total, samples = self.ranks.total(self.task.count(part)), joined(self.ranks.gather(Samples.of(part)))
            found = self.task.evaluation(total, samples, self.judge.errors(name) or self.errors)
            measures |= {f"eval/{name}/{measure}": value for measure, value in found.items()}
            self.folder.save_rollouts(step, part, "eval", name)
        if self.judge.watch is not None:
            self.folder.disagree(step, self.judge.watch.disagreements)
        self.before, self.after, self.evaluated = self.before or measures, measures, step
        self.progress.evaluation(step, measures)
        self.folder.log(step, measures | self._everyday())

    def _everyday(self, work: Work | None = None) -> Metrics:
        """Seconds and memory by phase, over all ranks, memory beside what was planned, and rates of `work`. A collective."""
        out = TIMELINE.over_ranks(self.ranks)
        for phase in PEAKS:
            if (peak := out.get(f"memory/{phase}_mib")) is not None:
                self.highest[phase] = max(peak, self.highest.get(phase, 0.0))
                if phase in self.planned:
                    out[f"memory/{phase}_planned_mib"] = self.planned[phase]
        if work is not None:
            out |= work.rates(out, self.ranks.size, peak_of(self.ranks.device, self.folder.config.model.dtype))
        return out

    def end(self) -> None:
        """The last word, and the folder is closed."""
        self.folder.save_trace(TIMELINE.drain())
        self.progress.memory(self.planned, self.highest)
        self.progress.summary(self.before, self.after | self.rollouts, TIMELINE.spent(), str(self.folder.path))
        self.folder.close()
