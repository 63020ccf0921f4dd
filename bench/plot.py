"""Pictures of benchmark results, from the JSON lines alone.

    python bench/plot.py bench/results/linear_logprob.jsonl [folder]

One PNG a mode: a bar a provider and shape, the median with the 20th and 80th percentile, the floor as a line. Of rows measured several
times the last counts. Needs matplotlib.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def latest(source: Path) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """mode → shape → provider → its last row that was timed."""
    modes: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for line in source.read_text().splitlines():
        row = json.loads(line)
        if row["ms"] is not None:
            shape = " ".join(f"{name}={value}" for name, value in row["shape"].items())
            modes.setdefault(row["mode"], {}).setdefault(shape, {})[row["provider"]] = row
    return modes


def colour(name: str, row: dict[str, Any]) -> str:
    return "tab:blue" if name.startswith("ours") else "lightgrey" if row["floor_ms"] is None else "grey"


def draw_plots(source: Path, folder: Path) -> list[Path]:
    """Write `<bench>-<mode>.png` for each mode into `folder`; returns the files."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    made = []
    for mode, shapes in sorted(latest(source).items()):
        count = sum(len(rows) for rows in shapes.values())
        figure, axes = pyplot.subplots(len(shapes), 1, figsize=(9, 0.3 * count + 0.9 * len(shapes) + 0.6), squeeze=False)
        for ax, (shape, rows) in zip(axes[:, 0], shapes.items(), strict=True):
            names = sorted(rows, key=lambda name: rows[name]["ms"], reverse=True)
            ms = [rows[name]["ms"] for name in names]
            spread = [[m - rows[name]["p20"] for m, name in zip(ms, names, strict=True)]]
            spread += [[rows[name]["p80"] - m for m, name in zip(ms, names, strict=True)]]
            colours = [colour(name, rows[name]) for name in names]
            ax.barh(names, ms, xerr=spread, color=colours, ecolor="black", capsize=2)
            floors = [row["floor_ms"] for row in rows.values() if row["floor_ms"] is not None]
            if floors:
                ax.axvline(max(floors), color="tab:red", linewidth=1)
            stamp = rows[names[0]]["stamp"]
            ax.set_title(f"{mode}  {shape}  {stamp['device']}, {stamp['date'][:10]}, {stamp['commit']}", fontsize=8)
            ax.set_xlabel("ms (red: floor)", fontsize=7)
            ax.tick_params(labelsize=7)
        figure.tight_layout()
        path = folder / f"{source.stem}-{mode}.png"
        figure.savefig(path, dpi=120)
        pyplot.close(figure)
        made.append(path)
    return made


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    given = Path(sys.argv[1])
    for path in draw_plots(given, Path(sys.argv[2]) if len(sys.argv) == 3 else given.parent):
        print(path)
