"""Two scorings of the same rollouts beside each other: whose advantage turns, and whether it turns where the algebra says.

With rewards 1 (sound), 1 − λ (right and flawed) and −1 (wrong) a flawed rollout's advantage has the sign of 2β − λ(α + β), where α and β
are the sound and the wrong rollouts that have stayed in its group: below 0 iff ρ = α/β > 2/λ − 1 (arXiv 2510.22543 App. A), 0 where these
are equal. How many flawed ones there are does not matter, nor do those that have left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from soundrl.fapo.records import Group, Outcome
from soundrl.fapo.reward_rule import is_flawed, rule_reward

ZERO = 1e-9
"""Above what rounding leaves of an advantage, or of the difference above, that is 0 (1e-16), and below the next one (1e-6 with a λ of three
decimals, in groups of up to 1,000)."""


def sign(value: float) -> int:
    """
    >>> sign(-0.5), sign(1e-17), sign(2)
    (-1, 0, 1)
    """
    return 0 if abs(value) < ZERO else 1 if value > 0 else -1


@dataclass(frozen=True)
class Mix:
    """What stays in a group."""

    sound: int
    """α: right and not called flawed."""
    wrong: int
    """β."""
    flawed: int
    """γ."""
    left: int

    @classmethod
    def of(cls, group: Group) -> Mix:
        kept = [(o, is_flawed(v)) for o, v, stays in zip(group.outcomes, group.verdicts, group.kept, strict=True) if stays]
        right = [flawed for outcome, flawed in kept if outcome is Outcome.CORRECT]
        return cls(right.count(False), len(kept) - len(right), right.count(True), len(group.kept) - len(kept))

    def expected(self, lam: float) -> int:
        """Sign of a flawed rollout's advantage.

        >>> [Mix(sound, 2, 3, 1).expected(1.0) for sound in (1, 2, 3)], Mix(1, 2, 1, 0).expected(4 / 3), Mix(1, 0, 1, 0).expected(1.0)
        ([1, 0, -1], 0, -1)
        """
        return sign(2 * self.wrong - lam * (self.sound + self.wrong))


def flawed_advantages(group: Group) -> list[float]:
    """Of those that have stayed."""
    rows = zip(group.advantages, group.verdicts, group.outcomes, group.kept, strict=True)
    return [advantage for advantage, verdict, outcome, kept in rows if kept and outcome is Outcome.CORRECT and is_flawed(verdict)]


def by_rule(group: Group, lam: float) -> bool:
    """Whether every reward is the rule's and the penalty, so that the algebra holds: none of a verifier's own, no length penalty."""
    rows = zip(group.rewards, group.outcomes, group.verdicts, group.kept, strict=True)
    return all(reward == rule_reward(outcome) - lam * is_flawed(verdict) for reward, outcome, verdict, kept in rows if kept)


@dataclass(frozen=True)
class Identity:
    """Of how many groups with a flawed rollout, scored by the rule, all flawed advantages have the sign that the algebra says."""

    groups: int
    exceptions: tuple[str, ...]
    """Prompt ids."""
    ties: int


def identity(groups: Sequence[Group], lam: float) -> Identity:
    """The check on scored groups; λ > 0."""
    held = [(group, Mix.of(group).expected(lam)) for group in groups if flawed_advantages(group) and by_rule(group, lam)]
    wrong = [group.prompt.id for group, expected in held if any(sign(a) != expected for a in flawed_advantages(group))]
    return Identity(len(held), tuple(wrong), sum(expected == 0 for _, expected in held))


@dataclass(frozen=True)
class Flip:
    """A group in which the sign of an advantage has changed."""

    prompt_id: str
    before: Mix
    after: Mix
    flawed: bool
    """That of a flawed rollout, in either scoring."""
    rollouts: int
    """How many have changed theirs."""
    advantages: tuple[float, float]
    """Before and after: of the first flawed rollout that has changed its sign, else of the first rollout that has."""


def flips(before: Sequence[Group], after: Sequence[Group]) -> Iterator[Flip]:
    """Groups that turn, in their order; both scorings are of the same rollouts."""
    for old, new in zip(before, after, strict=True):
        turned = [i for i, (a, b) in enumerate(zip(old.advantages, new.advantages, strict=True)) if sign(a) != sign(b)]
        if turned:
            flawed = [i for i in turned if is_flawed(old.verdicts[i]) or is_flawed(new.verdicts[i])]
            first = (flawed or turned)[0]
            pair = old.advantages[first], new.advantages[first]
            yield Flip(old.prompt.id, Mix.of(old), Mix.of(new), bool(flawed), len(turned), pair)


def turn(before: Sequence[Group], after: Sequence[Group]) -> tuple[float, float]:
    """Cosine and ratio of norms (after ÷ before) of the advantages, each as often as its rollout has tokens of the policy; NaN of nothing.

    Worked example: one rollout of two tokens from 1 to 2, another of one token from −1 to −2 → 1.0 and 2.0.
    """
    product = square_before = square_after = 0.0
    for old, new in zip(before, after, strict=True):
        for rollout, a, b in zip(old.rollouts, old.advantages, new.advantages, strict=True):
            tokens = int(rollout.mask.sum())
            product, square_before, square_after = product + tokens * a * b, square_before + tokens * a * a, square_after + tokens * b * b
    return between(product, square_before, square_after)


def between(product: float, before: float, after: float) -> tuple[float, float]:
    """Cosine and ratio of norms of two vectors by their product and squares.

    >>> between(2.0, 1.0, 4.0), between(0.0, 0.0, 4.0)
    ((1.0, 2.0), (nan, nan))
    """
    if not (before and after):
        return math.nan, 0.0 if before else math.nan
    return product / math.sqrt(before * after), math.sqrt(after / before)
