"""Floating-point operations of a step by formula, rates over its phases, and the share of the device's peak that they are (MFU).

Of a sequence of n tokens a forward pass takes 2·P·n + 2·A·n², P parameters in matrix products that a token meets (of experts its top k, the
input embedding is none), A = layers × query heads × width: two products of n²/2 pairs each, causal (arXiv 2001.08361 §2.1, arXiv 2204.02311
App. B, there without the half). Backward twice that, or once and the adapters' share where the base is frozen. Only what the model needs
counts: recomputed layers, padding and cut prompts' prefixes that a cache held are no work done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from soundrl.engine.packing import Sample

PEAKS = {  # name of the device as torch says it, in part: TFLOP/s of dense products in bfloat16 (summed in float32), and in float32
    "H100 PCIe": (756, 51),
    "H100 NVL": (835, 60),
    "H100": (989, 67),
    "H200": (989, 67),
    "H20": (148, 44),
    "H800": (989, 67),
    "GB200": (2500, 80),
    "B200": (2250, 75),
    "A100": (312, 19.5),
    "A800": (312, 19.5),
    "A40": (150, 37),
    "A10G": (70, 35),
    "A10": (125, 31),
    "A6000": (155, 39),
    "L40S": (362, 91),
    "L40": (181, 90),
    "L4": (121, 30),
    "RTX 6000 Ada": (364, 91),
    "RTX 5090": (210, 105),
    "RTX 4090": (165, 83),
    "RTX 3090": (71, 36),
    "MI300X": (1307, 163),
    "MI325X": (1307, 163),
}
"""From the makers' data sheets; the first that is part of the name counts."""


EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Where a config says how many experts a layer has."""


def experts_of(config: Any) -> int:
    """Experts of a layer; 0 where the model is dense."""
    return next((count for name in EXPERTS if (count := getattr(config, name, None))), 0)


def active_parameters(model: Any, config: Any) -> int:
    """Parameters in matrix products that one token meets: of experts those it is sent to, the input embedding only where it is the head."""
    experts, used = experts_of(config), getattr(config, "num_experts_per_tok", 0) or 0
    total = sum(p.numel() * used / experts if experts and p.ndim == 3 and p.shape[0] == experts else p.numel() for p in model.parameters())
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return int(total) - (embedding.numel() if embedding is not head else 0)


def peak_of(device: torch.device, dtype: str) -> float:
    """FLOP/s of a device for products of `dtype`; 0 where it is not known, and on a CPU, whose peak is not a number of its name."""
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    found = next((peaks for part, peaks in PEAKS.items() if part in name), (0.0, 0.0))
    return found[dtype == "float32"] * 1e12


@dataclass(frozen=True)
class Cost:
    """Of one model, in FLOP."""

    active: int
    """P above"""
    attended: int
    """A above"""
    adapted: int = 0
    """Parameters of adapters on a frozen base; 0: all is trained"""

    def forward(self, lengths: Iterable[int]) -> float:
        """Worked example: P = 100, A = 8, one sequence of 10 tokens: 2·100·10 + 2·8·100 = 3,600."""
        return float(sum(2 * (self.active + self.adapted) * n + 2 * self.attended * n * n for n in lengths))

    def train(self, lengths: Sequence[int]) -> float:
        """Forward and backward."""
        if not self.adapted:
            return 3 * self.forward(lengths)
        return 2 * self.forward(lengths) + 2 * self.adapted * sum(lengths)

    def sample(self, groups: Iterable[Sequence[Sample]]) -> float:
        """A prompt once for all samples of its group, then each token against what is before it."""
        total = 0.0
        for group in groups:
            prompt = len(group[0].prompt_tokens) if group else 0
            total += self.forward([prompt]) + sum(self.forward([s.length]) - self.forward([prompt]) for s in group)
        return total


@dataclass
class Work:
    """Of a step, over all ranks."""

    cost: Cost
    sampled: float = 0.0
    trained: float = 0.0
    tokens: int = 0
    """In micro-batches with gradient, prompts included"""
    rollouts: int = 0
    responses: int = 0
    """Tokens sampled"""

    def begin(self, samples: Sequence[Sample], groups: Iterable[range]) -> None:
        """A step that has sampled so."""
        parts = [[samples[i] for i in group] for group in groups]
        self.sampled, self.trained, self.tokens = self.cost.sample(parts), 0.0, 0
        self.rollouts, self.responses = len(samples), sum(len(s.tokens) for s in samples)

    def train(self, samples: Sequence[Sample]) -> None:
        lengths = [s.length for s in samples]
        self.trained, self.tokens = self.trained + self.cost.train(lengths), self.tokens + sum(lengths)

    def score(self, lengths: Iterable[int]) -> None:
        """A forward pass alone, of a policy of this size."""
        self.trained += self.cost.forward(lengths)

    def rates(self, seconds: Mapping[str, float], ranks: int, peak: float) -> dict[str, float]:
        """`speed/…` of a step by the seconds of its phases (`time/<phase>`, of the slowest rank): tokens and rollouts a second over all
        ranks, TFLOP/s of each, and their share of `peak` FLOP/s where that is known."""
        took = {name: seconds.get(f"time/{name}_max", seconds.get(f"time/{name}", 0.0)) for name in ("step", "generate", "train")}
        each = (
            ("generated", self.responses, "generate"),
            ("trained", self.tokens, "train"),
            ("tokens", self.responses, "step"),
            ("samples", self.rollouts, "step"),
        )
        out = {f"speed/{name}": count / took[phase] for name, count, phase in each if took[phase]}
        for end, done, phase in (
            ("_generate", self.sampled, "generate"),
            ("_train", self.trained, "train"),
            ("", self.sampled + self.trained, "step"),
        ):
            if took[phase]:
                rate = done / took[phase] / ranks
                out[f"speed/tflops{end}"] = rate / 1e12
                if peak:
                    out[f"speed/mfu{end}"] = rate / peak
        return out
