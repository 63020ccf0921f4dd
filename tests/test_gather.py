"""Parameters gathered in buckets: equal to one gather a parameter, two buckets alive, and nobody waits for a rank that has left."""

import pytest
import torch
from torch import nn

from soundrl.engine.gather import buckets, gathered, most_alive

SIZES = {
    "embed.weight": 12, "layers.0.q.weight": 4, "layers.0.k.weight": 4, "layers.0.v.weight": 4, "layers.1.q.weight": 1, "norm.weight": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def said(torchrun_once):
    return torchrun_once("gathers", 4)


@pytest.mark.parametrize("mesh", ["2x2", "4", "4x1", "3"])
def test_every_parameter_is_bit_for_bit_what_its_own_gather_says(said, mesh):
    assert said[mesh] == [[]] * 4


def test_two_buckets_are_alive_at_most(said):
    assert said["alive"]["buckets"] == 2 and said["alive"]["made"] > 4  # witness: the next one is under way while one is taken
    assert said["largest"] < said["alive"]["bytes"] <= said["most"]
    # Inverse: whoever keeps the tensors keeps them all, and is seen to.
    assert said["kept"]["buckets"] == said["kept"]["made"] and said["kept"]["bytes"] >= said["whole"]
    assert said["most"] < said["whole"]


def test_a_mesh_of_one_rank_copies_nothing_but_for_the_cast(said):
    assert said["copies"] == 0


def test_parameters_that_are_given_come_as_they_are_held(said):
    assert said["mixed"] == [["layers.0.torch.float32", "torch.float32", [5, 2], 10], ["layers.0.torch.bfloat16", "torch.bfloat16", [3], 3]]


def test_what_is_cut_otherwise_is_refused_by_name(said):
    assert said["columns"].startswith("columns is placed as (Shard(dim=1),)")


def test_who_leaves_early_leaves_nothing_under_way(said):
    left = said["left"]
    assert left["made"] == 2 and left["under_way"] == 0  # witness: the second was under way
    assert left["sum"] == 4 and left["after"] == []


def test_others_end_where_a_rank_has_failed_while_it_loads(said):
    count, text = said["dead"]
    assert 4 <= count < said["tensors"] and "onnection" in text, text  # witness: it had begun, and the group says who has gone


def test_a_bucket_is_a_layer_or_a_part_of_it():
    assert buckets(SIZES, 10) == [
        ["embed.weight"], ["layers.0.q.weight", "layers.0.k.weight"], ["layers.0.v.weight"], ["layers.1.q.weight"], ["norm.weight"],
    ]  # fmt: skip
    assert [len(names) for names in buckets(SIZES)] == [1, 3, 1, 1]
    assert buckets({}) == []
    experts = {f"model.layers.{i}.mlp.experts.{j}.weight": 5 for i in range(2) for j in range(3)}
    assert [len(names) for names in buckets(experts)] == [3, 3]


def test_what_is_alive_at_most():
    assert most_alive(SIZES, 2) == 24 + 12  # embedding and first layer, and this rank's half of them
    assert most_alive(SIZES, 8, limit=10) == 20 + 3
    assert most_alive(SIZES, 1) == 12  # one tensor at a time
    assert most_alive({"w": 8}, 2) == 12


def test_a_model_that_is_not_sharded_needs_no_process_group():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    same = list(gathered(model, torch.float32))
    assert [name for name, _ in same] == [name for name, _ in model.named_parameters()]
    assert all(
        tensor.data_ptr() == p.data_ptr() and not tensor.requires_grad for (_, tensor), p in zip(same, model.parameters(), strict=True)
    )
    half = list(gathered(model, torch.bfloat16))
    assert all(torch.equal(tensor, p.detach().bfloat16()) for (_, tensor), p in zip(half, model.parameters(), strict=True))
