"""Which checkpoint of a critic's run to serve: of those whose critiques are short enough, the earliest whose F1 is within a set distance of
the best.

    python -m soundrl.genrm.selection --run runs/genrm-4b --data gsm8k.json math.json --out runs/genrm-4b/selection

The paper takes an early checkpoint because later ones write longer critiques (arXiv 2510.22543 §4.3) and does not say which; this is that
rule made explicit. Every exported checkpoint is served in turn and judged by `genrm/evaluate.py`; what is done already is not repeated.

The best of several is best in part by luck: on the rows by which it was chosen its F1 is too good, the more so the fewer rows and the more
checkpoints there are. What is said of the chosen one is measured on rows apart from these; `python -m soundrl.genrm.make` does so.
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
from soundrl.genrm.serve.server import Workers
from soundrl.genrm.serve.servers import JudgeServers

ROUNDS = 3


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
class Choosing(evaluate.Asking, Workers):
    """How checkpoints are served, asked and chosen from."""

    distance: float = 0.01
    """F1 that may be given up for an earlier checkpoint."""
    mean_tokens: float = 0.0
    """Tokens that a critique may have on average; a checkpoint whose critiques are longer is not chosen. 0 = any."""


@dataclass(frozen=True, kw_only=True)
class Arguments(evaluate.Judged, Choosing):
    """Command line of `python -m soundrl.genrm.selection`."""

    run: Path
    """Run folder with `policy/step-NNNNNN/`."""


def choose(checkpoints: Sequence[Checkpoint], distance: float, mean_tokens: float = 0.0) -> Checkpoint:
    """The earliest with F1 ≥ best − distance, of those with at most `mean_tokens` (0 = any). Raises `ValueError` where there are none or
    the distance is negative.

    Example, distance 0.01: F1 0.70, 0.815, 0.82 after steps 10, 20, 30 → step 20.
    """
    if not checkpoints:
        raise ValueError("no checkpoint to choose from; keep some (run.save)")
    if not distance >= 0:
        raise ValueError(f"--distance {distance} would exclude the best itself; use 0 or more")
    fit = [c for c in checkpoints if not mean_tokens or c.tokens <= mean_tokens]
    if not fit:
        shortest = min(checkpoints, key=lambda c: c.tokens)
        raise ValueError(
            f"--mean-tokens {mean_tokens:g} excludes every checkpoint; the shortest critiques are step {shortest.step}'s with "
            f"{shortest.tokens:.0f} tokens: raise it, or train with a stronger fapo.overlong"
        )
    best = max(c.f1 for c in fit)
    return min((c for c in fit if c.f1 >= best - distance), key=lambda c: c.step)


def measured(arguments: Arguments, folder: Path) -> dict[str, Any]:
    """The scores of one checkpoint (`genrm/evaluate.py summary`), which is served for them; an evaluation that is complete, of the same
    data and prompt, is only read. What a server's fault left unanswered is asked again, `ROUNDS` times; then it is a `ValueError`."""
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
        serving = arguments.serving(folder, length, name=name)
        with JudgeServers(serving, logs=out) as servers:
            for _ in range(ROUNDS):
                servers.wait()
                evaluate.main(replace(asked, urls=tuple(servers.urls)))
                known = json.loads(scores.read_text())
                if not known["unfinished"]:
                    break
            else:
                raise ValueError(f"{folder}: no reply came for some rows ({known['unfinished']}); the same command asks for them again")
    return known["scores"]


def measure(arguments: Arguments, folder: Path) -> Checkpoint:
    """What is compared of `measured`."""
    whole = measured(arguments, folder)["all"]
    found = {name: whole[name] for name in ("tokens", "seconds")} | {name: whole[name]["value"] for name in ("flawed_f1", "coverage")}
    return Checkpoint(step=int(folder.name.removeprefix("step-")), f1=whole["average_f1"], **found)


def exported(run: Path) -> list[Path]:
    """The run's checkpoints as model folders, by step. ValueError where there are none."""
    folders = sorted((run / "policy").glob("step-??????"))
    if not folders:
        raise ValueError(f"{run} holds no policy/step-NNNNNN; export its checkpoints: python -m soundrl.engine.tools.export write {run}")
    return folders


def show(checkpoints: Sequence[Checkpoint]) -> None:
    rows = [
        [str(c.step), *(f"{100 * share:.1f}" for share in (c.f1, c.flawed_f1, c.coverage)), f"{c.tokens:.0f}", f"{c.seconds:.2f}"]
        for c in checkpoints
    ]
    evaluate.print_table("Checkpoints of the critic", ("step", "average F1", "F1 (flawed)", "coverage", "tokens", "seconds"), rows)


def main(arguments: Arguments) -> Checkpoint:
    """Table on the console and `selection.json` in `out`; returns the chosen checkpoint."""
    checkpoints = [measure(arguments, folder) for folder in exported(arguments.run)]
    show(checkpoints)
    chosen = choose(checkpoints, arguments.distance, arguments.mean_tokens)
    print(f"chosen: step {chosen.step}, {arguments.run / 'policy' / f'step-{chosen.step:06d}'}")
    found = {"chosen": chosen.step, "checkpoints": [asdict(c) for c in checkpoints]}
    (arguments.out / "selection.json").write_text(json.dumps(found, indent=2) + "\n")
    return chosen


if __name__ == "__main__":
    evaluate.command(main, Arguments)
