"""The exported policy is the trained policy: plain transformers and a fresh vLLM give the trainer's log-probabilities."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import fixed_samples
from transformers import AutoModelForCausalLM, AutoTokenizer

from soundrl.engine.files.model_folder import end_tokens
from soundrl.engine.samplers.shared_memory import MEMORY

KINDS = ("opt", "qwen3")


@pytest.fixture(scope="module")
def exported(torchrun_once, tmp_path_factory) -> tuple[Path, dict[str, list[float]]]:
    """One process group trains, exports and reads; the engine that reads is a fresh one."""
    root = tmp_path_factory.mktemp("exports")
    for kind in KINDS:
        (root / kind).mkdir()
    # What another run of two ranks has on this machine, or one that was killed has left: vLLM's own name is the same for all.
    others = [file for rank in range(2) if not (file := MEMORY / f"-tp:0-[0-1]-cpushm_{rank}").exists()]
    for file in others:
        file.touch()
    try:
        return root, torchrun_once("export", 2, root=str(root), train=KINDS, read="qwen3")
    finally:
        for file in others:
            file.unlink()


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


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_says_what_its_folder_said_and_so_does_the_next(exported, kind):
    """End tokens, sampling defaults, cache, fields that nobody here knows: a chain of exports is a fixpoint."""
    root, _ = exported
    start, target, again = (root / kind / name for name in ("start", "policy", "again"))
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (start, target))
    assert after == {k: v for k, v in before.items() if k != "torch_dtype"} | {"dtype": "float32"}
    assert after["house_rule"] == {"kept": [1, 2]}
    names = {file.name for file in start.iterdir()}
    assert "chat_template.jinja" in names and {file.name for file in target.iterdir()} == {file.name for file in again.iterdir()} == names
    for name in names - {"config.json", "model.safetensors"}:
        assert (target / name).read_bytes() == (start / name).read_bytes(), name
    for name in names:
        assert (again / name).read_bytes() == (target / name).read_bytes(), name
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert end_tokens(target, tokenizer) == end_tokens(start, tokenizer) and {7, 18} <= set(end_tokens(target, tokenizer))
    model = AutoModelForCausalLM.from_pretrained(target)
    assert model.config.use_cache and model.generation_config.use_cache is not False and model.generation_config.top_k == 20
    widths, forward = [], model.forward
    model.forward = lambda *a, **k: (widths.append(k["input_ids"].shape[1]), forward(*a, **k))[1]
    model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert widths == [3, 1, 1, 1, 1, 1]  # with its cache


def test_a_fresh_vllm_reads_the_export(exported):
    """On one kind, whose head is tied as the other's is."""
    read, synced = exported[1]["read"]["gates"]
    print(f"vLLM with tensor parallel 2 on the export, mean exp|Δ log-prob| {read:.6f}, after a sync {synced:.6f}")
    assert 1.0 <= read <= 1.05 and 1.0 <= synced <= 1.05


def test_ranks_of_an_engine_share_memory_that_has_no_name(exported):
    """So that nothing stays of a run that is killed, and no other one meets it."""
    shared = exported[1]["read"]["shared"]
    assert len(shared) == 2 and all("/soundrl-" in name and name.endswith(" (deleted)") for name in shared)  # each rank's
    assert not {name.removesuffix(" (deleted)") for name in shared} & set(map(str, MEMORY.iterdir()))
