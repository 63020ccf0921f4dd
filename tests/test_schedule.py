"""Overlap of judging and training: the same parameters to the bit whenever verdicts arrive, deadlines, and how windows are cut."""

import pytest
import torch
from tiny import write_tiny

from soundrl.engine.packing import Sample, pack
from soundrl.engine.schedule import MOST_BATCHES, cut

CPU = torch.device("cpu")


def test_windows_are_whole_groups_as_full_as_they_must_be():
    assert cut([[5, 4], [6], [3], [2], [1]], 10) == [range(0, 1), range(1, 3), range(3, 5)]
    assert cut([], 10) == [] and cut([[], []], 10) == [] and cut([[], [9], []], 10) == [range(0, 2)]
    long = cut([[6]] * 20, 10)  # never full enough
    assert long == [range(0, MOST_BATCHES), range(MOST_BATCHES, 2 * MOST_BATCHES), range(2 * MOST_BATCHES, 20)]


def test_with_advantages_leaves_out_what_has_none():
    samples = [
        Sample(prompt_tokens=[1], tokens=[2, 3], logprobs=[-1.0, -2.0]),
        Sample(prompt_tokens=[4, 5], tokens=[6], logprobs=[-3.0]),
        Sample(prompt_tokens=[7], tokens=[8], logprobs=[-4.0]),
    ]
    batch = pack(samples, CPU).with_advantages([1.5, 0.0, -0.5])
    assert batch.input_ids.tolist() == [1, 2, 3, 7, 8] and batch.cu_seqlens.tolist() == [0, 3, 5]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1]
    assert batch.advantages.tolist() == [0.0, 1.5, 1.5, 0.0, -0.5] and batch.sampler_logprobs.tolist() == [0.0, -1.0, -2.0, 0.0, -4.0]
    whole = pack([Sample(prompt_tokens=s.prompt_tokens, tokens=s.tokens, logprobs=s.logprobs, advantage=2.0) for s in samples], CPU)
    ours = pack(samples, CPU).with_advantages([2.0] * 3)
    assert all(torch.equal(getattr(ours, name), getattr(whole, name)) for name in ("input_ids", "cu_seqlens", "loss_mask", "advantages"))
    empty = pack(samples, CPU).with_advantages([0.0] * 3)
    assert not empty.loss_mask.any() and empty.tokens == pack((), CPU).tokens
    with pytest.raises(ValueError, match="2 advantages for 3 sequences"):
        pack(samples, CPU).with_advantages([1.0, 2.0])


@pytest.fixture(scope="module")
def computed(torchrun_once, tmp_path_factory) -> dict[int, dict]:
    folder = str(write_tiny(tmp_path_factory.mktemp("models") / "tiny"))
    return {
        1: torchrun_once("overlap", 1, folder=folder, seeds=20, deadline=2.0),
        2: torchrun_once("overlap", 2, folder=folder, seeds=3, deadline=0),
    }


@pytest.mark.parametrize("ranks", [1, 2])
def test_parameters_are_the_same_to_the_bit_whenever_verdicts_come(computed, ranks):
    said = computed[ranks]
    reference, late = said["off"]
    assert late == 0 and min(said["late"]) > 0  # witness: off waited for all of them, and on began before
    assert set(said["on"]) == {reference}
    assert said["backwards"] != reference  # inverse: the digest does tell another order of the same groups


def test_a_window_waits_for_its_own_verdicts_and_a_step_for_its_deadline(computed):
    """Verdicts of group p8 are given once something has been trained; those of p9 never."""
    released, held = computed[1]["released"], computed[1]["held"]
    assert released["timeouts"] == [0] * 9 + [3]  # p8 was answered, since the windows before it did not wait for it
    assert held["timeouts"] == [0] * 8 + [3, 3]  # inverse: who waits for all first waits for what training would release
    for said in (released, held):
        assert said["updates"] == 1 and 2.0 <= said["seconds"] < 8.0  # nothing hangs; the silent judge would hang for ever
        assert said["kept"] == [True, False, False, False]  # unknown verdicts leave the group
