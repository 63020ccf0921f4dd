"""Packing: rollouts of many lengths into rows of tokens without padding. Shapes: T tokens, B sequences, R response tokens."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from soundrl.fapo.records import Rollout

Numbers = Sequence[int] | Sequence[float] | np.ndarray


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sequence to train on."""

    prompt_tokens: Numbers
    tokens: Numbers
    mask: np.ndarray | None = None
    """uint8, of each of `tokens`: 1 = the policy's own, which alone are trained; None = all are."""
    logprobs: Numbers = ()
    """Sampler's log-probability of each own token; empty for supervised rows."""
    advantage: float = 1.0
    old_logprobs: Numbers | None = None
    """Of each own token under the weights that sampled; None = they have not changed since. All samples of a micro-batch have them, or
    none."""
    reference_logprobs: Numbers | None = None
    """The same under the reference policy; None = there is none."""
    index: int | None = None
    """Which of its step's samples it is; None = of no step."""

    @classmethod
    def of(cls, rollout: Rollout) -> Sample:
        """What is trained of a rollout, whose log-probabilities stand at every token."""
        own = rollout.mask == 1
        return cls(
            prompt_tokens=rollout.prompt_tokens,
            tokens=rollout.tokens,
            mask=None if own.all() else rollout.mask,
            logprobs=rollout.logprobs[own],
        )

    @property
    def own(self) -> int:
        """How many tokens are the policy's."""
        return len(self.tokens) if self.mask is None else int(self.mask.sum())

    @property
    def length(self) -> int:
        return len(self.prompt_tokens) + len(self.tokens)


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """One micro-batch. Worked example: two samples, prompt [5, 6] → response [7], prompt [8] → response [9, 2, 3, 4], in which 2 3 is what
    a tool has said (mask 1 0 0 1):

    input_ids             5 6 7 8 9 2 3 4
    position_ids          0 1 2 0 1 2 3 4
    cu_seqlens            0 3 8
    loss_mask             0 0 1 0 1 0 0 1
    response_index        2 4 7              (the row of logits that predicts token t is t − 1)
    response_cu_seqlens   0 1 3

    What a tool has said is read like a prompt, and in no other way: no log-probability, no advantage and no term of the loss is its.
    """

    input_ids: Tensor
    """[T] int64"""
    position_ids: Tensor
    """[T] int64, from 0 in each sequence"""
    cu_seqlens: Tensor
    """[B+1] int64 bounds of the sequences"""
    loss_mask: Tensor
    """[T] bool, True on the policy's own tokens"""
    response_index: Tensor
    """[R] int64 where `loss_mask` is True; made on the host, as a GPU would have to be waited for to learn R"""
    response_cu_seqlens: Tensor
    """[B+1] int64 bounds of each sequence's part of `response_index`"""
    sampler_logprobs: Tensor
    """[T] float32 as the sampler reported them, 0 elsewhere"""
    advantages: Tensor
    """[T] float32, the rollout's advantage on its own tokens, 0 elsewhere"""
    old_logprobs: Tensor | None = None
    """[T] float32 log-probabilities under the weights that sampled; None = the weights have not changed since"""
    reference_logprobs: Tensor | None = None
    """[T] float32 the same under the reference policy; None = there is none"""
    indices: tuple[int, ...] = ()
    """[B] which of its step's samples the sequences are; empty = they are of no step"""

    @property
    def tokens(self) -> int:
        return len(self.input_ids)


