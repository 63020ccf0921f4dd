"""The weight sync against real vLLM: healthy syncs pass, each seeded fault is caught and named."""

import re

import pytest


def gap(message: str) -> float:
    found = re.search(r"log-prob\| is ([\d.]+) over 256 tokens", message)
    assert found, message
    return float(found[1])


def test_every_seeded_fault_is_caught_and_named(torchrun, tmp_path):
    said = torchrun("sync_faults", 1, folder=str(tmp_path / "tiny"))
    # Inverse: the same steps without a fault pass, before and after each one.
    for healthy in ("start", "processed_logprobs", "healthy", "after_never_sent", "recovered"):
        assert said[healthy].startswith("passed 1.00"), (healthy, said[healthy])
    faults = {
        "raw_logprobs": r"it must be started with logprobs_mode='processed_logprobs'",
        "never_sent": r"1 of \d+ tensors were never sent; the first is model\.layers\.1\.self_attn\.v_proj\.weight",
        "not_taken": r"Sending model\.layers\.1\.mlp again closed the gap: .* first tensor is model\.layers\.1\.mlp\.gate_proj\.weight",
        "old_tied_head": r"ties lm_head to the embedding: the sampler keeps an old copy of lm_head\.weight",
        "stale_prefix_cache": r"After a reset of the prefix cache the two agree",
    }
    for fault, expected in faults.items():
        assert gap(said[fault]) > 1.05, (fault, said[fault])
        assert re.search(expected, said[fault]), (fault, said[fault])

    # Rollouts of this engine depend on their own seed alone, and say how they ended.
    rollouts = said["rollouts"]
    assert rollouts["together"] == rollouts["reversed"] == rollouts["alone"]
    assert len({tuple(row[2]) for row in rollouts["together"]}) == 6  # witness: six different samples
    for _, _, tokens, finish_reason, version, logprobs in rollouts["together"]:
        assert len(tokens) == logprobs and version == rollouts["version"]
        assert (finish_reason == "stop") == (tokens[-1] in rollouts["end"])
        assert finish_reason == "stop" or len(tokens) == 24


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            [
                "model.embed_tokens.weight",
                "model.layers.0.self_attn.q_proj.weight",
                "model.layers.0.self_attn.o_proj.weight",
                "model.norm.weight",
            ],
            ["model.embed_tokens", "model.layers.0.self_attn", "model.norm"],
        ),
        (["model.decoder.layers.11.fc1.bias", "lm_head.weight"], ["model.decoder.layers.11.fc1", "lm_head"]),
    ],
)
def test_blocks(names, expected):
    from soundrl.engine.sync_doctor import blocks

    assert [block for block, _ in blocks(names)] == expected
    assert sorted(m for _, members in blocks(names) for m in members) == sorted(names)
