"""Which checkpoint of a critic's run to serve: the earliest whose F1 is within a set distance of the best.

    python -m soundrl.genrm.selection --run runs/genrm-4b --data gsm8k.json math.json --out runs/genrm-4b/selection

The paper takes an early checkpoint because later ones write longer critiques (arXiv 2510.22543 §4.3) and does not say which; this is that
rule made explicit. Every exported checkpoint is served in turn and judged by `genrm/evaluate.py`; what is done already is not repeated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from soundrl.genrm import evaluate
from soundrl.genrm.serve.machine import served_length
from soundrl.genrm.serve.server import Serving
from soundrl.genrm.serve.servers import JudgeServers


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One exported checkpoint and what its judge is worth."""

    step: int
    f1: float
    """Average ProcessBench F1 over the subsets, 0 … 1."""
    flawed_f1: float
    """F1 of "flawed" on rows with a right final answer."""
    coverage: float
    tokens: float
    """Mean tokens of a critique."""
    seconds: float
    """Mean seconds of a critique, as served here."""


@dataclass(frozen=True, kw_only=True)
class Arguments(evaluate.Judged):
    """Command line of `python -m soundrl.genrm.selection`."""

    run: Path
    """Run folder with `policy/step-NNNNNN/`."""
    distance: float = 0.01
    """F1 that may be given up for an earlier checkpoint."""
    max_tokens: int = 8192
    """Longest critique, in tokens."""
    workers: int = 1
    """Servers of a checkpoint."""
    dtype: str = "auto"
    """Type of the weights when served."""
    eager: bool = False
    """Serve without compilation."""


def choose(checkpoints: Sequence[Checkpoint], distance: float) -> Checkpoint:
    """The earliest with F1 ≥ best − distance. Raises `ValueError` where there are none or the distance is negative.

    Example, distance 0.01: F1 0.70, 0.815, 0.82 after steps 10, 20, 30 → step 20.
    """
    if not checkpoints:
        raise ValueError("no checkpoint to choose from; export some (run.export_every)")
    if distance < 0:
        raise ValueError(f"--distance {distance} would exclude the best itself; use 0 or more")
    best = max(checkpoint.f1 for checkpoint in checkpoints)
    return min((c for c in checkpoints if c.f1 >= best - distance), key=lambda c: c.step)


def plot(checkpoints: Sequence[Checkpoint], chosen: Checkpoint) -> str:
    """F1 against mean tokens as an SVG; a dot a checkpoint with its step, the chosen one filled."""
    tokens, f1 = [c.tokens for c in checkpoints], [c.f1 for c in checkpoints]

    def text(x: float, y: float, words: str) -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{words}</text>'

    parts = ['<svg xmlns="http://www.w3.org/2000/svg" width="640" height="400" font-family="sans-serif" font-size="12">']
    parts += [text(320, 385, f"mean tokens of a critique ({min(tokens):.0f} … {max(tokens):.0f})")]
    parts += [text(320, 25, f"F1 {100 * min(f1):.1f} … {100 * max(f1):.1f}; chosen: step {chosen.step}")]
    for c in checkpoints:
        x = 60 + 520 * (c.tokens - min(tokens)) / (max(tokens) - min(tokens) or 1)
        y = 340 - 280 * (c.f1 - min(f1)) / (max(f1) - min(f1) or 1)
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" stroke="black" fill="{"black" if c == chosen else "white"}"/>']
        parts += [text(x, y - 9, str(c.step))]
    return "\n".join([*parts, "</svg>"]) + "\n"


def measure(arguments: Arguments, folder: Path) -> Checkpoint:
    """Serve one checkpoint and judge it; an evaluation that is complete, of the same data and prompt, is only read."""
    out, name = arguments.out / folder.name, f"{arguments.run.name}-{folder.name}"
    what = {field: getattr(arguments, field) for field in ("data", "references", "rows", "max_tokens")}
    asked = evaluate.Arguments(urls=(), model=name, out=out, **what)
    scores = out / "scores.json"
    subsets = evaluate.read_data(asked)
    known = json.loads(scores.read_text()) if scores.exists() else {}
    if known.get("made_from") != evaluate.stamp(asked, subsets) or known.get("unfinished"):
        # A token holds a character at least, but for scripts that few problems are written in.
        longest = max(
            len(json.dumps([row.problem, row.steps, row.answer], ensure_ascii=False)) for part in subsets.values() for row in part
        )
        length = served_length(folder, longest, arguments.max_tokens)
        serving = Serving(
            model=folder, name=name, workers=arguments.workers, dtype=arguments.dtype, eager=arguments.eager, max_length=length
        )
        with JudgeServers(serving, logs=out) as servers:
            servers.wait()
            evaluate.main(replace(asked, urls=tuple(servers.urls)))
    whole = json.loads(scores.read_text())["scores"]["all"]
    found = {name: whole[name] for name in ("tokens", "seconds")} | {name: whole[name]["value"] for name in ("flawed_f1", "coverage")}
    return Checkpoint(step=int(folder.name.removeprefix("step-")), f1=whole["average_f1"], **found)


def main(arguments: Arguments) -> Checkpoint:
    """Table on the console, `selection.json` and `selection.svg` in `out`; returns the chosen checkpoint."""
    folders = sorted((arguments.run / "policy").glob("step-??????"))
    if not folders:
        raise ValueError(f"{arguments.run} holds no policy/step-NNNNNN; name a run that has exported (run.export_every)")
    checkpoints = [measure(arguments, folder) for folder in folders]
    chosen = choose(checkpoints, arguments.distance)
    report(checkpoints, chosen, arguments.out)
    return chosen


def report(checkpoints: Sequence[Checkpoint], chosen: Checkpoint, out: Path) -> None:
    table = Table(title="Checkpoints of the critic")
    for heading in ("step", "average F1", "F1 (flawed)", "coverage", "tokens", "seconds", ""):
        table.add_column(heading, justify="right")
    for c in checkpoints:
        shares = [f"{100 * value:.1f}" for value in (c.f1, c.flawed_f1, c.coverage)]
        table.add_row(str(c.step), *shares, f"{c.tokens:.0f}", f"{c.seconds:.2f}", "chosen" if c == chosen else "")
    Console(width=120).print(table)
    found = {"chosen": chosen.step, "checkpoints": [asdict(c) for c in checkpoints]}
    (out / "selection.json").write_text(json.dumps(found, indent=2) + "\n")
    (out / "selection.svg").write_text(plot(checkpoints, chosen))


if __name__ == "__main__":
    evaluate.command(main, Arguments)
