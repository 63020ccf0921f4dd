"""FAPO reward penalty and group-relative advantage over ragged groups. Shapes: N rollouts, P groups, T tokens."""

# pyright: reportGeneralTypeIssues=false
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
    *,
    moments_P5: Tensor | None = None,
) -> Tensor:
    """Advantage [N] fp32 of each rollout within its group: (r − mean) / (std + 1e-6), r = reward − λ where flawed.

    rewards_N      [N] rule reward with overlong shaping already added; fp64 rewards are computed in fp64 (plain torch), others in fp32
    group_offsets  [P+1] int32 or int64; group g holds rollouts offsets[g] … offsets[g+1]−1; groups may have any size, 0 and 1 included
    flawed_N       [N] bool: correct answer, wrong step; its reward loses `lam` (arXiv 2510.22543 Eq. 8)
    kept_N         [N] bool: False leaves the group (no part in mean and spread, advantage 0); None keeps all
    normalize_std  False gives r − mean (Dr. GRPO, arXiv 2503.20783)
    moments_P5     of the whole groups, where some of their rollouts are not here but in other calls or on other ranks: see
                   `group_moments`; None: the groups are whole

    The spread is the *sample* standard deviation (n − 1), as in the released code; a group of one kept rollout, or of equal
    rewards, has advantage exactly 0. `lam = 0` changes no bit. On a GPU one launch, a program a group. Raises ValueError for offsets that
    do not cover the rollouts (read on a GPU only after `backend.check_values(True)`), and for wrong shapes, types or devices.

    >>> group_advantage(torch.tensor([1., 1, 0, 0, -1, -1, -1, -1]), torch.tensor([0, 8]))[[0, 2, 4]].tolist()
    [1.4100..., 0.2820..., -0.8460...]
    """
    given = _checked(rewards_N, group_offsets, flawed_N, lam, kept_N)
    if moments_P5 is not None:
        shape, device = (len(group_offsets) - 1, 5), moments_P5.device
        require(
            moments_P5.shape == shape and device == rewards_N.device,
            lambda: f"moments are {tuple(moments_P5.shape)} on {device}: give {shape} on {rewards_N.device}, a row for each group",
        )
    return _group_advantage(*given, moments_P5, normalize_std)


def group_moments(
    rewards_N: Tensor, group_offsets: Tensor, flawed_N: Tensor | None = None, lam: float = 0.0, kept_N: Tensor | None = None
) -> Tensor:
    """[P, 5] fp32 (fp64 for fp64): of each group's kept rollouts their number, mean, sum of squares around it, lowest and highest reward.

    Of groups that are spread over several calls or ranks: each makes the moments of what it has, with offsets for all P groups (those it
    has nothing of are empty); `merged_moments` of all of them, in one order everywhere, go into every `group_advantage`.

    Worked example: rewards [1, −1, 1] and groups [0, 2, 3] → [[2, 0, 2, −1, 1], [1, 1, 0, 1, 1]].
    """
    return _group_moments(*_checked(rewards_N, group_offsets, flawed_N, lam, kept_N))


def merged_moments(moments_RP5: Tensor) -> Tensor:
    """[P, 5]: the moments of groups whose R parts are given (pairwise sums of squares: Chan, Golub and LeVeque 1979)."""
    number_RP, mean_RP, square_RP, low_RP, high_RP = moments_RP5.unbind(-1)
    number_P = number_RP.sum(0)
    mean_P = (number_RP * mean_RP).sum(0) / number_P.clamp(min=1)
    square_P = (square_RP + number_RP * (mean_RP - mean_P) ** 2).sum(0)
    return torch.stack([number_P, mean_P, square_P, low_RP.amin(0), high_RP.amax(0)], -1)


def _checked(rewards_N: Tensor, group_offsets: Tensor, flawed_N: Tensor | None, lam: float, kept_N: Tensor | None) -> tuple:
    require(
        rewards_N.ndim == 1 and rewards_N.dtype.is_floating_point,
        lambda: f"rewards have shape {tuple(rewards_N.shape)} and type {rewards_N.dtype}: give floating point [N]",
    )
    _check_flags("flawed", flawed_N, rewards_N)
    _check_flags("kept", kept_N, rewards_N)
    require(
        group_offsets.device == rewards_N.device,
        lambda: f"group_offsets is on {group_offsets.device}, rewards on {rewards_N.device}: bring them together",
    )
    check_offsets("group_offsets", group_offsets, "rewards", len(rewards_N))
    require(flawed_N is not None or lam == 0.0, lambda: f"lam={lam} needs flawed [N]: pass which rollouts are flawed, or lam 0")
    # λ = 0 leaves the flags out of the computation: it must not change a bit.
    return rewards_N, group_offsets, flawed_N if lam else None, lam, kept_N


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
def moments_of_group(rewards, flawed, kept, start, end, lam, BLOCK: tl.constexpr):
    """As in `group_moments`: the mean, then the squares around it (two passes over at most a few KB)."""
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
    square = tl.zeros([BLOCK], tl.float32)
    for first in range(start, end, BLOCK):
        i = first + tl.arange(0, BLOCK)
        r, counts = penalised(rewards, flawed, kept, i, i < end, lam)
        square += tl.where(counts, (r - mean) * (r - mean), 0.0)
    return n, mean, tl.sum(square), tl.min(low), tl.max(high)


