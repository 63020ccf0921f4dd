"""What trains when, and where: a mini-batch's groups in windows that wait for their own verdicts alone, each window's sequences dealt over
the ranks.

Order is decided by content, never by arrival. Groups that need no verdict come first; the others stand in prompt order and are cut into
windows of consecutive groups by their token counts: all of this is known when sampling ends. When a window's verdicts are there, the
sequences that have an advantage are dealt, longest first to the least loaded rank, and packed by first fit, longest first. Every rank knows
all of them, so it knows as well how many micro-batches the others have, and FSDP2's collectives match. A run that waits for every verdict
first computes the same, bit for bit. The loss's denominator counts every rollout, those included that leave their group later: it is needed
before the first verdict.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from soundrl.engine.exchange import StepBatch
from soundrl.engine.packing import Sample, first_fit

FILL = 0.8
"""A window ends with the first group after which its micro-batches are this full. At 0.9 the micro-batches are 4 % fuller, but windows
half again as large; what is not filled costs no arithmetic, only one more gather of the weights."""
MOST_BATCHES = 8
"""… or with this many micro-batches a rank: long sequences may never fill theirs."""


def deal(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Indices of `lengths` for each rank: longest first to the least loaded, ties by index and by rank, so the result is a function of
    content.

    >>> deal([5, 3, 4, 2], 2)
    [[0, 3], [2, 1]]
    """
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0, rank) for rank in range(ranks)]
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        load, rank = loads[0]
        heapq.heapreplace(loads, (load + lengths[index], rank))
        dealt[rank].append(index)
    return dealt


def micro_batches(lengths: Sequence[int], ranks: int, budget: int) -> list[list[list[int]]]:
    """Of each rank, its micro-batches of at most `budget` tokens, as indices of `lengths`; empty ones follow up to the most of any rank.

    >>> micro_batches([5, 3, 4, 2], 2, 5)
    [[[0], [3]], [[2], [1]]]
    """
    dealt = [[[part[i] for i in bin_] for bin_ in first_fit([lengths[i] for i in part], budget)] for part in deal(lengths, ranks)]
    most = max(map(len, dealt))
    return [own + [[]] * (most - len(own)) for own in dealt]


def cut(lengths: Sequence[Sequence[int]], ranks: int, budget: int) -> list[range]:
    """Windows of consecutive groups, from the token counts of each group's sequences.

    Worked example, one rank, budget 10: groups [5, 4], [6], [3], [2], [1] → [0], [1, 2], [3, 4]: 9 of 10 are enough; 6 are not, 6 + 3 are;
    the rest.
    """
    windows, start, held = [], 0, list[int]()
    for group, own in enumerate(lengths):
        held += own
        if sum(held) < FILL * ranks * budget and len(held) < MOST_BATCHES:
            continue  # neither full nor long, however it is packed
        batches = len(micro_batches(held, ranks, budget)[0])
        if batches and (sum(held) >= FILL * batches * ranks * budget or batches >= MOST_BATCHES):
            windows.append(range(start, group + 1))
            start, held = group + 1, []
    return [*windows, range(start, len(lengths))] if held else windows


@dataclass(frozen=True)
class Minibatch:
    """One optimizer step: some of the step's groups."""

    batch: StepBatch
    groups: Sequence[int]
    windows: Sequence[Sequence[int]]
    """Groups whose advantages become known together"""

    @property
    def samples(self) -> list[Sample]:
        """Every rollout, those without advantage included: the loss's denominator, which must be known before the first verdict."""
        return [self.batch.samples[i] for g in self.groups for i in self.batch.groups[g]]

    def candidates(self) -> list[int]:
        """The samples that may have a gradient, by what is known now."""
        return [i for window in self.windows for g in window for i in possible(self.batch, g)]

    def trained(self, waiting: Callable[[], AbstractContextManager]) -> Iterator[list[Sample]]:
        """The samples of each window, as soon as its verdicts are there, on every rank alike; `waiting()` is entered around a wait."""
        for window in self.windows:
            self.batch.settle(window, waiting)
            yield [self.batch.trained(i) for i in self.batch.live(window)]


def possible(batch: StepBatch, group: int) -> list[int]:
    """The group's samples that may have a gradient: all with a token where it waits for a verdict, else those with an advantage."""
    if not batch.undecided[group]:
        return batch.live([group])
    return [i for i in batch.groups[group] if len(batch.samples[i].tokens)]


def minibatches(batch: StepBatch, size: int, budget: int) -> list[Minibatch]:
    """Mini-batches of `size` prompts in the global order (the last may be smaller), in micro-batches of at most `budget` tokens."""
    out = []
    for start in range(0, len(batch.groups), size):
        groups = range(start, min(start + size, len(batch.groups)))
        # What waits for nothing is one window, and the first: without a judge, that is all. What has no advantage in it is not trained.
        decided = [g for g in groups if not batch.undecided[g] and batch.live([g])]
        judged = [g for g in groups if batch.undecided[g]]
        lengths = [[batch.samples[i].length for i in possible(batch, g)] for g in judged]
        windows = [[judged[i] for i in part] for part in cut(lengths, batch.ranks.size, budget)]
        out.append(Minibatch(batch, groups, [decided, *windows] if decided else windows))
    return out