def pack(samples: Sequence[Sample], device: torch.device) -> PackedBatch:
    """One row of the given samples, in order. With no sample: one sequence that trains nothing, so that every rank can take part."""
    rows = samples or [Sample(prompt_tokens=(0, 0), tokens=(), reference_logprobs=())]
    length_B, own_B = (np.array(sizes) for sizes in zip(*((row.length, row.own) for row in rows), strict=True))
    start_B = length_B.cumsum() - length_B
    position_T = np.arange(length_B.sum()) - start_B.repeat(length_B)
    masks = [part for row in rows for part in (np.zeros(len(row.prompt_tokens), bool), masked(row) == 1)]
    mask_T = np.concatenate(masks)
    index_R = np.flatnonzero(mask_T)

    def scattered(values_R: np.ndarray) -> Tensor:
        values_T = np.zeros(len(position_T), dtype=np.float32)
        values_T[index_R] = values_R
        return torch.from_numpy(values_T).to(device)

    def joined(parts: Iterable[Numbers | None]) -> np.ndarray:
        return np.concatenate([np.asarray(part, dtype=np.float32) for part in parts])

    ids_T = np.concatenate([np.asarray(part, dtype=np.int64) for row in rows for part in (row.prompt_tokens, row.tokens)])
    bounds = ((0, *sizes.cumsum()) for sizes in (length_B, own_B))
    cu_seqlens, response_cu_seqlens = (torch.tensor(each, device=device) for each in bounds)
    return PackedBatch(
        input_ids=torch.from_numpy(ids_T).to(device),
        position_ids=torch.from_numpy(position_T).to(device),
        cu_seqlens=cu_seqlens,
        loss_mask=torch.from_numpy(mask_T).to(device),
        response_index=torch.from_numpy(index_R).to(device),
        response_cu_seqlens=response_cu_seqlens,
        sampler_logprobs=scattered(joined(row.logprobs if len(row.logprobs) else np.zeros(row.own) for row in rows)),
        advantages=scattered(np.array([row.advantage for row in rows]).repeat(own_B)),
        old_logprobs=None if rows[0].old_logprobs is None else scattered(joined(row.old_logprobs for row in rows)),
        reference_logprobs=None if rows[0].reference_logprobs is None else scattered(joined(row.reference_logprobs for row in rows)),
        indices=tuple(row.index for row in rows if row.index is not None),
    )


def masked(row: Sample) -> np.ndarray:
    """uint8, the mask of a sample's tokens, where all are its own too."""
    return np.ones(len(row.tokens), np.uint8) if row.mask is None else row.mask


def deal(lengths: Sequence[float], hands: int) -> list[list[int]]:
    """Indices of `lengths` for each of so many hands: longest first to the one that holds least, ties by index and by hand, so the result
    is a function of content. Hands come in the order of what they hold, the fullest first.

    >>> deal([5, 3, 4, 2, 1], 2)
    [[0, 3, 4], [2, 1]]
    """
    dealt: list[list[int]] = [[] for _ in range(hands)]
    holds = [(0.0, hand) for hand in range(hands)]
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        held, hand = holds[0]
        heapq.heapreplace(holds, (held + lengths[index], hand))
        dealt[hand].append(index)
    return [dealt[hand] for _, hand in sorted(holds, key=lambda each: (-each[0], each[1]))]


def micro_batches(lengths: Sequence[int], ranks: int, budget: int) -> list[list[list[int]]]:
    """Rounds of a micro-batch of at most `budget` tokens for each rank, as indices of `lengths`; all ranks wait for the longest of a round.

    As few rounds as fit, all of them dealt at once; then the fullest micro-batches make up the first round, and so on, so that those that
    run side by side are alike. Some may be empty: every rank takes part, as FSDP2's collectives must match.

    >>> micro_batches([5, 3, 4, 2], 2, 5)
    [[[0], [2]], [[1], [3]]]
    """
    longest, rounds = max(lengths, default=0), -(-sum(lengths) // (ranks * budget))
    if longest > budget:
        raise ValueError(f"a sequence of {longest} tokens exceeds optim.microbatch_tokens {budget}; raise it to model.max_length")
    hands = deal(lengths, ranks * rounds)
    while rounds and sum(lengths[i] for i in hands[0]) > budget:
        rounds += 1
        hands = deal(lengths, ranks * rounds)
    return [hands[ranks * j : ranks * (j + 1)] for j in range(rounds)]


def pack_all(samples: Sequence[Sample], budget: int, device: torch.device) -> list[PackedBatch]:
    """Micro-batches of at most `budget` tokens on one rank. Worked example: lengths 5, 3, 4, 2 with budget 7 → [5, 2], [4, 3]."""
    return [pack([samples[i] for i in own], device) for (own,) in micro_batches([s.length for s in samples], 1, budget)]
