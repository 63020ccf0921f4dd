"""Axes of a phone's width as SVG: the same bytes whenever they are drawn, text as text, nothing from outside."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

WIDTH = 3.4
"""Inches: two stand side by side on paper, one on a phone of 360 pixels, where 8 points are 8 points."""
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "science",
    "path.simplify": False,
}


@dataclass(frozen=True)
class Axis:
    """What stands along one side of a panel."""

    label: str
    """With its unit."""
    ticks: Mapping[float, str] | None = None
    log: bool = False
    limits: tuple[float | None, float | None] = (None, None)


def drawn(draw: Callable[[Axes], None], x: Axis, y: Axis, entries: int = 0, height: float = 2.5, bare: bool = False) -> str:
    """`draw` on axes of a panel's size, as an `<svg>` element without a date, a version or a name that comes by chance. `entries` of the
    legend get room above; `bare` axes have none around them."""
    rows = -(-entries // 2)
    height += 0.19 * rows
    box = (0.01, 0.01, 0.98, 1 - (0.05 + 0.19 * rows) / height) if bare else (0.185, 0.46 / height, 0.79, 1 - (0.56 + 0.19 * rows) / height)
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=(WIDTH, height))
        FigureCanvasSVG(canvas)
        axes = canvas.add_axes(box)
        axes.set(xlabel=x.label, ylabel=y.label)
        axes.xaxis.set_label_coords(0.5, -0.27 / (height * box[3]))  # fixed: alike in all panels, and not measured
        axes.yaxis.set_label_coords(-0.185, 0.5)
        if x.log:
            axes.set_xscale("log", base=2)
        if y.log:
            axes.set_yscale("log", base=2)
        for side, axis in ((x, axes.xaxis), (y, axes.yaxis)):
            if side.ticks is not None:
                axis.set_ticks(list(side.ticks), list(side.ticks.values()))
            else:
                axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        draw(axes)
        axes.set_xlim(*x.limits)
        axes.set_ylim(*y.limits)
        if entries:
            left = -box[0] / box[2]
            look = {"frameon": False, "handlelength": 3.4, "columnspacing": 1, "labelspacing": 0.25, "borderpad": 0}
            axes.legend(loc="lower left", bbox_to_anchor=(left, 1.01), ncols=2, **look)
        out = io.StringIO()
        canvas.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return lean(out.getvalue())


def lean(svg: str) -> str:
    """The element alone: no metadata, no name that nothing refers to, hundredths of a point; what is written in it stays as it is.

    >>> lean('<?xml?><svg id="a"> <g id="b"/>\\n<use x="1.2345"  href="#b"/><text>0.1250</text></svg>')
    '<svg><g id="b"/><use x="1.23" href="#b"/><text>0.1250</text></svg>'
    """

    def shorter(tag: re.Match) -> str:
        text = re.sub(r' transform="rotate\(-0 [^"]*"', "", re.sub(r"\s+", " ", tag[0]))
        text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
        return re.sub(r"-?\d+\.\d+", lambda found: f"{round(float(found[0]), 2):g}", text)

    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)", svg))
    return re.sub(r">\s+<", "><", re.sub(r"<[^>]+>", shorter, svg)).strip()


def named(svg: str, prefix: str) -> str:
    """Its ids with a prefix, so that several may stand on one page."""
    return re.sub(r'((?:id|xlink:href)="#?|url\(#)', rf"\g<1>{prefix}-", svg)
