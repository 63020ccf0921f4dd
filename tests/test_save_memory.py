"""Offload, moments on the host and replicas compute what the plain path does, and read each other's checkpoints (real gloo ranks, real
FSDP2; tests/workers/save_memory.py)."""

import json

import pytest
import torch
from conftest import ROOT
from safetensors import safe_open
from tiny import write_tiny

from soundrl.engine.conflicts import WAYS
from soundrl.engine.files.run_reader import RunReader
from soundrl.engine.ranks import Ranks, shards_of
from soundrl.engine.recipes import arith
from soundrl.engine.tools.trace import read_trace


@pytest.fixture(scope="module")
def said(torchrun_once, tmp_path_factory) -> dict:
    root = tmp_path_factory.mktemp("save-memory")
    write_tiny(root / "model", "qwen3")
    found = torchrun_once("save_memory", 4, root=str(root))
    return found | {"root": root}


def difference(said: dict, one: str, other: str) -> tuple[float, float]:
    """Of weights, and the larger one of moments, as norm of the difference by norm."""
    a, b = (torch.load(said["root"] / f"{name}.pt", weights_only=True) for name in (one, other))
    assert a.keys() == b.keys()
    found = []
    for kind in ("model.", "exp_avg ", "exp_avg_sq "):
        x, y = (torch.cat([s[k].double().flatten() for k in s if k.startswith(kind)]) for s in (a, b))
        found.append(float((x - y).norm() / y.norm()))
    assert all(torch.equal(a[k], b[k]) for k in a if k.startswith("step "))
    return found[0], max(found[1:])


def test_offload_and_streamed_moments_change_no_bit(said):
    plain = said["one"]
    for ways in ("offload", "moments", "offload moments"):
        assert said[f"one {ways}"] == plain, ways  # every gradient's norm, and all weights, moments and steps
    assert all(norm > 0.5 for norm in plain[0])  # witness: gradients were clipped
    assert said["blocks"] > 10 and said["blocks"] != said["parameters"]  # witness: places were used again, parameters cut and joined
    # Replicas with all three equal replicas with none; that was saved in the middle, too.
    assert said["replicas that save memory"] == said["replicas"] != said["written by replicas"]


def test_what_sleeps_is_on_the_host_and_still_computes(said):
    assert said["bytes asleep"] == 0 < said["bytes awake"]
    assert said["asleep computes the same"] and said["from the host"]


def test_replicas_compute_what_one_rank_does(said):
    for other in ("one", "four"):
        weights, moments = difference(said, "replicas", other)
        assert weights <= 1e-6 and moments <= 1e-5  # in moments the order of sums shows more: of four ranks without replicas, too
    for norms in (said["one"][0], said["four norms"]):
        assert said["replicas norms"] == pytest.approx(norms, rel=1e-5)  # of all, once
    updates = 2 * len(said["replicas norms"])
    assert said["counted"]["sums"] == 3 * updates < 3 * said["counted"]["micro-batches"] / 2  # two layers and the rest, once an update
    first, second = said["own"][:2], said["own"][2:]
    assert first == second and first[0] != first[1]  # two copies, bit for bit, of two parts
    for rows, whole in zip(said["rows"], said["whole"], strict=True):
        assert rows[:2] == rows[2:] and sum(rows[:2]) == whole
    # Inverse: the measure tells another run.
    assert min(difference(said, "gone on without", "replicas")) > 1e-3


def test_any_way_and_number_reads_what_any_wrote(said):
    """Written by 2 × 2 ranks asleep, read by 3 with moments on the host, and by one; written by the 3, read by one."""
    assert said["asleep when it was written"]
    assert said["read by three"] == said["read from replicas"] == said["written by replicas"]
    assert said["read by one"] == said["written by three"] != said["written by replicas"]
    files = sorted(path.name for path in (said["root"] / "a" / "step-000002").glob("*.safetensors"))
    assert files == [f"{part}-0000{n}-of-00002.safetensors" for part in ("moments", "weights") for n in (0, 1)]  # each row once
    assert json.loads((said["root"] / "a" / "step-000002" / "manifest.json").read_bytes())["files"].keys() >= set(files)
    assert difference(said, "gone on", "replicas")[0] <= 1e-6


