"""What trains when: a mini-batch's groups in windows that wait for their own verdicts alone.

Order is decided by content, never by arrival. Groups that need no verdict come first; the others stand in prompt order and are cut into
windows of consecutive groups by their token counts; each window is packed by first fit, longest first. All of this is known when
sampling ends, so the number of micro-batches is too, and FSDP2's collectives match over ranks. Verdicts fill in advantages, and take
sequences without one out of their micro-batch; they move nothing. A run that waits for every verdict first computes the same, bit for
bit. The loss's denominator counts every rollout, those included that leave their group later: it is needed before the first verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from soundrl.engine.packing import PackedBatch, Sample, first_fit, pack
from soundrl.fapo.task import PendingGroup

FILL = 0.8
"""A window ends with the first group after which its micro-batches are this full. At 0.9 the micro-batches are 4 % fuller, but windows
half again as large; what is not filled costs no arithmetic, only one more gather of the weights."""
MOST_BATCHES = 8
"""… or with this many micro-batches: long sequences may never fill theirs."""


@dataclass(frozen=True)
class Window:
    """Micro-batches whose advantages become known together."""

    batches: Sequence[PackedBatch]
    members: Sequence[Sequence[int]]
    """Of each micro-batch, which of the window's sequences it holds."""
    wait: Callable[[], Sequence[float]]
    """Waits for the window's verdicts; the advantage of each of its sequences."""

    @classmethod
    def pack(cls, samples: Sequence[Sample], wait: Callable[[], Sequence[float]], budget: int, device: torch.device) -> Window:
        members = first_fit([sample.length for sample in samples], budget)
        return cls([pack([samples[i] for i in bin_], device) for bin_ in members], members, wait)


@dataclass(frozen=True)
class Minibatch:
    """A rank's part of one optimizer step."""

    samples: Sequence[Sample]
    """Every rollout, those without advantage included: the loss's denominator, which must be known before the first verdict."""
    windows: Sequence[Window]

    @property
    def batches(self) -> list[PackedBatch]:
        return [batch for window in self.windows for batch in window.batches]

    def trained(self, batches: Iterable[PackedBatch]) -> Iterator[PackedBatch]:
        """`batches` are `self.batches` (with old log-probabilities, perhaps) and padding behind them. Yields each with its advantages, as
        soon as its window's verdicts are there."""
        source = iter(batches)
        for window in self.windows:
            advantages = window.wait()
            for members in window.members:
                yield next(source).with_advantages([advantages[i] for i in members])
        yield from source


def cut(lengths: Sequence[Sequence[int]], budget: int) -> list[range]:
    """Windows of consecutive groups, from the token counts of each group's sequences.

    Worked example, budget 10: groups [5, 4], [6], [3], [2], [1] → [0], [1, 2], [3, 4]: 9 of 10 are enough; 6 are not, 6 + 3 are; the rest.
    """
    windows, start, held = [], 0, list[int]()
    for group, own in enumerate(lengths):
        held += own
        bins = len(first_fit(held, budget))
        if bins and (sum(held) >= FILL * bins * budget or bins >= MOST_BATCHES):
            windows.append(range(start, group + 1))
            start, held = group + 1, []
    return [*windows, range(start, len(lengths))] if held else windows


def schedule(groups: Sequence[PendingGroup], budget: int, device: torch.device, waiting: Callable[[], AbstractContextManager]) -> Minibatch:
    """The mini-batch of a rank's verified `groups`, in their order, in micro-batches of at most `budget` tokens. A group that needs no
    verdict is scored at once, and what has no advantage in it is not packed. `waiting()` is entered around every wait for verdicts."""
    samples = [
        [Sample(prompt_tokens=r.prompt_tokens, tokens=r.tokens, logprobs=r.logprobs, advantage=0.0) for r in group.rollouts]
        for group in groups
    ]
    live: list[list[int]] = []  # of each group, the indices of its rollouts that may have a gradient
    for group, own in zip(groups, samples, strict=True):
        known = None if group.undecided else group.advantages()
        live.append([i for i, sample in enumerate(own) if sample.tokens and (known is None or known[i] != 0.0)])

    def window(part: Sequence[int]) -> Window:
        def wait() -> list[float]:
            with nullcontext() if all(groups[g].ready for g in part) else waiting():
                values = {g: groups[g].advantages() for g in part}
            return [values[g][i] for g in part for i in live[g]]

        return Window.pack([samples[g][i] for g in part for i in live[g]], wait, budget, device)

    # What waits for nothing is one window, and the first: without a judge, that is all.
    decided = [g for g, group in enumerate(groups) if not group.undecided and live[g]]
    judged = [g for g, group in enumerate(groups) if group.undecided]
    parts = [[judged[i] for i in part] for part in cut([[samples[g][i].length for i in live[g]] for g in judged], budget)]
    return Minibatch([sample for own in samples for sample in own], [window(part) for part in ([decided, *parts] if decided else parts)])


def schedules(
    groups: Sequence[PendingGroup], number: int, budget: int, device: torch.device, waiting: Callable[[], AbstractContextManager]
) -> list[Minibatch]:
    """A rank's groups of a step, in prompt order, as `number` mini-batches of whole groups."""
    size = len(groups) // number
    return [schedule(groups[i * size : (i + 1) * size], budget, device, waiting) for i in range(number)]
