"""Dynamic sampling that knows the judge (`rollout.refill`): groups that train nothing give way to the next prompts of the stream.

DAPO (arXiv 2503.14476 §3.2) samples on until no group is all right or all wrong. Under FAPO a group that is all right and partly flawed
does train, so a group is looked at with its verdicts, through the rewards themselves; only those are waited for on which it hangs.

    sampled, verified │ groups without signal → as many of the next prompts → those with signal take their places → again, to the budget

All of it follows from content: whose groups have none, how many prompts a round takes (tokens a group so far), and the places, the first
that is missing first. A mini-batch holds what it would hold with and without overlap, on any number of ranks, and after a restart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from soundrl.engine.telemetry.timeline import TIMELINE
from soundrl.fapo.data.prompt_stream import distinct
from soundrl.fapo.pending import PendingGroups, scored
from soundrl.fapo.records import Prompt

if TYPE_CHECKING:
    from soundrl.engine.run import Run


def learned(run: Run, pending: PendingGroups) -> dict[str, float]:
    """What the step's groups, those that were replaced among them, have shown of their prompts (`data.difficulty`); all verdicts are there.
    One that a rollout has left for want of an outcome or a verdict, and that has no signal, says nothing. A collective; returns what is to
    be said of it."""
    if not run.stream.visits:
        return {}
    groups = scored([*pending, *pending.replaced], whole=True)
    own = {group.prompt.id: group.signal for group in groups if group.signal or all(group.kept)}
    return run.stream.learn({id_: signal for part in run.ranks.gather(own) for id_, signal in part.items()})


def refilled(run: Run, prompts: list[Prompt], pending: PendingGroups, step: int) -> tuple[list[Prompt], dict[str, float]]:
    """The step's prompts with those replaced whose groups train nothing, in `pending` as well, and what is to be said of it. A collective;
    the policy is awake. The last round may exceed the budget by what a group is longer than those before it.

    Worked example: of prompts a, b, c, d the groups b and d have no signal; e and f are sampled, f has one: a, f, c, d; then g for d.
    """
    budget = run.config.rollout.refill
    if not budget:
        return prompts, {}
    out, sampled, spent, rounds = list(prompts), list(prompts), 0, 0
    tokens = first = tokens_of(run, prompts, pending)
    without = silent(run, prompts, pending, rounds)
    missing = [place for place, prompt in enumerate(out) if prompt.id in without]
    before = len(missing)
    while missing and spent < budget:
        number = min(len(missing), math.ceil((budget - spent) * len(sampled) / tokens))
        fresh = distinct(run.stream.take(number), sampled)
        run.rollouts(fresh, step, pending)
        run.leave()
        sampled, rounds, tokens = sampled + fresh, rounds + 1, tokens + tokens_of(run, fresh, pending)
        spent = tokens - first
        without = silent(run, fresh, pending, rounds)
        found = [prompt for prompt in fresh if prompt.id not in without]
        gone, missing = missing[: len(found)], missing[len(found) :]
        pending.replace([out[place].id for place in gone] + [prompt.id for prompt in fresh if prompt.id in without])
        for place, prompt in zip(gone, found, strict=True):
            out[place] = prompt
    return out, {
        "reward/groups_with_signal_before": 1 - before / len(out),
        "reward/groups_with_signal": 1 - len(missing) / len(out),
        "refill/groups": float(before - len(missing)),
        "refill/prompts": float(len(sampled) - len(out)),
        "refill/rounds": float(rounds),
        "refill/tokens": float(spent),
    }


def tokens_of(run: Run, prompts: Sequence[Prompt], pending: PendingGroups) -> int:
    """Response tokens of these prompts over all ranks, at least 1."""
    own = [pending.by_prompt[prompt.id] for prompt in prompts if prompt.id in pending.by_prompt]
    return max(1, int(run.ranks.sum([float(sum(len(rollout.tokens) for group in own for rollout in group.rollouts))])[0]))


def silent(run: Run, prompts: Sequence[Prompt], pending: PendingGroups, number: int) -> set[str]:
    """Ids of these prompts whose groups train nothing, on any rank; of the step's sampling `number`. What was found is kept with its state:
    an interrupted step goes on with it, whatever a verdict that was given up then says now."""
    said: list[list[str]] = run.at["silent"]
    if number == len(said):
        own = [pending.by_prompt[prompt.id] for prompt in prompts if prompt.id in pending.by_prompt]
        with nullcontext() if all(group.ready for group in own) else TIMELINE("judge_wait"):
            without = [group for group in own if not group.signal()]
        run.leave(waited=[group for group in without if group.undecided])
        with TIMELINE("rank_wait"):  # for the verdicts of others
            said.append(sorted(id_ for part in run.ranks.gather([group.prompt.id for group in without]) for id_ in part))
    return set(said[number])
