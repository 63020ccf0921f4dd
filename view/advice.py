"""What a person should know of a run first, and do about it: alarms, then advice, each a figure, a threshold and its reason."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from soundrl.engine.phases import PHASES
from soundrl.view.metrics import Series
from soundrl.view.run import Run

Json = dict[str, Any]
LAST = 5  # steps that a figure is taken over: one odd step is none
BEFORE = 20  # steps that are usual
HALF = 0.5


@dataclass(frozen=True)
class Looked:
    """What is looked at."""

    run: Run
    state: str
    quiet: float
    """Seconds since the run has written anything"""

    @property
    def train(self) -> Series:
        return self.run.metrics.train

    def mean(self, name: str) -> float | None:
        """Over the last steps that have it."""
        said = [value for _, value in self.train.pairs(name)][-LAST:]
        return fmean(said) if said else None

    def share(self, phase: str) -> float | None:
        """Of the last steps' time."""
        part, whole = self.mean(f"time/{phase}"), self.mean("time/step")
        return part / whole if part is not None and whole else None


Value = Callable[[Looked], float | None]


@dataclass(frozen=True)
class Check:
    level: str
    """`alarm`, `advice` or `note`"""
    value: Value
    limit: float | Callable[[Looked], float]
    """It is told from here on"""
    what: str
    """With the value as {value} and more of it as {more}"""
    why: str
    do: str
    link: str = ""
    """A page of the run: step, judge, or none"""
    more: Callable[[Looked], str] = lambda looked: ""


def gate_used(looked: Looked) -> float | None:
    """Of what `run.gate` allows above 1, the share that the last steps take."""
    allowed, said = looked.run.setting("run.gate", 1.05) - 1.0, [value for _, value in looked.train.pairs("mismatch/gate")][-LAST:]
    return (median(said) - 1.0) / allowed if said and allowed > 0 else None


def silent(looked: Looked) -> float | None:
    signal = looked.mean("reward/groups_with_signal")
    return None if signal is None else 1.0 - signal


def slowest(looked: Looked) -> tuple[float, str] | None:
    """Of phases that take a part of the last step, how many times its median the longest took."""
    whole, found = looked.train.now("time/step"), []
    for phase in PHASES:
        said = [value for _, value in looked.train.pairs(f"time/{phase}")][-BEFORE - 1 :]
        if whole and len(said) > LAST and (usual := median(said[:-1])) > 0 and said[-1] >= 0.1 * whole:
            found.append((said[-1] / usual, phase))
    return max(found, default=None)


def reasons(prefix: str) -> Callable[[Looked], str]:
    def of(looked: Looked) -> str:
        names = [name for name in looked.train.values if name.startswith(prefix)]
        counts = sorted(
            ((sum([v for _, v in looked.train.pairs(name)][-LAST:]), name.removeprefix(prefix)) for name in names), reverse=True
        )
        return ", ".join(f"{name} {count:.0f}" for count, name in counts if count) or "no reason is recorded"

    return of


def fallen(name: str) -> Value:
    """Its mean over the last steps ÷ over the first ones, as a fall: 0.75 = a quarter is left."""

    def of(looked: Looked) -> float | None:
        said = [value for _, value in looked.train.pairs(name)]
        began = fmean(said[:LAST]) if len(said) >= 2 * LAST else 0.0
        return 1.0 - fmean(said[-LAST:]) / began if began > 0 else None

    return of


def worse(looked: Looked) -> float | None:
    """1 where the last evaluation is below the first, beyond both intervals, on any set."""
    evals = looked.run.metrics.evals
    found = []
    for name in evals.values:
        if name.startswith("eval/") and name.endswith("/accuracy_low"):
            lows, highs = list(evals.pairs(name)), list(evals.pairs(name[:-4] + "_high"))
            found.append(len(lows) > 1 and bool(highs) and highs[-1][1] < lows[0][1])
    return float(any(found)) if found else None


