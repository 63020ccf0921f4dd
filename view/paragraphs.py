"""A solution cut as the judge saw it, and what the judge was asked."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundrl.genrm.prompts import PROMPTS, split_paragraphs
from soundrl.view.oracle import ORACLES, WORLD, data_of

if TYPE_CHECKING:
    from soundrl.view.run import Run

CARD = 1 << 20  # bytes of a judge's card
LONGEST = 200_000  # characters of a question


def paragraphs_of(run: Run, read: dict[str, Any]) -> Sequence[str]:
    """By the rollout's own record; of an older file, which has none, by the cut of the run's environment."""
    if read.get("paragraphs"):
        return read["paragraphs"]
    text = read["text"] or ""
    if data_of(run) in ORACLES:
        return importlib.import_module(f"{WORLD}.chains").steps(text)
    return split_paragraphs(text)


def prompt_name(run: Run) -> str:
    """Of the prompt that the judge was asked with; empty where neither the configuration nor the judge's own card says."""
    said = run.setting("genrm.prompt", "")
    if said or run.setting("genrm.judge", "none") not in ("serve", "endpoint"):
        return said if said in PROMPTS else ""
    card = Path(run.setting("genrm.model", "")) / "card.json"
    try:
        found = json.loads(card.read_bytes()) if card.is_file() and card.stat().st_size < CARD else {}
    except (OSError, ValueError, RecursionError):
        return ""
    name = found.get("prompt") if isinstance(found, dict) else None
    name = name.get("name") if isinstance(name, dict) else name
    return name if isinstance(name, str) and name in PROMPTS else ""


def question_of(run: Run, read: dict[str, Any]) -> str | None:
    """What the judge was asked, made anew from the rollout; None where it was not judged, or where the prompt is not known."""
    name = prompt_name(run)
    if not read["verdict"] or not name:
        return None
    reference = read["answer"] if run.setting("genrm.reference", True) else None
    messages = PROMPTS[name].messages(read["prompt"] or "", list(paragraphs_of(run, read)), reference)
    return "\n\n".join(message["content"] for message in messages)[:LONGEST]
