"""A second opinion on a part of the judged rollouts, which follows from their names: it changes no reward, and nobody waits for it before
the step's metrics are made.

    first judge → verdict → reward, training          of every right rollout
    second judge → agreement, disagreements.jsonl     of a share of them
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from soundrl.fapo.corrected import Errors
from soundrl.fapo.judging import Judge
from soundrl.fapo.records import Prompt, Rollout, Verdict
from soundrl.fapo.task import Beside
from soundrl.genrm.watch.asked import Asked
from soundrl.genrm.watch.chance import kappa

Table = list[int]
"""Pairs by (first, second): both sound, flawed to the second alone, to the first alone, to both; and pairs in which one has no verdict"""


def chosen(seed: int, step: int, rollout: Rollout, share: float) -> bool:
    """Whether this rollout is of the share, on whatever rank. An evaluation has the same problems each time: after other steps others of
    them are chosen, or ten evaluations would know no more of the judge than one."""
    name = f"{seed}/{step}/{rollout.prompt_id}/{rollout.sample}"
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


class Second:
    """`asks(step)` of every question to the first judge, `collect` once a step. `split` cuts a solution as judges number it; answers come
    within `seconds` (the judge's own deadline)."""

    def __init__(
        self, judge: Judge, share: float, seed: int, split: Callable[[str], Sequence[str]], seconds: float, leaving: Callable[[], bool]
    ) -> None:
        self.judge, self.share, self.seed, self.split, self.seconds, self.leaving = judge, share, seed, split, seconds, leaving
        self.pairs: list[tuple[Prompt, Rollout, Future[Verdict], Future[Verdict]]] = []

    def asks(self, step: int) -> Beside:
        """What is told of each question of this step, or of the evaluation after it; from any thread."""

        def ask(prompt: Prompt, rollout: Rollout, first: Future[Verdict], priority: int = 0) -> None:
            if chosen(self.seed, step, rollout, self.share):
                self.pairs.append((prompt, rollout, first, self.judge.submit(prompt, rollout, priority)))

        return ask

    def collect(self, part: Callable[[Prompt], str] = lambda _: "") -> tuple[dict[str, Table], list[dict[str, Any]]]:
        """Of this step, or evaluation, and rank: waits for the answers. A table for each `part` that there is. What is listed are pairs in
        which both have a verdict, and not the same one."""
        pairs, self.pairs = sorted(self.pairs, key=lambda pair: (pair[1].prompt_id, pair[1].sample)), []
        futures = [future for *_, first, second in pairs for future in (first, second)]
        said = Asked("a second opinion", futures, self.seconds).verdicts(self.leaving)
        tables, listed = dict[str, Table](), list[dict[str, Any]]()
        for (prompt, rollout, *_), first, second in zip(pairs, said[::2], said[1::2], strict=True):
            known = "unknown" not in (first.kind, second.kind)
            tables.setdefault(part(prompt), [0] * 5)[2 * (first.kind == "flawed") + (second.kind == "flawed") if known else 4] += 1
            if known and (first.kind, first.step) != (second.kind, second.step):
                listed.append(
                    {"set": part(prompt), "prompt_id": rollout.prompt_id, "sample": rollout.sample, "problem": prompt.text}
                    | {"paragraphs": list(self.split(rollout.text)), "reference": prompt.answer}
                    | {"first": told(first), "second": told(second)}
                )
        return tables, listed


def summed(parts: Sequence[dict[str, Table]]) -> dict[str, Table]:
    """
    >>> summed([{"a": [1, 0, 0, 2, 0]}, {"a": [1, 1, 0, 0, 0], "b": [1, 0, 0, 0, 0]}])
    {'a': [2, 1, 0, 2, 0], 'b': [1, 0, 0, 0, 0]}
    """
    names = sorted({name for part in parts for name in part})
    return {name: [sum(column) for column in zip(*(part[name] for part in parts if name in part), strict=True)] for name in names}


def errors_of(tables: Sequence[Table]) -> Errors:
    """The first judge's, where the second is taken for the truth.

    >>> errors_of([[40, 2, 1, 8, 3]])
    Errors(found=8, flawed=10, alarms=1, sound=41)
    """
    sound, missed, harsh, flawed, _ = (sum(column) for column in zip([0] * 5, *tables, strict=True))
    return Errors(found=flawed, flawed=missed + flawed, alarms=harsh, sound=sound + harsh)


def told(verdict: Verdict) -> dict[str, Any]:
    return {name: getattr(verdict, name) for name in ("kind", "step", "reason", "critique", "worker", "votes")}


def figures(table: Sequence[float]) -> dict[str, float]:
    """`genrm/second_count`, `_unknown`, `_agreement` and `_kappa`, what there is of them.

    >>> figures([40, 0, 0, 10, 1])
    {'genrm/second_count': 50.0, 'genrm/second_unknown': 1.0, 'genrm/second_agreement': 1.0, 'genrm/second_kappa': 1.0}
    """
    both, without = sum(table[:4]), table[4]
    out = {"genrm/second_count": float(both), "genrm/second_unknown": float(without)}
    if both:
        out["genrm/second_agreement"] = (table[0] + table[3]) / both
        if (found := kappa(*table[:4])) is not None:
            out["genrm/second_kappa"] = found
    return out


def counts(table: Sequence[int]) -> dict[str, tuple[int, int]]:
    """The shares that `soundrl.genrm.watch.alarms` watches."""
    sound, missed, harsh, flawed = table[:4]
    return {
        "second_disagrees": (missed + harsh, sound + missed + harsh + flawed),
        "second_over_critic": (harsh, sound + harsh),
        "second_missed": (missed, missed + flawed),
    }
