"""The memory plan against a measured training step, against hand-counted figures, and as the command line shows it."""

import sys
from dataclasses import replace

import pytest
import torch
from conftest import start
from tiny import write_tiny
from transformers import AutoConfig, AutoModelForCausalLM

from soundrl.engine.config import Config, Loss
from soundrl.engine.launch.launch import UserError, plan_arguments
from soundrl.engine.planning.command import planned
from soundrl.engine.planning.parts import CONTEXT, GIB, trainer_state, trainer_work
from soundrl.engine.planning.plan import judge_needs, memory_plan
from soundrl.engine.planning.shapes import shapes
from soundrl.engine.recipes import RECIPES, fapo_7b
from soundrl.genrm.serve.machine import MARGIN, cached_bytes, held_length
from soundrl.kernels.head_chunks import USUAL, bytes_per_logit, head_memory

QWEN_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
}


STEPS: dict[str, dict] = {
    "dense": {"kind": "opt"},
    "recomputed": {"kind": "opt", "save_memory": ["recompute"]},
    "adapters": {"kind": "qwen3", "lora": [4, 8.0, ""]},
    "mixture": {"kind": "qwen3_moe"},
    "mixture, recomputed": {"kind": "qwen3_moe", "save_memory": ["recompute"]},
    "two ranks": {"kind": "qwen3", "ranks": 2},
}


