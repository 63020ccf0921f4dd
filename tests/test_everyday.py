"""Operations by formula, rates, peaks by phase, and what a step's profile leaves: against hand-made and independent counts."""

import gzip
import json

import pytest
import torch
from conftest import Alone
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from soundrl.engine.launch.launch import UserError, profile_argument
from soundrl.engine.memory.memory_watch import MemoryWatch, resident
from soundrl.engine.packing import Sample
from soundrl.engine.phases import PEAKS, peak_phase
from soundrl.engine.telemetry.flops import Cost, Work, active_parameters, peak_of
from soundrl.engine.telemetry.profiler import heaviest, self_times
from soundrl.engine.telemetry.timeline import MEMORY, Timeline

SIZES = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32)


@pytest.mark.parametrize("tied", [True, False])
def test_the_formula_counts_what_torch_counts(tied):
    config = AutoConfig.for_model("qwen3", vocab_size=50, tie_word_embeddings=tied, **SIZES)
    model, ids = AutoModelForCausalLM.from_config(config, attn_implementation="eager"), torch.zeros(1, 24, dtype=torch.int64)
    cost = Cost(active_parameters(model, config), 2 * 4 * 32)
    with FlopCounterMode(display=False) as counter:
        out = model(input_ids=ids, use_cache=False).logits
    norms = 2 * (2 * 64 + 2 * 32) + 64  # no products
    # torch counts the whole square of attention, of which causal rows need half.
    assert counter.get_total_flops() == cost.forward([24]) + 2 * cost.attended * 24**2 - 2 * norms * 24
    with FlopCounterMode(display=False) as both:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    assert both.get_total_flops() == 3 * counter.get_total_flops() and out.shape == (1, 24, 50)
    assert cost.train([24, 24]) == 6 * cost.forward([24])


def test_sampling_and_adapters():
    cost = Cost(100, 8)
    assert cost.forward([10]) == 3600 and cost.forward([5, 5]) == 2 * (1000 + 400)
    two = [Sample(prompt_tokens=(1,) * 4, tokens=(2,) * 6), Sample(prompt_tokens=(1,) * 4, tokens=(2,) * 2)]
    # The prompt once; then 6 and 2 tokens, each against all before it.
    assert cost.sample([two, []]) == cost.forward([4]) + 2 * 100 * 8 + 2 * 8 * (10**2 - 4**2 + 6**2 - 4**2)
    assert Cost(100, 8, adapted=10).train([10]) == 2 * (2 * 110 * 10 + 2 * 8 * 100) + 2 * 10 * 10


def test_rates_are_of_the_slowest_rank():
    work = Work(Cost(100, 8))
    samples = [Sample(prompt_tokens=(1,) * 4, tokens=(2,) * 6)] * 3
    work.begin(samples, [range(3)])
    work.train(samples[:2])
    seconds = {"time/step": 3.0, "time/step_max": 4.0, "time/generate": 1.0, "time/generate_max": 2.0, "time/train": 1.0}
    rates = work.rates(seconds, 2, 1000.0)
    assert (rates["speed/generated"], rates["speed/tokens"], rates["speed/samples"], rates["speed/trained"]) == (9.0, 4.5, 0.75, 20.0)
    assert rates["speed/tflops_train"] == work.cost.train([10, 10]) / 1.0 / 2 / 1e12
    assert rates["speed/mfu_train"] == rates["speed/tflops_train"] * 1e12 / 1000.0
    assert rates["speed/tflops"] == pytest.approx((work.sampled + work.trained) / 4.0 / 2 / 1e12)
    assert not any("mfu" in name for name in work.rates(seconds, 2, 0.0))  # no peak is known
    assert "speed/trained" not in work.rates({"time/step": 1.0}, 1, 0.0)
    work.begin(samples, [range(3)])
    assert work.trained == 0.0 == peak_of(torch.device("cpu"), "bfloat16")


def test_gpus_are_known_by_their_names(monkeypatch):
    for name, peak in {
        "NVIDIA H100 80GB HBM3": 989,
        "NVIDIA H100 PCIe": 756,
        "NVIDIA A100-SXM4-80GB": 312,
        "NVIDIA H200": 989,
        "GPU": 0,
    }.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_of(torch.device("cuda"), "bfloat16") == peak * 1e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert peak_of(torch.device("cuda"), "float32") == 67e12


