"""From hidden states to log-probability, policy loss and gradients, without [T, V] logits.

    python bench/linear_logprob.py                       # every shape and mode; on a CPU a small shape
    python bench/linear_logprob.py --only S1 S5          # shapes: see bench/head.py
    python bench/linear_logprob.py --only compaction     # modes: grpo, forward, compaction, cross-entropy, memory

grpo           clipped loss, forward and backward. `x floor` is time over the three bare products of the same run (T_cublas)
forward        log-probability and entropy without gradient; `x floor` is time over one bare product
compaction     the clipped loss with 0, 25, 50 and 75 % of the rows without a coefficient, and the same rows as no targets (−100)
memory         both at four vocabularies: `peak MiB` of `ours, streaming` must not grow with V
cross-entropy  mean cross-entropy, where libraries that know no per-token weights can be compared

Peak memory of forward and backward includes the results; `kernels/head_chunks.py`'s `head_memory` predicts it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from harness import Case, Plan, Provider, Results, arguments, copy_ceiling, run
from head import SHAPES, TOLERANCE, Head, exact_gradients, exact_logprob, make_head
from head_providers import bare_products, forward, grpo, mean_cross_entropy, ours_grpo

DEAD = (0.0, 0.25, 0.5, 0.75)


def head_bytes(head: Head, passes: int) -> float:
    """Hidden states and weight once a pass: 1 = read (forward), 2 = also their gradients."""
    return float(passes * (head.hidden_TH.nbytes + head.weight_VH.nbytes))


def grpo_case(plan: Plan, name: str, mode: str) -> Case | None:
    if not plan.wants(name, mode):
        return None
    head = make_head(plan, name)
    providers = grpo(head)
    if mode == "memory":
        providers = [p for p in providers if p.name in ("ours", "torch", "bare products")]
    return Case(
        mode="grpo",
        shape=head.shape,
        dtype=head.hidden_TH.dtype,
        reference=lambda: exact_gradients(head, head.advantages_T),
        tolerance=TOLERANCE[head.hidden_TH.dtype],
        providers=[*providers, copy_ceiling(plan.device)],
        flop=3 * head.product_flop,
        moved=head_bytes(head, 2),
    )


def forward_case(plan: Plan, name: str, mode: str) -> Case | None:
    if not plan.wants(name, mode):
        return None
    head = make_head(plan, name)
    providers = forward(head)
    if mode == "memory":
        providers = [p for p in providers if p.name in ("ours", "ours, streaming", "torch", "bare logits product")]
    return Case(
        mode="forward",
        shape=head.shape,
        dtype=head.hidden_TH.dtype,
        reference=lambda: exact_logprob(head.hidden_TH, head.weight_VH, head.targets_T),
        tolerance=TOLERANCE[head.hidden_TH.dtype] / 5,
        providers=[*providers, copy_ceiling(plan.device)],
        flop=head.product_flop,
        moved=head_bytes(head, 1),
    )


def compaction_case(plan: Plan, name: str) -> Case | None:
    """One case for all shares of dead rows, so that they are timed in turns; dead rows are scattered at random, the hardest to gather."""
    if not plan.wants(name, "compaction"):
        return None
    head = make_head(plan, name)
    rng = torch.Generator(plan.device).manual_seed(1)
    order_T = torch.rand(len(head.targets_T), generator=rng, device=plan.device).argsort()
    advantages = {share: head.advantages_T.index_fill(0, order_T[: int(share * len(order_T))], 0.0) for share in DEAD}

    def named(share: float, results: Results) -> Results:
        return {f"{key}, {share:.0%} dead": value for key, value in results.items()}

    def reference() -> Results:
        out: Results = {}
        for share in DEAD:
            out |= named(share, exact_gradients(head, advantages[share]))
        return out

    keys = ("loss", "dhidden", "dweight")

    def provider(share: float, ignored: bool) -> Provider:
        def build():
            work = ours_grpo(head, advantages[share], ignored)
            return dataclasses.replace(work, step=lambda state: named(share, work.step(state)))

        omits = tuple(f"{key}, {other:.0%} dead" for key in keys for other in DEAD if other != share)
        return Provider(f"ours, {share:.0%} dead" + (", as −100" if ignored else ""), build, omits=omits)

    ceilings = bare_products(head), copy_ceiling(plan.device)
    return Case(
        mode="compaction",
        shape=head.shape,
        dtype=head.hidden_TH.dtype,
        reference=reference,
        tolerance=TOLERANCE[head.hidden_TH.dtype],
        providers=[*(provider(share, way) for share in DEAD for way in (False, True) if share or not way), *ceilings],
        flop=3 * head.product_flop,
        moved=head_bytes(head, 2),
    )


def cross_entropy_case(plan: Plan, name: str) -> Case | None:
    if not plan.wants(name, "cross-entropy"):
        return None
    head = make_head(plan, name)
    return Case(
        mode="cross-entropy",
        shape=head.shape,
        dtype=head.hidden_TH.dtype,
        reference=lambda: exact_gradients(head),
        tolerance=TOLERANCE[head.hidden_TH.dtype],
        providers=[*mean_cross_entropy(head), copy_ceiling(plan.device)],
        flop=3 * head.product_flop,
        moved=head_bytes(head, 2),
    )


def cases(plan: Plan) -> list[Callable[[Plan], Case | None]]:
    """The ones that decide most come first: a run may be cut off."""
    part = functools.partial
    if plan.small:
        both = [part(grpo_case, name="S1", mode="grpo"), part(forward_case, name="S1", mode="forward")]
        return [*both, part(compaction_case, name="S1"), part(cross_entropy_case, name="S1")]
    first = ["S1", "S5", "S6"]
    out: list[Callable[[Plan], Case | None]] = []
    for name in first:
        out += [part(grpo_case, name=name, mode="grpo"), part(forward_case, name=name, mode="forward")]
    out += [part(grpo_case, name="F3", mode="grpo"), part(compaction_case, name="S1"), part(cross_entropy_case, name="S6")]
    for name in (name for name in SHAPES if name.startswith("M")):
        out += [part(grpo_case, name=name, mode="memory"), part(forward_case, name=name, mode="memory")]
    for name in (name for name in SHAPES if name.startswith("S") and name not in first):
        out += [part(grpo_case, name=name, mode="grpo"), part(forward_case, name=name, mode="forward")]
    return out


if __name__ == "__main__":
    plan = arguments(__doc__)
    run("linear_logprob", cases(plan), plan)