def test_a_gradient_that_is_not_finite_moves_nothing_on_the_host(said):
    assert said["skipped"] == 1.0 and said["unmoved"] and said["moved"]


@pytest.mark.parametrize("rows", (1, 5, 18, 64))
def test_rows_of_replicas(rows):
    """As `torch.chunk`, which FSDP2 uses, cuts them within each replica."""
    for size, replicas in ((8, 1), (8, 2), (8, 8), (6, 2)):
        shards = shards_of(size, replicas)
        parts = [len(part) for part in torch.arange(rows).chunk(shards)]
        starts = [sum(parts[:i]) for i in range(len(parts))] + [rows] * (shards - len(parts))
        of = [Ranks(rank, size, torch.device("cpu"), None, replicas) for rank in range(size)]  # type: ignore[arg-type]
        assert [ranks.first_row(rows) for ranks in of] == starts * replicas
        assert [ranks.first_copy for ranks in of] == [True] * shards + [False] * (size - shards)


def test_settings_that_cannot_be():
    from dataclasses import replace

    config = arith()
    for model, message in (
        ({"replicas": 0}, "model.replicas is 0, but must be > 0"),
        ({"save_memory": ("offload", "offload")}, "model.save_memory names offload twice; name any of recompute, offload, moments, each"),
        ({"save_memory": ("swap",)}, "model.save_memory names swap which is no way; name any of recompute, offload, moments, each once"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(config, model=replace(config.model, **model))
    assert replace(config, model=replace(config.model, save_memory=WAYS)).model.save_memory == WAYS
    three = replace(config, model=replace(config.model, replicas=3))
    assert three.engines(6, "cpu") == 6
    with pytest.raises(ValueError, match="model.replicas 3 does not divide the 4 ranks; start a multiple of it, or set --model.replicas 1"):
        three.engines(4, "cpu")


def test_a_run_through_vllm_with_all_of_it(forked_train, tmp_path):
    """Two replicas of one rank each, everything on the host that can be."""
    small = ("--model.path", "starts/policy", "--warm-start.steps", 0, "--run.steps", 2, "--data.test", "--run.folder", tmp_path)
    small += ("--rollout.prompts", 8, "--optim.minibatch-prompts", 4)
    statuses, said = forked_train("arith", *small, "--model.replicas", 2, "--model.save-memory", *WAYS, ranks=2)
    assert statuses == [0, 0], said[-6000:]
    folder = tmp_path / "arith"
    steps = [row for row in RunReader(folder).metrics() if "loss/policy" in row]
    assert len(steps) == 2 and all(1.0 <= row["mismatch/gate"] <= 1.05 and row["optim/grad_norm"] > 0 for row in steps)
    events = [event["name"] for event in read_trace(folder / "trace.json") if event.get("name") in ("to the host", "from the host")]
    # Witness, on each rank: asleep as the sampler starts and in each step's sync, awake in each step's training.
    assert events.count("to the host") == 2 * 3 and events.count("from the host") == 2 * 2
    files = {path.name for path in (folder / "checkpoints" / "step-000002").glob("*.safetensors")}
    assert files == {"weights-00000-of-00001.safetensors", "moments-00000-of-00001.safetensors"}
    with safe_open(folder / "policy" / "step-000002" / "model.safetensors", "pt") as after:
        with safe_open(ROOT / "starts" / "policy" / "model.safetensors", "pt") as before:
            moved = [not torch.equal(after.get_tensor(name), before.get_tensor(name)) for name in after.keys()]
    assert all(moved)
