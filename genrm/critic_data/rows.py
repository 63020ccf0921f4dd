"""Critic rows on disk: FAPO-Critic's schema, and which of many labelled solutions are kept.

    {"data_source": "fapo_critic", "prompt": [{"role": "user", "content": …}], "ability": "math_critic",
     "reward_model": {"style": "rule", "ground_truth": 2}, "extra_info": {"question_index": 7, "split": "train", "total_steps": 5}}

One object a line, every field of one type in all rows, so that `datasets` and pyarrow read it as it is.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from soundrl.genrm.critic_data.labelled import Labelled
from soundrl.genrm.prompts import critique_messages


def to_row(row: Labelled, question: int, split: str) -> dict[str, Any]:
    """A labelled solution in FAPO-Critic's schema, in the words of our judge's prompt."""
    return {
        "data_source": "fapo_critic",
        "prompt": critique_messages(row.problem, row.steps, row.answer),
        "ability": "math_critic",
        "reward_model": {"style": "rule", "ground_truth": row.label},
        "extra_info": {"question_index": question, "split": split, "total_steps": len(row.steps)},
    }


def select(rows: Iterable[Labelled], per_question: int, seed: int) -> tuple[list[Labelled], Counter[str]]:
    """Rows to keep, in a seeded order, and how many were left out by reason.

    Left out: a `duplicate` (same problem and steps), a row that `conflicts` with one of the same text and another label (both go), rows
    above `cap` (at most `per_question` flawed and as many sound ones of a problem), and the surplus of the larger class (`balance`).

    Example: three flawed and one sound solution of one problem, `per_question` 2 → one flawed, one sound; left out: cap 1, balance 1.
    """
    left: Counter[str] = Counter()
    labels: dict[tuple[str, tuple[str, ...]], set[int]] = {}
    unique: dict[tuple[str, tuple[str, ...]], Labelled] = {}
    for row in rows:
        key = (row.problem, row.steps)
        left["duplicate"] += key in unique
        labels.setdefault(key, set()).add(row.label)
        unique.setdefault(key, row)
    kept = [row for key, row in unique.items() if len(labels[key]) == 1]
    left["conflict"] = len(unique) - len(kept)
    random.Random(seed).shuffle(kept)
    taken: Counter[tuple[str, bool]] = Counter()
    classes: dict[bool, list[Labelled]] = {True: [], False: []}
    for row in kept:
        place = (row.problem, row.label >= 0)
        taken[place] += 1
        if taken[place] > per_question:
            left["cap"] += 1
        else:
            classes[row.label >= 0].append(row)
    size = min(map(len, classes.values()))
    left["balance"] = sum(len(part) - size for part in classes.values())
    out = [row for part in classes.values() for row in part[:size]]
    random.Random(seed + 1).shuffle(out)
    return out, +left


def write_rows(path: Path, rows: Sequence[Labelled], split: str) -> None:
    """Written beside and renamed at once; questions are numbered in the order in which they first come."""
    numbers: dict[str, int] = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    with beside.open("w", encoding="utf-8") as file:
        for row in rows:
            number = numbers.setdefault(row.problem, len(numbers))
            file.write(json.dumps(to_row(row, number, split), ensure_ascii=False) + "\n")
    beside.replace(path)
