"""What is run: starts, arms, seeds. Fixed before the runs, as `protocol.md` is, which says what is asked of them and what decides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

LAMBDAS = ("0", "2/3", "1", "4/3", "2")
KINDS_SEEN, KINDS_UNSEEN = ("student",), ("repair", "operand", "swap", "extra")
RATIOS = (0.25, 0.5, 1.0, 2.0)
BLIND = ("false", "skip", "guess")


@dataclass(frozen=True)
class Size:
    """Of one version of the whole."""

    seeds: int
    steps: int
    critic_steps: int
    repeats: int
    """Of each timing."""
    left_out: tuple[str, ...] = ()
    """Experiments that it has only where they are asked for by name."""


FULL, QUICK = Size(8, 40, 40, 5), Size(4, 24, 24, 3, ("E1b",))
"""E1b's starts take as long as those of all others together, and steps of a warm start cannot be fewer."""
PROMPTS, SAMPLES, NEW_TOKENS = 16, 8, 48
"""Of a step; the longest solution has 44 tokens, its end included."""
TEST_ROWS, EARLY = 300, 15
"""Of a test set, two samples each; steps that count as early."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """A warm start, which the arms of a seed share."""

    name: str
    recipe: str = "arith"
    model: str = "arith"
    world: str = "arith"
    """Of the warm start's demonstrations; the arms' may be altered further."""
    tests: str = "arith"
    after: str = ""
    """Start that it goes on from; empty = fresh weights."""
    settings: tuple[str, ...] = ()


STARTS = {
    start.name: start
    for start in (
        Start(name="default"),
        Start(
            name="scarce",
            world="arith?flaws=4",
            after="default",
            settings=("--warm-start.steps", "300", "--warm-start.lr", "1e-3"),
        ),
        Start(
            name="large",
            model="arith?scale=2",
            world="arith?lengths=4,5",
            tests="arith?lengths=4,5",
            settings=("--warm-start.steps", "1500", "--warm-start.lr", "1e-3"),
        ),
        Start(name="critic", recipe="genrm-arith"),
    )
}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A run from a start. Those of one start and seed share its weights, the prompts and the seeds of every sample."""

    start: str
    name: str
    settings: tuple[str, ...] = ()
    world: str = ""
    """Its own; empty = the start's."""
    judge: str = ""
    """Arm of `critic` whose last weights judge; empty = the world's oracle, as the arm's world has it."""
    lam: Fraction = field(default=Fraction(1))

    @property
    def key(self) -> str:
        return f"{self.start}/{self.name}"


def by_lambda(start: str, lams: tuple[str, ...] = LAMBDAS) -> list[Arm]:
    return [Arm(start=start, name=f"lam={lam}", lam=Fraction(lam)) for lam in lams]


def altered(name: str, knobs: str, lam: str = "1", start: str = "default", settings: tuple[str, ...] = ()) -> Arm:
    return Arm(start=start, name=name, world=f"arith?{knobs}", lam=Fraction(lam), settings=settings)


LEAVE = ("--genrm.unknown", "drop", "1.0")
LENIENT = "blind=skip,guess"
ARMS: dict[str, list[Arm]] = {
    "E1": by_lambda("default"),
    "E2": [*by_lambda("scarce"), altered("leave", "flaws=4&flawed=leave", "1", "scarce", LEAVE)],
    "E4": [
        altered("step-ratio", "reward=step-ratio", "0"),
        altered("lam=1+lenient", LENIENT),
        altered("step-ratio+lenient", f"reward=step-ratio&{LENIENT}", "0"),
    ],
    "E6": [Arm(start="critic", name=name, lam=Fraction(0)) for name in ("warm", "outcome", "process")],
    "E7": [Arm(start="default", name=f"judge={name}", judge=name) for name in ("warm", "outcome", "process")],
    "E5": [
        *(altered(f"false_alarms={rate}", f"false_alarms={rate}") for rate in (0.4, 0.8)),
        *(altered(f"misses={rate}", f"misses={rate}") for rate in (0.5, 0.9)),
        *(altered(f"blind={kind}", f"blind={kind}") for kind in BLIND),
        altered("harsh", "harsh=4"),
    ],
    "E1b": by_lambda("large", ("0", "1")),
}
"""By experiment, in the order in which they are run; E3 is read off E1 and E2, E8 has no run."""


def wanted(only: tuple[str, ...], seeds: int, left_out: tuple[str, ...] = ()) -> Iterator[tuple[Arm, int]]:
    """Arms and seeds, all arms of a seed before the next one: what is cut short still holds whole pairs."""
    for experiment, own in ARMS.items():
        if experiment in only or (not only and experiment not in left_out):
            yield from ((arm, seed) for seed in range(seeds) for arm in own)
