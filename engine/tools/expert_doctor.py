"""Which experts a failed weight sync has broken: found by what tokens show that chose them, and others that did not.

A sequence of one or two tokens meets few experts. Where the sampler's log-probability of what follows is right, all of those that the
trainer chose are right; whoever stands in wrong ones alone is the fault. Asked before anything is sent again, understood afterwards: the
gaps that are left then are rounding. Shapes: Λ layers with experts, K experts a token.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from soundrl.engine.packing import Sample, pack_all
from soundrl.engine.samplers.sampler import Draw

if TYPE_CHECKING:
    from collections.abc import Sequence

    from soundrl.engine.weight_sync import WeightSync

SHORT = 256  # probes
ROUNDING = 3.0
"""A gap is one where it is above so many times the largest that the repaired sampler shows, and none where it is below that; what lies
between may be rounding, or an expert of little weight"""
CERTAIN = 0.95
"""A token of a higher probability stays as likely whatever its experts compute: it proves none of them right"""


class ExpertDoctor:
    """Made, as a collective, while the sampler is as it failed; silent for a model without experts."""

    def __init__(self, sync: WeightSync, blocks: list[str]) -> None:
        self.sync, self.layers = sync, [block for block in blocks if block.endswith(".experts")]
        self.routers = sync.policy.routers if self.layers else None
        self.chose: list[list[tuple[set[int], set[int]]]] = []
        """By probe and layer: of its last token, which surely bear on what follows, and of all (in the last layer the others do not)"""
        self.before, self.telling = self._shown() if self.routers is not None else (np.empty(0), np.empty(0, bool))

    def _probes(self) -> list[tuple[int, ...]]:
        """Each token of the gate's prompts alone, and pairs of them while there is room."""
        tokens = sorted({int(token) for prompt in self.sync.prompts for token in prompt})
        pairs = ((a, b) for shift in range(len(tokens)) for a, b in zip(tokens, tokens[shift:] + tokens[:shift], strict=True))
        return [*((token,) for token in tokens), *pairs][:SHORT]

    @torch.no_grad()
    def _shown(self) -> tuple[np.ndarray, np.ndarray]:
        """By probe, |Δ log-probability| of one token after it, the largest of any engine, and whether each engine's token says something of
        the experts; `chose` is filled, from the trainer, whose choices stay as they are. A collective."""
        sync, routers = self.sync, self.routers
        assert routers is not None
        draw = Draw(run_seed=sync.sampler.engine, phase="probe", step=sync.sampler.version, temperature=sync.temperature, max_new_tokens=1)
        asked = [draw.request(str(i), np.array(probe, np.int32), 0) for i, probe in enumerate(self._probes())]
        rollouts = sorted(sync.sampler.generate(asked), key=lambda r: int(r.prompt_id))
        gaps = np.zeros(len(asked))
        self.chose = [[] for _ in asked]
        telling = np.array([rollout.logprobs[-1] < math.log(CERTAIN) for rollout in rollouts])
        samples = [replace(Sample.of(rollout), index=i) for i, rollout in enumerate(rollouts)]
        for batch in pack_all(samples, sync.trainer.settings.microbatch_tokens, sync.policy.ranks.device):
            with routers.watched(torch.ones_like(batch.loss_mask), keep=True) as seen:
                logprob_R, _ = sync.policy.response_logprobs(batch, sync.temperature)
            gap_R = (logprob_R - batch.sampler_logprobs[batch.response_index]).abs().cpu().numpy()
            chosen_TLK, starts = torch.stack(seen.chosen, dim=1).cpu().numpy(), batch.cu_seqlens.tolist()
            for b, index in enumerate(batch.indices):
                read = chosen_TLK[starts[b] : starts[b + 1] - 1]  # the last token is what was sampled
                self.chose[index] = [
                    (set(read[-1, layer].tolist()), set(read[:, layer].flatten().tolist())) for layer in range(routers.layers)
                ]
                gaps[index] = np.nan_to_num(gap_R[b], nan=np.inf)
        everywhere = sync.policy.ranks.gather((gaps, telling))
        return np.max([gaps for gaps, _ in everywhere], axis=0), np.all([telling for _, telling in everywhere], axis=0)

    def named(self, block: str) -> str:
        """After `block` was sent again and the gap is closed: a sentence on who it came from; empty where that is not certain."""
        if self.routers is None or block not in self.layers:
            return ""
        layer, rounding = self.layers.index(block), float(self._shown()[0].max())
        wrong, right = self.before > ROUNDING * rounding, (self.before <= rounding) & self.telling
        guilty, others = at_fault([layers[layer] for layers in self.chose], wrong, right)
        if not guilty:
            return ""
        if not others:
            return ". What differed came from all of its experts"
        numbers = sorted(guilty)
        return f". What differed came from expert{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))} alone"


def at_fault(chose: Sequence[tuple[set[int], set[int]]], wrong: np.ndarray, right: np.ndarray) -> tuple[set[int], set[int]]:
    """Experts of a layer that alone explain the probes that are `wrong`, and those that the `right` ones acquit; a probe may be neither.
    None of the first: that is not certain.

    `chose`: of each probe, what its last token chose, and what any of its tokens did.

    >>> at_fault([({0}, {0}), ({1}, {0, 1}), ({0}, {0, 1})], np.array([False, True, False]), np.array([True, False, True]))
    ({1}, {0})
    """
    acquitted = set[int]().union(*(last for (last, _), sure in zip(chose, right, strict=True) if sure))
    met = [every for (_, every), bad in zip(chose, wrong, strict=True) if bad]
    guilty = set[int]().union(*met) - acquitted
    return (guilty, acquitted) if all(every & guilty for every in met) else (set(), acquitted)
