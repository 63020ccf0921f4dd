"""The report's pictures, a function a figure, from the rows (and what the analysis told, of which E5 shows the break-even).

Each returns None where none of its arms has run, and leaves out what is missing. `FIGURES` says which belong to which claim.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import TypeGuard

import words
from canvas import Axis
from claim import Contrast, Row
from experiments import EARLY
from panels import Panel, Series, Spread, Values, curves, level, points, ternary, upright

LAMBDAS = ("lam=0", "lam=2/3", "lam=1", "lam=4/3", "lam=2")
ALL, RIGHT = "share of all test responses", "share of right test responses"
DOTS = "Dots are seeds, markers their mean with its 95 % t interval, not paired; thin lines join a seed's runs."
LAMBDA = {arm: float(Fraction(arm[4:])) for arm in LAMBDAS}


@dataclass(frozen=True)
class Figure:
    caption: str
    panels: Sequence[Panel]


def figure(caption: str, *panels: Panel | None, of: str = "seeds") -> Figure | None:
    """What has been drawn, with the numbers of seeds, or of what else, behind it."""
    there = [panel for panel in panels if panel]
    sizes = [int(size) for panel in there for row in panel.rows for size in row[-1].split("–")]
    return Figure(f"{caption} n = {words.counted(sizes)} {of}.", there) if there else None


def runs(rows: Sequence[Row], start: str, arm: str) -> list[Row]:
    return sorted((row for row in rows if row["start"] == start and row["arm"] == arm), key=lambda row: row["seed"])


def known(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def measured(rows: Sequence[Row], start: str, arm: str, name: str, when: str = "after") -> dict[int, float]:
    """seed → measure, of the runs that have it."""
    found = {row["seed"]: (row.get(when) or {}).get(name) for row in runs(rows, start, arm)}
    return {seed: float(value) for seed, value in found.items() if known(value)}


def alike(values: Values, arms: Iterable[Values]) -> Values:
    """Of another experiment's arm the seeds that these arms have: the same policies are compared.

    >>> alike({0: 0.5, 1: 0.7, 2: 0.9}, [{0: 0.1}, {2: 0.2}])
    {0: 0.5, 2: 0.9}
    """
    seeds = {seed for arm in arms for seed in arm}
    return {seed: value for seed, value in values.items() if seed in seeds}


def by_step(rows: Sequence[Row], start: str, arm: str, name: str) -> Series:
    found = {row["seed"]: (row.get("series") or {}).get(name) for row in runs(rows, start, arm)}
    return {seed: [value if known(value) else None for value in series] for seed, series in found.items() if series}


def early(rows: Sequence[Row], start: str, arm: str) -> dict[int, float]:
    """seed → mean over the first `EARLY` steps of the training rollouts' share of right ones."""
    told = {seed: [value for value in series[:EARLY] if value is not None] for seed, series in by_step(rows, start, arm, "right").items()}
    return {seed: statistics.fmean(values) for seed, values in told.items() if values}


def of_lambda(where: Mapping[float, Values]) -> Axis:
    """λ's axis with ticks where something is."""
    names = {at: arm.removeprefix("lam=") for arm, at in LAMBDA.items()}
    return Axis("λ", {at: names.get(at, "leave") for at in where})


def against_lambda(rows: Sequence[Row], start: str, name: str, title: str, of: str = ALL) -> Panel | None:
    """The measure at the end by λ, with the start behind it."""
    where = {at: values for arm, at in LAMBDA.items() if (values := measured(rows, start, arm, name))}
    before = {seed: value for arm in LAMBDAS for seed, value in measured(rows, start, arm, name, "before").items()}
    return points(title, of_lambda(where), Axis(of), {"": where}, {"before training": before})


def by_arm(rows: Sequence[Row], start: str, arms: Sequence[str], name: str, title: str, of: str, bands: Sequence[str] = ()) -> Panel | None:
    """The measure at the end of each arm, side by side, those of `bands` behind them."""
    ticks = {float(index): words.arm(arm).removeprefix("blind to ").replace(", ", ",\n") for index, arm in enumerate(arms)}
    where = {float(index): measured(rows, start, arm, name) for index, arm in enumerate(arms)}
    behind = {words.arm(arm): alike(measured(rows, start, arm, name), where.values()) for arm in bands}
    return points(title, Axis("", ticks), Axis(of), {"": where}, behind)


