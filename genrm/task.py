"""The critic task: prompts are solutions to be judged, a rollout is a critique, and its reward is known at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from soundrl.fapo.corrected import Errors
from soundrl.fapo.measures import common, common_rates, share
from soundrl.fapo.pending import PendingGroups, done
from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Verdict
from soundrl.fapo.rewards import RewardSettings, assign_advantages
from soundrl.fapo.samples import Samples
from soundrl.fapo.task import Beside, Task
from soundrl.genrm import scores
from soundrl.genrm.critic_data.labelled import Labelled
from soundrl.genrm.prompts import PROMPTS
from soundrl.genrm.verdict import Reply


def outcome(label: int, verdict: Verdict) -> Outcome:
    """Whether sound or flawed is right; an unknown verdict is no answer."""
    if verdict.kind == "unknown":
        return Outcome.NO_ANSWER
    return Outcome.CORRECT if (verdict.kind == "flawed") == (label >= 0) else Outcome.WRONG


def critic_reward(label: int, verdict: Verdict, steps: int, process: bool = True) -> float:
    """R_outcome + R_process for one critique (arXiv 2510.22543 Eq. 7, and its released code for critiques without a verdict).

    R_outcome is +1 where sound or flawed is right, else −1; R_process is −|t̂ − t*| ÷ n where label and verdict both say flawed, else 0
    (and 0 always without `process`, the ablation). `label` is t*, −1 = sound; `steps` is n. An unknown verdict is −1.

    >>> [round(critic_reward(3, Verdict.flawed(t), 5), 1) for t in (3, 2, 0)], critic_reward(3, Verdict.sound(), 5)
    ([1.0, 0.8, 0.4], -1.0)
    >>> critic_reward(-1, Verdict.sound(), 5), critic_reward(-1, Verdict.flawed(0), 5), critic_reward(-1, Verdict.unknown("no_box"), 5)
    (1.0, -1.0, -1.0)
    """
    if not -1 <= label < steps:
        raise ValueError(f"label {label} is no step of {steps}; it is −1 or 0 … {steps - 1}")
    if outcome(label, verdict) is not Outcome.CORRECT:
        return -1.0
    if label < 0 or not process or verdict.step is None:
        return 1.0
    return 1.0 - abs(verdict.step - label) / steps


class CriticTask(Task):
    """Trains a GenRM: verdicts are read from the rollouts, labels stand in the prompts. A critic that gives no verdict is paid for it.

    `process` adds R_process to the reward. `prompt` is the one that the critiques answer. Of `settings` the length penalty and the
    normalisation are used.
    """

    def __init__(self, settings: RewardSettings, process: bool, prompt: str = "own") -> None:
        # Nothing is taken from a verdict a second time, and no rollout leaves its group: an unknown verdict is a reward of −1 here.
        self.settings, self.process, self.prompt = replace(settings, lam=0.0), process, PROMPTS[prompt]

    def collect(
        self, prompts: Sequence[Prompt], rollouts: Iterable[Rollout], beside: Beside | None = None, into: PendingGroups | None = None
    ) -> PendingGroups:
        pending = PendingGroups((), self.assign, decisive=False) if into is None else into
        pending.more(prompts)
        for rollout in rollouts:
            prompt = pending.by_prompt[rollout.prompt_id].prompt
            verdict = self.prompt.read(Reply(rollout.text, rollout.finish_reason), prompt.steps or 1)
            pending.by_prompt[prompt.id].add(rollout, done(outcome(int(prompt.answer), verdict)), done(verdict))
        return pending

    def assign(self, groups: Sequence[Group]) -> None:
        rewards = [
            critic_reward(int(group.prompt.answer), verdict, group.prompt.steps or 1, self.process)
            for group in groups
            for verdict in group.verdicts
            if verdict is not None
        ]
        assign_advantages(groups, self.settings, rewards)

    def count(self, groups: Sequence[Group]) -> dict[str, float]:
        """What every task counts, and the sums of `soundrl.genrm.scores.FLAGS`."""
        found = np.zeros(len(scores.FLAGS))
        for group in groups:
            steps, label = ("",) * (group.prompt.steps or 1), int(group.prompt.answer)
            row = Labelled(id=group.prompt.id, problem="", steps=steps, label=label)
            found += np.sum([scores.flags(row, verdict) for verdict in group.verdicts if verdict is not None], axis=0)
        return common(groups) | dict(zip(scores.FLAGS, found.tolist(), strict=True))

    def rates(self, sums: dict[str, float], errors: Errors | None = None) -> dict[str, float]:
        """`reward/correct` is the share of right verdicts, `critic/exact` that of right verdicts with the right step."""
        right = (sums["true_positive"] + sums["accepted"]) / max(sums["rollouts"], 1.0)
        own = {f"critic/{name}": value for name, value in self._scores(sums).items() if name != "tokens"}
        return common_rates(sums) | {"reward/correct": right} | own

    def evaluation(self, sums: dict[str, float], samples: Samples, errors: Errors | None = None) -> dict[str, float]:
        """ProcessBench's and FlawedPositiveBench's measures (`soundrl.genrm.scores.measures`), and `exact` over all rows."""
        return self._scores(sums)

    def _scores(self, sums: dict[str, float]) -> dict[str, float]:
        found = scores.measures([sums[name] for name in scores.FLAGS])
        out = {"exact": (sums["located"] + sums["accepted"]) / max(sums["rollouts"], 1.0), "tokens": share(sums, "tokens", "rollouts")}
        return out | {name: value.item() for name, value in found.items()}
