"""The group advantage kernel against the fp64 reference: ragged groups from 0 to 2,000, flags, exact zeros, refusals."""

import itertools

import pytest
import torch

from soundrl.kernels.advantage import RewardGroups, group_advantage, group_moments, merged_moments

SIZES = [1, 0, 2, 3, 8, 63, 64, 65, 1, 200, 2000, 5]
OFFSETS = torch.tensor([0, *itertools.accumulate(SIZES)])
N = sum(SIZES)


def case(seed: int):
    rng = torch.Generator().manual_seed(seed)
    rewards = torch.randn(N, generator=rng)
    return rewards, torch.rand(N, generator=rng) < 0.3, torch.rand(N, generator=rng) < 0.8


@pytest.mark.parametrize(
    ("lam", "masked", "normalize_std"), [(0.0, False, True), (1.0, True, True), (4 / 3, True, False), (0.5, False, False)]
)
def test_kernel_equals_fp64(lam, masked, normalize_std):
    rewards, flawed, kept = case(0)
    kept_N = kept if masked else None
    ours, exact = (group_advantage(rewards.to(d), OFFSETS, flawed, lam, kept_N, normalize_std) for d in (torch.float32, torch.float64))
    assert ours.dtype == torch.float32 and torch.allclose(ours, exact, rtol=1e-5, atol=2e-6)
    if masked:
        assert (ours[~kept] == 0).all()


def test_reference_is_the_plain_formula():
    rewards, _, _ = case(1)
    for start, end in itertools.pairwise(OFFSETS.tolist()):
        values = rewards[start:end].double()
        expected = (values - values.mean()) / (values.std() + 1e-6) if len(values) > 1 else torch.zeros(len(values), dtype=torch.float64)
        assert torch.allclose(group_advantage(rewards.double(), OFFSETS)[start:end].double(), expected, atol=1e-6)


@pytest.mark.parametrize("value", [0.1, -1.0, 1e4])
def test_equal_rewards_are_exactly_zero(value):
    for dtype in (torch.float32, torch.float64):
        assert group_advantage(torch.full((N,), value, dtype=dtype), OFFSETS).abs().max() == 0


def test_lambda_zero_changes_no_bit():
    rewards, flawed, _ = case(2)
    assert torch.equal(group_advantage(rewards, OFFSETS, flawed, 0.0), group_advantage(rewards, OFFSETS))


def test_a_group_does_not_depend_on_its_neighbours():
    rewards, _, _ = case(3)
    whole = group_advantage(rewards, OFFSETS)
    a, b = OFFSETS[9], OFFSETS[10]
    assert torch.equal(whole[a:b], group_advantage(rewards[a:b].clone(), torch.tensor([0, int(b - a)])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["kernel", "eager"])
@pytest.mark.parametrize("normalize_std", [True, False])
def test_groups_spread_over_ranks(dtype, normalize_std):
    """Each rank holds some rollouts of each group, none of some: with everybody's moments the advantages are those of the whole."""
    rewards, flawed, kept = case(4)
    rewards = rewards.to(dtype)
    group = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    rewards[group == 5] = 0.1  # equal rewards, on whatever rank
    rank = torch.randint(3, (N,), generator=torch.Generator().manual_seed(5))
    rank[group == 3] = 1
    parts = []
    for r in range(3):
        mine = rank == r
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(group[mine], minlength=len(SIZES)).cumsum(0)])
        parts.append((mine, (rewards[mine], offsets, flawed[mine], 1.0, kept[mine])))
    moments = merged_moments(torch.stack([group_moments(*given) for _, given in parts]))
    whole = group_advantage(rewards, OFFSETS, flawed, 1.0, kept, normalize_std)
    for mine, given in parts:
        ours = group_advantage(*given, normalize_std, moments_P5=moments)
        assert torch.allclose(ours, whole[mine], rtol=2e-5, atol=2e-6)
        assert ours[(group == 5)[mine] & ~given[2]].abs().max() != 0  # flawed among them: not equal any more
    alone = group_advantage(*parts[0][1], normalize_std)
    assert not torch.allclose(alone, whole[parts[0][0]], atol=1e-3)  # witness: without the others' the groups are other groups
    assert torch.allclose(moments, group_moments(rewards, OFFSETS, flawed, 1.0, kept).to(dtype), rtol=1e-5, atol=1e-5)