def trajectories(rows: Sequence[Row], start: str, arms: Sequence[str], name: str, title: str, of: str) -> Panel | None:
    return curves(title, Axis(of), {words.arm(arm): by_step(rows, start, arm, name) for arm in arms})


def e1_lambda(rows: Sequence[Row], told: Sequence[Contrast], start: str = "default") -> Figure | None:
    return figure(
        f"Start `{start}`, after the last step, by λ (0 is GRPO). {DOTS} Dashed: the same policies before training.",
        against_lambda(rows, start, "sound", "Right answers with every step sound"),
        against_lambda(rows, start, "right", "Right final answers"),
        against_lambda(rows, start, "flawed", "Flawed ÷ right", RIGHT),
        against_lambda(rows, start, "p2/sound", "Sound on the tens digit, which is not trained"),
    )


def e1b_scale(rows: Sequence[Row], told: Sequence[Contrast]) -> Figure | None:
    return e1_lambda(rows, told, "large")


def e2_early_and_late(rows: Sequence[Row], told: Sequence[Contrast]) -> Figure | None:
    places = LAMBDA | {"leave": 2.45}
    first = {at: values for arm, at in places.items() if (values := early(rows, "scarce", arm))}
    last = {at: values for arm, at in places.items() if (values := measured(rows, "scarce", arm, "sound"))}
    return figure(
        f"Start `scarce`; `leave`: flawed rollouts leave their group. {DOTS} Curves are means over seeds of the training rollouts.",
        points(f"Early: right rollouts, mean of steps 1–{EARLY}", of_lambda(first), Axis("share of rollouts"), {"": first}),
        points("Late: sound at the end", of_lambda(last), Axis(ALL), {"": last}),
        trajectories(rows, "scarce", [*places], "right", "Right, over steps", "share of rollouts"),
        trajectories(rows, "scarce", [*places], "sound", "Sound, over steps", "share of rollouts"),
    )


def shares(rows: Sequence[Row], start: str, arm: str) -> dict[str, Series]:
    parts = {"sound (α)": "sound", "wrong (β)": "wrong", "flawed (γ)": "flawed"}
    return {label: by_step(rows, start, arm, name) for label, name in parts.items()}


def e3_shift(rows: Sequence[Row], told: Sequence[Contrast], start: str = "default") -> Figure | None:
    arms = {arm: words.arm(arm) for arm in LAMBDAS}
    largest = 64.0  # and where nothing is wrong: beyond every threshold
    ratios = {
        label: {
            seed: [largest if rho is None else min(rho, largest) for rho in run] for seed, run in by_step(rows, start, arm, "rho").items()
        }
        for arm, label in arms.items()
    }
    thresholds = {arms[arm]: 2 / LAMBDA[arm] - 1 for arm in ("lam=2/3", "lam=1", "lam=4/3")}
    ticks = {2.0**power: f"{2**power}" if power >= 0 else f"1/{2**-power}" for power in range(-6, 7)}
    rays = {f"ρ = {words.number(rho, 1) if rho < 1 else f'{rho:g}'}": rho for rho in thresholds.values()}
    parts = [(label, shares(rows, start, arm)) for arm, label in arms.items()]
    three = {label: (share["sound (α)"], share["wrong (β)"], share["flawed (γ)"]) for label, share in parts}
    return figure(
        f"Start `{start}`, training rollouts. Curves are means over seeds (bands: 95 % t intervals), of ρ medians, where nothing is wrong "
        "counted as largest; thin lines are the shift's thresholds 2/λ − 1 in the style of their λ (0 for λ = 2: always past; none for λ = "
        "0). In the triangle a path begins at the hollow marker and ends at the full one, dots are the seeds' ends, dotted lines the same "
        "thresholds: on the sound side of its line an arm's flawed rollouts are pushed down.",
        curves("Sound, wrong and flawed at λ = 1", Axis("share of rollouts"), shares(rows, start, "lam=1")),
        curves("ρ = sound ÷ wrong", Axis("ρ, log scale", ticks, log=True), ratios, middle=statistics.median, levels=thresholds),
        trajectories(rows, start, LAMBDAS, "past", "Groups past the shift", "share of groups"),
        ternary("The way of each arm", three, rays),
    )


