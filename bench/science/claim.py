"""What the analysis says and the report shows: a claim, its contrasts over seeds, its arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Row = Mapping[str, Any]
"""A line of science.jsonl, one run:

run       `default/lam=1/3`: start, arm, seed; unique
start     `default`, `scarce`, `large` (a policy's warm start), `critic`, `timing`
arm       `lam=1`, `leave`, `step-ratio`, `misses=0.5`, `blind=skip`, …
seed      of warm start, prompts and sampling; rows of one start and seed are paired
quick     whether it belongs to the short version, which has fewer seeds and steps
settings  the arm's own, as on the command line
before    measures of the start, and `after` the run, by the world's oracle on test problems: `right`, `sound`, `flawed` (÷ right),
          `tokens`, `lines` a right solution, `skip` and `guess` (÷ right), the same of the tens-digit set as `p2/right`, …; of a critic
          `exact/<kind>`, `precision`, `recall`, `f1`, and `unseen/…`; of `timing` `seconds`, `x_known`, `hidden`
series    by step, of the training rollouts: `right`, `sound` (α), `wrong` (β), `flawed` (γ) as shares of all, `past` (share of groups past
          the shift), `rho` (α ÷ β, null where β = 0), `lines`, `skip`, `guess`, `tokens`
sign      of all groups with a flawed rollout and rewards that differ: `groups`, `exceptions` to "flawed advantage < 0 iff ρ > 2/λ − 1",
          and `ties` (ρ equal to it, advantage 0)
stamp     device, versions, commit, date
"""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Differences of two arms paired over seeds, or one arm's own values."""

    what: str
    """`sound at the end: λ = 1 − λ = 0`"""
    values: Sequence[float]
    """One a seed."""
    mean: float
    low: float
    high: float
    """95 % t interval of the mean over seeds."""
    p: float
    """Exact sign-flip test, two-sided; 1 where there is nothing to test."""
    primary: bool = False
    holm: float | None = None
    """Of a primary one: p adjusted over all primaries of the report (Holm)."""
    unit: str = ""
    """`points`, `steps`, …; empty = the measure's own."""

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def counted(self) -> str:
        """What n counts."""
        return {"runs": "runs", "×": "repeats"}.get(self.unit, "seeds")

    @property
    def differs(self) -> bool:
        """Whether it is a difference, which has a sign and can be tested against 0: a count and a ratio cannot."""
        return self.counted == "seeds"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A line of a claim's table: what one arm came to."""

    label: str
    """`λ = 1`"""
    figures: Mapping[str, tuple[float, float, float]]
    """measure → mean over seeds and its 95 % t interval."""
    n: int


Verdict = Literal["supported", "contradicted", "no power", "not run"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    id: str
    """E1 … E8"""
    claim: str
    """One sentence."""
    source: str
    """Where it stands: `Tab. 5`."""
    verdict: Verdict
    because: str
    """The figures that decide, in sentences, each with its n."""
    contrasts: Sequence[Contrast] = ()
    arms: Sequence[Arm] = ()
    notes: Sequence[str] = field(default_factory=tuple)
    """What limits it."""

    @property
    def counted(self) -> str:
        """What n counts."""
        return self.contrasts[0].counted if self.contrasts else "seeds"
