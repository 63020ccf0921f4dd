"""Generated problems of reasoning-gym, named `rg:<data set>?size=1000&seed=0&<setting>=<value>`; seeded."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import os
import sys
import types
from typing import Any
from urllib.parse import parse_qsl, quote_plus

from soundrl.fapo.data.rows import DataError, shown

PREFIX = "rg:"
DEFAULT_SIZE = 1000
MAX_SIZE = 1_000_000
"""Also the distance between seeds. reasoning-gym makes problem i from seed + i, so that neighbouring seeds share all problems but one: an
evaluation under seed 1 would consist of training problems of seed 0. Here seed s stands for s · 1,000,000, and no two seeds share any."""

HASH_DEPENDENT = frozenset("codeio isomorphic_strings list_functions polynomial_multiplication ransom_note".split())
"""Data sets that iterate over sets of strings: the seed fixes their problems only together with PYTHONHASHSEED (0.1.25: 60 problems of
each data set, made under two hash seeds, were compared)."""


def load_puzzles(name: str, max_rows: int | None = None) -> list[tuple[str, str, str]]:
    """Id, question and answer of each problem of `name`, the first `max_rows` of them where that is set. Equal ids
    (`rg:<data set>?<settings>&seed=<seed>:<index>`) are equal problems.

    `size` (1000) and `seed` (0) may follow a question mark, and so may every number, flag or text in the data set's own configuration:
    `rg:chain_sum?size=200&seed=7&max_terms=3`. Problem i depends on the seed and the settings, not on the size. Raises `DataError` where
    name or setting is unknown. Their own scorers judge the answers (`verify.puzzle`), of which there may be many that are right.
    """
    kind, _, query = name.removeprefix(PREFIX).partition("?")
    _import(kind)
    from reasoning_gym.factory import DATASETS

    if kind not in DATASETS:
        raise DataError(f"{shown(name)}: no data set of reasoning-gym has this name{_close(kind, DATASETS)}")
    if kind in HASH_DEPENDENT and os.environ.get("PYTHONHASHSEED", "random") in ("", "random"):
        raise DataError(f"{PREFIX}{kind}: its problems depend on Python's hash seed; start Python with PYTHONHASHSEED=0")
    settings = _settings(PREFIX + kind, query, DATASETS[kind][1])
    size, seed = settings.pop("size", DEFAULT_SIZE), settings.pop("seed", 0)
    if seed < 0 or not 1 <= size <= MAX_SIZE:
        raise DataError(f"{PREFIX}{kind}: " + (f"seed={seed}; use 0 or more" if seed < 0 else f"size={size}; use 1 … {MAX_SIZE}"))
    stem = f"{PREFIX}{kind}?" + "".join(f"{key}={quote_plus(str(value))}&" for key, value in sorted(settings.items())) + f"seed={seed}"
    size = size if max_rows is None else min(size, max_rows)
    problems = data_set(stem, size)
    items = [problems[index] for index in range(size)]
    if (bare := next((index for index, item in enumerate(items) if not _text(item["question"])), None)) is not None:
        raise DataError(f"{stem}:{bare}: a problem without a question; change the settings")
    return [(f"{stem}:{index}", item["question"], item["answer"] if _text(item["answer"]) else "") for index, item in enumerate(items)]


def data_set(stem: str, size: int) -> Any:
    """reasoning-gym's own object, by the beginning of its problems' ids: `rg:<data set>?<settings>&seed=<seed>`. DataError where it refuses
    the settings."""
    kind, _, query = stem.removeprefix(PREFIX).partition("?")
    _import(kind)
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    settings = _settings(PREFIX + kind, query, DATASETS[kind][1])
    seed = settings.pop("seed", 0)
    try:
        return reasoning_gym.create_dataset(kind, size=size, seed=seed * MAX_SIZE, **settings)
    except (AssertionError, ValueError, TypeError) as error:
        raise DataError(f"{stem}: reasoning-gym refuses these settings ({shown(str(error), 120)}); change them") from None


def _import(kind: str) -> None:
    """Import what `kind` needs, here and not above: it takes seconds, and files need none of it."""
    if importlib.util.find_spec("pycosat") is None:  # compiled when installed, so missing where there was no C compiler
        if kind == "zebra_puzzles":
            raise DataError(f"{PREFIX}{kind} needs pycosat, which is not installed; install a C compiler, then: pip install pycosat==0.6.6")
        sys.modules.setdefault("pycosat", types.ModuleType("pycosat"))  # imported by name with all data sets, used by this one
    import reasoning_gym  # noqa: F401


def _settings(name: str, query: str, config: type) -> dict:
    """The settings in `query`, each of the type of its default in the data set's configuration."""
    defaults = {field.name: field.default for field in dataclasses.fields(config) if isinstance(field.default, (bool, int, float, str))}
    defaults |= {"size": DEFAULT_SIZE, "seed": 0}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict")
    except ValueError:
        raise DataError(f"{name}: {shown(query)} is no list of settings; write ?size=1000&seed=0") from None
    settings: dict = {}
    for key, text in pairs:
        if key not in defaults:
            raise DataError(f"{name}: no setting is named {shown(key)}{_close(key, defaults)}")
        if key in settings:
            raise DataError(f"{name}: {key} is set twice; keep one")
        kind = type(defaults[key])
        try:
            settings[key] = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            raise DataError(f"{name}: {key}={shown(text)} is no {kind.__name__}; its default is {defaults[key]}") from None
    return settings


def _text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _close(name: str, names) -> str:
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(sorted(names))}"