def test_the_plan_of_a_training_step_is_what_it_takes(torchrun, tmp_path):
    """Of what a step adds to what is held: activations, gradients, gathered weights."""
    folders = {kind: str(write_tiny(tmp_path / kind, kind)) for kind in {case["kind"] for case in STEPS.values()}}
    cases = [case | {"folder": folders[case["kind"]], "tokens": 8192} for case in STEPS.values()]
    said = dict(zip(STEPS, torchrun("memory", 1, cases=cases), strict=True))
    for name, ranks in said.items():
        for case in ranks:
            print(name, {key: round(value / 2**20, 1) for key, value in case.items() if isinstance(value, float)}, case["parts"])
    for name, ranks in said.items():
        for case in ranks:
            assert case["planned work"] == pytest.approx(case["work"], rel=0.15), name
    for more, less in (("dense", "recomputed"), ("mixture", "mixture, recomputed")):  # witness: recomputation is in both figures
        for figure in ("work", "planned work"):
            assert said[less][0][figure] < 0.7 * said[more][0][figure]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen-7b")
    AutoConfig.for_model("qwen2", **QWEN_7B, tie_word_embeddings=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def of(qwen):
    assert not list(qwen.glob("*.safetensors"))
    return shapes(qwen, torch.bfloat16)


def test_a_7b_plan_from_its_config_alone(of):
    assert (of.parameters, of.layers, of.largest) == (7_615_616_512, 28, 152064 * 3584)  # as published
    assert of.cached == 2 * 28 * 4 * 128
    state = trainer_state(of, 2, 32)
    assert state["master weights, float32"] + state["gradients, float32"] + state["AdamW moments, float32"] == of.parameters * 16 / 32
    # A token of a layer: 8 tensors of H in bf16 (two of them also in float32), q and out, k and v, 4 of the MLP's width.
    by_hand = 28 * (2 * 6 * 3584 + 2 * 4 * 3584 + 2 * 2 * 3584 + 2 * 2 * 512 + 2 * 4 * 18944)
    assert of.saved == pytest.approx(by_hand, rel=0.15)
    plan = memory_plan(fapo_7b(), of, 32, 80 * GIB, "cuda")
    plan.check()
    assert list(plan.peaks) == ["sampling", "training", "syncing", "gate"] and plan.worst[0] == "gate" and plan.sequences > 20
    gathered = 2 * (2 * of.layer + of.parameters - 28 * of.layer)
    assert plan.peaks["gate"] - plan.peaks["sampling"] == gathered + plan.parts["gate: its own forward pass"]
    # Everything that training holds at once; the weights that are gathered had been left out.
    held = sum(size for name, size in plan.parts.items() if name in (*state, "context", "NCCL's buffers", "activations between layers"))
    head, back = (plan.parts[name] for name in ("head: chunk of logits, gradient of its weight", "activations and gradients of one layer"))
    assert plan.peaks["training"] == pytest.approx(held + max(head, back)) and head != back
    with pytest.raises(ValueError, match="needs .* GiB while the gate compares, but there are 80.0; use more GPUs"):
        memory_plan(fapo_7b(), of, 2, 80 * GIB, "cuda").check()
    kept, away = (replace(fapo_7b(), loss=Loss(kl=(0.01, "k3", place))) for place in ("sharded", "cpu"))
    for config, name, more in ((kept, "reference", of.parameters * 2 / 32), (away, "reference, on the host", 0.0)):
        other = memory_plan(config, of, 32, 80 * GIB, "cuda")
        assert other.parts[name] == of.parameters * 2 / 32  # in the type that it computes in
        assert {phase: peak - plan.peaks[phase] for phase, peak in other.peaks.items()} == pytest.approx(dict.fromkeys(plan.peaks, more))
    with pytest.raises(ValueError, match="rollout.memory leaves vLLM 0.0 GiB of KV cache"):
        memory_plan(fapo_7b(), of, 32, 24 * GIB, "cuda").check()


def served(overlap: bool = True, workers: int = 1) -> Config:
    """A 7B run with its judge on the same GPUs."""
    recipe = fapo_7b()
    judge = replace(recipe.genrm, judge="serve", workers=(workers, 1))
    return replace(recipe, rollout=replace(recipe.rollout, memory=0.4), genrm=judge, run=replace(recipe.run, overlap=overlap))


def test_the_plan_chooses_how_a_served_judge_lives(of):
    awake, serial, neither = (memory_plan(served(), of, 2, gib * GIB, "cuda") for gib in (288, 96, 64))
    awake.check()
    assert not awake.serial and awake.judging.startswith("awake throughout") and "judging" not in awake.peaks
    assert awake.peaks["training"] > 0.4 * 288 * GIB  # the judge's share among it
    serial.check()
    assert serial.serial and serial.judging.startswith("serial phase (both need ") and "but there are 96.0)" in serial.table()
    assert list(serial.peaks) == ["sampling", "judging", "training", "syncing", "gate"]
    # Asleep it holds its context, and nobody else is there while it judges: nothing but the trainer's own state.
    without = memory_plan(replace(served(), genrm=fapo_7b().genrm), of, 2, 96 * GIB, "cuda")
    for name in without.peaks:
        assert serial.peaks[name] == without.peaks[name] + CONTEXT["cuda"]
    state = serial.parts["master weights, float32"] + serial.parts["AdamW moments, float32"]
    assert serial.peaks["judging"] == CONTEXT["cuda"] + serial.parts["NCCL's buffers"] + state + 0.4 * 96 * GIB
    with pytest.raises(
        ValueError, match="needs .* GiB while the gate compares, though judge and policy take turns, but there are 64.0; use more GPUs"
    ):
        neither.check()
    # Whoever wants no overlap gets the phase, however much there is; on CPU nothing sleeps.
    chosen = memory_plan(served(overlap=False), of, 2, 288 * GIB, "cuda")
    assert chosen.serial and chosen.judging.startswith("serial phase (run.overlap is off)")
    assert not memory_plan(served(overlap=False), of, 2, 288 * GIB, "cpu").serial


def test_judges_take_no_more_gpus_than_a_machine_has(of):
    for workers, parallel in ((1, 1), (4, 1), (1, 4), (2, 2)):
        plan = memory_plan(judged(workers, parallel), of, 16, 200 * GIB, "cuda", machine=4)
        assert plan.parts["served judges"] == 0.4 * 200 * GIB  # a server's share is of each of its GPUs
    for workers, parallel in ((5, 1), (1, 8), (2, 4)):
        with pytest.raises(ValueError, match=f"genrm.workers {workers} .* take {workers * parallel}, but a machine has 4; set fewer"):
            memory_plan(judged(workers, parallel), of, 16, 200 * GIB, "cuda", machine=4)
        memory_plan(judged(workers, parallel), of, 4, 200 * GIB, "cpu", machine=4)


def judged(workers: int, parallel: int) -> Config:
    config = served(workers=workers)
    return replace(config, genrm=replace(config.genrm, workers=(config.genrm.workers[0], parallel)))


QWEN3_4B = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 262_144,
}


@pytest.fixture(scope="module")
def genrm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3-4b")
    AutoConfig.for_model("qwen3", **QWEN3_4B, tie_word_embeddings=True, dtype="bfloat16").save_pretrained(folder)
    return folder


def with_model(config: Config, folder, parallel: int = 1, max_tokens: int = 16384) -> Config:
    return replace(config, genrm=replace(config.genrm, model=str(folder), workers=(1, parallel), max_tokens=max_tokens))


