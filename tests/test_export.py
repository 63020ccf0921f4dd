"""The exported policy is the trained policy: plain transformers and a fresh vLLM give the trainer's log-probabilities."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import fixed_samples
from transformers import AutoModelForCausalLM, AutoTokenizer

KINDS = ("opt", "qwen3")


@pytest.fixture(scope="module")
def exported(torchrun_once, tmp_path_factory) -> tuple[Path, dict[str, list[float]]]:
    root = tmp_path_factory.mktemp("exports")
    for kind in KINDS:
        (root / kind).mkdir()
    return root, torchrun_once("export", 2, root=str(root), train=KINDS, read=())


@pytest.mark.parametrize("kind", KINDS)
def test_export_after_updates_on_two_ranks(exported, kind):
    root, trained = exported
    target = root / kind / "policy"
    assert (target / "model.safetensors").is_file() and not list(target.parent.glob("*.part"))
    start, end = load_file(target.with_name("start") / "model.safetensors"), load_file(target / "model.safetensors")
    # Witness: every tensor was trained, save the key biases, which softmax cancels.
    assert min((end[k] - start[k]).abs().max().item() for k in start if not k.endswith("k_proj.bias")) > 1e-4

    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    values = []
    for s in fixed_samples():
        log_p = torch.log_softmax(model(torch.tensor([[*s.prompt_tokens, *s.tokens]])).logits[0].float(), -1)
        first = len(s.prompt_tokens) - 1
        values += [log_p[first + j, token].item() for j, token in enumerate(s.tokens)]
    assert (torch.tensor(values) - torch.tensor(trained[kind])).abs().mean().item() <= 1e-5
    assert AutoTokenizer.from_pretrained(target)("71+2?1\n")["input_ids"] == [7, 1, 10, 2, 14, 1, 16]


def test_a_fresh_vllm_reads_the_export(exported, torchrun):
    """On one kind, whose head is tied as the other's is."""
    root, _ = exported
    read, synced = torchrun("export", 2, root=str(root), train=(), read=("qwen3",))["qwen3"]
    print(f"vLLM with tensor parallel 2 on the export, mean exp|Δ log-prob| {read:.6f}, after a sync {synced:.6f}")
    assert 1.0 <= read <= 1.05 and 1.0 <= synced <= 1.05
