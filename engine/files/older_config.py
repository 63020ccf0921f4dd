"""Settings of a run that an earlier version has begun, under the names and shapes that they have now: such a run goes on, is replayed and
shown as if it had been begun today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def of_today(config: Mapping[str, Any]) -> dict[str, Any]:
    """The groups of a config.json; what is of today stays as it is.

    >>> of_today({"loss": {"correction": "tis", "correction_band": [0.5, 2.0]}, "run": {"grace": 8.0, "patience": 60.0}})
    {'loss': {'correction': ['tis', 0.5, 2.0]}, 'run': {'patience': [60.0, 8.0]}}
    >>> of_today({"genrm": {"min_f1": 0.8, "probe": ["a.json", 5]}, "model": {"activation_checkpointing": True}})
    {'genrm': {'probe': ['a.json', 5, 0.8]}, 'model': {'save_memory': ['recompute']}}
    """
    out = {group: dict(settings) if isinstance(settings, Mapping) else settings for group, settings in config.items()}
    for group, gone, name, merge in GONE:
        if gone in (own := out.get(group) or {}):
            own[name] = merge(own.get(name), own.pop(gone))
    return out


GONE = (
    ("loss", "correction_band", "correction", lambda kind, band: [kind, *band]),
    ("genrm", "min_f1", "probe", lambda probe, least: [*probe, least]),
    ("run", "grace", "patience", lambda patience, grace: [patience, grace]),
    ("model", "activation_checkpointing", "save_memory", lambda _, on: ["recompute"] if on else []),
)
"""Group, a setting that is gone, the one that holds its value now, and how."""
