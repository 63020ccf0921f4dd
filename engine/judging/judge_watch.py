"""The watch of a run's judge: probes on rank 0, a second opinion and the oracle's on every rank, alarms, and what is done about them.

    sampling, judging → `asked` (the judge is awake: second opinions are collected, a probe is asked where one is due)
                      → `step`  (all metrics are there: alarms)
                      → `Run.watch`: tell, wait until a probe is well again (pause), or stop

Whether the run may go on is known to every rank, by the same numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from soundrl.engine.config import Config
from soundrl.engine.environments.environment import Environment
from soundrl.engine.launch.last_words import RANK
from soundrl.engine.ranks import Ranks
from soundrl.fapo.corrected import Errors
from soundrl.fapo.judging import Judge
from soundrl.fapo.measures import Oracle
from soundrl.fapo.records import Group, Outcome, Prompt
from soundrl.fapo.task import OracleJudge
from soundrl.genrm.critic_data.labelled import load_labelled
from soundrl.genrm.pool.judge import EndpointJudge
from soundrl.genrm.watch.alarms import LAST, TIME, Alarms, JudgeUnfitError
from soundrl.genrm.watch.probe import PROBE_ROWS, Probe, measured
from soundrl.genrm.watch.second import Second, Table, counts, errors_of, figures, summed

Metrics = dict[str, float]
ENOUGH = 3  # solutions of either kind, before which a probe says more of a judge than they do
SECOND_TOKEN = "SOUNDRL_SECOND_TOKEN"  # of `genrm.second model@url`; the judge's own token goes to nobody else


class JudgeWatch:
    """`probe` on rank 0 alone. `truth`: the environment's oracle, which measures, where there is one. Every method is a collective."""

    def __init__(self, config: Config, ranks: Ranks, say: Callable[[str], None], truth: Oracle | None) -> None:
        self.setting, self.min_f1, self.second_is = config.genrm.alarm, config.genrm.probe[2], config.genrm.second[0]
        self.ranks, self.say, self.truth = ranks, say, truth
        self.alarms = Alarms()
        self.probe: Probe | None = None
        self.second: Second | None = None
        self.disagreements: list[dict[str, Any]] = []
        """Of this step, over all ranks"""
        self.table = [0] * 5
        self.tables: dict[str, list[Table]] = {}
        """Of the last steps (under the empty name) and of each set's last evaluations: what second opinions have said"""
        self.probed = False
        """Whether the last probe has raised an alarm"""
        self.told: list[str] = []
        """Alarms that have been said, and stand"""

    def admit(self) -> None:
        """ValueError where the judge's F1 on the probe is below that of `genrm.probe`; its figures are said before."""
        fault = ""
        if self.min_f1 > 0 and self.probe is not None:
            found = measured(*self.probe.ask())
            if found["genrm/probe_f1"] < self.min_f1:
                for name, value in found.items():
                    self.say(f"  {name.removeprefix('genrm/probe_').replace('_', ' '):<18}{value:8.3f}")
                fault = (
                    f"genrm.probe asks for an F1 of {self.min_f1}, but the judge's F1 of flawed is {found['genrm/probe_f1']:.3f} on "
                    f"the probe's {found['genrm/probe_flawed']:.0f} flawed and {found['genrm/probe_sound']:.0f} sound solutions; serve a "
                    "better judge, or lower the F1"
                )
        if fault := self.ranks.first_said(fault):
            raise ValueError(fault)

    def asked(self, step: int) -> Metrics:
        """Metrics of rank 0: the second opinions of this step, and of a probe where one is due; nothing elsewhere."""
        found = Metrics()
        if self.second is not None:
            self.table = self._heard(lambda _: "").get("", [0] * 5)
            found |= figures(self.table)
        if self.probe is not None:
            found |= self.probe(step)
        return found if self.ranks.main else {}

    def evaluated(self, sets: Mapping[str, Sequence[Prompt]]) -> None:
        """The second opinions of an evaluation of these sets are collected."""
        if self.second is not None:
            set_of = {prompt.id: name for name, prompts in sets.items() for prompt in prompts}
            self._heard(lambda prompt: set_of[prompt.id])
            if self.second_judge is not None:
                self.second_judge.rest()  # the servers may be about to sleep

    def _heard(self, part: Callable[[Prompt], str]) -> dict[str, Table]:
        assert self.second is not None
        tables, rows = zip(*self.ranks.gather(self.second.collect(part)), strict=True)
        now = summed(tables)
        self.disagreements = sorted((row for own in rows for row in own), key=lambda row: (row["prompt_id"], row["sample"]))
        for name, table in now.items():
            self.tables[name] = [*self.tables.get(name, []), table][-LAST:]
        return now

    def errors(self, name: str) -> Errors | None:
        """The judge's on fresh rollouts of training (empty) or of a set, where enough of either kind had a second opinion. That of the same
        judge, asked in another way, is no measure of it: it errs with it."""
        found = errors_of(self.tables.get(name, []))
        return found if self.second_is not in ("votes", "order") and min(found.flawed, found.sound) >= ENOUGH else None

    def step(self, step: int, groups: Sequence[Group], metrics: Mapping[str, float]) -> Metrics:
        """`genrm/alarm`, the alarms that stand, and `genrm/latency_alarm`, those by the clock. Those that are new are said, and those that
        are over."""
        told = {} if self.second is None else counts(self.table)
        if self.truth is not None:
            harsh, sound, missed, flawed = map(int, self.ranks.sum(fresh(groups, self.truth)))
            told |= {"fresh_over_critic": (harsh, sound), "fresh_missed": (missed, flawed)}
        self.alarms(told, metrics)
        self.probed = bool(metrics.get("genrm/probe_alarm", float(self.probed)))
        self._say(step)
        late = sum(name in TIME for name in self.alarms.standing)
        return {"genrm/alarm": float(self.acting + self.probed), "genrm/latency_alarm": float(late)}

    def again(self, step: int) -> bool:
        """Ask the probe now; whether the judge is well, as far as a probe can tell."""
        metrics = self.probe.read() if self.probe is not None else {}
        self.probed = self.ranks.max(metrics.get("genrm/probe_alarm", float(self.probed and self.probe is not None))) > 0.0
        self._say(step)
        return not self.probed

    def forgive(self, step: int) -> None:
        """Alarms that no probe can end are over: the judge has been mended, or somebody has looked."""
        self.alarms.forgive()
        self._say(step)

    @property
    def acting(self) -> int:
        """Alarms that a probe cannot end, but for those by the clock, which only tell."""
        return sum(name not in TIME for name in self.alarms.standing)

    @property
    def pauses(self) -> bool:
        """Whether the run is to wait until a probe is well again."""
        return self.setting == "pause" and self.probed

    @property
    def standing(self) -> dict[str, str]:
        """What is known here: a probe's alarms on rank 0."""
        return self.alarms.standing | ({} if self.probe is None else self.probe.alarms)

    def check(self, step: int) -> None:
        """Raises `JudgeUnfitError` where the run is to end. A pause ends by a probe that is well, so an alarm beside one that is well stops
        a run that would pause: to wait would mend nothing."""
        if (self.setting == "stop" and self.probed) or (self.setting != "tell" and self.acting and not self.pauses):
            first, *more = [text for name, text in self.standing.items() if name not in TIME] or [""]
            text = self.ranks.first_said(first + f" (and {len(more)} more)" * bool(more))
            why = "" if self.setting == "stop" else ", which no wait for a probe can end"
            raise JudgeUnfitError(
                f"step {step}: the judge is under an alarm{why} (genrm.alarm {self.setting}): {text}; mend it, or set --genrm.alarm tell"
            )

    def _say(self, step: int) -> None:
        for name, text in self.standing.items():
            if name not in self.told:
                self.say(f"step {step}: alarm: {text}")
        if over := [name for name in self.told if name not in self.standing]:
            self.say(f"step {step}: no alarm any more: {', '.join(over)}")
        self.told = [*self.standing]

    def state(self) -> dict[str, Any]:
        """Of rank 0, for all; plain JSON."""
        return {
            "alarms": self.alarms.state(),
            "probed": self.probed,
            "told": self.told,
            "second": self.second_is,
            "tables": self.tables,
            "probe": None if self.probe is None else self.probe.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """What another second opinion has said is forgotten."""
        if "alarms" not in state:  # of a version that kept a probe's first figures alone
            return
        self.alarms.restore(state["alarms"])
        if state["second"] != self.second_is:
            fresh = Alarms().shares
            self.alarms.shares |= {name: share for name, share in fresh.items() if name.startswith("second_")}
        else:
            self.tables = state["tables"]
        self.probed, self.told = state["probed"], state["told"]
        if self.probe is not None and state["probe"] is not None:
            self.probe.restore(state["probe"])

    @property
    def second_judge(self) -> EndpointJudge | None:
        """Who gives the second opinion, where it is asked elsewhere."""
        judge = None if self.second is None else self.second.judge
        return judge if isinstance(judge, EndpointJudge) else None

    def close(self) -> None:
        if self.second_judge is not None:
            self.second_judge.close()


def fresh(groups: Sequence[Group], truth: Oracle) -> list[float]:
    """Sound rollouts called flawed, of how many; flawed ones called sound, of how many: one of each kind a group, the first that has a
    verdict, as those of one problem err together."""
    out = [0.0] * 4
    for group in groups:
        seen = set[str]()
        for rollout, outcome, verdict in zip(group.rollouts, group.outcomes, group.verdicts, strict=True):
            if outcome is not Outcome.CORRECT:
                continue
            real = truth(group.prompt, rollout)
            if verdict is not None and verdict.kind != "unknown" and real.kind not in seen:
                seen.add(real.kind)
                at = 0 if real.kind == "sound" else 2
                out[at] += verdict.kind != real.kind
                out[at + 1] += 1
    return out


def build_watch(config: Config, environment: Environment, judge: EndpointJudge, ranks: Ranks, say: Callable[[str], None]) -> JudgeWatch:
    """The watch of `judge`, with the probe of `genrm.probe` and the second opinion of `genrm.second`."""
    watch = JudgeWatch(config, ranks, say, type(environment).oracle)
    name, every, _ = config.genrm.probe
    if name and ranks.main:
        labels = Path(config.run.folder) / config.run.name / "labels.jsonl"
        watch.probe = Probe(judge, load_labelled(name, max_rows=PROBE_ROWS), every, labels, leaving)
    if (other := second_judge(config, environment, judge)) is not None:
        split, seconds = environment.split, config.genrm.deadline[1]
        watch.second = Second(other, config.genrm.second[1], config.run.seed, split, seconds, leaving)
    return watch


def second_judge(config: Config, environment: Environment, judge: EndpointJudge) -> Judge | None:
    who, share = config.genrm.second
    if not who:
        return None
    if who == "oracle":
        assert (oracle := type(environment).oracle) is not None  # as the settings have asked
        return OracleJudge(oracle)
    few = {"concurrency": max(1, math.ceil(share * judge.concurrency))}  # beside the first judge's
    if who == "votes":
        votes = (3, 1.0) if judge.temperature == 0 else (judge.votes + 2, judge.temperature)
        return dataclasses.replace(judge, votes=votes[0], temperature=votes[1], **few)
    if who == "order":
        if config.genrm.prompt not in ("", "own"):
            raise ValueError(
                f"genrm.second order turns the prompt own about, but genrm.prompt is {config.genrm.prompt}; use votes or model@url"
            )
        return dataclasses.replace(judge, prompt="order", **few)
    model, _, url = who.rpartition("@")
    return dataclasses.replace(judge, urls=(url,), model=model, votes=1, prompt="", token_env=SECOND_TOKEN, gone_after=None, **few)


def leaving() -> bool:
    """Whether a run that is asked to stop can wait for its judge no longer: half of its grace is for saving."""
    return RANK.left() < RANK.grace / 2
