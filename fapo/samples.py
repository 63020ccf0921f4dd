"""An evaluation set's rollouts as arrays: of each, what its figures are made of, and no text. Order follows from ids, so that ranks, a file
and memory give the same.

Shapes: P problems, N rollouts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from soundrl.fapo.records import Group, Outcome

if TYPE_CHECKING:
    import pyarrow as pa

Ints = NDArray[np.int64]
RIGHT, WRONG, LEFT = 1, 0, -1
"""`Samples.outcome`: LEFT = not scored (the outcome is unknown, or the verifier says nothing)."""
SOUND, FLAWED, UNKNOWN, NONE = 1, 0, -1, -2
"""`Samples.verdict`: NONE = not asked."""
VERDICTS = {"sound": SOUND, "flawed": FLAWED, "unknown": UNKNOWN, None: NONE}
SILENT, UNTOLD, OF_RIGHT = 0, -1, 1
"""`Samples.answer`: no answer; a wrong one of which the verifier does not say what it is; every right one, whatever its spelling."""


class Row(NamedTuple):
    """What counts of one rollout."""

    problem: str
    """Its id."""
    content: str
    """Text and reference answer of the problem."""
    sample: int
    outcome: str
    extracted: str | None
    verdict: str | None
    reason: str
    """Why outcome or verdict is unknown."""
    cut: bool
    tokens: int
    """The policy's own."""


def digest(*texts: str) -> int:
    """Positive, 62 bits; above the marks of `Samples.answer`."""
    content = b"".join(len(part).to_bytes(8, "big") + part for part in (text.encode("utf-8", "surrogatepass") for text in texts))
    return (int.from_bytes(blake2b(content, digest_size=8).digest(), "big") >> 2) | 2


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Sorted by problem and sample. Small enough to be sent: some 30 bytes a rollout."""

    ids: tuple[str, ...]
    """[P] of the problems, sorted."""
    contents: Ints
    """[P] digests of their texts and reference answers."""
    problem: Ints
    """[N] index of the rollout's problem."""
    sample: Ints
    """[N]"""
    outcome: Ints
    """[N] RIGHT, WRONG or LEFT."""
    answer: Ints
    """[N] digest of the answer that was found, or SILENT, UNTOLD, OF_RIGHT: two rollouts of a problem agree where it is the same."""
    verdict: Ints
    """[N] SOUND, FLAWED, UNKNOWN or NONE."""
    cut: Ints
    """[N] 1 = ended by the limit of tokens."""
    tokens: Ints
    """[N] the policy's own."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """How many rollouts say nothing, by reason: `verify/unknown`, `verify/unscored`, `judge/timeout`, …"""

    @classmethod
    def of(cls, groups: Iterable[Group]) -> Samples:
        """Of a run's own evaluation. ValueError as `made`."""

        def rows() -> Iterator[Row]:
            for group in groups:
                extracted = group.extracted or [None] * len(group.rollouts)
                verdicts = group.verdicts or [None] * len(group.rollouts)
                for r, outcome, answer, verdict in zip(group.rollouts, group.outcomes, extracted, verdicts, strict=True):
                    said = (None, "") if verdict is None else (verdict.kind, verdict.reason)
                    content = f"{group.prompt.text}\n{group.prompt.answer}"
                    cut = r.finish_reason == "length"
                    yield Row(group.prompt.id, content, r.sample, outcome.value, answer, *said, cut, int(r.mask.sum()))

        return made(rows())

    @classmethod
    def read(cls, table: pa.Table) -> Samples:
        """Of `RunReader.table(step, "eval", set)`: the same as `of` the groups that were written. ValueError as `made`."""
        columns = ("prompt_id", "prompt", "answer", "sample", "outcome", "extracted", "verdict", "finish_reason")
        listed = [table.column(name).to_pylist() for name in columns]
        own = [_own(tokens.values, mask.values) for tokens, mask in zip(table.column("tokens"), table.column("mask"), strict=True)]

        def rows() -> Iterator[Row]:
            for id_, text, answer, sample, outcome, extracted, verdict, finish, tokens in zip(*listed, own, strict=True):
                said = (None, "") if verdict is None else (verdict["kind"], verdict["reason"] or "")
                yield Row(id_, f"{text}\n{answer}", sample, outcome, extracted, *said, finish == "length", tokens)

        return made(rows())

    @property
    def data(self) -> str:
        """Digest of the problems, their texts and reference answers."""
        return f"{digest(*self.ids, *map(str, self.contents.tolist())):016x}"

    @property
    def told(self) -> NDArray[np.bool_]:
        """[N] whether the judge says sound or flawed."""
        return (self.verdict == SOUND) | (self.verdict == FLAWED)

    @property
    def judged(self) -> bool:
        """Whether a judge was asked of any."""
        return bool((self.verdict != NONE).any())

    def sums(self, which: NDArray[np.bool_]) -> Ints:
        """[P]: how many rollouts of each problem are `which` [N]."""
        return np.bincount(self.problem[which], minlength=len(self.ids))

    @property
    def scored(self) -> Ints:
        """[P] samples with an outcome: the n of each problem."""
        return self.sums(self.outcome != LEFT)

    @property
    def right(self) -> Ints:
        """[P]"""
        return self.sums(self.outcome == RIGHT)

    @property
    def sound(self) -> Ints:
        """[P] right, and called sound."""
        return self.sums((self.outcome == RIGHT) & (self.verdict == SOUND))

    def only(self, problems: NDArray[np.bool_]) -> Samples:
        """Those of the problems that are chosen, [P]."""
        rows, number = problems[self.problem], np.cumsum(problems) - 1
        kept = {name: getattr(self, name)[rows] for name in ROWS}
        kept["problem"] = number[kept["problem"]]
        ids = tuple(id_ for id_, chosen in zip(self.ids, problems, strict=True) if chosen)
        return Samples(ids=ids, contents=self.contents[problems], **kept, reasons=self.reasons)


