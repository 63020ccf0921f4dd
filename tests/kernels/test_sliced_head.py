"""Vocabulary-parallel heads and DTensor weights on real gloo ranks (tests/workers/sliced_heads.py)."""

import pytest
import torch

from soundrl.kernels.softmax import softmax_of
from soundrl.kernels.vocab_parallel import own_targets


@pytest.mark.parametrize("ranks", [2, 4])
def test_slices_give_what_the_whole_head_gives(torchrun, ranks):
    """Log-probs, entropy, lse, greedy, K ids, losses, metrics, and gradients of everything, uneven slices, −100, streaming and chunks."""
    for said in torchrun("sliced_heads", ranks):
        for worst, most in zip(said["apart"], (1e-6, 1e-12), strict=True):  # fp32 in several chunks, fp64 in one
            assert len(worst) > 60 and max(worst.values()) <= most, {n: v for n, v in worst.items() if v > most}
        if ranks == 2:
            refused = {n: said["dtensors"].pop(n) for n in ("refused plain", "refused cast")}
            assert max(said["dtensors"].values()) <= 1e-6, said["dtensors"]
            assert all('weight.full_tensor(grad_placements=[Partial("avg")])' in text for text in refused.values()), refused


def test_an_ids_place_in_a_slice():
    ids = torch.tensor([0, 4, 5, 9, 10, -100, -1, 99])
    assert own_targets(ids, 5, 5).tolist() == [-1, -1, 0, 4, -1, -100, -1, -1]
    assert own_targets(torch.tensor([5]), 105, 5).tolist() == [-1]  # and not −100
    assert softmax_of(0.5, None, None).temperature == 0.5
