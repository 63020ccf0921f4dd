"""Which checkpoint of a critic's run to serve: the earliest whose F1 is within a set distance of the best.

    python -m soundrl.genrm.selection --run runs/genrm-4b --data gsm8k.json math.json --out runs/genrm-4b/selection

The paper takes an early checkpoint because later ones write longer critiques (arXiv 2510.22543 §4.3) and does not say which; this is that
rule made explicit. Every exported checkpoint is served in turn and judged by `genrm/evaluate.py`; what is done already is not repeated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from soundrl.genrm import evaluate
from soundrl.genrm.prompts import prompt_in
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
class Arguments(evaluate.Judged, evaluate.Asking):
    """Command line of `python -m soundrl.genrm.selection`."""

    run: Path
    """Run folder with `policy/step-NNNNNN/`."""
    distance: float = 0.01
    """F1 that may be given up for an earlier checkpoint."""
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
        raise ValueError("no checkpoint to choose from; keep some (run.save)")
    if distance < 0:
        raise ValueError(f"--distance {distance} would exclude the best itself; use 0 or more")
    best = max(checkpoint.f1 for checkpoint in checkpoints)
    return min((c for c in checkpoints if c.f1 >= best - distance), key=lambda c: c.step)


def measure(arguments: Arguments, folder: Path) -> Checkpoint:
    """Serve one checkpoint and judge it; an evaluation that is complete, of the same data and prompt, is only read."""
    out, name = arguments.out / folder.name, f"{arguments.run.name}-{folder.name}"
    what: dict[str, Any] = {field.name: getattr(arguments, field.name, None) for field in fields(evaluate.Arguments)}
    told = prompt_in(folder, arguments.prompt).name
    asked = evaluate.Arguments(**what | {"urls": (), "model": name, "out": out, "prompt": told})
    scores, subsets = out / "scores.json", evaluate.read_data(asked)
    known = json.loads(scores.read_text()) if scores.exists() else {}
    if known.get("made_from") != evaluate.stamp(asked, subsets) or known.get("unfinished"):
        rows = [[row.problem, row.steps, row.answer] for part in subsets.values() for row in part]
        # A token holds a character at least, but for scripts that few problems are written in.
        length = served_length(folder, max(len(json.dumps(row, ensure_ascii=False)) for row in rows), arguments.max_tokens)
        serving = Serving(
            model=folder, name=name, workers=arguments.workers, dtype=arguments.dtype, eager=arguments.eager, max_length=length
        )
        with JudgeServers(serving, logs=out) as servers:
            servers.wait()
            evaluate.main(replace(asked, urls=tuple(servers.urls)))
        known = json.loads(scores.read_text())
    whole = known["scores"]["all"]
    found = {name: whole[name] for name in ("tokens", "seconds")} | {name: whole[name]["value"] for name in ("flawed_f1", "coverage")}
    return Checkpoint(step=int(folder.name.removeprefix("step-")), f1=whole["average_f1"], **found)


def main(arguments: Arguments) -> Checkpoint:
    """Table on the console and `selection.json` in `out`; returns the chosen checkpoint."""
    folders = sorted((arguments.run / "policy").glob("step-??????"))
    if not folders:
        raise ValueError(
            f"{arguments.run} holds no policy/step-NNNNNN; export its checkpoints: "
            f"python -m soundrl.engine.tools.export write {arguments.run}"
        )
    checkpoints = [measure(arguments, folder) for folder in folders]
    chosen = choose(checkpoints, arguments.distance)
    rows = [
        [str(c.step), *(f"{100 * share:.1f}" for share in (c.f1, c.flawed_f1, c.coverage)), f"{c.tokens:.0f}", f"{c.seconds:.2f}"]
        for c in checkpoints
    ]
    headings = ("step", "average F1", "F1 (flawed)", "coverage", "tokens", "seconds")
    evaluate.print_table(f"Checkpoints of the critic; chosen: step {chosen.step}", headings, rows)
    found = {"chosen": chosen.step, "checkpoints": [asdict(c) for c in checkpoints]}
    (arguments.out / "selection.json").write_text(json.dumps(found, indent=2) + "\n")
    return chosen


if __name__ == "__main__":
    evaluate.command(main, Arguments)
