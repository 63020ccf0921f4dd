"""FAPO reward penalty and group-relative advantage over ragged groups. Shapes: N rollouts, P groups, T tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from soundrl.kernels.backend import check_offsets, launch, operator, require, runs_triton, wide
from soundrl.kernels.language import tl, triton

STD_EPSILON = 1e-6


def fapo_reward(rewards_N: Tensor, flawed_N: Tensor | None, lam: float) -> Tensor:
    """r − λ on flawed positives, r elsewhere (arXiv 2510.22543 Eq. 8); `lam = 0` returns `rewards_N` itself."""
    return rewards_N if flawed_N is None or lam == 0.0 else rewards_N - lam * flawed_N.to(rewards_N.dtype)


def group_advantage(
    rewards_N: Tensor,
    group_offsets: Tensor,
    flawed_N: Tensor | None = None,
    lam: float = 0.0,
    kept_N: Tensor | None = None,
    normalize_std: bool = True,
) -> Tensor:
    """Advantage [N] fp32 of each rollout within its group: (r − mean) / (std + 1e-6), r = reward − λ where flawed.

    rewards_N      [N] rule reward with overlong shaping already added; fp64 rewards are computed in fp64 (plain torch), others in fp32
    group_offsets  [P+1] int64; group g holds rollouts offsets[g] … offsets[g+1]−1; groups may have any size, 0 and 1 included
    flawed_N       [N] bool: correct answer, wrong step; its reward loses `lam` (arXiv 2510.22543 Eq. 8)
    kept_N         [N] bool: False leaves the group (no part in mean and spread, advantage 0); None keeps all
    normalize_std  False gives r − mean (Dr. GRPO, arXiv 2503.20783)

    The spread is the *sample* standard deviation (n − 1), as in the released code; a group of one kept rollout, or of equal
    rewards, has advantage exactly 0. `lam = 0` changes no bit. On a GPU one launch, a program a group. Raises ValueError for offsets that
    do not cover the rollouts (read on a GPU only after `backend.check_values(True)`), and for wrong shapes or types.

    >>> group_advantage(torch.tensor([1., 1, 0, 0, -1, -1, -1, -1]), torch.tensor([0, 8]))[[0, 2, 4]].tolist()
    [1.4100..., 0.2820..., -0.8460...]
    """
    require(
        rewards_N.ndim == 1 and rewards_N.dtype.is_floating_point,
        lambda: f"rewards have shape {tuple(rewards_N.shape)} and type {rewards_N.dtype}: give floating point [N]",
    )
    _check_flags("flawed", flawed_N, rewards_N)
    _check_flags("kept", kept_N, rewards_N)
    check_offsets("group_offsets", group_offsets, "rewards", len(rewards_N))
    require(flawed_N is not None or lam == 0.0, lambda: f"lam={lam} needs flawed [N]: pass which rollouts are flawed, or lam 0")
    # λ = 0 leaves the flags out of the computation: it must not change a bit.
    return _group_advantage(rewards_N, group_offsets, flawed_N if lam else None, lam, kept_N, normalize_std)


def _check_flags(name: str, x: Tensor | None, rewards_N: Tensor) -> None:
    if x is not None:
        require(
            x.shape == rewards_N.shape and x.dtype == torch.bool and x.device == rewards_N.device,
            lambda: (
                f"{name} is {x.dtype} {tuple(x.shape)} on {x.device}: give bool {tuple(rewards_N.shape)} on {rewards_N.device}, as rewards"
            ),
        )


@triton.jit
def penalised(rewards, flawed, kept, i, inside, lam):
    """Reward less λ where flawed, and whether rollout i counts."""
    r = tl.load(rewards + i, inside, other=0.0).to(tl.float32)
    counts = inside
    if flawed is not None:
        r -= lam * tl.load(flawed + i, inside, other=0).to(tl.float32)
    if kept is not None:
        counts = inside & (tl.load(kept + i, inside, other=0) != 0)
    return r, counts


@triton.jit
def group_advantage_kernel(rewards, offsets, flawed, kept, advantages, lam, epsilon, NORMALIZE_STD: tl.constexpr, BLOCK: tl.constexpr):
    """Program g: all of group g, of any size; mean, then the spread around it, then the advantages (three passes over at most a few KB)."""
    g = tl.program_id(0).to(tl.int64)
    start = tl.load(offsets + g)
    end = tl.load(offsets + g + 1)
    number = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    low = tl.full([BLOCK], float("inf"), tl.float32)
    high = tl.full([BLOCK], float("-inf"), tl.float32)
    for first in range(start, end, BLOCK):
        i = first + tl.arange(0, BLOCK)
        r, counts = penalised(rewards, flawed, kept, i, i < end, lam)
        number += tl.where(counts, 1.0, 0.0)
        total += tl.where(counts, r, 0.0)
        low = tl.where(counts, tl.minimum(low, r), low)
        high = tl.where(counts, tl.maximum(high, r), high)
    n = tl.sum(number)
    mean = tl.sum(total) / tl.maximum(n, 1.0)
    scale = 1.0
    if NORMALIZE_STD:
        square = tl.zeros([BLOCK], tl.float32)
        for first in range(start, end, BLOCK):
            i = first + tl.arange(0, BLOCK)
            r, counts = penalised(rewards, flawed, kept, i, i < end, lam)
            square += tl.where(counts, (r - mean) * (r - mean), 0.0)
        scale = 1.0 / (tl.sqrt(tl.sum(square) / tl.maximum(n - 1, 1.0)) + epsilon)
    # Equal rewards are exactly 0: rounding of the mean must not become ±1e-8 / 1e-6.
    scale = tl.where(tl.min(low) < tl.max(high), scale, 0.0)
    for first in range(start, end, BLOCK):
        i = first + tl.arange(0, BLOCK)
        r, counts = penalised(rewards, flawed, kept, i, i < end, lam)
        tl.store(advantages + i, tl.where(counts, (r - mean) * scale, 0.0), i < end)


@operator("group_advantage(Tensor rewards_N, Tensor offsets, Tensor? flawed_N, float lam, Tensor? kept_N, bool normalize_std) -> Tensor")
def _group_advantage(rewards_N: Tensor, group_offsets: Tensor, *rest: Any) -> Tensor:
    flawed_N, lam, kept_N, normalize_std = rest
    if runs_triton(rewards_N):
        out_N, options = torch.empty(len(rewards_N), device=rewards_N.device), {"NORMALIZE_STD": normalize_std, "BLOCK": 64, "num_warps": 1}
        given = (rewards_N.contiguous(), group_offsets, flawed_N, kept_N, out_N, lam, STD_EPSILON)
        launch(group_advantage_kernel, len(group_offsets) - 1, rewards_N, *given, **options)
        return out_N
    values_N = fapo_reward(rewards_N.to(wide(rewards_N)), flawed_N, lam)
    out_N = torch.zeros_like(values_N)
    bounds = group_offsets.tolist()
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        keep = torch.ones(end - start, dtype=torch.bool, device=out_N.device) if kept_N is None else kept_N[start:end]
        group = values_N[start:end][keep]
        if len(group) < 2 or group.min() == group.max():
            continue  # exactly 0: rounding of the mean must not become an advantage of ±1e-10 / 1e-6
        centred = group - group.mean()
        out_N[start:end][keep] = centred / (group.std() + STD_EPSILON) if normalize_std else centred
    return out_N.float()


@_group_advantage.register_fake
def _(rewards_N: Tensor, *_: object) -> Tensor:
    return torch.empty(rewards_N.shape, dtype=torch.float32, device=rewards_N.device)


@dataclass(frozen=True, kw_only=True)
class RewardGroups:
    """The arguments of `group_advantage`, for losses that compute the advantage themselves."""

    rewards_N: Tensor
    group_offsets: Tensor
    flawed_N: Tensor | None = None
    lam: float = 0.0
    kept_N: Tensor | None = None
    normalize_std: bool = True

    def advantages(self, cu_seqlens: Tensor, tokens: int) -> Tensor:
        """[T]: each rollout's advantage at each of its tokens; `cu_seqlens` [N+1] bounds the rollouts' tokens.

        Worked example: rewards [1, −1] in one group, cu_seqlens [0, 1, 3], normalize_std False → [1, −1, −1].
        """
        advantage_N = group_advantage(**vars(self))
        require(
            len(cu_seqlens) == len(advantage_N) + 1,
            lambda: (
                f"cu_seqlens has {len(cu_seqlens)} entries, rewards {len(advantage_N)}: with groups a sequence is a rollout, give [N+1]"
            ),
        )
        check_offsets("cu_seqlens", cu_seqlens, "hidden", tokens)
        return torch.repeat_interleave(advantage_N, cu_seqlens.diff(), output_size=tokens)