def test_equal_rewards_of_a_spread_group_are_exactly_zero():
    parts = [torch.full((n,), 0.1) for n in (3, 0, 7)]
    bounds = [torch.tensor([0, len(x)]) for x in parts]
    moments = merged_moments(torch.stack([group_moments(x, b) for x, b in zip(parts, bounds, strict=True)]))
    assert all(group_advantage(x, b, moments_P5=moments).eq(0).all() for x, b in zip(parts, bounds, strict=True))


def test_arguments_of_any_layout():
    rewards, flawed, kept = case(6)
    dense = group_advantage(rewards, OFFSETS, flawed, 1.0, kept)
    columns = [torch.stack([x, ~x if x.dtype == torch.bool else x + 3], 1)[:, 0] for x in (rewards, OFFSETS, flawed, kept)]
    assert torch.equal(group_advantage(*columns[:3], 1.0, columns[3]), dense)
    assert torch.equal(group_advantage(rewards, OFFSETS.int(), flawed, 1.0, kept), dense)
    all_flawed = torch.ones(1, dtype=torch.bool)
    assert torch.equal(
        group_advantage(rewards, OFFSETS, all_flawed.expand(N), 1.0), group_advantage(rewards, OFFSETS, all_flawed.repeat(N), 1.0)
    )


def test_nan_stays_in_its_group():
    for dtype in (torch.float32, torch.float64):
        rewards = torch.tensor([1.0, torch.nan, 0.0, 1.0, 0.0, torch.nan], dtype=dtype)
        out = group_advantage(rewards, torch.tensor([0, 3, 5, 6]))
        assert out[:3].isnan().all() and out[3:5].isfinite().all()


def test_nothing_at_all():
    assert group_advantage(torch.zeros(0), torch.tensor([0])).shape == (0,)


def test_tokens_get_the_advantage_of_their_rollout():
    groups = RewardGroups(rewards_N=torch.tensor([1.0, -1.0, 5.0]), group_offsets=torch.tensor([0, 2, 3]), normalize_std=False)
    assert groups.advantages(torch.tensor([0, 1, 3, 5]), 5).tolist() == [1.0, -1.0, -1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="cu_seqlens has 3 entries, rewards 3: with groups a sequence is a rollout"):
        groups.advantages(torch.tensor([0, 1, 5]), 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_offsets": torch.tensor([0, 3])}, "group_offsets runs from 0 to 3, rewards has 4 rows: it must run from 0 to 4"),
        ({"group_offsets": torch.tensor([1, 4])}, "group_offsets runs from 1 to 4"),
        ({"group_offsets": torch.tensor([0, 3, 2, 4])}, "group_offsets decreases at entry 2"),
        ({"group_offsets": torch.tensor([0, 4], dtype=torch.int16)}, "type torch.int16: give int32 or int64"),
        ({"group_offsets": torch.tensor([0, 4], device="meta")}, "group_offsets is on meta, rewards on cpu"),
        ({"moments_P5": torch.zeros(2, 5)}, r"moments are \(2, 5\) on cpu: give \(1, 5\) on cpu, a row for each group"),
        ({"flawed_N": torch.zeros(4)}, r"flawed is torch.float32 \(4,\) on cpu: give bool \(4,\) on cpu, as rewards"),
        ({"kept_N": torch.ones(3, dtype=torch.bool)}, r"kept is torch.bool \(3,\) on cpu: give bool \(4,\) on cpu"),
        ({"lam": 1.0}, "lam=1.0 needs flawed"),
        ({"rewards_N": torch.zeros(4, dtype=torch.int64)}, "type torch.int64: give floating point"),
    ],
)
def test_bad_input_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        group_advantage(**({"rewards_N": torch.zeros(4), "group_offsets": torch.tensor([0, 4])} | change))
