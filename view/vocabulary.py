"""Pieces of text for token ids, by the tokenizer of the run's policy, without transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from soundrl.view.run import Run

LARGEST = 64 << 20  # bytes of a tokenizer.json
_HELD: dict[str, Any] = {}
"""The last one: a vocabulary takes up to 100 MB"""


def file_of(run: Run) -> Path | None:
    """In the run's own exports and checkpoints, else where its policy began."""
    for pattern in ("policy/step-*/tokenizer.json", "checkpoints/step-*/tokenizer.json"):
        if found := sorted(run.path.glob(pattern)):
            run.check(found[-1])
            return found[-1]
    start = run.setting("model.path", "")
    file = Path(start) / "tokenizer.json"
    return file if start and file.is_file() else None


def pieces(run: Run, ids: list[int]) -> list[str] | None:
    """A text for each id; None where no vocabulary is found. A token that is no whole character reads as the vocabulary writes it."""
    file = file_of(run)
    if file is None or file.stat().st_size > LARGEST:
        return None
    said = file.stat()
    key = f"{file} {said.st_mtime_ns} {said.st_size}"
    if key not in _HELD:
        from tokenizers import Tokenizer

        try:
            loaded = Tokenizer.from_file(str(file))
        except Exception:  # noqa: BLE001 — it raises bare Exception for what is no tokenizer
            loaded = None
        _HELD.clear()
        _HELD[key] = loaded
    vocabulary = _HELD[key]
    if vocabulary is None:
        return None
    known: dict[int, str] = {}
    for id in set(ids):
        text = vocabulary.decode([id], skip_special_tokens=False) if id >= 0 else ""
        known[id] = text if text and "\ufffd" not in text else vocabulary.id_to_token(id) or f"⟨{id}⟩"
    return [known[id] for id in ids]
