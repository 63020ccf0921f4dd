"""The pages of a step and of a group."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from soundrl.view.cells import CORRECT, LETTERS, Scored, letters, numbers, whole
from soundrl.view.oracle import oracle_of
from soundrl.view.plain import finite
from soundrl.view.run import Run
from soundrl.view.step import OUTCOMES, VERDICTS, Step

TEXT = 4000  # characters of a solution beside others
LISTED = ("text", "prompt", "answer", "extracted", "finish_reason", "verdict", "turns")
Json = dict[str, Any]


class Listed:
    """A step's groups as lists of plain numbers, made for all of them at once."""

    def __init__(self, run: Run, held: Step) -> None:
        self.run, self.held = run, held
        self.scored = held.once(run.rule, lambda: Scored(held, run.rule))
        columns = held.columns
        self.lists: Json = {
            "rewards": numbers(columns["reward"]),
            "advantages": numbers(columns["advantage"]),
            "lengths": whole(columns["length"]),
            "cut": (columns["cut"] == 1).tolist(),
            "flipped": self.scored.flipped.tolist(),
            "disagree": self._disagree(),
        }
        self.cells = "".join(letters_of(held))

    def _disagree(self) -> list[bool]:
        """Where a second judge says otherwise."""
        held, out = self.held, [False] * len(self.held.disk)
        told = self.run.disagreements.of(held.step)
        kind = "eval" if held.kind == "eval" else "train"
        named = {prompt for each, prompt, _ in told if each == kind}
        for head in held.heads if named else ():
            if head.prompt_id in named:
                for row in range(head.start, head.start + head.size):
                    out[row] = (kind, head.prompt_id, held.columns["sample"][row]) in told  # 3.0 is found as 3
        return out

    def entry(self, g: int) -> Json:
        """Of a group, as a step's list has it."""
        rows, head = self.held.rows(g), self.held.heads[g]
        about = {"g": g, "prompt_id": head.prompt_id, "set": head.set, "problem": head.problem, "cells": self.cells[rows]}
        signal = {"signal": bool(self.scored.signal[g])}
        return about | {name: values[rows] for name, values in self.lists.items()} | signal | self.scored.mix(g)


def step_page(run: Run, step: int, kind: str) -> Json:
    """`<key>/step-000012/<kind>.json`"""
    held = run.step(step, kind)
    listed = Listed(run, held)
    counts = Counter(listed.cells)
    flags = {name: sum(listed.lists[name]) for name in ("disagree", "flipped", "cut")}
    filters = {"flawed": counts["f"], "unknown": counts["u"], **flags, "wrong": counts["w"], "noanswer": counts["n"], "sound": counts["s"]}
    return {
        "step": step,
        "kind": kind,
        "lam": run.rule.lam,
        "groups": [listed.entry(g) for g in range(len(held.heads))],
        "totals": {letter: counts[letter] for letter in LETTERS},
        "filters": filters,
        "faults": held.faults,
    }


def group_page(run: Run, step: int, kind: str, g: int) -> Json:
    """`<key>/step-000012/<kind>/group-<g>.json`"""
    held = run.step(step, kind)
    rows = held.rows(g)
    read = held.read(rows, LISTED)
    listed = Listed(run, held)
    found = listed.scored.of(g, rows)
    rule = None if found is None else found | {name: found[name].tolist() for name in ("base", "flawed", "kept", "kept_zero")}
    rollouts = [rollout_entry(run, held, g, i, row, TEXT) for i, row in enumerate(read)]
    return listed.entry(g) | {
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
    """[N], made once."""
    return held.once("letters", lambda: letters(held))
