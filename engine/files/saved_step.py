"""A step of a run's folder becomes groups again, with all that verifier, judge and task have said of them; and its settings a `Config`.

Damage that a file's own seal does not show (a row of another step, an outcome that none knows) is a ValueError in one line with its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa

from soundrl.engine.config import GROUPS, Config
from soundrl.engine.files.older_config import of_today
from soundrl.engine.files.rollout_rows import arrays, rollout_of, verdict_of
from soundrl.engine.files.run_reader import RunReader
from soundrl.fapo.records import Group, Outcome, Prompt

VERDICTS = ("sound", "flawed", "unknown")


@dataclass(frozen=True)
class SavedStep:
    """What stands on the disk."""

    groups: list[Group]
    """Those that were trained, rank after rank, each rank's in the global order. Prompts have id, text, answer and source; of a prompt's
    tokens their number alone is there, and they are 0."""
    replaced: list[Group]
    """Those that gave way (`rollout.refill`)."""
    ranks: int
    """That sampled and trained it; 0 = the format does not say, nor how long prompts were."""


def read_step(run: RunReader, step: int) -> SavedStep:
    """ValueError where the step is not there, not whole, or damaged."""
    table = run.table(step)
    if step not in run.steps():
        raise ValueError(f"{run.path}, step {step}: cut off after {table.num_rows} whole rollouts; name a step that has ended")
    ranks = run.ranks(step)
    replaced = groups_of(run.table(step, "replaced"), f"{run.path}, step {step}") if step in run.steps("replaced") else []
    return SavedStep(groups_of(table, f"{run.path}, step {step}"), replaced, ranks)


def groups_of(table: pa.Table, where: str) -> list[Group]:
    """The groups of a table of rollouts (`rollout_file.SCHEMA`), in the order in which their prompts come; ValueError, which begins with
    `where`, for a row that no run writes."""
    rows = table.drop_columns(["tokens", "logprobs"]).to_pylist()
    columns = [arrays(table.column(name)) for name in ("tokens", "logprobs")]
    groups: dict[str, Group] = {}
    for row, tokens, logprobs in zip(rows, *columns, strict=True):
        if fault := fault_of(row, tokens, logprobs):
            raise ValueError(f"{where}: {row['prompt_id']} sample {row['sample']}: {fault}; restore the file")
        prompt = Prompt(id=row["prompt_id"], text=row["prompt"] or "", answer=row["answer"] or "", source=row["set"] or "")
        group = groups.setdefault(prompt.id, Group(prompt=prompt, rollouts=[]))
        if row["sample"] != len(group.rollouts):
            raise ValueError(f"{where}: {prompt.id} has sample {row['sample']} where {len(group.rollouts)} should be; restore the file")
        group.rollouts.append(rollout_of(row, np.zeros(row["prompt_length"] or 0, np.int32), tokens, logprobs))
        group.outcomes.append(Outcome(row["outcome"]))
        group.verdicts.append(None if row["verdict"] is None else verdict_of(row))
        group.scores.append(row["score"])
        group.extracted.append(row["extracted"])
        group.rewards.append(row["reward"])
        group.advantages.append(row["advantage"])
        group.kept.append(row["kept"])
    return list(groups.values())


def fault_of(row: Mapping[str, Any], tokens: np.ndarray, logprobs: np.ndarray) -> str:
    """Why no run has written this row; empty: one may have."""
    if row["outcome"] not in [outcome.value for outcome in Outcome]:
        return f"outcome {row['outcome']!r}"
    if row["verdict"] is not None and row["verdict"]["kind"] not in VERDICTS:
        return f"verdict {row['verdict']['kind']!r}"
    if missing := [name for name in ("reward", "advantage", "kept") if row[name] is None]:
        return f"no {missing[0]}"
    lengths = {len(tokens), len(logprobs), len(row["mask"] if row["mask"] is not None else tokens)}
    return "" if len(lengths) == 1 else f"{len(tokens)} tokens, {len(logprobs)} log-probabilities and another mask"


def config_of(run: RunReader) -> tuple[Config, list[str]]:
    """The settings of a run, and the names of those that its version did not have, which get their defaults. ValueError where config.json
    has one that this version does not know, or that contradicts itself."""
    file, built, missing = run.path / "config.json", dict[str, Any](), list[str]()
    try:
        today = of_today(run.config)
        for group, kind in GROUPS.items():
            said = today[group]
            names = [field.name for field in fields(kind)]
            if unknown := [name for name in said if name not in names]:
                raise ValueError(f"{group}.{unknown[0]} is no setting of this version; use the one that wrote it")
            missing += [f"{group}.{name}" for name in names if name not in said]
            built[group] = kind(**{name: as_tuples(value) for name, value in said.items()})
        return Config(**built), missing
    except KeyError as error:
        raise ValueError(f"{file} has no group {error}; it is of a version that cannot be replayed") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None


def as_tuples(value: Any) -> Any:
    """
    >>> as_tuples([1, ["a"]])
    (1, ('a',))
    """
    return tuple(map(as_tuples, value)) if isinstance(value, Sequence) and not isinstance(value, str) else value