class Two(Alone):
    """This rank and one that took twice as long and held twice as much."""

    def gather(self, value):
        return [value, {name: 2 * number for name, number in value.items()}]


def test_the_slowest_rank_stands_beside_the_mean():
    phases = Timeline()
    with phases("step"):
        pass
    MEMORY.peaks = {"training": 10.0}
    alone = phases.step["step"]
    assert phases.over_ranks(Two()) == {
        "time/step": pytest.approx(1.5 * alone),
        "time/step_max": 2 * alone,
        "memory/training_mib": 20.0,
    }
    with phases("step"):
        pass
    assert phases.over_ranks(Alone()).keys() == {"time/step"}  # one rank is its own slowest


def test_a_peak_is_that_of_its_phase():
    assert [
        peak_phase(names) for names in (["step", "train", "judge_wait"], ["step", "sync", "gate"], ["step"], ["evaluate", "generate"])
    ] == [
        *("training", "gate", "", "sampling"),
    ]
    watch = MemoryWatch()
    watch.turn(["step", "generate"])
    if not watch.forgets:
        pytest.skip("/proc/self/clear_refs cannot be written here")
    before = resident("VmRSS")
    watch.turn(["step"])
    watch.turn(["step", "train"])
    held = bytearray(b"1" * (200 << 20))  # comes and goes within the phase
    del held
    watch.turn(["step"])
    watch.turn(["step", "sync"])
    watch.turn(["step", "sync", "gate"])
    watch.turn(["step"])
    said = watch.take()
    assert (
        said.keys()
        == {f"memory/{phase}_mib" for phase in ("sampling", "training", "syncing", "gate")}
        <= {f"memory/{p}_mib" for p in PEAKS}
    )
    assert said["memory/training_mib"] > before + 190
    for phase in ("sampling", "syncing", "gate"):
        assert said[f"memory/{phase}_mib"] < before + 100
    assert watch.take() == {} and watch.process()["memory/peak_rss_mib"] >= said["memory/training_mib"]


def test_where_the_kernel_may_not_forget_the_size_at_the_end_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("soundrl.engine.memory.memory_watch.CLEAR", tmp_path / "none" / "clear_refs")
    watch = MemoryWatch()
    watch.turn(["train"])
    held = bytearray(b"1" * (100 << 20))
    del held
    watch.turn([])
    assert not watch.forgets and watch.take()["memory/training_mib"] == pytest.approx(resident("VmRSS"), abs=50)


def test_the_step_to_profile_is_taken_out_of_the_command_line():
    assert profile_argument(["arith", "--profile", "12", "--run.steps", "20"]) == (12, ["arith", "--run.steps", "20"])
    assert profile_argument(["arith"]) == (0, ["arith"])
    for wrong, words in ((["--profile", "0"], "--profile 0 is no step of a run"), (["--profile", "x"], "invalid int value: 'x'")):
        with pytest.raises(UserError, match=words):
            profile_argument(wrong)


def test_the_heaviest_operators_come_from_the_trace(tmp_path):
    events = [
        {"name": "a", "cat": "cpu_op", "tid": 1, "ts": 0, "dur": 10},
        {"name": "b", "cat": "cpu_op", "tid": 1, "ts": 2, "dur": 3},
        {"name": "c", "cat": "cpu_op", "tid": 1, "ts": 2.5, "dur": 1},
        {"name": "b", "cat": "cpu_op", "tid": 2, "ts": 4, "dur": 5},  # on a thread of its own: within nothing
        {"name": "b", "cat": "cpu_op", "tid": 1, "ts": 10, "dur": 1},  # after it
    ]
    assert self_times(events) == {"a": 7, "b": 2 + 5 + 1, "c": 1}
    with gzip.open(tmp_path / "trace.json.gz", "wt") as file:
        json.dump({"traceEvents": [*events, {"name": "other", "cat": "kernel", "tid": 7, "ts": 0, "dur": 99}]}, file)
    head, first, *_ = heaviest(tmp_path / "trace.json.gz", on_gpu=False).splitlines()
    assert "operator" in head and first.split() == ["b", "3", "0.0", "50.0%"]
    assert "other" in heaviest(tmp_path / "trace.json.gz", on_gpu=True).splitlines()[1]
