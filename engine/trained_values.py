"""The trainer's own log-probability and entropy of every token that trains in the step under way, kept on the device until it ends: nothing
waits for the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from soundrl.engine.exchange import StepBatch
from soundrl.engine.files.trained_file import Trained
from soundrl.engine.packing import PackedBatch, masked
from soundrl.fapo.records import Prompt
from soundrl.kernels.linear_logprob import Logprobs


class TrainedValues:
    """Of this rank: 6 bytes a token."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """A step begins to train."""
        self.indices, self.parts = list[int](), list[tuple[Tensor, Tensor]]()

    def keep(self, batch: PackedBatch, found: Logprobs) -> None:
        """What a micro-batch has computed. Rows that are no rollouts of a step (a warm start's) leave nothing."""
        if batch.indices:
            self.indices += batch.indices
            self.parts.append((found.logprob.detach().float(), found.entropy.detach().half()))

    def take(self, prompts: Sequence[Prompt], batch: StepBatch) -> Iterator[Trained]:
        """A row each of what has been kept, in the order in which it trained; `prompts` and `batch` are the step's, as `exchange` has
        them."""
        if not self.parts:
            return
        logprob_R, entropy_R = (torch.cat(part).cpu().numpy() for part in zip(*self.parts, strict=True))
        places = {i: (prompt.id, i - own.start) for prompt, own in zip(prompts, batch.groups, strict=True) for i in own}
        start = 0
        for index in self.indices:
            sample = batch.samples[index]
            own, end = masked(sample) == 1, start + sample.own
            yield Trained(*places[index], _spread(logprob_R[start:end], own), _spread(entropy_R[start:end], own))
            start = end
        self.begin()


def _spread(values: np.ndarray, own: np.ndarray) -> np.ndarray:
    """At each token; NaN where it is not the policy's own."""
    out = np.full(len(own), np.nan, values.dtype)
    out[own] = values
    return out
