"""FAPO reward and group advantage of 4,096 rollouts in ragged groups of 2 to 64.

    python bench/group_advantage.py

call    as a program calls it, with the launches' own gaps
replay  a CUDA graph of it, on a GPU: the launches without the gaps; the loop waits for the GPU in between, which no graph can hold
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import Case, Plan, Provider, Work, arguments, compiled, copy_ceiling, run
from torch import Tensor

from soundrl.kernels.advantage import group_advantage

LAM = 1.0
EPSILON = 1e-6


def groups(rollouts: int, largest: int) -> list[int]:
    """Sizes 2 … largest, the same on every machine, that add up to `rollouts`."""
    rng = torch.Generator().manual_seed(0)
    sizes: list[int] = []
    left = rollouts
    while left > largest:
        size = int(torch.randint(2, largest + 1, (), generator=rng))
        if left - size >= 2:
            sizes.append(size)
            left -= size
    return [*sizes, left]


def by_group(rewards_N: Tensor, offsets: list[int], flawed_N: Tensor) -> Tensor:
    """Group after group in Python, as trainers with a dictionary of groups do; fp64 rewards give the reference."""
    values_N = rewards_N - LAM * flawed_N.to(rewards_N.dtype)
    out_N = torch.zeros_like(values_N)
    for start, end in zip(offsets[:-1], offsets[1:], strict=True):
        group = values_N[start:end]
        if float(group.min()) < float(group.max()):
            out_N[start:end] = (group - group.mean()) / (group.std() + EPSILON)
    return out_N


def scattered(rewards_N: Tensor, group_N: Tensor, size_P: Tensor, flawed_N: Tensor) -> Tensor:
    """Sums by `index_add`: no Python loop, about a dozen launches."""
    values_N = rewards_N - LAM * flawed_N.to(rewards_N.dtype)
    mean_P = torch.zeros_like(size_P).index_add(0, group_N, values_N) / size_P
    centred_N = values_N - mean_P[group_N]
    square_P = torch.zeros_like(size_P).index_add(0, group_N, centred_N * centred_N)
    return centred_N / ((square_P / (size_P - 1)).sqrt() + EPSILON)[group_N]


def case(plan: Plan, mode: str) -> Case | None:
    if not plan.wants(mode) or (mode == "replay" and plan.device != "cuda"):
        return None
    rollouts, largest = (64, 8) if plan.small else (4096, 64)
    sizes = groups(rollouts, largest)
    rng = torch.Generator().manual_seed(1)
    # ±1 with a continuous part (overlong shaping), so that no group is constant.
    rewards = torch.where(torch.rand(rollouts, generator=rng) < 0.5, 1.0, -1.0) - torch.rand(rollouts, generator=rng)
    flawed = (rewards > 0) & (torch.rand(rollouts, generator=rng) < 0.3)
    rewards_N, flawed_N = rewards.to(plan.device), flawed.to(plan.device)
    size_P = torch.tensor(sizes)
    offsets = [0, *size_P.cumsum(0).tolist()]
    group_offsets = torch.tensor(offsets, device=plan.device)
    group_N = torch.repeat_interleave(torch.arange(len(sizes)), size_P).to(plan.device)
    size_P = size_P.float().to(plan.device)

    def work(function: Callable[..., Tensor], *extra: object) -> Work:
        return Work(lambda _: {"advantage": function(rewards_N, *extra)})

    loop = [Provider("torch, loop", lambda: work(by_group, offsets, flawed_N))] if mode == "call" else []
    return Case(
        mode=mode,
        shape={"N": rollouts, "P": len(sizes)},
        dtype=rewards_N.dtype,
        reference=lambda: {"advantage": by_group(rewards_N.double(), offsets, flawed_N)},
        tolerance=1e-4,  # a group of two nearly equal rewards loses digits in fp32, whoever computes it
        providers=[
            Provider("ours", lambda: work(group_advantage, group_offsets, flawed_N, LAM)),
            Provider("torch, index_add", lambda: work(scattered, group_N, size_P, flawed_N)),
            Provider("torch.compile, index_add", lambda: work(compiled(scattered, plan.device), group_N, size_P, flawed_N)),
            *loop,
            copy_ceiling(plan.device),
        ],
        moved=float(rewards_N.nbytes + flawed_N.nbytes + group_offsets.nbytes + 4 * rollouts),
        graph=mode == "replay",
    )


if __name__ == "__main__":
    run("group_advantage", [lambda plan: case(plan, "call"), lambda plan: case(plan, "replay")], arguments(__doc__))
