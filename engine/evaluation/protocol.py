"""How often a problem is sampled, and how: published protocols by name, and what overrides them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

LONGEST = 8192
"""Tokens of a response where neither a preset nor the user says, and the model's context has room for them."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """0 new tokens: as many as the model's context leaves, `LONGEST` at most."""

    samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 0
    of_set: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Samples of a set by its name, where they differ."""

    def samples_of(self, name: str) -> int:
        """
        >>> PRESETS["paper"].samples_of("aime24"), PRESETS["paper"].samples_of("gpqa-diamond")
        (32, 4)
        """
        return self.of_set.get(name, self.samples)

    def __post_init__(self) -> None:
        if not (self.samples >= 1 and self.temperature >= 0 and 0 < self.top_p <= 1 and self.max_new_tokens >= 0):
            raise ValueError(
                f"--samples {self.samples} --temperature {self.temperature} --top-p {self.top_p} --max-new-tokens {self.max_new_tokens}: "
                "use at least 1 sample, a temperature and tokens of at least 0 (0 tokens = what there is room for), and a top-p in (0, 1]"
            )
        if self.temperature == 0 and max(self.samples, *self.of_set.values(), 1) > 1:
            raise ValueError("--temperature 0 gives one response however often it is sampled; set --samples 1, or a temperature above 0")


_GPQA = MappingProxyType({"gpqa-diamond": 4})
PRESETS = {
    # arXiv 2510.22543 App. B and the released scripts: avg@32, GPQA avg@4; the response lengths of its two recipes.
    "paper": Protocol(samples=32, temperature=1.0, top_p=0.7, max_new_tokens=8192, of_set=_GPQA),
    "paper-32b": Protocol(samples=32, temperature=1.0, top_p=0.7, max_new_tokens=20480, of_set=_GPQA),
    "greedy": Protocol(samples=1, temperature=0.0, top_p=1.0),
}


def settled(preset: str, samples: int | None, temperature: float | None, top_p: float | None, max_new_tokens: int | None) -> Protocol:
    """The preset, or none (empty), with what was said beside it. Samples that are said are those of every set.

    >>> settled("paper", 2, None, None, None).samples_of("gpqa-diamond"), settled("paper", None, 0.6, None, None).temperature
    (2, 0.6)
    """
    base = PRESETS.get(preset, Protocol())
    return Protocol(
        samples=base.samples if samples is None else samples,
        temperature=base.temperature if temperature is None else temperature,
        top_p=base.top_p if top_p is None else top_p,
        max_new_tokens=base.max_new_tokens if max_new_tokens is None else max_new_tokens,
        of_set=base.of_set if samples is None else MappingProxyType({}),
    )
