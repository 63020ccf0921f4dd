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


VARIANTS: dict[str, dict] = {
    "whole": {"budget": 100_000},
    "split": {"budget": 128},
    "uncorrected": {"budget": 128, "correction": "none"},
    "recomputed": {"budget": 128, "save_memory": ["recompute"]},
    "bf16": {"budget": 128, "dtype": "bfloat16"},
}
ESTIMATES = {"k1": "sharded", "k2": "asleep", "k3": "cpu"}
KL = 0.3
KINDS = ("opt", "qwen3", "llama", "qwen2")


@pytest.fixture(scope="module")
def computed(torchrun_once, tmp_path_factory) -> dict:
    """One process group of each size computes every case: starting one costs more than all its gradients."""
    root = tmp_path_factory.mktemp("models")
    folders = {kind: str(write_tiny(root / kind, kind)) for kind in KINDS}
    one = {(kind, name): case | {"folder": folders[kind]} for kind in KINDS[:2] for name, case in VARIANTS.items()}
    one |= {(kind, "split"): VARIANTS["split"] | {"folder": folders[kind]} for kind in KINDS[2:]}
    two = {(kind, "two ranks"): VARIANTS["split"] | {"folder": folders[kind]} for kind in KINDS[:2]}
    folders["reference"] = str(write_tiny(root / "reference", "qwen3", seed=1))
    for kl, place in ESTIMATES.items():
        one["qwen3", kl] = VARIANTS["split"] | {"folder": folders["qwen3"], "reference": folders["reference"], "kl": (KL, kl, place)}
    two["qwen3", "k3 on two"] = one["qwen3", "k3"]
    results = {}
    for ranks, cases in ((1, one), (2, two)):
        more = {"updates": str(write_tiny(root / "tiny"))} if ranks == 2 else {}
        said = torchrun_once("gradients", ranks, cases=list(cases.values()), **more)
        results |= dict(zip(cases, said, strict=not more))
    for result in results.values():
        result["gradient"] = torch.load(result["file"], weights_only=True)
    return results | {"folders": folders, "updates": said[-1]}


@pytest.mark.parametrize("kind", KINDS[:2])
def test_two_ranks_and_any_split_give_the_gradient_of_one(computed, kind):
    case = {name: computed[kind, name] for name in (*VARIANTS, "two ranks")}
    whole = case["whole"]
    assert whole["batches"] == 1 and case["split"]["batches"] >= 4  # witness: it was really split
    for name in ("split", "two ranks"):
        assert case[name]["loss"] == pytest.approx(whole["loss"], rel=1e-6)
        assert case[name]["tokens"] == whole["tokens"]
        assert relative(case[name]["gradient"], whole["gradient"]) <= 1e-5
    # Recomputed activations change no bit.
    assert relative(case["recomputed"]["gradient"], case["split"]["gradient"]) == 0.0
    # bfloat16 forward and backward, float32 weights and reduction: the same gradient to a few per cent, and not to the bit.
    assert 1e-4 < relative(case["bf16"]["gradient"], whole["gradient"]) < 0.15
    # Inverse: the same measure does tell another gradient.
    assert relative(case["uncorrected"]["gradient"], whole["gradient"]) > 1e-2


def padded_gradients(model, reference=None, kl: str = "") -> tuple[float, dict[str, torch.Tensor], float]:
    """The same loss, written independently: one padded batch, eager attention, a loop over tokens; and the sum of the KL estimates
    (http://joschu.net/blog/kl-approx.html)."""
    rows = fixed_samples()
    width = max(s.length for s in rows)
    ids = torch.tensor([[*s.prompt_tokens, *s.tokens] + [0] * (width - s.length) for s in rows])
    mask = torch.tensor([[1] * s.length + [0] * (width - s.length) for s in rows])
    log_p, log_r = (
        torch.log_softmax(m(input_ids=ids, attention_mask=mask).logits.float() / 0.9, -1) if m else None for m in (model, reference)
    )
    loss, drift = torch.zeros(()), torch.zeros(())
    for i, s in enumerate(rows):
        for j, token in enumerate(s.tokens):
            value = log_p[i, len(s.prompt_tokens) + j - 1, token]
            weight = min(math.exp(value.item() - s.logprobs[j]), 2.0)  # TIS, cap 2
            loss = loss - s.advantage * weight * torch.exp(value - value.detach())
            if log_r is not None:
                gap = log_r[i, len(s.prompt_tokens) + j - 1, token].detach() - value
                drift = drift + {"k1": -gap, "k2": gap**2 / 2, "k3": torch.exp(gap) - 1 - gap}[kl]
    loss = (loss + KL * drift) / sum(len(s.tokens) for s in rows)
    loss.backward()
    return loss.item(), {name: p.grad.double() for name, p in model.named_parameters()}, drift.item()


@pytest.mark.parametrize("kind", KINDS)
def test_packed_equals_padded_transformers(computed, kind):
    """Loss and gradients of our packed forward against plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(computed["folders"][kind], dtype=torch.float32, attn_implementation="eager")
    loss, gradients, _ = padded_gradients(model)
    assert computed[kind, "split"]["loss"] == pytest.approx(loss, rel=1e-5)
    assert relative(computed[kind, "split"]["gradient"], gradients) <= 1e-5


@pytest.mark.parametrize("kl", ESTIMATES)
def test_the_kl_to_a_reference_is_that_of_plain_transformers(computed, kl):
    """Loss, gradient and estimate, samples without advantage included."""
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(computed["folders"][name], dtype=torch.float32, attn_implementation="eager")
        for name in ("qwen3", "reference")
    )
    loss, gradients, drift = padded_gradients(policy, reference, kl)
    for case in ("k3", "k3 on two") if kl == "k3" else (kl,):
        said = computed["qwen3", case]
        assert (said["loss"], said["kl"]) == (pytest.approx(loss, rel=1e-5), pytest.approx(drift, rel=1e-5))
        assert relative(said["gradient"], gradients) <= 1e-5
        assert said["tokens"] == sum(len(s.tokens) for s in fixed_samples()) > computed["qwen3", "split"]["tokens"]
    # Inverse: the term is no small part of the gradient.
    assert relative(computed["qwen3", "split"]["gradient"], gradients) > 0.1


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all(computed):
    said = computed["updates"]
    assert said["one_minibatch_kl"] == 0.0 < said["two_minibatches_kl"]  # later mini-batches are off policy, measured against old log-probs
    assert said["updates"] == 3
    assert said["no_signal_loss"] == 0.0  # no rollout has an advantage: a step all the same
    assert sorted(said["who has it"]) == [False, True]  # witness: one rank alone computes the NaN
    assert said["skipped"] == [1.0, 1.0] and said["unchanged"] == [True, True]  # both ranks
    assert said["finite_step_resets"] and said["updates_after"] == 4
    # Tokens for which the sampler said NaN are trained on and counted, and the mismatch leaves them out.
    without = said["without_logprob"]
    assert without["optim/skipped"] == 0.0 and without["mismatch/not_finite"] == said["expected_without"] > 3
    assert all(math.isfinite(value) for value in without.values()) and without["optim/grad_norm"] > 0.0
    assert all("not finite 3 optimizer steps in a row" in message for message in said["stopped"])
