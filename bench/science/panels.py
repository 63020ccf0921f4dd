"""The kinds of panel: points by x, curves over steps, paths in a triangle, differences; each with the numbers that are in it.

Readable in grey: an arm is told by its marker and line style as well as by its colour, and colours differ in lightness.
"""

from __future__ import annotations

import itertools
import math
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import over_seeds
import words
from canvas import Axis, drawn
from matplotlib.axes import Axes

Values = Mapping[int, float]
"""seed → value."""
Spread = tuple[float, float, float]
"""Mean, and its 95 % interval."""
COLOURS = ("#000000", "#5b2a86", "#c2336f", "#e07b1f", "#8a8a8a", "#1f8a8a")
MARKERS = ("o", "s", "D", "^", "v", "X")
LINES = ("-", (0, (6, 2)), (0, (4, 1.5, 1, 1.5)), (0, (1.5, 1.5)), (0, (9, 3, 1.5, 3, 1.5, 3)), (0, (3, 4)))
QUIET = "#767676"


@dataclass(frozen=True)
class Panel:
    title: str
    svg: str
    head: Sequence[str]
    """Of `rows`, the numbers drawn; one column is n."""
    rows: Sequence[Sequence[str]]


def spread(values: Sequence[float]) -> Spread:
    """Mean and its 95 % t interval over seeds; of one value not a number.

    >>> [round(value, 3) for value in spread([0.1, 0.2, 0.3])], spread([0.5])
    ([0.2, -0.048, 0.448], (0.5, nan, nan))
    """
    found = over_seeds.mean(values)
    return (found.value, found.low, found.high) if found.n > 1 else (found.value, math.nan, math.nan)


def mark(
    axes: Axes, where: Mapping[float, Values], style: int, beside: Callable[[float], float], label: str = "", joined: bool = False
) -> None:
    """Each seed a small dot at x (lines join a seed's dots where `joined`), at `beside` of it the mean with its interval."""
    colour, marker = COLOURS[style], MARKERS[style]
    if joined:
        for seed in sorted({seed for values in where.values() for seed in values}):
            path = [(x, values[seed]) for x, values in where.items() if seed in values]
            axes.plot(*zip(*path, strict=True), color="#c4c4c4", linewidth=0.6, zorder=1)
    for index, (x, values) in enumerate(where.items()):
        axes.plot([x] * len(values), list(values.values()), "o", color=colour, markersize=2.8, alpha=0.55, markeredgewidth=0, zorder=2)
        mean, low, high = spread(list(values.values()))
        bars = [[mean - low], [high - mean]] if math.isfinite(low) else None
        look = {"color": colour, "marker": marker, "markersize": 5, "capsize": 2.5, "linewidth": 1.2}
        axes.errorbar(beside(x), mean, bars, label=None if index else label or None, **look)


def points(
    title: str,
    x: Axis,
    y: Axis,
    series: Mapping[str, Mapping[float, Values]],
    bands: Mapping[str, Values] | None = None,
    behind: Callable[[Axes], object] = lambda axes: None,
) -> Panel | None:
    """Dots, means and intervals of each series by x, above `bands`, a mean with its interval whatever x, and what `behind` draws. None
    where there is nothing."""
    series = {name: {at: values for at, values in where.items() if values} for name, where in series.items()}
    series = {name: where for name, where in series.items() if where}
    bands = {name: values for name, values in (bands or {}).items() if values}
    if not series:
        return None
    ticks = x.ticks or {}
    numeric = sorted({at for where in series.values() for at in where} | set(ticks))
    gaps = [math.log2(b / a) if x.log else b - a for a, b in zip(numeric, numeric[1:], strict=False)]
    gap = min(gaps, default=1.0)

    def draw(axes: Axes) -> None:
        behind(axes)
        for index, (name, values) in enumerate(bands.items()):
            mean, low, high = spread(list(values.values()))
            if math.isfinite(low):
                axes.axhspan(low, high, color="#999999" if index else "#444444", alpha=0.18, linewidth=0)
            axes.axhline(mean, color=QUIET if index else "#000000", linewidth=1, linestyle=LINES[3 if index else 1], label=name)
        for index, (name, where) in enumerate(series.items()):
            shift = gap * 0.27 * (index - (len(series) - 1) / 2)
            aside = gap * (0.09 if len(series) > 1 else 0.16)
            moved = {along(at, shift): values for at, values in where.items()}
            mark(axes, moved, index, partial(along, by=aside), name if len(series) > 1 else "", joined=len(series) == 1)

    def along(at: float, by: float) -> float:
        return at * 2**by if x.log else at + by

    room = x.limits
    if room == (None, None) and numeric:
        room = (numeric[0] * 2**-0.6, numeric[-1] * 2**0.6) if x.log else (numeric[0] - 0.5 * gap, numeric[-1] + 0.6 * gap)
    entries = len(bands) + (len(series) if len(series) > 1 else 0)
    rows = [
        [*([name] if len(series) > 1 else []), ticks.get(at, words.number(at)), *summary(values)]
        for name, where in series.items()
        for at, values in where.items()
    ]
    rows += [
        [*([name] if len(series) > 1 else []), name if len(series) == 1 else "everywhere", *summary(values)]
        for name, values in bands.items()
    ]
    head = [*(["arm"] if len(series) > 1 else []), x.label or "arm", "mean [95 % interval]", "values", "n"]
    return Panel(title, drawn(draw, Axis(x.label, x.ticks, x.log, room), y, entries), head, rows)


