"""What solutions and verdicts come to in shares: flawed ones by the judge, raw and corrected, and by the sums that they state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stated_sums import first_false, stated

from soundrl.fapo.corrected import Errors, corrected
from soundrl.genrm.critic_data.labelled import Labelled
from soundrl.genrm.prompts import split_paragraphs
from soundrl.genrm.scores import wilson


def sums_in(rows: Sequence[Labelled]) -> dict[str, int]:
    """Of labelled solutions: how many there are, state a sum of which it is clear what it says, state a false one, and do so first in the
    very step that is flawed first.

    >>> sums_in([Labelled(id="", problem="", steps=("1+1 = 2", "2+2 = 5"), label=1), Labelled(id="", problem="", steps=("No.",), label=0)])
    {'rows': 2, 'with a sum': 1, 'with a false one': 1, 'at the flaw': 1}
    """
    first = [first_false(row.steps) for row in rows]
    some = sum(any(next(stated(step), None) is not None for step in row.steps) for row in rows)
    at_flaw = sum(found == row.label >= 0 for found, row in zip(first, rows, strict=True))
    return {"rows": len(rows), "with a sum": some, "with a false one": sum(found >= 0 for found in first), "at the flaw": at_flaw}


def shares(rollouts: Sequence[Mapping[str, Any]], known: Mapping[str, Errors]) -> dict[str, Any]:
    """Of an evaluation's rollouts: right ones; of these flawed by the judge's verdicts, raw and corrected by its errors on each set of
    `known`; those that state a false sum, and what the judge says of them. Shares have n and Wilson's interval over rollouts, which takes
    those of one problem for independent; None where there is nothing to take a share of."""

    def share(part: int, whole: int) -> dict[str, Any] | None:
        own = wilson(part, whole)
        return {"share": [round(x, 4) for x in (own.value, own.low, own.high)], "n": whole} if whole else None

    unchecked = [row for row in rollouts if row["outcome"] in ("unknown", "unscored")]  # the machine's fault
    rollouts = [row for row in rollouts if row not in unchecked]
    right = [row for row in rollouts if row["outcome"] == "correct"]
    told = [row for row in right if row["verdict"] and row["verdict"]["kind"] != "unknown"]
    called = [row for row in told if row["verdict"]["kind"] == "flawed"]
    false = {id(row) for row in rollouts if first_false(split_paragraphs(row["text"])) >= 0}
    found: dict[str, Any] = {
        "right": share(len(right), len(rollouts)),
        "problems": len({row["prompt_id"] for row in rollouts}),
        "unchecked": len(unchecked),
        "cut": sum(row["finish_reason"] == "length" for row in rollouts),
        "coverage": share(len(told), len(right)),
        "unknown": dict(Counter(row["verdict"]["reason"] for row in right if row["verdict"] and row["verdict"]["kind"] == "unknown")),
        "flawed, raw": share(len(called), len(told)),
    }
    for name, own in known.items():
        value = corrected(len(called), len(told), own)
        found[f"flawed, corrected by {name}"] = value and {"share": [round(x, 4) for x in value], "n": len(told), "errors": list(own)}
    return found | {
        "false sum, of right": share(sum(id(row) in false for row in right), len(right)),
        "false sum, of wrong": share(len(false) - sum(id(row) in false for row in right), len(rollouts) - len(right)),
        "called flawed, of right with a false sum": share(sum(id(row) in false for row in called), sum(id(row) in false for row in told)),
    }
