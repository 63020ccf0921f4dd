"""The policy loss as a value: which variant, which clips, which extra terms. `kernels/policy_loss.py` computes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

# variant → (surrogate, mean over each sequence first?). `count` is what the sum over all of the mini-batch is divided by.
#
#   variant   surrogate  token weight   count                        source
#   dapo      clip       1              tokens                       arXiv 2503.14476 Eq. 8 (token mean)
#   grpo      clip       1/|o|          sequences                    arXiv 2402.03300 Eq. 3
#   dr_grpo   clip       1              sequences × longest length   arXiv 2503.20783 §3.2
#   bnpo      clip       1              tokens of this call          TRL's local-batch normalisation (count = None)
#   gspo      gspo       1/|o|          sequences                    arXiv 2507.18071 Eq. 13 (token form)
#   cispo     cispo      1              tokens                       arXiv 2506.13585 Eq. 4
#   sapo      sapo       1/|o|          sequences                    arXiv 2511.20347 Eq. 5
VARIANTS: dict[str, tuple[str, bool]] = {
    "dapo": ("clip", False),
    "grpo": ("clip", True),
    "dr_grpo": ("clip", False),
    "bnpo": ("clip", False),
    "gspo": ("gspo", True),
    "cispo": ("cispo", False),
    "sapo": ("sapo", True),
}
CORRECTIONS = ("none", "tis", "icepop", "sequence")
KL_ESTIMATES = ("none", "k1", "k2", "k3")
NUMBERS = ("clip_low", "clip_high", "dual_clip", "kl_coef", "entropy_coef", "correction_low", "correction_high")
RULE = "str words, float[] numbers"
"""A rule in an operator's schema."""


@dataclass(frozen=True, kw_only=True)
class LossRule:
    """Everything that tells one policy loss from another. Raises ValueError for values that contradict each other.

    >>> LossRule(variant="gspo", clip_low=3e-4, clip_high=4e-4)
    LossRule(variant='gspo', ...)
    """

    variant: str = "dapo"
    clip_low: float = 0.2
    """The ratio counts down to 1 − clip_low (not in cispo and sapo)."""
    clip_high: float = 0.28
    """… and up to 1 + clip_high (not in sapo)."""
    dual_clip: float = 10.0
    """Bound on the ratio where the advantage is negative (arXiv 1912.09729); inf = none. TRL's and Liger's `delta` is this number."""
    sapo_tau: tuple[float, float] = (1.0, 1.05)
    """Temperatures of SAPO's gate for advantages ≥ 0 and < 0."""
    kl: str = "none"
    """Estimate of KL(π‖reference) in the loss: k1, k2 or k3 (http://joschu.net/blog/kl-approx.html); k1 alone has gradient 0 on average."""
    kl_coef: float = 0.0
    kl_times_ratio: bool = False
    """Multiply the estimate by the token's ratio, which makes it unbiased off policy (DeepSeek-V3.2, arXiv 2512.02556)."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    correction: str = "none"
    """Weight against the sampler's own log-probabilities; see `policy_loss`."""
    correction_low: float = 0.5
    correction_high: float = 2.0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("variant", self.variant, VARIANTS),
            ("correction", self.correction, CORRECTIONS),
            ("kl", self.kl, KL_ESTIMATES),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r} is unknown; use one of {', '.join(known)}")
        if not 0 <= self.clip_low or not 0 <= self.clip_high or math.isinf(self.clip_high + self.clip_low):
            raise ValueError(f"clip_low={self.clip_low} and clip_high={self.clip_high} must be finite and ≥ 0")
        if not self.dual_clip > 1 + self.clip_high and self.surrogate in ("clip", "gspo"):
            raise ValueError(f"dual_clip={self.dual_clip} must exceed 1 + clip_high = {1 + self.clip_high}; inf = no bound")
        if not 0 <= self.correction_low < 1 < self.correction_high:
            raise ValueError(
                f"correction_low={self.correction_low} and correction_high={self.correction_high} must lie on either side of 1"
            )
        if (self.kl == "none") != (self.kl_coef == 0.0):
            raise ValueError(f"kl={self.kl!r} with kl_coef={self.kl_coef}: set both or neither")
        if min(self.sapo_tau) <= 0:
            raise ValueError(f"sapo_tau={self.sapo_tau} must be > 0")

    @property
    def surrogate(self) -> str:
        return VARIANTS[self.variant][0]

    @property
    def sequence_mean(self) -> bool:
        return VARIANTS[self.variant][1]

    def needs_sequences(self, on_policy: bool) -> bool:
        """True where a token's coefficient depends on the new log-probabilities of its whole sequence."""
        return (self.surrogate == "gspo" and not on_policy) or (self.correction == "sequence" and on_policy)

    def words(self) -> str:
        """With `numbers()` the whole rule: registered operators take text and numbers only."""
        return f"{self.variant} {self.correction} {self.kl} {self.kl_times_ratio}"

    def numbers(self) -> list[float]:
        """The kernels' run-time scalars, in their order; changing one compiles nothing anew."""
        return [*[getattr(self, name) for name in NUMBERS], *self.sapo_tau]

    @classmethod
    def of(cls, words: str, numbers: list[float]) -> LossRule:
        """The rule that gave `words()` and `numbers()`."""
        variant, correction, kl, times_ratio = words.split()
        named: dict[str, Any] = dict(zip(NUMBERS, numbers, strict=False))
        tau = (numbers[-2], numbers[-1])
        return cls(variant=variant, correction=correction, kl=kl, kl_times_ratio=times_ratio == "True", sapo_tau=tau, **named)
