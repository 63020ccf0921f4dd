"""What a person sees: a line a step, and a last table in plain words (rank 0 alone)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from soundrl.engine.memory.memory_watch import MEMORY
from soundrl.engine.phases import PEAKS, shares
from soundrl.fapo.printable import printable


def clock(seconds: float) -> str:
    """`clock(75) == "1:15"`."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Progress:
    """Prints; everything it prints is made from the metrics of the run folder."""

    def __init__(self, speaks: bool, steps: int) -> None:
        self.console = Console(quiet=not speaks, highlight=False, soft_wrap=True)
        self.steps, self.start = steps, time.perf_counter()
        self.training_start: float | None = None
        self.before = 0

    def say(self, text: str) -> None:
        self.console.print(printable(text), markup=False)

    def goes_on(self, checkpoint: Path, step: int, left: bool) -> None:
        """A run that was saved after `step` steps."""
        self.before = step
        if left:
            self.say(f"goes on from {checkpoint}: {step} of {self.steps} steps are done")
        else:
            self.say(
                f"{checkpoint}: all {step} steps are done, nothing is left; raise --run.steps to go on, or begin anew: --run.no-resume"
            )

    def warm_start(self, step: int, steps: int, loss: float) -> None:
        if step % max(1, steps // 10) == 0 or step == steps:
            self.say(f"warm start {step:>5}/{steps}  loss {loss:.3f}  {clock(time.perf_counter() - self.start)}")

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """`step 12/80  correct 0.81  flawed 0.17  reward +0.44  mismatch 1.0001  1.6 s: generate 56 %, …  ETA 1:49`; beside a judge,
        where the truth is known, its precision and recall as well."""
        now = time.perf_counter()
        if self.training_start is None:
            self.training_start = now - metrics["time/step"]
        left = (now - self.training_start) / (step - self.before) * (self.steps - step)
        shown = {"located": "critic/error_accuracy", "flawed": "fapo/flawed_ratio"}  # neither where nobody judges
        what = "  ".join(f"{word} {metrics[name]:.3f}" for word, name in shown.items() if name in metrics)
        if CORRECTED in metrics:
            what += f" corrected {metrics[CORRECTED]:.3f}{between(CORRECTED, metrics)}"
        if "genrm/precision" in metrics:
            what += f"  judge's precision {metrics['genrm/precision']:.2f} recall {metrics['genrm/recall']:.2f}"
        self.say(
            f"step {step:>4}/{self.steps}  correct {metrics['reward/correct']:.3f}  {what}  "
            f"reward {metrics['reward/mean']:+.3f}  tokens {metrics['tokens/response']:.0f}{speeds(metrics)}  "
            f"mismatch {metrics['mismatch/gate']:.4f}  {shares(metrics)}  ETA {clock(left)}"
        )

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        if metrics:
            said = {name: value for name, value in metrics.items() if not name.endswith(UNSAID) and "@" not in name}
            parts = [f"{name.removeprefix('eval/')} {value:.3f}{between(name, metrics)}" for name, value in said.items()]
            self.say(f"evaluation after step {step}: " + "  ".join(parts))

    def memory(self, planned: Mapping[str, float], measured: Mapping[str, float]) -> None:
        """Peaks by phase, of the rank with most: planned | measured, both in MiB by phase."""
        table = Table("peak memory", *(Column(name, justify="right") for name in ("planned", "measured")), show_edge=False)
        for phase in (phase for phase in PEAKS if phase in measured):
            plan = f"{planned[phase] / 1024:.2f} GiB" if phase in planned else "–"
            table.add_row(PEAKS[phase], plan, f"{measured[phase] / 1024:.2f} GiB")
        if table.row_count:
            self.console.print(table)

    def summary(self, before: dict[str, float], after: dict[str, float], seconds: dict[str, float], folder: str) -> None:
        """The last word: each measure before and after, where there is one, but for those of k samples, then where the time went."""
        figures = [Column(name, justify="right") for name in ("before", "after")]
        table = Table("measure", *figures, title="What the run did", show_edge=False)
        critic = any(name.endswith("/error_accuracy") for name in after)
        for name in after:
            if name.endswith(UNSAID[1:]) or (name.endswith("/sound") and name.replace("/sound", "/true_sound") in after):
                continue
            if "@" in name.rpartition("/")[2]:
                continue
            words = "rollouts: right verdicts" if critic and name == "reward/correct" else plain_words(name)
            table.add_row(escape(printable(words)), shown(name, before), shown(name, after))
        if after:
            self.console.print(table)
        total = time.perf_counter() - self.start
        spent = ", ".join(f"{name.replace('_', ' ')} {value:.0f}" for name, value in sorted(seconds.items(), key=lambda item: -item[1]))
        self.say(f"{total:.0f} seconds in all: {spent}, the rest {max(0.0, total - sum(seconds.values())):.0f}")
        self.say("peak memory: " + ", ".join(f"{value / 1024:.2f} GiB {name.split('_')[1]}" for name, value in MEMORY.process().items()))
        self.say(f"run folder: {folder}")


def speeds(metrics: Mapping[str, float]) -> str:
    """`, 1,234/s` sampled a second of the step, and the share of the devices' peak where that is known: `, 1,234/s, MFU 31 %`."""
    said = [f", {metrics['speed/tokens']:,.0f}/s"] if "speed/tokens" in metrics else []
    return "".join(said + ([f", MFU {metrics['speed/mfu']:.0%}"] if "speed/mfu" in metrics else []))


CORRECTED = "fapo/flawed_corrected"
UNSAID = ("/tokens", "/told", "_low", "_high")
WORDS = {
    "accuracy": "right final answers",
    "flawed_ratio": "of the right answers, reached by flawed steps",
    "flawed_corrected": "the same, corrected for the judge's errors",
    "true_flawed_ratio": "the same, by the oracle",
    "tool_misuse": "of the right answers, by misuse of a tool",
    "sound": "right answers with every step sound",
    "true_sound": "right answers with every step sound, by the oracle",
    "tokens": "tokens a response",
    "exact": "right verdicts with the right step",
    "error_accuracy": "flawed solutions whose first wrong step is found",
    "correct_accuracy": "sound solutions accepted",
    "f1": "harmonic mean of these two (ProcessBench F1)",
    "precision": "of the solutions called flawed, those that are",
    "recall": "flawed solutions called flawed",
    "flawed_f1": "F1 of precision and recall",
    "over_critic": "sound solutions called flawed",
    "coverage": "replies that hold a verdict",
}

SUMMARY = {
    "reward/correct": "rollouts: right final answers",
    "fapo/flawed_ratio": "rollouts: of the right answers, reached by flawed steps",
    "tokens/response": "rollouts: tokens a response",
}
"""Of a step, beside the evaluations."""


def plain_words(name: str) -> str:
    """`plain_words("eval/aime24/accuracy") == "aime24: right final answers"`; rollouts are called so."""
    parts = name.split("/")
    if parts[0] == "eval":
        return f"{'/'.join(parts[1:-1])}: {WORDS[parts[-1]]}"
    return SUMMARY[name]


def shown(name: str, figures: Mapping[str, float]) -> str:
    """`46.2 %`; where it is an estimate by a judge's errors with its interval: `44.9 [38.1, 52.0] %`."""
    if (value := figures.get(name)) is None:
        return "–"
    interval = between(name, figures, ".1f", 100) if name.endswith("_corrected") else ""
    return f"{value:.1f}" if "tokens" in name else f"{100 * value:.1f}{interval} %"


def between(name: str, figures: Mapping[str, float], form: str = ".2f", scale: float = 1.0) -> str:
    """` [0.38, 0.52]` where the figure has an interval."""
    ends = [figures[f"{name}_{end}"] for end in ("low", "high") if f"{name}_{end}" in figures]
    return f" [{', '.join(f'{scale * end:{form}}' for end in ends)}]" if ends else ""
