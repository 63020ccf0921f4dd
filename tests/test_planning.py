"""Sizes of well-known models, what settings give back, the table of cards, and what a network costs: against independent counts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_memory_plan import of, qwen  # noqa: F401 — fixtures
from transformers import AutoConfig

from soundrl.engine.config import Config, Fapo, Genrm, Loss
from soundrl.engine.files.adapter_folder import Shape, write_adapter
from soundrl.engine.files.model_folder import check_folder
from soundrl.engine.files.tensor_file import Layout
from soundrl.engine.planning import cards
from soundrl.engine.planning.command import planned
from soundrl.engine.planning.known import known, models, write_known
from soundrl.engine.planning.network import bytes_between
from soundrl.engine.planning.parts import GIB, STREAMED, captured, on_host, trainer_state
from soundrl.engine.planning.plan import adapter_needs, memory_plan, plan_of, uneven
from soundrl.engine.planning.shapes import elements, shapes, shard
from soundrl.engine.ranks import holders
from soundrl.engine.recipes import fapo_7b
from soundrl.genrm.serve.machine import MARGIN

PUBLISHED = {  # parameters as the models' own pages count them, tied weights once
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": 7_615_616_512,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": 8_030_261_248,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "allenai/OLMoE-1B-7B-0924": 6_919_161_856,
}


def by_hand(config: dict) -> int:
    """Parameters from the public description of each architecture, without its code."""
    h, kind = config["hidden_size"], config["model_type"]
    heads, width = config["num_attention_heads"], config.get("head_dim", h // config["num_attention_heads"])
    q, kv = heads * width, config["num_key_value_heads"] * width
    layer = 2 * h + h * (q + 2 * kv) + q * h
    layer += (q + 2 * kv) * (kind == "qwen2") + 2 * width * kind.startswith("qwen3") + (q + kv) * (kind == "olmoe")
    if "num_experts" in config:
        inner = config.get("moe_intermediate_size", config["intermediate_size"])
        layer += config["num_experts"] * (3 * h * inner + h)
    else:
        layer += 3 * h * config["intermediate_size"]
    return config["num_hidden_layers"] * layer + h + config["vocab_size"] * h * (1 if config["tie_word_embeddings"] else 2)


def test_known_models_have_the_published_number_of_parameters(tmp_path):
    for name, count in PUBLISHED.items():
        assert by_hand(models()[name]) == count, name
    bases = {json.dumps({k: v for k, v in models()[name].items() if k != "max_position_embeddings"}) for name in PUBLISHED}
    for name, config in models().items():  # the others are these under another name
        assert json.dumps({k: v for k, v in config.items() if k != "max_position_embeddings"}) in bases, name
    for name in ("HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen3-0.6B", "allenai/OLMoE-1B-7B-0924"):
        counted = shapes(write_known(name, tmp_path / name), torch.bfloat16)
        assert counted.parameters == PUBLISHED[name]
        assert counted.largest == max(models()[name]["vocab_size"] * counted.hidden, models()[name].get("num_experts", 0) * 2048 * 2 * 1024)


def test_of_experts_a_token_meets_its_own(tmp_path):
    tiny = dict(hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=3, num_attention_heads=4)
    tiny |= dict(num_key_value_heads=2, head_dim=16, vocab_size=100, decoder_sparse_step=1, mlp_only_layers=[])
    saved, active = {}, {}
    for experts, used in ((8, 2), (16, 2), (8, 4)):
        config = AutoConfig.for_model("qwen3_moe", num_experts=experts, num_experts_per_tok=used, **tiny)
        config.save_pretrained(tmp_path)
        found = shapes(tmp_path, torch.bfloat16)
        saved[experts, used], active[experts, used] = found.saved, found.active
        assert found.layer > experts * 3 * 64 * 32
    # Twice the experts: a wider router and nothing else; twice as many a token: rows of H, 2·I and I more for each.
    router = saved[16, 2] - saved[8, 2]
    assert 0 < router < 3 * 8 * 20 and saved[8, 4] - saved[8, 2] > 3 * 2 * 2 * (64 + 3 * 32)
    assert active[8, 4] - active[8, 2] == 3 * 2 * 3 * 64 * 32 and active[16, 2] - active[8, 2] == 3 * 8 * 64


def test_adapters_and_shards_are_those_that_torch_would_make(qwen):  # noqa: F811
    rank, h, inner, kv = 16, 3584, 18944, 512
    found = shapes(qwen, torch.bfloat16, (rank, 32.0, ""))
    assert found.adapted == 28 * rank * (2 * (h + h) + 2 * (h + kv) + 3 * (h + inner)) and found.parameters == 7_615_616_512
    some = shapes(qwen, torch.bfloat16, (rank, 32.0, "q_proj,down_proj"))
    assert some.adapted == 28 * rank * (2 * h + h + inner) and some.saved < found.saved
    with pytest.raises(ValueError, match=r"model.lora names gate, but no linear layer is called so; there are down_proj, .*, v_proj"):
        shapes(qwen, torch.bfloat16, (rank, 32.0, "q_proj,gate"))
    for sizes in (((5, 2, 1),), ((152064, 8, 1), (1, 7, 3)), ((8, 6, 2), (128, 5, 1), (60, 1, 3)), found.adapters):
        for ranks in (1, 2, 3, 64, 96):
            assert all(holders(rows, ranks) == len(torch.empty(rows, device="meta").chunk(ranks)) for rows, *_ in sizes)
            assert shard(sizes, ranks) == sum(torch.empty(rows, device="meta").chunk(ranks)[0].numel() * row * n for rows, row, n in sizes)
    assert elements(((5, 2, 3),)) == 30
    state = trainer_state(found, 2, 8)
    assert state["frozen weights"] == 2 * 7_615_616_512 / 8
    assert state["master weights, float32"] + state["gradients, float32"] + state["AdamW moments, float32"] == 16 * found.adapted / 8


def changed(**settings) -> Config:
    return replace(fapo_7b(), model=replace(fapo_7b().model, **settings))


def test_what_each_setting_gives_back(of):  # noqa: F811
    plain = plan_of(fapo_7b(), of, 8, 80 * GIB, "cuda")
    own = of.parameters / 8
    away = plan_of(changed(save_memory=("recompute", "offload")), of, 8, 80 * GIB, "cuda")
    for phase, less in (("sampling", 12 * own), ("syncing", 12 * own), ("gate", 12 * own), ("training", 0)):
        assert plain.peaks[phase] - away.peaks[phase] == less, phase
    assert away.host == 8 * 12 * own and "on the host of each machine" in away.table() and plain.host == 0
    moments = plan_of(changed(save_memory=("recompute", "moments")), of, 8, 80 * GIB, "cuda")
    for phase in plain.peaks:
        assert plain.peaks[phase] - moments.peaks[phase] == 8 * (own - STREAMED)
    assert on_host(of, 2, 8, 4, ("moments",)) == 4 * 8 * own
    copies = plan_of(changed(replicas=4), of, 8, 80 * GIB, "cuda")
    assert copies.parts["master weights, float32"] == 4 * plain.parts["master weights, float32"]
    assert copies.parts["NCCL's buffers"] == 2 * plain.parts["NCCL's buffers"]
    with pytest.raises(ValueError, match="model.replicas 3 does not divide the 8 ranks; start a multiple of it"):
        plan_of(changed(replicas=3), of, 8, 80 * GIB, "cuda")
    eager = replace(fapo_7b(), rollout=replace(fapo_7b().rollout, eager=True))
    graphs = plan_of(eager, of, 8, 80 * GIB, "cuda").parts["KV cache"] - plain.parts["KV cache"]
    assert len(captured(256)) == 51 and captured(256)[-1] == 512 and captured(2) == [1, 2, 4] and graphs > 0.2 * GIB
    adapted = replace(of, adapters=((16, 10, 1),))
    asleep = plan_of(changed(save_memory=("offload",)), adapted, 8, 80 * GIB, "cuda")
    awake = plan_of(changed(save_memory=()), adapted, 8, 80 * GIB, "cuda")  # a frozen base goes to the host as well
    assert awake.peaks["sampling"] - asleep.peaks["sampling"] == 2 * own + 12 * 20 and asleep.host == 8 * (2 * own + 12 * 20)
    term = replace(fapo_7b(), loss=Loss(kl=(0.01, "k3", "sharded")))
    assert "reference" in plan_of(term, of, 8, 80 * GIB, "cuda").parts
    assert "reference" not in plan_of(term, adapted, 8, 80 * GIB, "cuda").parts  # the base without its adapters


def test_a_judge_in_the_policys_engine_has_room_beside_it(of, qwen, tmp_path):  # noqa: F811
    """Two adapters of rank 20, for which vLLM makes room for 32, in the layers that one of them adapts: q and k and v together, by hand."""
    base = replace(fapo_7b(), rollout=replace(fapo_7b().rollout, tensor_parallel=1))
    adapter = Genrm(judge="adapter", model=str(tmp_path / "judge"), max_tokens=2048)
    config = replace(base, model=replace(base.model, lora=(20, 32.0, "q_proj,v_proj")), genrm=adapter)
    needs, adapted = adapter_needs(config, of, qwen), replace(of, adapters=((20, 3584, 28),))
    attention = 28 * (3584 + 3584 + 2 * (3584 + 512))
    assert needs.slots == 2 * 32 * attention and "genrm.model is not here" in needs.said
    assert needs.context == 10240 + 10240 // 2 + 2048 + MARGIN
    plan = memory_plan(config, adapted, 8, 80 * GIB, "cuda", judge=needs)
    alone = memory_plan(replace(config, genrm=Genrm(judge="none"), fapo=Fapo(lam=0.0)), adapted, 8, 80 * GIB, "cuda")
    assert plan.parts["  of which weights"] - alone.parts["  of which weights"] == 2 * needs.slots
    assert plan.peaks["judging"] == plan.peaks["sampling"] == alone.peaks["sampling"] and "judging" not in alone.peaks
    assert plan.host - alone.host == 8 * 2 * (of.parameters + needs.slots)  # the base sleeps on the host
    assert plan.critiques == pytest.approx(plan.parts["KV cache"] / (2 * of.cached * needs.context))
    assert plan.parts["weight sync: on its way"] == 4 * adapted.adapted < alone.parts["weight sync: on its way"] / 100
    assert "judge: the second adapter of the policy's engine" in plan.table()
    # Positions are the policy's as the run has them: Qwen2.5-Math-7B says 4096, and the recipe 32768.
    (tmp_path / "math").mkdir()
    (tmp_path / "math" / "config.json").write_text(
        json.dumps(json.loads((qwen / "config.json").read_text()) | {"max_position_embeddings": 4096})
    )
    assert adapter_needs(config, of, tmp_path / "math").context == needs.context
    with pytest.raises(ValueError, match=r"genrm.model takes 4096 tokens, but a prompt of model.max_length 10240"):
        adapter_needs(replace(config, model=replace(config.model, rope_base_length=0)), of, tmp_path / "math")
    # The judge that is there says its own rank and layers.
    layouts = {f"model.layers.0.mlp.up_proj.lora_{kind}": Layout(torch.float32, (1, 1)) for kind in "AB"}
    write_adapter(tmp_path / "judge", Shape(40, 8.0, "all-linear"), {"folder": "x"}, layouts, [torch.zeros(1, 1)] * 2)
    needs = adapter_needs(config, of, qwen)
    assert needs.slots == 2 * 64 * (attention + 28 * 2 * (3584 + 18944)) and needs.said.endswith("room for 2 of rank 64")
    full = replace(config, rollout=replace(config.rollout, memory=0.22))
    with pytest.raises(ValueError, match=r"leaves the judge .* GiB of KV cache.*; raise rollout.memory, or lower genrm.max_tokens"):
        memory_plan(full, adapted, 8, 80 * GIB, "cuda", judge=replace(needs, context=60000)).check()


def test_replicas_send_once_an_optimizer_step(of):  # noqa: F811
    n = of.parameters
    assert bytes_between(of, 2, 8, 8, 1) == (0, 0)
    # Of bfloat16, all trained: each micro-batch, or once an optimizer step.
    assert bytes_between(of, 2, 32, 8, 1) == (8 * n * 3 / 4, 0) and bytes_between(of, 2, 32, 8, 4) == (0, 8 * n * 3 / 4)
    adapted = replace(of, adapters=((16, 1000, 1),))
    assert bytes_between(adapted, 2, 32, 8, 4) == (0, 8 * 16_000 * 3 / 4)
    assert bytes_between(of, 2, 32, 8, 2) == (8 * n / 2, 8 * n / 2 / 2)


def test_more_ranks_than_experts(of):  # noqa: F811
    """Each of 8 ranks holds a whole expert of every layer, however many there are: the plan counts it, says so, and what helps."""
    dense, experts = ((4096, 1000, 1),), ((8, 4_000_000, 10),)
    mixture = replace(of, tensors=(*dense, *experts))
    few, many = (plan_of(changed(), mixture, ranks, 80 * GIB, "cuda") for ranks in (8, 64))
    chunks = {ranks: [sum(len(p) for p in torch.empty(8, device="meta").chunk(ranks)[:1]), 4096 // ranks] for ranks in (8, 64)}
    for plan, ranks in ((few, 8), (many, 64)):
        assert plan.parts["master weights, float32"] == 4 * (chunks[ranks][0] * 40_000_000 + chunks[ranks][1] * 1000)
    assert few.uneven == "" and many.uneven.startswith("8 experts lie on 8 of 64 ranks, so these hold 7.9 times an even part; ")
    assert many.uneven.endswith("--model.replicas 8 takes 1.01 times as much a rank and gathers from 8") and many.uneven in many.table()
    copies = plan_of(changed(replicas=8), mixture, 64, 80 * GIB, "cuda")
    assert copies.uneven == "" and copies.parts["master weights, float32"] == few.parts["master weights, float32"]
    with pytest.raises(
        ValueError, match=r"more GPUs hold no less each .8 experts lie on 8 of 64 ranks.*: use --model.save-memory recompute"
    ):
        replace(plan_of(changed(), replace(mixture, tensors=((8, 40_000_000, 100),)), 64, 80 * GIB, "cuda"), sequences=8.0).check()
    assert uneven(replace(of, tensors=((128, 10_000, 1),)), 96).endswith("so these hold 1.5 times an even part")  # two on 64, none on 32
    assert uneven(replace(of, tensors=((128, 10_000, 1),)), 64) == ""


PAGE = Path("docs/which-settings.md")


def test_the_table_says_what_fits():
    table = PAGE.read_text().split("<!-- GiB: 80 -->")[1].split("\n\n")[1]
    eighty = {(model, way): rest for model, way, *rest in (line.strip("| ").split(" | ") for line in table.splitlines()[2:])}
    assert len(eighty) == len(cards.MODELS) * len(cards.WAYS) and all(len(row) == len(cards.GPUS) for row in eighty.values())
    assert eighty["8B", "LoRA"][0].startswith(".") and eighty["7B", "offload"][1].startswith(".")
    assert eighty["32B", "full"][4].startswith(".")
    assert eighty["8B", "full"][0] == "from 4 GPUs"
    # What a cell says is what the plan says: with its settings it fits, with one GPU fewer than it asks for it does not.
    of8 = cards.counted(cards.MODELS["8B"], torch.bfloat16, False)
    for gpus, fits in ((4, True), (2, False)):
        assert (next(cards.fits(changed(save_memory=("recompute",)), of8, gpus, 80.0), None) is not None) == fits


def test_the_page_of_cards_is_current():
    text = PAGE.read_text()
    assert cards.page(text, fapo_7b()) == text, "python -m soundrl.engine.planning.cards docs/which-settings.md"
    assert text.count("| 30B-A3B |") == 9


def test_a_known_model_is_planned_with_no_folder_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert known("models/Qwen3-8B") == known("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B" and known("Qwen3-9B") == ""
    for path in ("Qwen/Qwen3-8B", "models/Qwen3-8B"):
        assert planned(changed(path=path), 8, 80.0).parts["  of which weights"] == 2 * PUBLISHED["Qwen/Qwen3-8B"]
    with pytest.raises(ValueError, match="a run needs its files: hf download Qwen/Qwen3-8B --local-dir models/Qwen3-8B, then --model.path"):
        check_folder("Qwen/Qwen3-8B")
    with pytest.raises(ValueError, match="no folder; name a Hugging Face folder"):
        check_folder("Qwen/Qwen3-9B")
    with pytest.raises(ValueError, match="or a well-known model: Qwen/Qwen3-8B"):
        planned(changed(path="Qwen/Qwen3-9B"), 8, 80.0)
