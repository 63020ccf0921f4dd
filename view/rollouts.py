"""The page of a rollout, and its tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from soundrl.genrm.labels import id_of
from soundrl.view.groups import rollout_entry
from soundrl.view.paragraphs import paragraphs_of, question_of
from soundrl.view.plain import finite
from soundrl.view.run import Run
from soundrl.view.step import TIMES, Step
from soundrl.view.vocabulary import pieces

TEXT = 200_000  # characters of a solution
CRITIQUE = 100_000
TOKENS = 8000  # of a piece
WHOLE = (
    "prompt_id", "sample", "text", "prompt", "answer", "extracted", "finish_reason", "verdict", "turns", "paragraphs", "critique",
    "judge_tokens", "judge_worker", "judge_votes",
)  # fmt: skip
Json = dict[str, Any]


def rollout_page(run: Run, step: int, kind: str, g: int, sample: int) -> Json:
    """`<key>/step-000012/<kind>/rollout-<g>-<sample>.json`"""
    held = run.step(step, kind)
    row = held.row(g, sample)
    read = held.read(slice(row, row + 1), WHOLE)[0]
    text, critique = read["text"] or "", read["critique"]
    turns = read["turns"]
    columns = held.columns
    id = id_of(step, read["prompt_id"], read["sample"])
    label = run.labels.of(id)
    return rollout_entry(run, held, g, sample, read, TEXT) | {
        "left": max(len(text) - TEXT, 0),
        "prompt": read["prompt"],
        "answer": read["answer"],
        "paragraphs": bounded(list(paragraphs_of(run, read))),
        "turns": None if not turns else [turn | {"text": (turn["text"] or "")[:TEXT]} for turn in turns],
        "critique": None if critique is None else critique[:CRITIQUE],
        "votes": read["judge_votes"],
        "worker": read["judge_worker"],
        "judge_tokens": read["judge_tokens"],
        "judge_prompt": question_of(run, read),
        "times": {name: finite(float(columns[f"time_{name}"][row])) for name in TIMES},
        "window": None if np.isnan(columns["window"][row]) else int(columns["window"][row]),
        "label": label,
        "id": id,
        "neighbours": neighbours(held, g, sample),
        "faults": held.faults,
    }


def bounded(paragraphs: list[str]) -> list[str]:
    """All of them up to `TEXT` characters; what is cut is in `left`."""
    out, room = [], TEXT
    for paragraph in paragraphs:
        if room <= 0:
            break
        out.append(paragraph[:room])
        room -= len(paragraph)
    return out


def neighbours(held: Step, g: int, sample: int) -> Json:
    """Within the group."""
    last = held.heads[g].size - 1
    return {"before": [g, sample - 1] if sample > 0 else None, "after": [g, sample + 1] if sample < last else None}


def token_page(run: Run, held: Step, g: int, sample: int, start: int, most: int | None = TOKENS) -> Json:
    """`<key>/step-000012/<kind>/tokens-<g>-<sample>.json?from=0`; `most` tokens, None: all."""
    row = held.row(g, sample)
    read = held.read(slice(row, row + 1), ("prompt_id", "sample", "tokens", "logprobs", "mask"))[0]
    ids = read["tokens"] or []
    part = slice(start, len(ids) if most is None else start + most)
    trained = run.trained(held.step).of(read["prompt_id"], read["sample"]) if held.kind == "train" else None
    return {
        "from": start,
        "count": len(ids),
        "pieces": pieces(run, ids[part]),
        "ids": ids[part],
        "logprobs": [finite(value) for value in (read["logprobs"] or [])[part]],
        "trained": None if trained is None else trained[0][part],
        "entropy": None if trained is None else trained[1][part],
        "mask": None if read["mask"] is None else read["mask"][part],
        "advantage": finite(float(held.columns["advantage"][row])),
    }