ROWS = ("problem", "sample", "outcome", "answer", "verdict", "cut", "tokens")


def _own(tokens: Any, mask: Any) -> int:
    """Of a row's lists, None where they are null: no mask = all are the policy's own."""
    if tokens is None:
        raise ValueError("rollouts without tokens; read the column with them")
    return len(tokens) if mask is None else int(mask.to_numpy(zero_copy_only=False).sum())


def coded(row: Row) -> tuple[int, int, int]:
    """Outcome, answer and verdict as `Samples` has them. ValueError, which names the rollout, for a word that is none of them."""
    try:
        outcome, verdict = Outcome(row.outcome), VERDICTS[row.verdict]
    except (ValueError, KeyError):
        raise ValueError(f"{row.problem}, sample {row.sample}: outcome {row.outcome!r}, verdict {row.verdict!r}; score it first") from None
    if outcome is Outcome.CORRECT:
        return RIGHT, OF_RIGHT, verdict
    if outcome.leaves:
        return LEFT, SILENT, verdict
    if row.extracted is not None and outcome is not Outcome.NO_ANSWER:
        return WRONG, digest(row.extracted), verdict
    return WRONG, UNTOLD if outcome is Outcome.WRONG else SILENT, verdict


def made(rows: Iterable[Row]) -> Samples:
    """ValueError, which names the rollout, where it has no outcome, comes twice, or its problem reads differently in two of them."""
    contents: dict[str, tuple[str, int]] = {}
    found: list[tuple[str, int, int, int, int, bool, int]] = []
    reasons: Counter[str] = Counter()
    for row in rows:
        outcome, answer, verdict = coded(row)
        content = contents.setdefault(row.problem, (row.content, digest(row.content)))[0]
        if content != row.content:
            raise ValueError(f"{row.problem}: sample {row.sample} is of another problem than its first one; give each problem its own id")
        found.append((row.problem, row.sample, outcome, answer, verdict, row.cut, row.tokens))
        if outcome == LEFT:
            reasons[f"verify/{row.outcome}"] += 1
        if outcome == RIGHT and verdict == UNKNOWN:
            reasons[f"judge/{row.reason or 'unknown'}"] += 1
    return _sorted(found, {id_: number for id_, (_, number) in contents.items()}, reasons)


def joined(parts: Sequence[Samples]) -> Samples:
    """Those of several ranks, which may hold samples of the same problem. ValueError as `made`."""
    contents: dict[str, int] = {}
    for part in parts:
        for id_, content in zip(part.ids, part.contents.tolist(), strict=True):
            if contents.setdefault(id_, content) != content:
                raise ValueError(f"{id_} is another problem in one of the parts; give each problem its own id")
    found: list[tuple[Any, ...]] = []
    for part in parts:
        found += zip((part.ids[i] for i in part.problem), *(getattr(part, name).tolist() for name in ROWS[1:]), strict=True)
    reasons = sum((Counter(part.reasons) for part in parts), Counter[str]())
    return _sorted(found, contents, reasons)


def _sorted(rows: list[tuple[Any, ...]], contents: Mapping[str, int], reasons: Mapping[str, int]) -> Samples:
    """`rows` as (problem, …) in the order of `ROWS`."""
    ids = tuple(sorted(contents))
    number = {id_: index for index, id_ in enumerate(ids)}
    rows.sort(key=lambda row: row[:2])
    for (one, sample, *_), (other, again, *_) in zip(rows, rows[1:], strict=False):
        if one == other and sample == again:
            raise ValueError(f"{one}: sample {sample} comes twice; an evaluation has each once")
    columns = np.array([(number[row[0]], *row[1:]) for row in rows], np.int64).reshape(len(rows), len(ROWS)).T
    digests = np.array([contents[id_] for id_ in ids], np.int64)
    return Samples(ids=ids, contents=digests, **dict(zip(ROWS, columns, strict=True)), reasons=dict(sorted(reasons.items())))