def upright(axes: Axes, even: Spread | None) -> None:
    """A value of x with its interval."""
    if even:
        mean, low, high = even
        axes.axvline(mean, color=COLOURS[2], linewidth=1, linestyle=LINES[2])
        if math.isfinite(low) and math.isfinite(high):
            axes.axvspan(low, high, color=COLOURS[2], alpha=0.12, linewidth=0)


def level(axes: Axes, at: float | None) -> None:
    """A value of y that is asked for."""
    if at is not None:
        axes.axhline(at, color=QUIET, linewidth=1, linestyle=LINES[1])


def summary(values: Values) -> list[str]:
    """
    >>> summary({0: 0.5, 1: 0.7})
    ['.600 [−.671, 1.871]', '.500 .700', '2']
    """
    each = [values[seed] for seed in sorted(values)]
    return [words.interval(*spread(each)), " ".join(words.number(value, words.places(each)) for value in each), str(len(each))]


Series = Mapping[int, Sequence[float | None]]
"""seed → a value a step, from step 1."""


def over(runs: Series) -> list[list[float]]:
    """By step the values of the seeds that have one, as far as all runs reach.

    >>> over({0: [0.1, None, 0.3], 1: [0.2, 0.4]})
    [[0.1, 0.2], [0.4]]
    """
    steps = min((len(run) for run in runs.values()), default=0)
    return [[value for run in runs.values() if (value := run[step]) is not None] for step in range(steps)]


