"""Vocabulary-parallel heads and DTensor weights on real gloo ranks (tests/workers/sliced_heads.py)."""

import torch

from soundrl.kernels.softmax import softmax_of
from soundrl.kernels.vocab_parallel import own_targets


def test_slices_give_what_the_whole_head_gives(torchrun):
    """Over 2 and 4 ranks: log-probs, entropy, lse, greedy, K ids, losses, metrics, and gradients of everything, uneven slices, −100,
    streaming and chunks; and DTensor weights."""
    for said in torchrun("sliced_heads", 4):
        for name, worst in said["apart"].items():  # fp32 in several chunks, fp64 in one
            most = 1e-6 if name.endswith("float32") else 1e-12
            assert len(worst) > 60 and max(worst.values()) <= most, (name, {n: v for n, v in worst.items() if v > most})
        assert sorted(said["apart"]) == ["2 torch.float32", "2 torch.float64", "4 torch.float32", "4 torch.float64"]
        refused = {n: said["dtensors"].pop(n) for n in ("refused plain", "refused cast")}
        assert max(said["dtensors"].values()) <= 1e-6, said["dtensors"]
        assert all('weight.full_tensor(grad_placements=[Partial("avg")])' in text for text in refused.values()), refused


def test_an_ids_place_in_a_slice():
    ids = torch.tensor([0, 4, 5, 9, 10, -100, -1, 99])
    assert own_targets(ids, 5, 5).tolist() == [-1, -1, 0, 4, -1, -100, -1, -1]
    assert own_targets(torch.tensor([5]), 105, 5).tolist() == [-1]  # and not −100
    assert softmax_of(0.5, None, None).temperature == 0.5
