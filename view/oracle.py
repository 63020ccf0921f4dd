"""What the run's own environment knows of a right rollout, where it has an oracle that needs no torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from soundrl.fapo.records import Prompt, Rollout, Turn, Verdict

if TYPE_CHECKING:
    from soundrl.view.run import Run

WORLD = "soundrl.engine.environments.arithmetic"
ORACLES = {"arith": f"{WORLD}.chains", "arith-tools": f"{WORLD}.called_chains"}
"""By the name of the data: the module with `oracle`; only modules of this package, never one that a configuration names"""


@cache
def oracle_in(name: str) -> Callable[[Prompt, Rollout], Verdict] | None:
    return importlib.import_module(ORACLES[name]).oracle if name in ORACLES else None


def data_of(run: Run) -> str:
    train = run.setting("data.train", [])
    return train[0] if train and isinstance(train[0], str) and run.setting("run.task", "reasoning") == "reasoning" else ""


def turns_of(read: dict[str, Any]) -> tuple[Turn, ...]:
    turns = read.get("turns") or ()
    return tuple(Turn(text=t["text"] or "", own=bool(t["own"]), tool=t["tool"] or "", failed=bool(t["failed"])) for t in turns)


def oracle_of(run: Run, read: dict[str, Any]) -> dict[str, Any] | None:
    """`{"kind", "step", "reason"}` of a rollout with `text`, `prompt`, `answer` and `turns`; None where nobody knows."""
    found = oracle_in(data_of(run))
    if found is None:
        return None
    prompt = Prompt(id="", text=read["prompt"] or "", answer=read["answer"] or "")
    text = read["text"] or ""
    none = np.zeros(0)
    about: dict[str, Any] = {"prompt_id": "", "sample": 0, "finish_reason": "stop", "policy_version": 0}
    rollout = Rollout(prompt_tokens=none, tokens=none, logprobs=none, text=text, turns=turns_of(read), **about)
    try:
        verdict = found(prompt, rollout)
    except (ValueError, IndexError, KeyError, AttributeError):  # a problem of another form
        return None
    return {"kind": verdict.kind, "step": verdict.step, "reason": verdict.reason}