def curves(
    title: str,
    y: Axis,
    arms: Mapping[str, Series],
    middle: Callable[[Sequence[float]], float] | None = None,
    levels: Mapping[str, float] | None = None,
) -> Panel | None:
    """Means over seeds by step with their intervals as bands; `middle` takes another centre than the mean, without a band. `levels` are
    thresholds by arm, drawn thin in the arm's own style."""
    every = {name: over(runs) for name, runs in arms.items()}
    styles = {name: index for index, name in enumerate(every)}  # an arm keeps its own where others are missing
    every = {name: steps for name, steps in every.items() if any(steps)}
    if not every:
        return None
    levels = {name: level for name, level in (levels or {}).items() if name in every}

    def draw(axes: Axes) -> None:
        for index, (name, steps) in enumerate(every.items()):
            style = styles[name]
            at = [step for step, values in enumerate(steps, 1) if values]
            told = [spread(values) for values in steps if values]
            centre = [middle(values) for values in steps if values] if middle else [mean for mean, _, _ in told]
            if not middle and len(every) <= 4:
                axes.fill_between(
                    at, [low for _, low, _ in told], [high for _, _, high in told], color=COLOURS[style], alpha=0.16, linewidth=0
                )
            every_sixth = (index * len(at) // (6 * len(every)), max(1, len(at) // 6))
            axes.plot(
                at,
                centre,
                color=COLOURS[style],
                linestyle=LINES[style],
                marker=MARKERS[style],
                markersize=3.5,
                markevery=every_sixth,
                linewidth=1.2,
                label=name,
            )
            if name in levels:
                axes.axhline(levels[name], color=COLOURS[style], linestyle=LINES[style], linewidth=0.7, alpha=0.75)

    last = max(map(len, every.values()))
    shown = sorted({1, *(round(last * part / 4) or 1 for part in (1, 2, 3, 4))})
    rows = []
    for name, steps in every.items():
        told = [steps[step - 1] if step <= len(steps) else [] for step in shown]
        cells = [("–" if not values else words.number(middle(values)) if middle else words.interval(*spread(values))) for values in told]
        rows.append([name, *cells, words.counted(len(values) for values in told if values)])
    return Panel(title, drawn(draw, Axis("RL step"), y, len(every)), ["arm", *(f"step {step}" for step in shown), "n"], rows)


def ternary(title: str, arms: Mapping[str, tuple[Series, Series, Series]], lines: Mapping[str, float]) -> Panel | None:
    """Mean path of (sound, wrong, flawed), shares that sum to 1: hollow where it starts, full where it ends, a dot a seed's end. `lines`
    are values of ρ = sound ÷ wrong: rays from the corner of *flawed*."""
    paths = {name: [over(runs) for runs in three] for name, three in arms.items()}
    styles = {name: index for index, name in enumerate(paths)}
    paths = {name: three for name, three in paths.items() if all(three) and all(part[-1] for part in three)}
    if not paths:
        return None

    def place(sound: float, flawed: float) -> tuple[float, float]:
        return flawed + sound / 2, sound * 3**0.5 / 2

    def draw(axes: Axes) -> None:
        axes.set_axis_off()
        axes.set_aspect("equal")
        axes.plot(*zip((0, 0), (1, 0), place(1, 0), (0, 0), strict=True), color=QUIET, linewidth=0.8)
        for part in (0.25, 0.5, 0.75):
            for ends in (((part, 0), (part, 1 - part)), ((0, part), (1 - part, part)), ((part, 0), (0, part))):
                axes.plot(*zip(*(place(*end) for end in ends), strict=True), color="#dddddd", linewidth=0.5, zorder=0)
        for name, rho in lines.items():
            end = place(rho / (1 + rho), 0)
            axes.plot(*zip((1, 0), end, strict=True), color=QUIET, linewidth=0.8, linestyle=":", zorder=1)
            axes.text(end[0] - 0.02, end[1], name, ha="right", va="center", color="#555555")
        for (x, y), text, align in (
            ((0, -0.03), "all wrong (β)", "center"),
            ((1, -0.03), "all flawed (γ)", "center"),
            ((0.5, 0.95), "all sound (α)", "center"),
        ):
            axes.text(x, y, text, ha=align, va="top")
        for name, (sound, _, flawed) in paths.items():
            index = styles[name]
            style: dict[str, Any] = {"color": COLOURS[index], "marker": MARKERS[index]}
            path = [place(statistics.fmean(a), statistics.fmean(c)) for a, c in zip(sound, flawed, strict=True) if a and c]
            axes.plot(*zip(*path, strict=True), color=style["color"], linestyle=LINES[index], linewidth=1.2)
            axes.plot(*path[0], **style, markersize=6, markerfacecolor="none")
            axes.plot(*path[-1], **style, markersize=6, linestyle=LINES[index], label=name)
            ends = [place(a, c) for a, c in zip(sound[-1], flawed[-1], strict=True)]
            axes.plot(*zip(*ends, strict=True), "o", color=style["color"], markersize=2.8, alpha=0.55, markeredgewidth=0)

    rows = []
    for name, three in paths.items():
        ends = [[words.number(statistics.fmean(part[step])) for part in three] for step in (0, -1)]
        rows.append([name, *(f"{a} → {b}" for a, b in zip(*ends, strict=True)), str(len(three[0][-1]))])
    svg = drawn(draw, Axis("", limits=(-0.13, 1.13)), Axis("", limits=(-0.12, 1.0)), len(paths), height=2.95, bare=True)
    return Panel(title, svg, ["arm", "sound (α), first → last step", "wrong (β)", "flawed (γ)", "n"], rows)


LABEL, EXTRA = 54, 0.36
"""Letters of a line of a label in `forest`, and the room of each further line, in lines of it."""


def forest(unit: str, rows: Mapping[str, tuple[Sequence[float], float, float, float]]) -> str:
    """Differences paired by seed: a line each, a dot a seed, the mean with its interval, and where no difference is. row → values, mean,
    low, high. Returns the SVG: its numbers stand in the table of contrasts."""

    labels = [textwrap.wrap(name, LABEL) for name in rows]
    places = list(itertools.accumulate(1 + EXTRA * (len(label) - 1) for label in labels))
    """Of the markers, a line below each other; longer labels, above them, take more room."""

    def draw(axes: Axes) -> None:
        axes.axvline(0, color="#000000", linewidth=0.8)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        for label, at, (values, mean, low, high) in zip(labels, places, rows.values(), strict=True):
            middle = at - 0.42 - EXTRA / 2 * (len(label) - 1)
            text = axes.text(-0.2, middle, "\n".join(label), transform=axes.get_yaxis_transform(), va="center")
            text.set_bbox({"facecolor": "#ffffff", "edgecolor": "none", "pad": 0.5})
            axes.plot(values, [at + 0.16] * len(values), "o", color="#000000", markersize=3.2, alpha=0.45, markeredgewidth=0)
            bars = [[mean - low], [high - mean]] if math.isfinite(low) and math.isfinite(high) else None
            axes.errorbar(mean, at - 0.04, xerr=bars, color=COLOURS[2], marker=MARKERS[2], markersize=4.5, capsize=2.5, linewidth=1.3)

    return drawn(draw, Axis(unit), Axis("", ticks={}, limits=(places[-1] + 0.5, 0.25)), height=0.75 + 0.42 * places[-1])
