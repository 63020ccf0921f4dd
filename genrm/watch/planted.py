"""Solutions that stand in no file, made of a probe's own, so that a judge that knows the file by heart has nothing to remember.

Whether they are sound, and where not, follows from the labels of what they are made of:

* `moved`: a sound solution in which one paragraph is another solution's wrong one. That one is wrong here too.
* `tail`: a flawed solution that goes on, after its first wrong paragraph, as another one does. What follows a flaw does not move it.
* `joined`: a sound solution in which two paragraphs have become one. It stays sound.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from soundrl.genrm.critic_data.labelled import Labelled

PLANTED = 20  # of each kind, at most


def planted(rows: Sequence[Labelled]) -> list[Labelled]:
    """The same of the same rows at every call."""
    known = {(row.problem, row.steps) for row in rows}
    sound, flawed = ([row for row in rows if (row.label >= 0) is wrong] for wrong in (False, True))
    out: list[Labelled] = []
    for kind in (moved(sound, flawed), tails(flawed, rows), joined(sound)):
        out += islice((row for row in kind if (row.problem, row.steps) not in known), PLANTED)
    return out


def moved(sound: Sequence[Labelled], flawed: Sequence[Labelled]) -> Iterator[Labelled]:
    for number, row in enumerate(sound):
        rng = random.Random(f"moved/{row.id}")
        last = len(row.steps) - 1
        at = rng.randrange(1, last) if last > 1 else last  # no heading, and not the answer where there is a step between them
        others = [other for other in flawed if other.problem != row.problem]
        if others:
            other = others[number % len(others)]
            yield made(row, "moved", (*row.steps[:at], other.steps[other.label], *row.steps[at + 1 :]), at)


def tails(flawed: Sequence[Labelled], rows: Sequence[Labelled]) -> Iterator[Labelled]:
    for row in flawed:
        rng = random.Random(f"tail/{row.id}")
        others = [other for other in rows if other.problem != row.problem]
        if others:
            tail = rng.choice(others).steps
            yield made(row, "tail", (*row.steps[: row.label + 1], *(tail[row.label + 1 :] or tail[-1:])), row.label)


def joined(sound: Sequence[Labelled]) -> Iterator[Labelled]:
    for row in sound:
        if len(row.steps) > 1:
            at = random.Random(f"joined/{row.id}").randrange(len(row.steps) - 1)
            yield made(row, "joined", (*row.steps[:at], f"{row.steps[at]}\n{row.steps[at + 1]}", *row.steps[at + 2 :]), -1)


def made(row: Labelled, kind: str, steps: tuple[str, ...], label: int) -> Labelled:
    return replace(row, id=f"{row.id} {kind}", steps=steps, label=label)
