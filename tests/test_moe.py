"""Mixture of experts on CPU: names of folders, gradients under FSDP2, the load-balance term, the plan's count."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import MIXTURES, fixed_samples, write_tiny
from transformers import AutoModelForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from soundrl.engine.config import Model
from soundrl.engine.files.model_folder import load_tokenizer
from soundrl.engine.files.names import Names
from soundrl.engine.launch.launch import UserError, parse_arguments
from soundrl.engine.policy import Policy
from soundrl.engine.ranks import alone
from soundrl.engine.tools.expert_doctor import at_fault
from soundrl.engine.tools.export import export

KINDS = tuple(MIXTURES)
UNPICKED = 5
"""The expert of layer 0 that no token chooses, in `starved`"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("mixtures")
    return {kind: write_tiny(root / kind, kind, tied=False) for kind in KINDS}


def relative(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    scale = torch.cat([value.flatten() for value in b.values()]).norm()
    return float(torch.cat([(a[k] - b[k]).flatten() for k in a]).norm() / scale)


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_what_transformers_saves(folders, kind):
    """Its table read one way gives the folder that it wrote itself, tensor for tensor, by views; read the other way, the parameters."""
    stored = load_file(folders[kind] / "model.safetensors")
    model, names = AutoModelForCausalLM.from_pretrained(folders[kind], dtype=torch.float32), Names.of_folder(folders[kind])
    parameters = dict(model.named_parameters())
    assert list(names.shapes) == list(parameters) and len(stored) > 2 * len(parameters)  # witness: it stacks
    out = {name: tensor for each, full in parameters.items() for name, tensor in names.out(each, full)}
    assert out.keys() == stored.keys() and all(torch.equal(out[name], stored[name]) for name in out)
    assert {t.untyped_storage().data_ptr() for t in out.values()} == {p.untyped_storage().data_ptr() for p in parameters.values()}
    layouts = names.layouts(list(parameters), torch.float32)
    assert {name: layout.shape for name, layout in layouts.items()} == {name: tuple(t.shape) for name, t in stored.items()}

    # Each of four ranks reads its own rows alone, and together they are the model.
    for name, full in parameters.items():
        rows, parts, read = -(-len(full) // 4), [], 0
        for rank in range(4):
            first = min(rank * rows, len(full))
            own = torch.full_like(full[first : first + rows], torch.nan)
            for place, piece in names.outward[name].items():
                part = stored[place][piece.rows(first, len(own))]
                piece.fill(own, first, part)
                read += part.numel()
            parts.append(own)
        assert torch.equal(torch.cat(parts), full) and read == full.numel()


def test_a_policy_reads_either_form_and_says_what_is_wrong(folders, tmp_path):
    folder = folders["qwen3_moe"]
    stored, names = load_file(folder / "model.safetensors"), Names.of_folder(folder)
    with alone() as ranks:

        def policy(tensors: dict[str, torch.Tensor]) -> Policy:
            save_file(tensors, tmp_path / "model.safetensors")
            return Policy(tmp_path, load_tokenizer(tmp_path), Model(path=str(tmp_path), dtype="float32", max_length=128), ranks)

        for file in folder.iterdir():
            if file.suffix == ".json":
                (tmp_path / file.name).write_bytes(file.read_bytes())
        read = policy(stored)
        assert "8 experts in each of 2 layers, 2 a token" in read.describe()
        whole = {name: p.full_tensor().detach() for name, p in read.model.named_parameters()}
        again = policy(whole)  # as the model holds them
        assert all(torch.equal(p.full_tensor(), whole[name]) for name, p in again.model.named_parameters())
        assert {name: t.shape for name, t in again.named_full_tensors()} == {name: t.shape for name, t in stored.items()}

        one, all_of = "model.layers.1.mlp.experts.3.up_proj.weight", "model.layers.1.mlp.experts.gate_up_proj"
        with pytest.raises(ValueError, match=f"1 tensors missing .first: {one}."):
            policy({name: t for name, t in stored.items() if name != one})
        with pytest.raises(ValueError, match=f"{all_of} is there twice, whole and as"):
            policy(stored | {all_of: whole[all_of]})
        with pytest.raises(ValueError, match=f"{one} has shape .31, 64., config.json says .32, 64."):
            policy(stored | {one: stored[one][:31].contiguous()})
        with pytest.raises(ValueError, match=r"1 tensors unknown .first: model.layers.1.mlp.experts.8.up_proj.weight"):
            policy(stored | {one.replace(".3.", ".8."): stored[one].clone()})
    assert names.missing(set(stored)) == [] == names.missing(set(whole))


def test_a_table_that_is_not_understood_is_refused():
    from transformers.core_model_loading import MergeModulelist, PrefixChange, Transpose, WeightConverter, WeightRenaming

    shapes = {"model.mlp.experts.gate_up_proj": (8, 64, 32), "model.norm.weight": (32,)}

    def names(*table) -> Names:
        return Names("Odd", shapes, table)

    turned = WeightConverter("mlp.experts.*.up.weight", "mlp.experts.gate_up_proj", [MergeModulelist(dim=0), Transpose(1, 2)])
    with pytest.raises(
        ValueError, match=r"table of names for Odd makes model.mlp.experts.gate_up_proj by MergeModulelist.*Transpose.*another"
    ):
        names(turned)
    with pytest.raises(ValueError, match=r"makes model.final.weight of model.norm.weight, and model.norm.weight.extra of that"):
        names(WeightRenaming("final.weight", "norm.weight"), WeightRenaming("norm.weight$", "norm.weight.extra"))
    dropped = names(PrefixChange(prefix_to_remove="language_model", model_prefix="model"))
    assert dropped.wanted("model.norm.weight") and not dropped.wanted("model.other")
    with pytest.raises(ValueError, match=r"model.language_model.norm.weight stands for model.norm.weight in Odd.*save_pretrained"):
        dropped.wanted("model.language_model.norm.weight")


CASES: dict[str, dict] = {
    "whole": {"budget": 100_000},
    "split": {"budget": 128},
    "recomputed": {"budget": 128, "save_memory": ["recompute"]},
    "bf16": {"budget": 128, "dtype": "bfloat16"},
    "balanced": {"budget": 100_000, "balance": 1.0},
    "balanced and split": {"budget": 128, "balance": 1.0, "save_memory": ["recompute"]},
}


@pytest.fixture(scope="module")
def computed(torchrun_once, folders, tmp_path_factory) -> dict:
    """Gradients of fixed rollouts on one rank and on two; `starved` has an expert whose router row points away from all tokens."""
    starved = tmp_path_factory.mktemp("starved") / "qwen3_moe"
    write_tiny(starved, "qwen3_moe", tied=False)
    tensors = load_file(starved / "model.safetensors")
    gate = tensors["model.layers.0.mlp.gate.weight"]
    for expert, factor in {3: -1.1, 6: -1.0, UNPICKED: 0.5, 7: 1.1}.items():  # of row 4: two of the others are larger, whatever its sign
        gate[expert] = factor * gate[4]
    save_file(tensors, starved / "model.safetensors", {"format": "pt"})
    cases = {("qwen3_moe", name): case | {"folder": str(starved)} for name, case in CASES.items()}
    cases["qwen2_moe", "split"] = CASES["split"] | {"folder": str(folders["qwen2_moe"])}
    two = {(kind, f"{name} on two"): case for (kind, name), case in cases.items() if name in ("split", "balanced and split")}
    results: dict = {"folder": starved}
    for ranks, these in ((1, cases), (2, two)):
        results |= dict(zip(these, torchrun_once("gradients", ranks, cases=list(these.values())), strict=True))
    for key, result in results.items():
        if key != "folder":
            result["gradient"] = torch.load(result["file"], weights_only=True)
    return results


def test_any_split_and_two_ranks_give_the_gradient_of_one(computed):
    case = {name: result for (kind, name), result in ((k, v) for k, v in computed.items() if k != "folder") if kind == "qwen3_moe"}
    whole = case["whole"]
    assert whole["batches"] == 1 and case["split"]["batches"] >= 4  # witness: it was really split
    for name in ("split", "split on two"):
        assert case[name]["loss"] == pytest.approx(whole["loss"], rel=1e-6)
        assert relative(case[name]["gradient"], whole["gradient"]) <= 1e-5
    assert relative(case["recomputed"]["gradient"], case["split"]["gradient"]) == 0.0
    assert 1e-4 < relative(case["bf16"]["gradient"], whole["gradient"]) < 0.5
    # The term's fractions are those of the mini-batch: no split changes its gradient, nor what is measured.
    for name in ("balanced and split", "balanced and split on two"):
        assert relative(case[name]["gradient"], case["balanced"]["gradient"]) <= 1e-5
        for figure in ("moe/balance", "moe/busiest"):
            assert case[name][figure] == pytest.approx(case["balanced"][figure], rel=1e-6)
    # Inverse: it is no small part.
    assert relative(case["balanced"]["gradient"], whole["gradient"]) > 0.01
    other = computed["qwen2_moe", "split"]["gradient"], computed["qwen2_moe", "split on two"]["gradient"]
    assert relative(*other) <= 1e-5


def test_an_expert_that_nobody_chooses_has_a_gradient_of_zero(computed):
    """Not None: on every rank, whatever its tokens choose, the collectives are the same."""
    for name in ("whole", "split", "split on two", "bf16"):
        gradient = computed["qwen3_moe", name]["gradient"]
        for part in ("gate_up_proj", "down_proj"):
            sizes = gradient[f"model.layers.0.mlp.experts.{part}"].flatten(1).norm(dim=1)
            assert sizes[UNPICKED] == 0 and sizes[[i for i in range(8) if i != UNPICKED]].min() > 0


def test_the_balance_term_is_that_of_switch_and_of_transformers(computed):
    """L and its gradient by transformers' function, a layer at a time, over all tokens of all samples; loss without it by subtraction."""
    model = AutoModelForCausalLM.from_pretrained(computed["folder"], dtype=torch.float32, attn_implementation="eager")
    rows = fixed_samples()
    out = [model(torch.tensor([[*s.prompt_tokens, *s.tokens]]), output_router_logits=True).router_logits for s in rows]
    layers = [torch.cat([logits[layer] for logits in out]) for layer in range(2)]
    value = sum(load_balancing_loss_func((logits,), 8, 2) for logits in layers) / 2
    value.backward()
    said = computed["qwen3_moe", "balanced"]
    assert said["moe/balance"] == pytest.approx(value.item(), rel=1e-5) and value.item() > 2.0
    counts = [torch.bincount(logits.topk(2).indices.flatten(), minlength=8) for logits in layers]
    assert said["moe/busiest"] == pytest.approx(max((c.max() / c.double().mean()).item() for c in counts), rel=1e-6)
    # The rest of the gradient is that of the loss over all samples, whose advantage is 0 for some: the same as without the term.
    plain, together = computed["qwen3_moe", "whole"]["gradient"], said["gradient"]
    mine = {name: together[name] - plain[name] for name in plain}
    theirs = {name: (torch.zeros_like(p) if p.grad is None else p.grad).double() for name, p in model.named_parameters()}
    assert relative(mine, theirs) <= 1e-4


@pytest.mark.parametrize("weight", ["-0.1", "nan", "inf"])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(UserError, match=f"loss.balance {weight} would crowd the experts, or is no number; use a weight ≥ 0, e.g. 0.001"):
        parse_arguments(["arith", "--loss.balance", weight])


def test_a_dense_model_has_no_experts_to_balance(tmp_path):
    from soundrl.engine.config import Loss, Optim
    from soundrl.engine.trainer import Trainer

    folder = write_tiny(tmp_path, "qwen3")
    with alone() as ranks:
        policy = Policy(folder, load_tokenizer(folder), Model(path=str(folder), dtype="float32", max_length=128), ranks)
        assert policy.routers is None and Trainer(policy, Optim(), Loss(), 1.0).balance.take() == {}
        with pytest.raises(ValueError, match=r"loss.balance 0.01 evens out the load of experts, but Qwen3ForCausalLM has none.*leave it 0"):
            Trainer(policy, Optim(), Loss(balance=0.01), 1.0)


def test_the_plan_counts_a_mixture(folders):
    from soundrl.engine.planning.shapes import shapes

    found = shapes(folders["qwen3_moe"], torch.float32)
    model = AutoModelForCausalLM.from_pretrained(folders["qwen3_moe"])
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.largest == 8 * 2 * 32 * 64 and found.saved > 0  # of experts, gate and up, width, hidden


@pytest.fixture(scope="module")
def trained(torchrun_once, folders, tmp_path_factory) -> tuple[Path, Path]:
    """A run on two ranks with vLLM: a short warm start, then FAPO. Its folder, and the model it began with."""
    root, model = tmp_path_factory.mktemp("run"), folders["qwen3_moe"]
    settings = {
        "model.path": model,
        "model.max-length": 80,
        "warm-start.steps": 2,
        "rollout.prompts": 4,
        "optim.minibatch-prompts": 2,
        "rollout.samples": 4,
        "rollout.max-new-tokens": 40,
        "loss.balance": 0.01,
        "run.steps": 2,
        "run.folder": root,
        "run.name": "moe",
        "run.save": "1 9 0",
    }
    line = ["arith", "--data.test", *(part for name, value in settings.items() for part in (f"--{name}", *str(value).split()))]
    assert torchrun_once("runs", 2, runs=[line]) == [None]
    return root / "moe", model


@pytest.fixture(scope="module")
def engine(torchrun_once, trained) -> dict:
    """What a fresh engine reads of the run's export, and what the gate says of seeded faults."""
    return torchrun_once("moe_sync", 1, folder=str(trained[0] / "policy" / "step-000002"), faults=FAULTS)


FAULTS = ("not loaded", "swapped", "gate and up", "stale router", "never sent", "not packed")


def test_a_mixture_trains_and_syncs_on_two_ranks(trained):
    folder, model = trained
    steps = [row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "mismatch/gate" in row]
    assert len(steps) == 2
    for row in steps:
        print({name: row[name] for name in row if name.startswith(("mismatch/", "moe/"))})
        assert row["mismatch/gate"] <= 1.001 and row["mismatch/router"] >= row["mismatch/router_lowest"] >= 0.99
        assert row["moe/balance"] >= 2.0 and row["moe/busiest"] >= 1.0  # at most as even as can be: f sums to 2 a token
        assert row["tokens/trained"] > 0
    start, end = load_file(model / "model.safetensors"), load_file(folder / "policy" / "step-000002" / "model.safetensors")
    assert start.keys() == end.keys() and {n: t.shape for n, t in start.items()} == {n: t.shape for n, t in end.items()}
    moved = [name for name in start if not torch.equal(start[name], end[name])]
    assert sum("experts" in name for name in moved) > 40 and "model.layers.0.mlp.gate.weight" in moved  # witness: it has trained

    # The same folder comes of the checkpoint, which holds rows by the model's names.
    whole = folder.parent / "whole"
    export(folder / "checkpoints" / "step-000002", whole, "float32")
    again = load_file(whole / "model.safetensors")
    assert again.keys() == end.keys() and all(torch.equal(again[name], end[name]) for name in end)


def test_plain_transformers_and_a_fresh_vllm_read_the_export(trained, engine):
    model = AutoModelForCausalLM.from_pretrained(trained[0] / "policy" / "step-000002", dtype=torch.float32)
    for prompt, tokens, logprobs in engine["read"]:
        log_p = torch.log_softmax(model(torch.tensor([[*prompt, *tokens]])).logits[0].float(), -1)
        mine = [log_p[len(prompt) + i - 1, token].item() for i, token in enumerate(tokens)]
        assert np.abs(np.subtract(mine, logprobs)).max() <= 1e-5


def test_a_token_that_is_certain_acquits_no_expert():
    """It is as likely whatever they compute: two of the probes that met expert 3, the broken one, show no gap for that."""
    draw = np.random.default_rng(0)
    pairs = [set(map(int, draw.choice(8, 2, replace=False))) for _ in range(64)]
    chose = [(pair, pair | {int(draw.integers(8))}) for pair in pairs]
    wrong = np.array([3 in last for last, _ in chose])
    certain, right = np.flatnonzero(wrong)[:2], ~wrong
    wrong[certain], right[certain] = False, True
    assert at_fault(chose, wrong, right)[0] == set()  # witness: taken at their word, the two acquit it, and nobody is named
    right[certain] = False
    assert at_fault(chose, wrong, right) == ({3}, set(range(8)) - {3})
    everything = np.ones(64, bool)
    assert at_fault(chose, everything, ~everything) == (set(range(8)), set())


def test_each_fault_of_expert_tensors_is_caught_and_named(engine):
    for healthy in ("start", "healthy", "recovered"):  # inverse: the same syncs without a fault
        assert engine[healthy]["mismatch/gate"] < 1.001 and engine[healthy]["mismatch/router"] > 0.99, engine[healthy]
    again = r"Sending model\.layers\.{}\.mlp\.{} again closed the gap"
    expected = {
        "not loaded": again.format(1, "experts") + r".*came from expert 3 alone",
        "swapped": again.format(0, "experts") + r".*came from experts 2, 5 alone",
        "gate and up": again.format(1, "experts") + r".*came from expert 4 alone",
        "stale router": again.format(1, "gate") + r".*first tensor is model\.layers\.1\.mlp\.gate\.weight",
        "not packed": r"Sending everything again left it at [\d.]+: the sampler computes something else than the trainer",
        "never sent": r"1 of \d+ tensors were never sent; the first is model\.layers\.0\.mlp\.experts\.6\.down_proj\.weight",
    }
    for fault, words in expected.items():
        assert "failed" in engine[fault], (fault, engine[fault])
        assert re.search(words, engine[fault]["failed"]), (fault, engine[fault]["failed"])
