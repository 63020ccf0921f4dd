"""A saved step computed once more by the run's own code, and compared with what the run has written: rewards, advantages, figures, packing.

rollouts/step-000037 → groups → rewards, advantages            equal to the file's, bit for bit
                              → figures of the step            equal to metrics.jsonl's (sums over ranks: to 1e-12)
                              → mini-batches, windows, rounds  tokens/trained, tokens/fill
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from soundrl.engine.config import Config
from soundrl.engine.encode import Encoder
from soundrl.engine.environments.environment import NAMED, Environment, build_environment
from soundrl.engine.exchange import StepBatch
from soundrl.engine.files.checkpoint import checkpoints
from soundrl.engine.files.model_folder import load_tokenizer
from soundrl.engine.files.run_reader import RunReader, read_lines
from soundrl.engine.files.saved_step import config_of, read_step
from soundrl.engine.judging.judges import BuiltJudge
from soundrl.engine.packing import Sample, micro_batches, pack
from soundrl.engine.ranks import Ranks
from soundrl.engine.schedule import Minibatch, minibatches
from soundrl.engine.task import build_task, reward_settings
from soundrl.fapo.data.left_out import LeftOut
from soundrl.fapo.data.mixture import Mixture
from soundrl.fapo.data.prompt_stream import PromptStream, distinct
from soundrl.fapo.records import Group, Outcome, Prompt
from soundrl.fapo.reward_rule import is_flawed, rule_reward
from soundrl.fapo.rewards import shaping
from soundrl.fapo.task import Task

SUMMED = 1e-12
"""Relative difference of figures that are sums over ranks, whose order may differ."""
SHOWN = 5
"""Figures that a line names."""


@dataclass
class Findings:
    """What a replay says, in lines."""

    equal: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """What could not be computed, why, and the cure."""


def fresh(groups: Sequence[Group], **changed: Any) -> list[Group]:
    """The same rollouts, outcomes and verdicts, not scored."""
    return [replace(group, rewards=[], advantages=[], kept=[], **changed) for group in groups]


class Recomputed:
    """Step `step` of the run in `folder`. ValueError in one line where the folder, its settings or the step cannot be read."""

    def __init__(self, folder: Path, step: int) -> None:
        self.run, self.step = RunReader(folder), step
        self.config, older = config_of(self.run)
        self.saved = read_step(self.run, step)
        self.where = f"{folder}, step {step}"
        self.found = Findings()
        for name in older:
            self.found.left_out.append(f"{name} is not in config.json: taken as this version's default")
        self.environment = build_environment(self.config.data.environment, self.config, self.tokenizer)
        self.given = [*self.saved.groups, *self.saved.replaced]
        size = self.config.rollout.samples
        if odd := next((group for group in self.given if len(group.rollouts) != size), None):
            raise ValueError(f"{self.where}: {odd.prompt.id} has {len(odd.rollouts)} rollouts of {size}; restore the file")
        prompts = self.config.rollout.prompts
        if len(self.saved.groups) != prompts:
            raise ValueError(f"{self.where}: {len(self.saved.groups)} groups of {prompts}; restore the file")

    @cached_property
    def tokenizer(self) -> Any:
        """That of any policy of the run, else of the folder that it started from; None where none is left."""
        folders = [*sorted(self.run.path.glob("policy/step-*")), *(path / "model" for path in checkpoints(self.run.path / "checkpoints"))]
        folder = next((path for path in [*folders, Path(self.config.model.path)] if path.is_dir()), None)
        return None if folder is None else load_tokenizer(folder)

    def task(self, config: Config) -> Task:
        """Of the run, with the settings of `config`; nobody is asked."""
        return build_task(config, self.environment, BuiltJudge(None))

    @cached_property
    def row(self) -> dict[str, Any]:
        """The step's line of metrics.jsonl; empty where it has none."""
        return next((row for row in self.run.metrics() if row["step"] == self.step and "reward/mean" in row), {})

    # ── rewards, advantages ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def groups(self) -> list[Group]:
        """All of the step, scored anew: first those that were trained, as the files have them, then the replaced ones. A critic's prompts
        are the data's own: their number of steps is part of the reward."""
        groups = fresh(self.given)
        if self.config.run.critic:
            known = {prompt.id: prompt for prompt in self.sampled}
            groups = [replace(group, prompt=known[group.prompt.id]) for group in groups]
        elif own := self._own_rewards(groups):
            self.found.left_out.append(f"{own} rewards are a verifier's own, which files before `score` do not hold: taken from `reward`")
        self.task(self.config).assign(groups)
        return groups

    def _own_rewards(self, groups: Sequence[Group]) -> int:
        """A folder of a version that kept no `score`: fill it where the rule does not explain a reward. Returns how many."""
        if any(score is not None for group in groups for score in group.scores):
            return 0
        settings, own = reward_settings(self.config), 0
        for group, given in zip(groups, self.given, strict=True):
            group.scores = [*group.scores]
            for i, (rollout, outcome, verdict) in enumerate(zip(group.rollouts, group.outcomes, group.verdicts, strict=True)):
                rest = settings.lam * is_flawed(verdict)
                if given.rewards[i] != rule_reward(outcome) + shaping(rollout, settings) - rest and self._scores:
                    group.scores[i] = given.rewards[i] + rest - shaping(rollout, settings)
                    own += 1
        return own

    @property
    def _scores(self) -> bool:
        """Whether anybody but the rule can have rewarded."""
        data = self.config.data
        return bool(data.verifier) or data.environment not in ("", *NAMED) or any(p.startswith("rg:") for p in data.train)

    def check_rewards(self) -> None:
        count = sum(len(group.rollouts) for group in self.given)
        for name in ("kept", "rewards", "advantages"):
            odd = [
                (group.prompt.id, i, was, now)
                for group, own in zip(self.given, self.groups, strict=True)
                for i, (was, now) in enumerate(zip(getattr(group, name), getattr(own, name), strict=True))
                if was != now
            ]
            if odd:
                id_, sample, was, now = odd[0]
                more = f"{len(odd)} of {count} differ, first {id_} sample {sample}: the file says {was}, recomputed {now}"
                self.found.differs.append(f"{name}: {more}")
            else:
                self.found.equal.append(f"{name} of {count} rollouts in {len(self.given)} groups, bit for bit")

    # ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def check_figures(self) -> None:
        """Everything that `Task.rates` says of these groups and the run has written. Not among them: what was corrected for the judge's
        errors, which its probes say, and why an outcome is unknown, which no file keeps."""
        if not self.row:
            self.found.left_out.append(f"figures: {self.run.path / 'metrics.jsonl'} has no line of step {self.step}")
            return
        task = self.task(self.config)
        figures = task.rates(task.count(self.groups))
        if self.config.rollout.refill:
            trained = self.groups[: len(self.saved.groups)]
            figures["reward/groups_with_signal"] = sum(group.signal for group in trained) / len(trained)
        self.compare(figures, SUMMED, "to 1e-12")

    def compare(self, figures: Mapping[str, float], tolerance: float, how: str, floors: Mapping[str, float] | None = None) -> bool:
        """With the step's line, those that it has too: bit for bit, else relative to `tolerance`, or to that of a figure's own floor.
        Whether all are equal."""
        same, odd, worst = list[str](), list[str](), 0.0
        for name in (name for name in figures if name in self.row):
            was, now = self.row[name], figures[name]
            if was is None or not math.isfinite(now):
                apart = 0.0 if was is None and not math.isfinite(now) else math.inf
            else:
                apart = abs(was - now) / max(abs(was), abs(now), (floors or {}).get(name, 0.0), 1e-300)
            if apart > tolerance:
                odd.append(f"{name}: metrics.jsonl says {was}, recomputed {now}")
            else:
                same.append(f"{name} {now:.6g}")
                worst = max(worst, apart)
        if same:
            shown = ", ".join(same[:SHOWN]) + (f" and {len(same) - SHOWN} more" if len(same) > SHOWN else "")
            self.found.equal.append(f"{shown}: {f'within {worst:.0e} ({how})' if worst else 'bit for bit'}")
        self.found.differs += odd
        return not odd

    # ── order, packing ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def sampled(self) -> list[Prompt]:
        """The step's prompts as the stream gave them, first those of the step, then what refilled it. ValueError where the data that the
        settings name are others now."""
        return self.sampled_from(self.environment)

    def sampled_from(self, environment: Environment) -> list[Prompt]:
        data, out = self.config.data, set[str]()
        if (listed := self.run.path / "left_out.jsonl").is_file():
            out = {f"{row['file']}:{row['row']}" for row in read_lines(listed) if row["field"] != "solution"}
        problems = environment.problems(LeftOut())
        if isinstance(problems, list):
            left = [row for row in problems if row.id not in out]
            problems = problems.kept(lambda row: None if row.id in out else row) if isinstance(problems, Mixture) else left
        stream = PromptStream(problems, self.config.run.seed, data.difficulty)
        before = [row for row in self.run.metrics() if row["step"] < self.step and "reward/mean" in row]
        if len(before) != self.step - 1:
            raise ValueError(f"{self.run.path / 'metrics.jsonl'} has {len(before)} of {self.step - 1} steps before step {self.step}")
        extra = ("refill/prompts", "data/passed_over")
        stream.cursor = sum(self.config.rollout.prompts + int(sum(row.get(name, 0.0) for name in extra)) for row in before)
        known = {group.prompt.id: group.prompt for group in self.given}
        found, spare = list[Prompt](), 4 * len(problems) if isinstance(problems, Sequence) and data.difficulty[1] else 0
        while len(found) < len(known):
            (prompt,) = distinct(stream.take(1), found)
            if prompt.id in known:
                if (prompt.text, prompt.answer) != (known[prompt.id].text, known[prompt.id].answer):
                    raise ValueError(f"{self.where}: {prompt.id} is another problem now; name the data that the run was made with")
                found.append(prompt)
            elif spare:
                spare -= 1  # passed over
            else:
                raise ValueError(f"{self.where}: the data would have given {prompt.id}, which is not there; name those of the run")
        return found

    @cached_property
    def order(self) -> list[int]:
        """Indices of the trained `groups` in the global order, by which mini-batches are cut: on one rank that of the file; else that of
        the stream, and what has refilled a step has taken the first places that were free."""
        ids = {group.prompt.id: i for i, group in enumerate(self.saved.groups)}
        if self.saved.ranks == 1 and not self.saved.replaced:
            return list(ids.values())
        first, later = self.sampled[: len(ids)], self.sampled[len(ids) :]
        came = iter([prompt.id for prompt in later if prompt.id in ids])
        return [ids[prompt.id if prompt.id in ids else next(came)] for prompt in first]

    def batch(self, groups: Sequence[Group], ranks: Ranks) -> StepBatch:
        """What every rank knew of these groups, in the global order; their advantages are known."""
        config, ends = self.config, np.cumsum([0, *(len(group.rollouts) for group in groups)]).tolist()
        decisive = config.genrm.judge != "none" and config.fapo.lam > 0 and not config.run.critic
        return StepBatch(
            samples=[Sample.of(rollout) for group in groups for rollout in group.rollouts],
            groups=[range(begin, end) for begin, end in zip(ends, ends[1:], strict=False)],
            undecided=[decisive and Outcome.CORRECT in group.outcomes for group in groups],
            advantages=np.array([advantage for group in groups for advantage in group.advantages]),
            owned={},
            ranks=ranks,
            everything=config.loss.everything,
        )

    def parts(self, batch: StepBatch) -> list[Minibatch]:
        return minibatches(batch, self.config.optim.minibatch_prompts, self.config.optim.microbatch_tokens)

    def planned(self) -> list[Minibatch]:
        """The step's mini-batches, in windows as its ranks have cut them."""
        ranks: Any = SimpleNamespace(size=self.saved.ranks)
        return self.parts(self.batch([self.groups[i] for i in self.order], ranks))

    def check_packing(self) -> None:
        """Lengths alone are packed. ValueError where the order of the step cannot be known."""
        if not self.saved.ranks:
            self.found.left_out.append("packing: this format says neither how long prompts were nor how many ranks there were")
            return
        parts, ranks, budget = self.planned(), self.saved.ranks, self.config.optim.microbatch_tokens
        empty, held, batches, trained = pack((), torch.device("cpu")).tokens, 0, 0, 0
        for part in parts:
            rounds = 0
            for window in part.windows:
                samples = [part.batch.samples[i] for i in part.batch.live(window)]
                hands = [hand for each in micro_batches([s.length for s in samples], ranks, budget) for hand in each]
                rounds += len(hands)
                held += sum(s.length for s in samples) + empty * sum(not hand for hand in hands)
                trained += sum(s.own for s in samples)
            # A mini-batch of nothing is a micro-batch of nothing on each rank.
            held, batches = held + (0 if rounds else empty * ranks), batches + (rounds or ranks)
        windows = sum(len(part.windows) for part in parts)
        if not self.row:
            return
        figures = {"tokens/trained": float(trained), "tokens/fill": held / (batches * budget)}
        if self.compare(figures, SUMMED, "to 1e-12"):
            counts = {"mini-batch": len(parts), "window": windows, "micro-batch": batches, "rank": ranks}
            of = ", ".join(f"{n} {what}{('es' if what.endswith('h') else 's') * (n != 1)}" for what, n in counts.items())
            self.found.equal[-1] = f"{of}: {self.found.equal[-1]}"
        else:
            self.found.differs[-1] += "; config.json is that of the last start: was optim.microbatch_tokens or the number of ranks another?"

    def encoded(self, tokenizer: Any) -> dict[str, np.ndarray]:
        """Token ids of the step's prompts, by id. ValueError where they are not as many as they were."""
        if tokenizer is None:
            raise ValueError(f"{self.run.path} keeps no policy, and model.path {self.config.model.path} is no folder: no tokenizer is left")
        encode = Encoder(tokenizer, self.config.max_prompt_tokens, self.environment.schemas)
        found = {prompt.id: encode(prompt) for prompt in self.sampled}
        for group in self.given:
            was, now = len(group.rollouts[0].prompt_tokens), len(found[group.prompt.id])
            if was != now:
                raise ValueError(f"{self.where}: {group.prompt.id} has {now} tokens now and had {was}: another tokenizer or template")
        return found

    def with_prompts(self, groups: Sequence[Group], tokenizer: Any) -> list[Group]:
        """The groups with the tokens of their prompts, of which a file keeps the number."""
        tokens = self.encoded(tokenizer)
        return [replace(group, rollouts=[replace(r, prompt_tokens=tokens[group.prompt.id]) for r in group.rollouts]) for group in groups]
