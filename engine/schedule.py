"""What trains when, and where: a mini-batch's groups in windows that wait for their own verdicts alone, each window's sequences dealt over
the ranks.

Order is decided by content, never by arrival. Groups that need no verdict come first; the others stand in prompt order and are cut into
windows of consecutive groups by their token counts: all of this is known when sampling ends. When a window's verdicts are there, the
sequences that have an advantage are dealt over micro-batches and ranks, longest first to the least loaded. Every rank knows all of them, so
all have as many micro-batches, and FSDP2's collectives match. A run that waits for every verdict
first computes the same, bit for bit. The loss's denominator counts every rollout, those included that leave their group later: it is needed
before the first verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from soundrl.engine.exchange import StepBatch
from soundrl.engine.packing import Sample, micro_batches
from soundrl.fapo.pending import scored

Leave = Callable[[StepBatch, Sequence[int]], None]
FILL = 0.8
"""A window ends with the first group after which its micro-batches are this full. At 0.9 the micro-batches are 4 % fuller, but windows
half again as large; what is not filled costs no computing, only one more gather of the weights."""
LEAST_ROUNDS = 4
"""… but where several ranks share it, not before so many rounds: which sequences of a window train is known only with its verdicts, and the
fewer are dealt at a time, the more the ranks wait for the longest (bench/deal.py: without this .90 of 32 ranks' time is useful)."""
MOST_BATCHES = 8
"""… or with this many micro-batches a rank: long sequences may never fill theirs."""
UPDATE = 10_000
"""A rollout's `window`: that of its optimizer step, and `UPDATE` times that step's number in its step; both from 0."""


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
        rounds = micro_batches(held, ranks, budget)
        full = sum(held) >= FILL * len(rounds) * ranks * budget and (ranks == 1 or len(rounds) >= LEAST_ROUNDS)
        if rounds and (full or len(rounds) >= MOST_BATCHES):
            windows.append(range(start, group + 1))
            start, held = group + 1, []
    if not held:
        return windows
    first = windows.pop().start if ranks > 1 and windows else start  # what is left over would be dealt alone
    return [*windows, range(first, len(lengths))]


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

    def trained(self, leave: Leave = lambda batch, window: None) -> Iterator[list[Sample]]:
        """The samples of each window, as soon as its verdicts are there, on every rank alike. `leave` is called on every rank then, and
        may raise."""
        for window in self.windows:
            self.batch.settle(window)
            leave(self.batch, window)
            yield [self.batch.trained(i) for i in self.batch.live(window)]


def possible(batch: StepBatch, group: int) -> list[int]:
    """The group's samples that may have a gradient: all with a token where it waits for a verdict, else those with an advantage."""
    if not batch.undecided[group]:
        return batch.live([group])
    return [i for i in batch.groups[group] if batch.samples[i].own]


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


def number_windows(parts: Sequence[Minibatch]) -> None:
    """Say of this rank's own rollouts in which window they trained, all of `parts` having trained: by what the batch holds, so that a step
    that was interrupted numbers them alike."""
    batch = parts[0].batch
    groups = dict(zip(batch.owned, scored(list(batch.owned.values())), strict=True))
    for update, part in enumerate(parts):
        for window, of in enumerate(part.windows):
            for group in (groups[g] for g in of if g in groups):
                for rollout, advantage in zip(group.rollouts, group.advantages, strict=True):
                    if rollout.mask.any() and (batch.everything or advantage != 0.0):
                        rollout.window = update * UPDATE + window
