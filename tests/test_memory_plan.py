"""The memory plan against a measured training step, against hand-counted figures, and as the command line shows it."""

import sys

import pytest
import torch
from conftest import start
from tiny import write_tiny
from transformers import AutoConfig

from soundrl.engine.launch import UserError, plan_arguments
from soundrl.engine.memory_plan import GIB, memory_plan, shapes, trainer_state
from soundrl.engine.recipes import fapo_7b

QWEN_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
}


def test_the_plan_of_a_training_step_is_what_it_takes(torchrun, tmp_path):
    said = torchrun("memory", 1, folder=str(write_tiny(tmp_path / "arith", "opt")), tokens=16384)
    for case in said:
        assert case["planned work"] == pytest.approx(case["work"], rel=0.2), case
    # Witness: recomputation is in both figures.
    assert said[1]["work"] < 0.7 * said[0]["work"] and said[1]["planned work"] < 0.7 * said[0]["planned work"]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen-7b")
    AutoConfig.for_model("qwen2", **QWEN_7B, tie_word_embeddings=False).save_pretrained(folder)
    return folder


def test_a_7b_plan_from_its_config_alone(qwen):
    assert not list(qwen.glob("*.safetensors"))
    of = shapes(qwen, torch.bfloat16, "cuda")
    assert (of.parameters, of.layers, of.largest) == (7_615_616_512, 28, 152064 * 3584)  # as published
    assert of.cached == 2 * 28 * 4 * 128
    state = trainer_state(of, 2, 32)
    assert state["master weights, float32"] + state["gradients, float32"] + state["AdamW moments, float32"] == of.parameters * 16 / 32
    # A token of a layer: 8 tensors of H in bf16 (two of them also in float32), q and out, k and v, 4 of the MLP's width.
    by_hand = 28 * (2 * 6 * 3584 + 2 * 4 * 3584 + 2 * 2 * 3584 + 2 * 2 * 512 + 2 * 4 * 18944)
    assert of.saved == pytest.approx(by_hand, rel=0.15)
    plan = memory_plan(fapo_7b(), of, 32, 80 * GIB, "cuda")
    plan.check()
    assert plan.peaks["sampling"] == max(plan.peaks.values()) and plan.sequences > 20
    with pytest.raises(ValueError, match="needs .* GiB while sampling, but there are 80.0; use more GPUs"):
        memory_plan(fapo_7b(), of, 2, 80 * GIB, "cuda").check()
    with pytest.raises(ValueError, match="rollout.memory leaves vLLM 0.0 GiB of KV cache"):
        memory_plan(fapo_7b(), of, 32, 24 * GIB, "cuda").check()


def test_the_command_prints_it_and_refuses_in_one_line(qwen):
    arguments = ("fapo-7b", "--model.path", str(qwen), "--plan", "--gpus", "1", "--gpu-gib", "24")
    done = start([sys.executable, "engine/train.py", *arguments])
    assert done.returncode == 2 and "peak while training" in done.stdout and "it fits" not in done.stdout
    assert done.stderr.startswith("error: rollout.memory leaves vLLM") and done.stderr.count("\n") == 1, done.stderr
    with pytest.raises(UserError, match="--gpus must be at least 1"):
        plan_arguments(["--plan", "--gpus", "-1"])
    with pytest.raises(UserError, match="invalid int value: 'many'"):
        plan_arguments(["arith", "--plan", "--gpus", "many"])
    assert plan_arguments(["arith", "--run.steps", "3"]) == (None, ["arith", "--run.steps", "3"])
