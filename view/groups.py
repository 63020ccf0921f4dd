"""The pages of a step and of a group."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from soundrl.view.cells import CORRECT, LETTERS, advantages, letters, mix, numbers, rule_of, signs, whole
from soundrl.view.oracle import oracle_of
from soundrl.view.plain import finite
from soundrl.view.run import Run
from soundrl.view.step import OUTCOMES, VERDICTS, Step

TEXT = 4000  # characters of a solution beside others
LISTED = ("text", "prompt", "answer", "extracted", "finish_reason", "verdict", "turns")
Json = dict[str, Any]


def step_page(run: Run, step: int, kind: str) -> Json:
    """`<key>/step-000012/<kind>.json`"""
    held = run.step(step, kind)
    cells = letters(held)
    groups = [group_entry(run, held, g, cells) for g in range(len(held.heads))]
    counts = Counter(cells.tolist())
    each = [(group, i) for group in groups for i in range(len(group["cells"]))]
    filters = {
        "flawed": counts["f"],
        "unknown": counts["u"],
        "disagree": sum(group["disagree"][i] for group, i in each),
        "flipped": sum(group["flipped"][i] for group, i in each),
        "cut": sum(group["cut"][i] for group, i in each),
        "wrong": counts["w"],
        "noanswer": counts["n"],
        "sound": counts["s"],
    }
    totals = {letter: counts[letter] for letter in LETTERS}
    return {"step": step, "kind": kind, "lam": run.rule.lam, "groups": groups, "totals": totals, "filters": filters, "faults": held.faults}


def group_entry(run: Run, held: Step, g: int, cells: np.ndarray) -> Json:
    rows, head, rule = held.rows(g), held.heads[g], run.rule
    found = rule_of(held, rows, rule)
    advantage = held.columns["advantage"][rows]
    flipped = np.zeros(head.size, bool)
    if found is not None:
        flipped = signs(np.nan_to_num(advantage)) != signs(advantages(found, 0.0))
    samples = whole(held.columns["sample"][rows])
    disagree = [run.disagreements.about(held.step, held.kind, head.prompt_id, sample) is not None for sample in samples]
    return {
        "g": g,
        "prompt_id": head.prompt_id,
        "set": head.set,
        "problem": head.problem,
        "cells": "".join(cells[rows]),
        "rewards": numbers(held.columns["reward"][rows]),
        "advantages": numbers(advantage),
        "lengths": whole(held.columns["length"][rows]),
        "cut": (held.columns["cut"][rows] == 1).tolist(),
        "flipped": flipped.tolist(),
        "disagree": disagree,
        "signal": bool((np.nan_to_num(advantage) != 0).any()),
        **mix(held, rows, rule),
    }


def group_page(run: Run, step: int, kind: str, g: int) -> Json:
    """`<key>/step-000012/<kind>/group-<g>.json`"""
    held = run.step(step, kind)
    rows = held.rows(g)
    read = held.read(rows, LISTED)
    found = rule_of(held, rows, run.rule)
    rule = None if found is None else found | {name: found[name].tolist() for name in ("base", "flawed", "kept", "kept_zero")}
    cells = letters(held)
    rollouts = [rollout_entry(run, held, g, i, row, TEXT) for i, row in enumerate(read)]
    return group_entry(run, held, g, cells) | {
        "prompt": read[0]["prompt"] if read else None,
        "answer": read[0]["answer"] if read else None,
        "rule": rule,
        "rollouts": rollouts,
        "elsewhere": run.prompts.elsewhere(held.heads[g].prompt_id, (step, kind, g)),
        "faults": held.faults,
    }


def rollout_entry(run: Run, held: Step, g: int, i: int, read: Json, most: int) -> Json:
    """What is known of a rollout; `read` are its columns from the disk, `most` the characters of its text."""
    row = held.row(g, i)
    columns, head = held.columns, held.heads[g]
    text, outcome, verdict = read["text"] or "", int(columns["outcome"][row]), read["verdict"]
    said = run.disagreements.about(held.step, held.kind, head.prompt_id, whole(columns["sample"][row : row + 1])[0])
    return {
        "sample": i,
        "text": text[:most],
        "whole": len(text) <= most,
        "extracted": read["extracted"],
        "outcome": OUTCOMES[outcome] if outcome >= 0 else None,
        "verdict": verdict
        if verdict is None or verdict.get("kind") in VERDICTS
        else {"kind": "unknown", "step": None, "reason": "damaged"},
        "reward": finite(float(columns["reward"][row])),
        "advantage": finite(float(columns["advantage"][row])),
        "score": finite(float(columns["score"][row])),
        "kept": None if np.isnan(columns["kept"][row]) else bool(columns["kept"][row]),
        "length": whole(columns["length"][row : row + 1])[0],
        "cell": str(letters_of(held)[row]),
        "finish_reason": read["finish_reason"],
        "judge_seconds": finite(float(columns["judge_seconds"][row])),
        "second": None if said is None else said[1],
        "oracle": oracle_of(run, read) if outcome == CORRECT else None,
    }


def letters_of(held: Step) -> np.ndarray:
    if "cell" not in held.columns:
        held.columns["cell"] = letters(held)
    return held.columns["cell"]