@triton.jit
def group_moments_kernel(rewards, offsets, flawed, kept, moments, lam, BLOCK: tl.constexpr):
    """Program g: the moments of group g, of any size."""
    g = tl.program_id(0).to(tl.int64)
    start = tl.load(offsets + g).to(tl.int64)
    end = tl.load(offsets + g + 1).to(tl.int64)
    n, mean, square, low, high = moments_of_group(rewards, flawed, kept, start, end, lam, BLOCK)
    row = moments + g * 5
    tl.store(row, n)
    tl.store(row + 1, mean)
    tl.store(row + 2, square)
    tl.store(row + 3, low)
    tl.store(row + 4, high)


@triton.jit
def group_advantage_kernel(rewards, offsets, flawed, kept, moments, advantages, numbers, NORMALIZE_STD: tl.constexpr, BLOCK: tl.constexpr):
    """Program g: the advantages of group g, by `moments` where they are given, else by those of its own rollouts. `numbers`: λ, ε."""
    lam, epsilon = numbers
    g = tl.program_id(0).to(tl.int64)
    start = tl.load(offsets + g).to(tl.int64)
    end = tl.load(offsets + g + 1).to(tl.int64)
    if moments is None:
        n, mean, square, low, high = moments_of_group(rewards, flawed, kept, start, end, lam, BLOCK)
    else:
        row = moments + g * 5
        n = tl.load(row)
        mean = tl.load(row + 1)
        square = tl.load(row + 2)
        low = tl.load(row + 3)
        high = tl.load(row + 4)
    scale = 1.0
    if NORMALIZE_STD:
        scale = 1.0 / (tl.sqrt(square / tl.maximum(n - 1, 1.0)) + epsilon)
    # Equal rewards are exactly 0: rounding of the mean must not become ±1e-8 / 1e-6.
    scale = tl.where(low >= high, 0.0, scale)
    for first in range(start, end, BLOCK):
        i = first + tl.arange(0, BLOCK)
        r, counts = penalised(rewards, flawed, kept, i, i < end, lam)
        tl.store(advantages + i, tl.where(counts, (r - mean) * scale, 0.0), i < end)


GROUPS = "Tensor rewards_N, Tensor offsets, Tensor? flawed_N, float lam, Tensor? kept_N"


def _dense(*tensors: Tensor | None) -> list[Tensor | None]:
    return [x if x is None else x.contiguous() for x in tensors]


@operator(f"group_moments({GROUPS}) -> Tensor")
def _group_moments(rewards_N: Tensor, group_offsets: Tensor, flawed_N: Tensor | None, lam: float, kept_N: Tensor | None) -> Tensor:
    moments_P5 = _moments_like(rewards_N, group_offsets)
    if runs_triton(rewards_N):
        given = (*_dense(rewards_N, group_offsets, flawed_N, kept_N), moments_P5, lam)
        launch(group_moments_kernel, len(moments_P5), rewards_N, *given, BLOCK=64, num_warps=1)
        return moments_P5
    values_N = fapo_reward(rewards_N.to(moments_P5.dtype), flawed_N, lam)
    bounds = group_offsets.tolist()
    for g, (start, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        group = values_N[start:end] if kept_N is None else values_N[start:end][kept_N[start:end]]
        numbers = [len(group), 0, 0, torch.inf, -torch.inf]
        if len(group):
            numbers[1:] = group.mean(), ((group - group.mean()) ** 2).sum(), group.min(), group.max()
        moments_P5[g] = torch.tensor(numbers, dtype=moments_P5.dtype)
    return moments_P5


@_group_moments.register_fake
def _moments_like(rewards_N: Tensor, group_offsets: Tensor, *_: object) -> Tensor:
    return torch.empty(group_offsets.shape[0] - 1, 5, dtype=wide(rewards_N), device=rewards_N.device)


@operator(f"group_advantage({GROUPS}, Tensor? moments_P5, bool normalize_std) -> Tensor")
def _group_advantage(rewards_N: Tensor, group_offsets: Tensor, *rest: Any) -> Tensor:
    flawed_N, lam, kept_N, moments_P5, normalize_std = rest
    if runs_triton(rewards_N):
        out_N, options = torch.empty(len(rewards_N), device=rewards_N.device), {"NORMALIZE_STD": normalize_std, "BLOCK": 64, "num_warps": 1}
        moments_P5 = None if moments_P5 is None else moments_P5.float()
        given = (*_dense(rewards_N, group_offsets, flawed_N, kept_N, moments_P5), out_N, (lam, STD_EPSILON))
        launch(group_advantage_kernel, len(group_offsets) - 1, rewards_N, *given, **options)
        return out_N
    if moments_P5 is None:
        moments_P5 = _group_moments(rewards_N, group_offsets, flawed_N, lam, kept_N)
    number_N, mean_N, square_N, low_N, high_N = moments_P5.to(wide(rewards_N)).repeat_interleave(group_offsets.diff(), 0).unbind(-1)
    centred_N = fapo_reward(rewards_N.to(wide(rewards_N)), flawed_N, lam) - mean_N
    if normalize_std:
        centred_N = centred_N / ((square_N / (number_N - 1).clamp(min=1)).sqrt() + STD_EPSILON)
    # Equal rewards are exactly 0: rounding of the mean must not become an advantage of ±1e-10 / 1e-6.
    zero_N = low_N >= high_N if kept_N is None else (low_N >= high_N) | ~kept_N  # not where a reward is NaN
    return torch.where(zero_N, 0.0, centred_N).float()


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
    moments_P5: Tensor | None = None

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