def first_line(folder: Path, pattern: str) -> str:
    """Name and beginning of the newest file of that name."""
    files = sorted(folder.glob(pattern), key=lambda file: file.name)
    if not files:
        return ""
    with files[-1].open("rb") as file:
        lines = [line.strip() for line in file.read(20_000).decode("utf-8", "replace").split("\n") if line.strip()]
    said = lines[-1] if pattern.startswith("error") and lines else lines[0] if lines else ""
    return f"{files[-1].name}: {said[:160]}"


def unknown_limit(looked: Looked) -> float:
    """Half of what ends the run."""
    said = looked.run.setting("genrm.unknown")
    return HALF * said[1] if isinstance(said, list) and len(said) == 2 and isinstance(said[1], float) and said[1] > 0 else 0.1


CHECKS = (
    Check(
        "alarm", lambda run: 1.0 if run.state in ("stopped", "stalled") and first_line(run.run.path, "error-rank*.txt") else None, 1.0,
        "a rank has failed: {more}", "the run has ended by it", "read that file; mend it, and give the same command again",
        more=lambda run: first_line(run.run.path, "error-rank*.txt"),
    ),
    Check(
        "alarm", lambda run: run.quiet / run.run.metrics.seconds if run.state == "stalled" and run.run.metrics.seconds else None, 6.0,
        "nothing new for {value:.0f} times a usual step{more}", "a phase that is open six times its median is a hang more often than work",
        "look at hang-*.txt in the run's folder, and at the judge's log", more=lambda run: "; " + first_line(run.run.path, "hang-*.txt") if any(run.run.path.glob("hang-*.txt")) else "",
    ),
    Check(
        "alarm", lambda run: float(len(run.run.alarms.standing())) or run.train.now("genrm/alarm"), 1.0,
        "the judge's watch is under an alarm: {more}", "a judge that drifts is what the policy learns to please",
        "look at the judge's page and label some of the disagreements", "judge",
        more=lambda run: "; ".join(run.run.alarms.standing().values()) or "the run's console says which",
    ),
    Check(
        "alarm", gate_used, HALF, "sampler and trainer drift apart: {value:.0%} of what run.gate allows",
        "the sampler computes other probabilities than the trainer, so that its rollouts are no longer the policy's own",
        "look for a change of type, kernels or vLLM's version; model.dtype float32 tells whether it is rounding",
    ),
    Check(
        "alarm", silent, HALF, "{value:.0%} of the groups train nothing", "all rollouts of such a group have one reward: half of the sampling is for nothing",
        "choose problems of another difficulty (data.difficulty), more samples a prompt, or rollout.refill", "step",
    ),
    Check(
        "alarm", lambda run: run.mean("tokens/cut"), 0.25, "{value:.0%} of the responses are cut at their limit",
        "an answer that is cut is wrong, whatever was in it: the reward teaches brevity", "raise rollout.max_new_tokens, or set fapo.overlong", "step?filter=cut",
    ),
    Check(
        "alarm", lambda run: run.mean("genrm/unknown"), unknown_limit, "{value:.0%} of the judged rollouts have no verdict: {more}",
        "from genrm.unknown on the run ends; half of it is close", "timeouts: more judges or genrm.deadline; cut_off: genrm.max_tokens; no_box: another prompt or judge",
        "step?filter=unknown", reasons("genrm/unknown_"),
    ),
    Check(
        "alarm", lambda run: run.mean("verify/unknown"), unknown_limit, "the verifier failed for {value:.0%} of the rollouts: {more}",
        "these leave their groups and train nothing", "read the verifier's first faults in the log", "step?filter=unknown", reasons("verify/"),
    ),
    Check(
        "alarm", lambda run: (slowest(run) or (None,))[0], 6.0, "{more} took {value:.0f} times its median in the last step",
        "six times the usual is no noise of a machine", "look at the step's anatomy", "anatomy", lambda run: (slowest(run) or (0, ""))[1],
    ),
    Check(
        "alarm", lambda run: run.mean("optim/skipped"), 1e-9, "optimizer steps were left out", "the gradient was not finite; three in a row end the run",
        "lower optim.lr, or look at the longest rollouts of the step", "step",
    ),
    Check(
        "alarm", worse, 1.0, "the last evaluation is below the first, beyond both intervals", "training has made the policy worse",
        "lower optim.lr, or begin again from an earlier checkpoint",
    ),
    Check(
        "advice", lambda run: run.share("judge_wait"), 0.2, "{value:.0%} of a step is waiting for verdicts", "the trainer stands still for a fifth of the time",
        "more judges (genrm.workers, genrm.urls), a higher genrm.concurrency, or smaller optim.minibatch_prompts", "anatomy",
    ),
    Check(
        "advice", lambda run: run.share("rank_wait"), 0.2, "{value:.0%} of a step ranks wait for others", "one long rollout holds all ranks",
        "a shorter rollout.max_new_tokens, or more prompts a rank", "anatomy",
    ),
    Check(
        "advice", lambda run: run.share("sync"), 0.25, "{value:.0%} of a step brings weights to the sampler", "it costs the same however much is sampled between",
        "more rollout.prompts a step",
    ),
    Check(
        "advice", fallen("loss/entropy"), 0.75, "the policy's entropy has fallen by {value:.0%}", "groups whose samples are alike have one reward and train nothing",
        "raise the upper loss.clip, or rollout.temperature",
    ),
    Check(
        "advice", lambda run: (run.mean("loss/clip_high") or 0.0) + (run.mean("loss/clip_low") or 0.0), 0.2, "{value:.0%} of the tokens are clipped",
        "clipped tokens train nothing", "fewer optimizer steps a batch (optim.minibatch_prompts), or a lower optim.lr",
    ),
    Check(
        "note", lambda run: run.train.now("genrm/latency_alarm"), 1.0, "some critiques take very long", "an alarm by the clock: it only tells", "look at the judge's load", "judge",
    ),
    Check(
        "note", lambda run: 1.0 if run.run.setting("genrm.judge", "none") in ("serve", "endpoints") and not (run.run.setting("genrm.probe") or [""])[0] else None, 1.0,
        "no probe watches the judge", "its errors on labelled solutions are not known, nor is the corrected flawed share", "set genrm.probe", "judge",
    ),
    Check(
        "note", lambda run: 1.0 if (run.run.path / "left_out.jsonl").is_file() else None, 1.0, "rows of the data were left out", "they could not be used", "read left_out.jsonl in the run's folder",
    ),
)  # fmt: skip


