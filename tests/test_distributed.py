"""The gradient does not depend on ranks, on micro-batches or on packing (real gloo ranks, real FSDP2)."""

import math

import pytest
import torch
from tiny import fixed_samples, write_tiny
from transformers import AutoModelForCausalLM


def relative(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    scale = torch.cat([value.flatten() for value in b.values()]).norm()
    return float(torch.cat([(a[k] - b[k]).flatten() for k in a]).norm() / scale)


@pytest.mark.parametrize("kind", ["opt", "qwen3"])
def test_two_ranks_and_any_split_give_the_gradient_of_one(torchrun, tmp_path, kind):
    folder = str(write_tiny(tmp_path / kind, kind))
    cases = [{"budget": 100_000}, {"budget": 128}, {"budget": 128, "correction": "none"}, {"budget": 128, "checkpointing": True}]
    cases += [{"budget": 128, "dtype": "bfloat16"}]
    whole, split, other, recomputed, bf16 = torchrun("gradients", 1, folder=folder, cases=cases)
    reference = torch.load(whole["file"], weights_only=True)
    assert whole["batches"] == 1 and split["batches"] >= 4  # witness: it was really split
    assert split["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert relative(torch.load(split["file"], weights_only=True), reference) <= 1e-5
    (two,) = torchrun("gradients", 2, folder=folder, cases=cases[1:2])
    assert two["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert two["tokens"] == whole["tokens"]
    assert relative(torch.load(two["file"], weights_only=True), reference) <= 1e-5
    # Recomputed activations change no bit.
    assert relative(torch.load(recomputed["file"], weights_only=True), torch.load(split["file"], weights_only=True)) == 0.0
    # bfloat16 forward and backward, float32 weights and reduction: the same gradient to a few per cent, and not to the bit.
    assert 1e-4 < relative(torch.load(bf16["file"], weights_only=True), reference) < 0.15
    # Inverse: the same measure does tell another gradient.
    assert relative(torch.load(other["file"], weights_only=True), reference) > 1e-2


def padded_gradients(model) -> tuple[float, dict[str, torch.Tensor]]:
    """The same loss, written independently: one padded batch, eager attention, a loop over tokens."""
    rows = fixed_samples()
    width = max(s.length for s in rows)
    ids = torch.tensor([[*s.prompt_tokens, *s.tokens] + [0] * (width - s.length) for s in rows])
    mask = torch.tensor([[1] * s.length + [0] * (width - s.length) for s in rows])
    log_p = torch.log_softmax(model(input_ids=ids, attention_mask=mask).logits.float() / 0.9, -1)
    loss = torch.zeros(())
    for i, s in enumerate(rows):
        for j, token in enumerate(s.tokens):
            value = log_p[i, len(s.prompt_tokens) + j - 1, token]
            weight = min(math.exp(value.item() - s.logprobs[j]), 2.0)  # TIS, cap 2
            loss = loss - s.advantage * weight * torch.exp(value - value.detach())
    loss = loss / sum(len(s.tokens) for s in rows)
    loss.backward()
    return loss.item(), {name: p.grad.double() for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", ["opt", "llama", "qwen2", "qwen3"])
def test_packed_equals_padded_transformers(torchrun, tmp_path, kind):
    """Loss and gradients of our packed forward against plain transformers."""
    folder = write_tiny(tmp_path / kind, kind)
    (ours,) = torchrun("gradients", 1, folder=str(folder), cases=[{"budget": 128}])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    loss, gradients = padded_gradients(model)
    assert ours["loss"] == pytest.approx(loss, rel=1e-5)
    assert relative(torch.load(ours["file"], weights_only=True), gradients) <= 1e-5


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all(torchrun, tmp_path):
    said = torchrun("updates", 2, folder=str(write_tiny(tmp_path / "tiny")))
    assert said["one_minibatch_kl"] == 0.0 < said["two_minibatches_kl"]  # later mini-batches are off policy, measured against old log-probs
    assert said["updates"] == 3
    assert said["no_signal_loss"] == 0.0  # no rollout has an advantage: a step all the same
    assert said["skipped"] == [1.0, 1.0] and said["unchanged"] == [True, True]  # both ranks, though only rank 1 had a NaN
    assert said["finite_step_resets"] and said["updates_after"] == 4
    assert all("not finite 3 optimizer steps in a row" in message for message in said["stopped"])
