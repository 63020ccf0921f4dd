"""A saved step of a run once more: the same to the bit, and what another λ, judge or verifier would have made of its rollouts.

    python -m soundrl.engine.tools.replay runs/x 37                          # equal?
    python -m soundrl.engine.tools.replay runs/x 37 --lam 1.33               # and whose advantage would have turned
    python -m soundrl.engine.tools.replay runs/x 37 --judge genrm@http://127.0.0.1:8000/v1
    python -m soundrl.engine.tools.replay runs/gsm8k 1 2 3 --verifier my_checks.py:score

Rewards, advantages, figures and packing follow from the run folder alone; loss and gradient want the weights that the step began with (a
checkpoint of the step before: --run.save). Ends with status 1 where anything differs, 2 where a step cannot be replayed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import tyro

from soundrl.engine.launch.launch import be_quiet
from soundrl.engine.ranks import alone
from soundrl.engine.tools.at_weights import AtWeights, turned
from soundrl.engine.tools.other_scoring import Change, Scoring, scored_otherwise
from soundrl.engine.tools.recomputed import Findings, Recomputed
from soundrl.fapo.flips import Flip, Identity, flips, identity, sign, turn
from soundrl.fapo.records import Group

SHOWN = 12
"""Groups that are listed."""


@dataclass(frozen=True, kw_only=True)
class Arguments(Change):
    """Command line of `python -m soundrl.engine.tools.replay`."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    steps: tyro.conf.Positional[tuple[int, ...]]
    """Steps of its training."""


def replayed(step: Recomputed, ranks_of: ExitStack) -> tuple[Findings, AtWeights | None]:
    """All that can be compared, and the step's weights, where there are some. `ranks_of` ends their process group."""
    step.check_rewards()
    step.check_figures()
    weights = None
    try:
        step.check_packing()
    except ValueError as error:
        step.found.left_out.append(f"packing: {error}")
    try:
        weights = AtWeights(step, ranks_of.enter_context(alone()))
    except ValueError as error:
        step.found.left_out.append(f"loss and gradient: {error}")
    return step.found, weights


def words(step: Recomputed) -> Iterator[str]:
    found, ranks = step.found, f"{step.saved.ranks} rank{'s' * (step.saved.ranks != 1)}" if step.saved.ranks else "ranks unknown"
    count = sum(len(group.rollouts) for group in step.given)
    yield f"{step.where}: {count} rollouts in {len(step.given)} groups, {ranks}, λ = {step.config.fapo.lam:.4g}"
    for line in found.equal:
        yield f"  equal    {line}"
    for line in found.differs:
        yield f"  DIFFERS  {line}"
    for line in found.left_out:
        yield f"  left out {line}"


def otherwise(step: Recomputed, change: Change, weights: AtWeights | None) -> Iterator[str]:
    """What `change` would have made of the step's rollouts, in lines; of the groups that were trained."""
    size = len(step.saved.groups)
    before = step.groups[:size]
    gradient = None if weights is None else weights.gradient(before)
    scoring = scored_otherwise(step, change)
    after = scoring.groups[:size]
    yield f"with {change}"
    for note in scoring.notes:
        yield f"  note     {note}"
    yield from compared(before, after)
    yield from listed(list(flips(before, after)), (step.config.fapo.lam, scoring.config.fapo.lam))
    yield from algebra(before, step.config.fapo.lam, after, scoring)
    cosine, norm = turn(before, after)
    yield f"  advantages  cosine {cosine:.4f}, norm × {norm:.4f}, by the policy's tokens"
    if weights is None or gradient is None:
        yield "  gradient    not known without the step's weights"
        return
    cosine, norm = turned(gradient, weights.gradient(after))
    yield f"  gradient    cosine {cosine:.4f}, norm × {norm:.4f}, at the step's own weights ({weights.start.folder.name})"


def compared(before: list[Group], after: list[Group]) -> Iterator[str]:
    def differing(name: str) -> int:
        pairs = zip(before, after, strict=True)
        return sum(a != b for old, new in pairs for a, b in zip(getattr(old, name), getattr(new, name), strict=True))

    names = {"outcomes": "outcomes", "verdicts": "verdicts", "kept": "places in a group", "rewards": "rewards", "advantages": "advantages"}
    count, size = sum(len(group.rollouts) for group in before), len(before)
    yield f"  of {count} rollouts change: " + (", ".join(f"{n} {what}" for name, what in names.items() if (n := differing(name))) or "none")
    yield f"  groups with signal: {sum(g.signal for g in before) / size:.1%} → {sum(g.signal for g in after) / size:.1%} of {size}"


def listed(found: list[Flip], lams: tuple[float, float]) -> Iterator[str]:
    flawed = [flip for flip in found if flip.flawed]
    turns = [(sign(flip.advantages[0]), sign(flip.advantages[1])) for flip in flawed]
    down, up = sum(b < a for a, b in turns), sum(b > a for a, b in turns)
    yield f"  groups that flip: {len(found)}; for their flawed rollouts {len(flawed)} ({down} downwards, {up} upwards)"
    for flip in (flawed + [flip for flip in found if not flip.flawed])[:SHOWN]:
        a, b = flip.before, flip.after
        mix = f"sound {a.sound} wrong {a.wrong} flawed {a.flawed} left {a.left}"
        mix += "" if a == b else f" → {b.sound} {b.wrong} {b.flawed} {b.left}"
        rho = "ρ = ∞" if not a.wrong else f"ρ = {a.sound / a.wrong:.2f}"
        edges = " → ".join(f"{2 / lam - 1:.2f}" if lam else "∞" for lam in dict.fromkeys(lams))
        what = "flawed" if flip.flawed else f"{flip.rollouts} rollouts, the first"
        yield f"    {flip.prompt_id}: {mix}, {rho}, shift at {edges}; {what} {flip.advantages[0]:+.3f} → {flip.advantages[1]:+.3f}"
    if len(found) > SHOWN:
        yield f"    and {len(found) - SHOWN} more"


def algebra(before: list[Group], lam: float, after: list[Group], scoring: Scoring) -> Iterator[str]:
    """The sign identity in both scorings."""
    for name, groups, at in (("as it was", before, lam), ("with this", after, scoring.config.fapo.lam)):
        said: Identity = identity(groups, at)
        if at > 0:
            odd = f": {', '.join(said.exceptions[:3])}" if said.exceptions else ""
            yield (
                f"  {name}: a flawed advantage is below 0 iff ρ > 2/λ − 1 = {2 / at - 1:.2f}, "
                f"in {said.groups} groups {len(said.exceptions)} exceptions{odd}, {said.ties} ties"
            )


def main(arguments: Arguments) -> None:
    """Replay steps of a run, and with a change say what it would have made of them."""
    be_quiet()
    differs = False
    try:
        if not arguments.steps:
            raise ValueError("name a step, as in: replay runs/x 37")
        with ExitStack() as ranks_of:
            for number in arguments.steps:
                step = Recomputed(arguments.run, number)
                found, weights = replayed(step, ranks_of)
                turns = list(otherwise(step, arguments, weights)) if arguments else []
                if weights is not None:
                    weights.check_loss()  # last: it trains
                step.environment.close()
                print("\n".join([*words(step), *turns]), flush=True)
                differs |= bool(found.differs)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(int(differs))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
