"""What every rank knows of a step before it trains: the tokens and log-probabilities of all rollouts, whoever sampled them.

    exchange → `StepBatch` → mini-batches of whole prompts in the global order → windows → sequences dealt over ranks

One all-gather of arrays over the host (50 MB for 4,096 rollouts of 1,500 tokens). A group's advantages stay with the rank that has its
verdicts, until a window needs them. Shapes: P prompts, N rollouts in the order of prompts and samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np

from soundrl.engine.packing import Sample
from soundrl.engine.ranks import Ranks
from soundrl.engine.telemetry.timeline import TIMELINE
from soundrl.fapo.pending import PendingGroup, PendingGroups, scored
from soundrl.fapo.records import Prompt


@dataclass(frozen=True)
class StepBatch:
    """The rollouts of a step, the same on every rank but for `owned`."""

    samples: list[Sample]
    """[N]; what stands in `advantages` and `old_logprobs` is not in them"""
    groups: list[range]
    """[P] which of the samples are a prompt's"""
    undecided: list[bool]
    """[P] whether the advantages hang on a verdict"""
    advantages: np.ndarray
    """[N] float64; of undecided groups 0 until `settle`"""
    owned: dict[int, PendingGroup]
    """The groups whose verdicts this rank waits for, by their index"""
    ranks: Ranks
    old_logprobs: dict[int, np.ndarray] = field(default_factory=dict)
    """[own tokens] float32 of samples that train after a first update, under the weights that sampled"""
    reference_logprobs: dict[int, np.ndarray] = field(default_factory=dict)
    """[own tokens] float32 of all samples that train, under the reference policy; empty where there is none"""
    everything: bool = False
    """Whether all samples train, those without an advantage and those that have left their group too: the KL to the reference and the
    experts' load are of what the policy samples, and a judge that fails must not let them go"""

    def settle(self, window: Sequence[int]) -> None:
        """Wait for the verdicts of these groups, on every rank: `advantages` holds theirs then. A collective where any is `undecided`."""
        late = [g for g in window if self.undecided[g]]
        if not late:
            return
        own = {g: self.owned[g] for g in late if g in self.owned}
        with nullcontext() if all(group.ready for group in own.values()) else TIMELINE("judge_wait"):
            for g, group in zip(own, scored(list(own.values())), strict=True):
                self.advantages[self.groups[g].start : self.groups[g].stop] = group.advantages
        if self.ranks.size > 1:
            where = np.concatenate([np.arange(self.groups[g].start, self.groups[g].stop) for g in late])
            with TIMELINE("judge_wait"):  # for the verdicts of others: each value is some rank's, and 0 on all others
                self.advantages[where] = self.ranks.sum(self.advantages[where].tolist())
        for g in late:
            self.undecided[g] = False

    def live(self, window: Sequence[int]) -> list[int]:
        """The window's samples with a gradient."""
        alive = (i for g in window for i in self.groups[g] if self.everything or self.advantages[i] != 0.0)
        return [i for i in alive if self.samples[i].own]

    def trained(self, index: int) -> Sample:
        """A sample as it is trained."""
        return replace(
            self.samples[index],
            advantage=float(self.advantages[index]),
            old_logprobs=self.old_logprobs.get(index),
            reference_logprobs=self.reference_logprobs.get(index),
            index=index,
        )


@TIMELINE("rank_wait")
def exchange(prompts: Sequence[Prompt], pending: PendingGroups, ranks: Ranks, everything: bool = False) -> StepBatch:
    """All rollouts of `prompts`, the step's in their global order, of which each rank has `pending` ones. A collective. `everything`: all
    of them train (`StepBatch`).

    Every rollout must be verified. Worked example, two ranks: the first has prompt b with responses of 3 and 2 tokens, the second a with
    one of 4 → samples [4, 3, 2], groups [0..1), [1..3). Masks are sent of those alone that have tokens of an environment.
    """
    places = {prompt.id: place for place, prompt in enumerate(prompts)}
    owned = {places[group.prompt.id]: group for group in pending}
    decided = {g: group for g, group in owned.items() if not group.undecided}
    known = dict(zip(decided, scored(list(decided.values())), strict=True))
    heads, lengths, advantages = list[int](), list[int](), list[float]()
    tokens, logprobs, masks = [np.empty(0, np.int32)], [np.empty(0, np.float32)], [np.empty(0, np.uint8)]
    for place, group in sorted(owned.items()):
        rollouts = group.rollouts
        samples = [Sample.of(rollout) for rollout in rollouts]
        asked = rollouts[0].prompt_tokens if rollouts else tokens[0]
        heads += [place, len(rollouts), len(asked), place not in known]
        advantages += known[place].advantages if place in known else [0.0] * len(rollouts)
        lengths += [size for sample in samples for size in (len(sample.tokens), sample.own)]
        tokens += [asked, *(sample.tokens for sample in samples)]
        logprobs += [sample.logprobs for sample in samples]
        masks += [sample.mask for sample in samples if sample.mask is not None]
    parts = zip(
        ranks.gather_array(np.array(heads, dtype=np.int64)),
        ranks.gather_array(np.array(lengths, dtype=np.int64)),
        ranks.gather_array(np.array(advantages, dtype=np.float64)),
        ranks.gather_array(np.concatenate(tokens)),
        ranks.gather_array(np.concatenate(logprobs)),
        ranks.gather_array(np.concatenate(masks)),
        strict=True,
    )
    found = sorted((row for part in parts for row in unpacked(*part)), key=lambda row: row[0])
    assert [place for place, *_ in found] == list(range(len(prompts))), "each prompt of a step has one owner"
    samples, groups, undecided, values = list[Sample](), list[range](), list[bool](), list[float]()
    for _, own, late, told in found:
        groups.append(range(len(samples), len(samples) + len(own)))
        samples += own
        undecided.append(late)
        values += told
    return StepBatch(samples, groups, undecided, np.array(values), owned, ranks, everything=everything)


def unpacked(
    heads: np.ndarray, lengths: np.ndarray, advantages: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray, masks: np.ndarray
) -> list[tuple[int, list[Sample], bool, list[float]]]:
    """A rank's groups out of its arrays: place, samples, whether it is undecided, advantages."""
    out = []
    row = token = logprob = hidden = 0
    for place, count, prompt, late in heads.reshape(-1, 4).tolist():
        asked, token = tokens[token : token + prompt], token + prompt
        samples = []
        for length, own in lengths.reshape(-1, 2)[row : row + count].tolist():
            mask = masks[hidden : hidden + length] if own < length else None
            read, said = tokens[token : token + length], logprobs[logprob : logprob + own]
            samples.append(Sample(prompt_tokens=asked, tokens=read, mask=mask, logprobs=said))
            token, logprob, hidden = token + length, logprob + own, hidden + (length if own < length else 0)
        out.append((place, samples, bool(late), advantages[row : row + count].tolist()))
        row += count
    return out