def e3_shift_from_scarce(rows: Sequence[Row], told: Sequence[Contrast]) -> Figure | None:
    return e3_shift(rows, told, "scarce")


def e4_step_ratio(rows: Sequence[Row], told: Sequence[Contrast]) -> Figure | None:
    arms = ("lam=1", "step-ratio", "lam=1+lenient", "step-ratio+lenient")
    return figure(
        f"Start `default`; lenient: a judge blind to skipped lines and guesses. Curves are means over seeds of the training rollouts, "
        f"bands their 95 % t intervals, all by the exact oracle. {DOTS}",
        trajectories(rows, "default", arms, "lines", "Lines of a right solution", "lines"),
        trajectories(rows, "default", arms, "skip", "Right ones with a skipped line", "share of right rollouts"),
        trajectories(rows, "default", arms, "guess", "Right ones that are guessed", "share of right rollouts"),
        by_arm(rows, "default", arms, "sound", "Truly sound at the end", ALL),
    )


def rates(rows: Sequence[Row], start: str, before: str) -> dict[float, str]:
    """The number behind `before` in an arm's name → the arm, in order; other arms are none of these.

    >>> rates([{"start": "timing", "arm": arm} for arm in ("serial/2", "serial/0.50", "overlap/1", "serial/x")], "timing", "serial/")
    {0.5: 'serial/0.50', 2.0: 'serial/2'}
    """
    names = {row["arm"] for row in rows if row["start"] == start and re.fullmatch(re.escape(before) + r"\d+(\.\d+)?", row["arm"])}
    return dict(sorted((float(name.removeprefix(before)), name) for name in names))


def noise(rows: Sequence[Row], kind: str, name: str, title: str, even: Spread | None = None) -> Panel | None:
    """The measure by the rate of one kind of the judge's errors: 0 is the exact judge, GRPO the band, `even` another at x."""
    found = rates(rows, "default", f"{kind}=")
    if not found:
        return None
    noisy = {rate: measured(rows, "default", arm, name) for rate, arm in found.items()}
    exact, grpo = (alike(measured(rows, "default", arm, name), noisy.values()) for arm in ("lam=1", "lam=0"))
    where = {0.0: exact} | noisy
    label = {"false_alarms": "share of sound ones called flawed", "misses": "share of flawed ones called sound"}[kind]
    x = Axis(label, {rate: f"{rate:g}" for rate in where}, limits=(-0.1, 1.05))
    return points(title, x, Axis(ALL), {"": where}, {"λ = 0 (GRPO)": grpo}, behind=partial(upright, even=even))


def break_even(told: Sequence[Contrast]) -> Spread | None:
    """Mean and interval of the first contrast that is called so, a rate of false alarms."""
    found = [contrast for contrast in told if contrast.what.lower().startswith("break-even") and math.isfinite(contrast.mean)]
    return (found[0].mean, found[0].low, found[0].high) if found else None


def e5_random(rows: Sequence[Row], told: Sequence[Contrast]) -> Figure | None:
    even = break_even(told)
    said = " Upright: the break-even rate with its interval, where right answers equal GRPO's." if even else ""
    return figure(
        f"Start `default`, λ = 1, an oracle whose verdicts are turned at random; 0 is the exact one. {DOTS} Band: GRPO.{said}",
        noise(rows, "false_alarms", "sound", "Sound, by false alarms"),
        noise(rows, "false_alarms", "right", "Right, by false alarms", even),
        noise(rows, "misses", "sound", "Sound, by misses"),
        noise(rows, "misses", "right", "Right, by misses"),
    )


def e5_systematic(rows: Sequence[Row], told: Sequence[Contrast]) -> Figure | None:
    arms = ("blind=false", "blind=skip", "blind=guess", "harsh")
    return figure(
        f"Start `default`, λ = 1, a judge that never sees one kind of flaw (false: wrong equations; skip; guess), or is harsh on a form. "
        f"{DOTS} Bands: GRPO, and λ = 1 with the exact judge.",
        by_arm(rows, "default", arms, "sound", "Sound, by what the judge does not see", ALL, ("lam=0", "lam=1")),
        by_arm(rows, "default", arms, "right", "Right, by what the judge does not see", ALL, ("lam=0", "lam=1")),
    )


