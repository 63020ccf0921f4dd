"""What the run's own environment knows of a right rollout, where it has an oracle that needs no torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from soundrl.fapo.records import Prompt, Rollout, Turn, Verdict
from soundrl.genrm.prompts import split_paragraphs
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
    rollout = Rollout(
        prompt_id="", sample=0, prompt_tokens=(), tokens=(), logprobs=(), text=text, finish_reason="stop", policy_version=0, turns=turns_of(read)
    )  # fmt: skip
    try:
        verdict = found(prompt, rollout)
    except (ValueError, IndexError, KeyError, AttributeError):  # a problem of another form
        return None
    return {"kind": verdict.kind, "step": verdict.step, "reason": verdict.reason}


def paragraphs_of(run: Run, read: dict[str, Any]) -> Sequence[str]:
    """As the judge saw the solution, where the file does not say: by the environment's own cut."""
    text = read["text"] or ""
    if data_of(run) in ORACLES:
        return importlib.import_module(f"{WORLD}.chains").steps(text)
    return split_paragraphs(text)