def test_the_plan_knows_the_judge(of, genrm):
    needs = judge_needs(with_model(served(), genrm), "cuda")
    assert needs.weights == 2 * 4_022_468_096 and needs.cached == 147_456  # as published, and 36 GiB for 262,144 tokens
    assert needs.context == 10_240 + 5_120 + 16_384 + MARGIN
    halved = judge_needs(with_model(served(), genrm, 2), "cuda")
    assert (halved.weights, halved.cached, halved.context) == (needs.weights / 2, needs.cached / 2, needs.context)
    assert judge_needs(with_model(served(), genrm, 16), "cuda").cached == needs.cached / 8  # a KV head is not divided
    plan = memory_plan(served(), of, 8, 80 * GIB, "cuda", judge=needs)
    plan.check()
    cache = 0.4 * 80 * GIB - needs.weights - needs.work
    assert plan.parts["  of which KV cache"] == cache and plan.critiques == cache / (147_456 * needs.context) > 3
    assert f"prompts and critiques of {needs.context} tokens at once" in plan.table()
    tight = replace(served(), rollout=replace(served().rollout, memory=0.13))
    with pytest.raises(ValueError, match="leaves the judge 2.1 GiB of KV cache, 0.48 of a prompt and critique of 32768 tokens; raise"):
        memory_plan(tight, of, 8, 128 * GIB, "cuda", judge=replace(needs, work=7 * GIB)).check()
    for wrong, words in (
        (5, "does not divide the 32 attention heads"),
        (1, "genrm.model takes 262144 tokens, but .* lower genrm.max_tokens"),
    ):
        with pytest.raises(ValueError, match=words):
            judge_needs(with_model(served(), genrm, wrong, 16384 if wrong > 1 else 300_000), "cuda")
    assert judge_needs(with_model(served(), genrm / "none"), "cuda") is None
    assert (
        "genrm.model has no config.json here, so what it holds itself is not planned"
        in memory_plan(served(), of, 8, 288 * GIB, "cuda").table()
    )


def test_on_a_cpu_the_judge_has_weights_of_its_own(of, genrm):
    needs = judge_needs(with_model(served(workers=2), genrm), "cpu")
    plan = memory_plan(served(workers=2), of, 2, 512 * GIB, "cpu", judge=needs)
    without = memory_plan(replace(served(), genrm=fapo_7b().genrm), of, 2, 512 * GIB, "cpu")
    for phase in plan.peaks:
        assert plan.peaks[phase] - without.peaks[phase] == pytest.approx(needs.weights + 0.4 * GIB)
    assert plan.critiques == 0.4 * GIB / (needs.cached * needs.context)


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama", "opt"])
def test_what_a_token_takes_is_what_a_model_keeps(tmp_path, kind):
    """Of a real model: the KV cache that it fills, its weights on the disk, and the length that both leave room for."""
    folder = write_tiny(tmp_path / kind, kind)
    model = AutoModelForCausalLM.from_pretrained(folder)
    kept = model(torch.arange(1, 8)[None], use_cache=True).past_key_values
    elements = sum(layer.keys.numel() + layer.values.numel() for layer in kept.layers) / 7
    assert cached_bytes(folder, 4) == 4 * elements == 4 * shapes(folder, torch.float32).cached
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) == pytest.approx(
        4 * sum(p.numel() for p in model.parameters()), rel=0.05
    )
    assert held_length(folder, 1 / 64, "float32", []) == (2**24 // int(4 * elements) // 128 - 1) * 128


def test_the_share_of_a_gpu_is_below_one(of):
    """Every recipe starts on a GPU as on a CPU, where the share is GiB and may be any number."""
    for recipe in RECIPES.values():
        recipe().check_memory("cuda")
    for memory in (1.0, 1.5, 4.0):
        config = replace(fapo_7b(), rollout=replace(fapo_7b().rollout, memory=memory))
        config.check_memory("cpu")
        for ask in (lambda: config.engines(8, "cuda"), lambda: memory_plan(config, of, 8, 80 * GIB, "cuda")):  # noqa: B023
            with pytest.raises(ValueError, match=f"rollout.memory {memory} is a share on a GPU, .* set e.g. --rollout.memory 0.4"):
                ask()


def test_a_plan_checks_the_sizes_of_the_run(qwen):
    """As the run itself does at its start, on as many ranks."""
    config = replace(fapo_7b(), model=replace(fapo_7b().model, path=str(qwen)), rollout=replace(fapo_7b().rollout, tensor_parallel=4))
    assert config.engines(8, "cuda") == 2
    for ask in (lambda: config.engines(30, "cuda"), lambda: planned(config, 30, 80.0)):
        with pytest.raises(ValueError, match="rollout.tensor_parallel 4 does not divide the 30 ranks; start a multiple of it"):
            ask()


def test_the_head_is_planned_as_it_says_itself(of):
    """tests/kernels/test_linear_policy_loss.py counts what it really takes."""
    work = trainer_work(of, 2, 10240, recomputed=True, on_gpu=False)["head: chunk of logits, gradient of its weight"]
    assert work == head_memory(10240, of.hidden, of.vocabulary, 2, True, USUAL, False).peak
    assert work > 4 * of.vocabulary * of.hidden + 2 * 10240 * of.hidden
    assert bytes_per_logit(2, True) == 6 and bytes_per_logit(4, True) == bytes_per_logit(4, False) == 4


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