def advice(run: Run, state: str, updated: float | None) -> list[Json]:
    """Alarms first; advice and notes where there is none of them."""
    looked = Looked(run, state, time.time() - updated if updated else 0.0)
    out: list[Json] = []
    for check in CHECKS:
        if check.level != "alarm" and any(found["level"] == "alarm" for found in out):
            break
        value, limit = check.value(looked), check.limit
        if value is not None and value >= (limit(looked) if callable(limit) else limit):
            what = check.what.format(value=value, more=check.more(looked))
            out.append({"level": check.level, "what": what, "why": check.why, "do": check.do, "link": link(run, check.link)})
    return out


def link(run: Run, page: str) -> str | None:
    """Of the page, as its routes are."""
    step = f"#/run/{run.key}/step/{run.metrics.train.steps[-1]}" if run.metrics.train.steps else ""
    if page == "judge":
        return f"#/run/{run.key}/judge"
    if not page or not step:
        return None
    return f"{step}/anatomy" if page == "anatomy" else step + page.removeprefix("step")


def alarms_of(run: Run) -> list[list[Any]]:
    """[step, text] of the judge's watch, when each began; of a run that wrote no texts, when their number grew."""
    if told := run.alarms.told():
        return told
    out, before = [], 0.0
    for step, value in run.metrics.train.pairs("genrm/alarm"):
        if value > before:
            out.append([step, f"{value:.0f} alarms of the judge's watch; the run's console says which"])
        before = value
    return out