def e6_critic(rows: Sequence[Row], told: Sequence[Contrast]) -> Figure | None:
    arms = ("warm", "outcome", "process")
    kinds = ("exact/student", "exact/repair", "exact/operand", "exact/swap", "exact/extra")
    verdicts = ("precision", "recall", "f1", "unseen/f1")

    def side_by_side(title: str, names: Sequence[str], of: str) -> Panel | None:
        ticks = {
            float(index): name.removeprefix("exact/").replace("unseen/", "unseen\n").replace("f1", "F1") for index, name in enumerate(names)
        }
        where: dict[str, Mapping[float, Values]] = {
            arm: {float(i): measured(rows, "critic", arm, name) for i, name in enumerate(names)} for arm in arms
        }
        return points(title, Axis("", ticks), Axis(of), where)

    return figure(
        "Critics after the warm start, after RL for the verdict alone, and after RL for the verdict and its step. The kind `student` was "
        "trained on, the other four never. Dots are seeds, markers their mean with its 95 % t interval, not paired.",
        side_by_side("First wrong step found, by kind of flaw", kinds, "share of flawed solutions"),
        side_by_side("The verdict itself", verdicts, "share"),
    )


def e7_judges(rows: Sequence[Row], told: Sequence[Contrast]) -> Figure | None:
    ticks = dict(enumerate(("warm", "outcome", "process")))

    def panel(name: str, title: str, of: str) -> Panel | None:
        judged = {float(at): measured(rows, "default", f"judge={judge}", name) for at, judge in ticks.items()}
        oracle, grpo = (alike(measured(rows, "default", arm, name), judged.values()) for arm in ("lam=1", "lam=0"))
        x = Axis("judge", {float(at): judge for at, judge in (ticks | {3: "oracle"}).items()})
        return points(title, x, Axis(of), {"": judged | {3.0: oracle}}, {"λ = 0 (GRPO)": grpo})

    return figure(
        f"Policies trained with λ = 1 by the critics of E6 and by the oracle, measured by the oracle. {DOTS} Band: GRPO.",
        panel("sound", "Truly sound at the end", ALL),
        panel("flawed", "Truly flawed ÷ right at the end", RIGHT),
    )


def e8_time(rows: Sequence[Row], told: Sequence[Contrast]) -> Figure | None:
    kinds = {label: rates(rows, "timing", f"{arm}/") for label, arm in (("overlapped", "overlap"), ("serial", "serial"))}
    x = Axis("judging ÷ training, log scale", {ratio: f"{ratio:g}" for ratio in sorted({*kinds["overlapped"], *kinds["serial"]})}, log=True)

    def panel(name: str, title: str, of: str, limit: float | None = None) -> Panel | None:
        where = {kind: {ratio: measured(rows, "timing", arm, name) for ratio, arm in arms.items()} for kind, arms in kinds.items()}
        return points(title, x, Axis(of), where, behind=partial(level, at=limit))

    return figure(
        "A step, and how much of judging is hidden behind other work, by how long judging takes. Dots are repeats, markers their mean with "
        "its 95 % t interval; the line at 1.2 is the fifth of a step that judging may cost.",
        panel("x_known", "A step ÷ one with verdicts known", "ratio", 1.2),
        panel("hidden", "Judging hidden", "share of judging"),
        of="repeats",
    )


FIGURES: Mapping[str, Sequence[Callable[[Sequence[Row], Sequence[Contrast]], Figure | None]]] = {
    "E1": (e1_lambda,),
    "E1b": (e1b_scale,),
    "E2a": (e2_early_and_late,),
    "E3a": (e3_shift, e3_shift_from_scarce),
    "E4a": (e4_step_ratio,),
    "E5a": (e5_random,),
    "E5b": (e5_systematic,),
    "E6a": (e6_critic,),
    "E7": (e7_judges,),
    "E8": (e8_time,),
}
"""Figures by a claim's id."""
