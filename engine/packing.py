"""Packing: rollouts of many lengths into rows of tokens without padding. Shapes: T tokens, B sequences, R response tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sequence to train on."""

    prompt_tokens: Sequence[int]
    tokens: Sequence[int]
    logprobs: Sequence[float] = ()
    """Sampler's log-probability of each of `tokens`; empty for supervised rows."""
    advantage: float = 1.0

    @property
    def length(self) -> int:
        return len(self.prompt_tokens) + len(self.tokens)


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """One micro-batch. Worked example: two samples, prompt [5, 6] → response [7], prompt [8] → response [9, 4]:

    input_ids         5 6 7 8 9 4
    position_ids      0 1 2 0 1 2
    cu_seqlens        0 3 6
    loss_mask         0 0 1 0 1 1
    response_index    2 4 5          (the row of logits that predicts token t is t − 1)
    """

    input_ids: Tensor
    """[T] int64"""
    position_ids: Tensor
    """[T] int64, from 0 in each sequence"""
    cu_seqlens: Tensor
    """[B+1] int64 bounds of the sequences"""
    loss_mask: Tensor
    """[T] bool, True on response tokens"""
    sampler_logprobs: Tensor
    """[T] float32 as the sampler reported them, 0 elsewhere"""
    advantages: Tensor
    """[T] float32, the rollout's advantage on its response tokens, 0 elsewhere"""
    old_logprobs: Tensor | None = None
    """[T] float32 log-probabilities under the weights that sampled; None = the weights have not changed since"""

    @property
    def response_index(self) -> Tensor:
        return self.loss_mask.nonzero().squeeze(-1)

    @property
    def response_cu_seqlens(self) -> Tensor:
        """[B+1] int64 bounds of each sequence's part of `response_index`."""
        return torch.cat([self.loss_mask.new_zeros(1, dtype=torch.int64), self.loss_mask.cumsum(0)])[self.cu_seqlens]

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    def with_advantages(self, advantages: Sequence[float]) -> PackedBatch:
        """The same row with an advantage for each of its B sequences; those whose advantage is 0 leave it, as they have no gradient.

        Worked example: lengths 3, 2 with advantages 0, 1.5 → the second sequence alone, at positions 0, 1.
        """
        if len(advantages) != len(self.cu_seqlens) - 1:
            raise ValueError(f"{len(advantages)} advantages for {len(self.cu_seqlens) - 1} sequences; give one for each")
        if not any(advantage != 0.0 for advantage in advantages):
            return pack((), self.input_ids.device)
        values_B = torch.tensor(advantages, dtype=torch.float32, device=self.input_ids.device)
        lengths_B, live_B = self.cu_seqlens.diff(), values_B != 0
        live_T = live_B.repeat_interleave(lengths_B)
        mask_T = self.loss_mask[live_T]
        return PackedBatch(
            input_ids=self.input_ids[live_T],
            position_ids=self.position_ids[live_T],
            cu_seqlens=torch.cat([self.cu_seqlens[:1], lengths_B[live_B].cumsum(0)]),
            loss_mask=mask_T,
            sampler_logprobs=self.sampler_logprobs[live_T],
            advantages=values_B.repeat_interleave(lengths_B)[live_T] * mask_T,
            old_logprobs=None if self.old_logprobs is None else self.old_logprobs[live_T],
        )


def pack(samples: Sequence[Sample], device: torch.device) -> PackedBatch:
    """One row of the given samples, in order. With no sample: one token that trains nothing, so that every rank can take part."""
    rows = samples or [Sample(prompt_tokens=(0, 0), tokens=())]
    ids, positions, mask, logprobs, advantages, bounds = [], [], [], [], [], [0]
    for row in rows:
        p, r = len(row.prompt_tokens), len(row.tokens)
        ids += [*row.prompt_tokens, *row.tokens]
        positions += range(p + r)
        mask += [False] * p + [True] * r
        logprobs += [0.0] * p + list(row.logprobs or [0.0] * r)
        advantages += [0.0] * p + [row.advantage] * r
        bounds.append(len(ids))
    return PackedBatch(
        input_ids=torch.tensor(ids, device=device),
        position_ids=torch.tensor(positions, device=device),
        cu_seqlens=torch.tensor(bounds, device=device),
        loss_mask=torch.tensor(mask, device=device),
        sampler_logprobs=torch.tensor(logprobs, device=device),
        advantages=torch.tensor(advantages, device=device),
    )


def first_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of `lengths` in bins of at most `budget` tokens: first fit, longest first; ties keep their order, so the result is a function
    of content.

    >>> first_fit([5, 3, 4, 2], 7)
    [[0, 3], [2, 1]]
    """
    bins: list[tuple[int, list[int]]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        if length > budget:
            raise ValueError(f"a sequence of {length} tokens exceeds optim.microbatch_tokens {budget}; raise it to model.max_length")
        for i, (used, members) in enumerate(bins):
            if used + length <= budget:
                bins[i] = (used + length, [*members, index])
                break
        else:
            bins.append((length, [index]))
    return [members for _, members in bins]


def pack_all(samples: Sequence[Sample], budget: int, device: torch.device) -> list[PackedBatch]:
    """Micro-batches of at most `budget` tokens, by `first_fit`. Worked example: lengths 5, 3, 4, 2 with budget 7 → [5, 2], [4, 3]."""
    return [pack([samples[i] for i in members], device) for members in first_fit([s.length for s in samples], budget)]
