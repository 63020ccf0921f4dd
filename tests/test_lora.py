"""Adapters: gradients, checkpoints and exports against autograd of the merged weight, plain transformers and PEFT; and real vLLM engines
that take them as adapters, merged, and with a judge's beside the policy's."""

import json
import time
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import apart
from fork_server import fork
from test_distributed import padded_gradients, relative
from tiny import fixed_samples, write_tiny
from transformers import AutoModelForCausalLM

from soundrl.engine.config import Config, Data, Genrm, Loss, Model, Rollout, Run
from soundrl.engine.encode import Encoder
from soundrl.engine.environments.arithmetic.models import critic_tokenizer
from soundrl.engine.files.adapter_folder import read_adapter, read_shape
from soundrl.engine.files.model_folder import load_config
from soundrl.engine.files.run_reader import RunReader
from soundrl.engine.judging.adapter_judge import AdapterJudge, AdapterPhase
from soundrl.engine.lora.lora import Adapters, Shape
from soundrl.fapo.pending import PendingGroups, done
from soundrl.fapo.records import Outcome, Prompt, Verdict
from soundrl.fapo.records import Rollout as Sampled
from soundrl.genrm.prompts import split_paragraphs

RANK, ALPHA = LORA = (5, 9.0)
CASES: dict[str, dict] = {
    "qwen3": {},
    "few rows": {"lora": (2, 3.6, "")},
    "opt": {},
    "recomputed": {"save_memory": ("recompute",)},
    "some": {"lora": (*LORA, "q_proj,layers.1.mlp.down_proj")},
    "head": {"lora": (*LORA, "v_proj,lm_head")},
    "bf16": {"dtype": "bfloat16"},
    "mixture": {},
}
FOLDERS = {"opt": "opt", "head": "untied", "mixture": "tied experts"}
ON = {"qwen3": (1, 2, 3), "few rows": (1, 3), "recomputed": (1,), "some": (1,)}
"""Ranks of a case, where they are not one and two. Three cut an adapter's 5 rows into 2, 2 and 1, and its 2 into 1, 1 and none."""


@pytest.fixture(scope="module")
def parts(torchrun_once, tmp_path_factory) -> tuple[Path, dict]:
    """Folder, and how each part of `workers/lora_parts.py` ended."""
    root = tmp_path_factory.mktemp("lora")
    kinds = {"qwen3": {}, "opt": {"kind": "opt"}, "untied": {"tied": False}, "other": {"seed": 1}, "tied experts": {"kind": "qwen3_moe"}}
    for name, more in kinds.items():
        write_tiny(root / name, **more)
    cases = {name: case | {"folder": str(root / FOLDERS.get(name, "qwen3"))} for name, case in CASES.items()}
    return root, torchrun_once("lora_parts", 1, root=str(root), cases=cases, on=ON, runs=["whole"])


@pytest.fixture(scope="module")
def computed(parts) -> tuple[Path, dict, dict]:
    """Folder, words and tensors of one, two and three ranks."""
    root, ended = parts
    said, tensors = {}, {}
    for ranks in (1, 2, 3):
        assert ended[f"on {ranks}"] == [0] * ranks, (root / f"on-{ranks}.log").read_text()[-8000:]
        said[ranks] = json.loads((root / f"on-{ranks}" / "said.json").read_text())
        tensors[ranks] = torch.load(root / f"on-{ranks}" / "tensors.pt", weights_only=True)
    return root, said, tensors


def of_merged(folder: Path, adapters: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss, and by the chain rule the gradients of A and B, from autograd of W + s·B·A in a plain model, float64."""
    plain = {"attn_implementation": "eager", "experts_implementation": "eager"}  # grouped products have no float64
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, **plain)
    parameters, scale = dict(model.named_parameters()), ALPHA / RANK
    layers = {name.rpartition(".")[0]: None for name in adapters}
    parts = {layer: [adapters[f"{layer}.lora_{kind}"].double() for kind in "AB"] for layer in layers}
    for layer, (a, b) in parts.items():
        parameters[f"{layer}.weight"].data += scale * b @ a
    loss, whole, _ = padded_gradients(model)
    wanted = {}
    for layer, (a, b) in parts.items():
        wanted |= {f"{layer}.lora_A": scale * b.T @ whole[f"{layer}.weight"], f"{layer}.lora_B": scale * whole[f"{layer}.weight"] @ a.T}
    return loss, wanted


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_merged_weight_and_of_any_number_of_ranks(computed, name):
    root, said, tensors = computed
    one, *others = (tensors[ranks][name] for ranks in ON.get(name, (1, 2)))
    loss, wanted = of_merged(root / FOLDERS.get(name, "qwen3"), one["adapters"])
    assert one["gradients"].keys() == wanted.keys() and not any(
        each["idle"] for each in (one, *others)
    )  # the base neither has a gradient nor wants one
    allowed = 0.15 if name == "bf16" else 1e-5  # of float32 passes; `test_the_formula…` has the formula itself
    off, between = relative(one["gradients"], wanted), [relative(each["gradients"], one["gradients"]) for each in others]
    print(f"{name}: {off:.2e} from autograd, {between} between ranks")
    assert one["loss"] == pytest.approx(loss, rel=allowed) and off <= allowed
    assert max(between, default=0.0) <= (0.05 if name == "bf16" else 1e-6)
    # They begin alike: A spread, B zero.
    assert all(torch.equal(each["began"][key], value) for each in others for key, value in one["began"].items())
    assert all((value == 0).all() if key.endswith("B") else value.std() > 0 for key, value in one["began"].items())


def test_the_formula_is_that_of_the_merged_weight(tmp_path):
    """Loss and gradients in float64, where nothing hides behind rounding."""
    folder = write_tiny(tmp_path / "tiny", tied=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").requires_grad_(False)
    adapters, generator = Adapters(model, Shape(RANK, ALPHA, "")), torch.Generator().manual_seed(1)
    values = {name: 0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in adapters.parameters().items()}
    for name, value in values.items():
        layer, _, kind = name.rpartition(".")
        setattr(adapters.layers[layer], kind, torch.nn.Parameter(value.clone()))
    loss, found, _ = padded_gradients(model)
    wanted_loss, wanted = of_merged(folder, values)
    assert found.keys() == wanted.keys() and loss == pytest.approx(wanted_loss, rel=1e-6) and relative(found, wanted) <= 1e-6
    ids = torch.arange(12)[None]
    with torch.no_grad(), adapters.without(adapters.layers):
        bare = model(input_ids=ids).logits
    assert (model(input_ids=ids).logits - bare).abs().max() > 0.1  # witness: the adapters do something


def test_recomputed_activations_change_no_bit_and_layers_are_those_named(computed):
    _, said, tensors = computed
    assert relative(tensors[1]["recomputed"]["gradients"], tensors[1]["qwen3"]["gradients"]) == 0.0
    layers = {name.rpartition(".")[0] for name in tensors[1]["some"]["adapters"]}
    assert layers == {*(f"model.layers.{i}.self_attn.q_proj" for i in range(2)), "model.layers.1.mlp.down_proj"}
    assert "lm_head.lora_A" in tensors[1]["head"]["adapters"] and not any("lm_head" in name for name in tensors[1]["qwen3"]["adapters"])
    assert "in adapters of rank 5 on q_proj, down_proj" in said[1]["some"]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_run_that_was_interrupted_is_the_same_to_the_bit(computed, ranks):
    root, said, tensors = computed
    mine = said[ranks]
    assert mine["restored"] and mine["again"] == mine["end"] != mine["middle"]
    # Read by any number of ranks.
    assert mine["of others"] == {str(n): said[n]["middle"] for n in {3: (), 1: (3,), 2: (3, 1)}[ranks]}
    # Adam moves an element whose gradient is rounding alone by as much as any other: 2.6e-6 at most, over SSE4, AVX2 and AVX-512.
    off, moved = relative(tensors[ranks]["end"], tensors[1]["end"]), relative(tensors[1]["end"], tensors[1]["qwen3"]["began"])
    print(f"{off:.2e} between ranks, {moved:.2e} from the start")
    assert off <= 1e-5 < 1e-2 < moved
    assert mine["held"] and mine["asleep"]
    # Adapters and their moments alone are saved, less than a tenth of a model that small.
    saved = {name for name in mine["files"] if name.endswith(".safetensors")}
    assert saved == {f"{part}-{i:05d}-of-{ranks:05d}.safetensors" for part in ("weights", "moments") for i in range(ranks)}
    assert "model.safetensors is another than in" in mine["other base"] and "other" in mine["other base"]


def test_the_reference_is_the_base_with_what_it_started_from(computed):
    _, said, _ = computed
    for ranks in (1, 2, 3):
        # To the bit, without a warm start and with one; and the policy, which has moved by more, is put back as it was.
        assert said[ranks]["reference"] and said[ranks]["started"] and said[ranks]["unmoved"] and said[ranks]["moved"] > 1e-2


def logprobs(model) -> torch.Tensor:
    values = []
    for s in fixed_samples():
        with torch.no_grad():
            log_p = torch.log_softmax(model(torch.tensor([[*s.prompt_tokens, *s.tokens]])).logits[0].double(), -1)
        values += [log_p[len(s.prompt_tokens) - 1 + j, token].item() for j, token in enumerate(s.tokens)]
    return torch.tensor(values, dtype=torch.float64)


def of(folder: Path, dtype: torch.dtype = torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


@pytest.mark.parametrize("ranks", [1, 3])
def test_exports_give_the_log_probabilities_of_the_policy(computed, ranks):
    root, said, tensors = computed
    own, trained = root / f"on-{ranks}", torch.tensor(said[ranks]["logprobs"], dtype=torch.float64)
    merged, plain = logprobs(of(own / "merged")), logprobs(of(root / "qwen3"))
    oracle, parts = of(root / "qwen3", torch.float64), read_adapter(own / "adapter")
    for layer in {name.rpartition(".")[0] for name in parts}:
        a_RI, b_OR = (parts[f"{layer}.lora_{kind}"].double() for kind in "AB")
        oracle.get_submodule(layer).weight.data += ALPHA / RANK * b_OR @ a_RI
    exact = logprobs(oracle)
    # A merge rounds each weight once, which a float64 pass shows alone; float32 passes, merged or not, are off by more, each in its own
    # order, so that two of them differ by what both are off.
    merge, passes = gap(logprobs(of(own / "merged", torch.float64)), exact), (gap(trained, exact), gap(merged, exact))
    print(f"largest |Δ log-prob|: merge {merge:.1e}, passes {passes[0]:.1e} {passes[1]:.1e}, between {gap(merged, trained):.1e}")
    assert merge <= 5e-6 and max(passes) <= 1.5e-5
    assert gap(plain, trained) > 1e-2  # witness: the adapters do something
    assert read_shape(own / "adapter", "x")[:2] == LORA and parts.keys() == tensors[ranks]["end"].keys()
    assert said[ranks]["card"] == "own"  # of a judge: what it answers
    # The merged folder is what a sync sends, and the same from a base that was moved; which must be named.
    found = of(own / "elsewhere").state_dict()
    assert all((found[name] - tensor).abs().max() <= 1e-6 for name, tensor in tensors[ranks]["merged"].items())
    assert "name that base: --base FOLDER" in said[ranks]["gone"]


def test_peft_gives_them_too(computed):
    peft = pytest.importorskip("peft")
    root, said, _ = computed
    adapted = logprobs(peft.PeftModel.from_pretrained(of(root / "qwen3"), root / "on-1" / "adapter"))
    assert gap(adapted, torch.tensor(said[1]["logprobs"], dtype=torch.float64)) <= 1e-5


def test_names_that_are_no_layer_are_told(tmp_path):
    config = load_config(write_tiny(tmp_path / "tiny"))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=r"model\.lora names query, .*there are down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj"):
        Adapters(model, Shape(4, 8.0, "q_proj,query"))
    with pytest.raises(ValueError, match=r"names the head, which this model ties to its embedding"):
        Adapters(model, Shape(4, 8.0, "lm_head"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lora": (-1, 8.0, "")}, "use a rank of at least 1"),
        ({"lora": (4, 0.0, "")}, "an alpha above 0"),
        ({"lora": (0, 32.0, "q_proj")}, "rank 0 makes no adapter"),
        ({"lora": (4, 8.0, ""), "kl": (0.1, "k3", "cpu")}, "the reference is the base itself"),
        ({"judge": "adapter"}, "every weight of its base would move under it"),
        ({"judge": "adapter", "lora": (4, 8.0, ""), "folder": ""}, "genrm.model is empty"),
        ({"judge": "adapter", "lora": (4, 8.0, ""), "engine": "torch"}, "it is asked in vLLM"),
        ({"judge": "adapter", "lora": (4, 8.0, "lm_head")}, "whose adapters leave the head alone"),
        ({"judge": "adapter", "lora": (4, 8.0, ""), "prompt": "own-read"}, "use own"),
    ],
)
def test_settings_that_do_not_fit(settings, said):
    with pytest.raises(ValueError, match=said):
        Config(
            model=Model(path="x", max_length=2048, lora=settings.get("lora", (0, 32.0, ""))),
            data=Data(train=("x.jsonl",)),
            run=Run(name="x"),
            loss=Loss(kl=settings.get("kl", (0.0, "k3", "sharded"))),
            rollout=Rollout(engine=settings.get("engine", "vllm")),
            genrm=Genrm(
                judge=settings.get("judge", "oracle"), model=settings.get("folder", "judge"), prompt=settings.get("prompt", ""), urls=("u",)
            ),
        )


@pytest.fixture(scope="module")
def engines(parts) -> dict:
    root, ended = parts
    assert ended["engines"] == [0], (root / "engines.log").read_text()[-8000:]
    return json.loads((root / "engines" / "engines.json").read_text())


def test_vllm_computes_what_the_trainer_does_with_adapters_of_its_own_and_merged(engines):
    for name in ("own", "own again", "merged", "recovered"):
        assert engines[name].startswith("passed 1.00"), engines[name]
    print({name: value for name, value in engines.items() if "gap" in name})
    assert max(engines["own gap"], engines["own again gap"], engines["merged gap"], engines["after"]) <= 1e-5
    assert engines["left"] == []  # what a sync writes is gone after it


def test_an_adapter_that_is_not_loaded_is_caught_and_named(engines):
    assert "without the adapters, as if none were loaded; the first layer is model.layers.0.self_attn.q_proj" in engines["not loaded"]
    assert "without the adapter of model.layers.1.mlp; the first layer is model.layers.1.mlp.gate_proj" in engines["one block"]


def test_policy_and_judge_as_two_adapters_give_the_verdicts_of_two_engines(engines):
    found = engines["beside the policy"]
    assert found == engines["alone"] == engines["later"]
    assert [verdict[:2] for verdict in found[:8]] == [["sound", None], ["flawed", 1]] * 4 and found[8:] == found[:2]
    assert engines["metrics"]["genrm/deduplicated"] == 2.0 and engines["metrics"]["genrm/replies"] == 8.0
    # Inverse: the policy's adapter answers otherwise.
    assert engines["under the policy"] != found


def test_the_phase_puts_every_question_while_the_engine_wears_the_judge():
    order: list[str] = []

    @contextmanager
    def judging():
        order.append("judge on")
        yield
        order.append("judge off")

    def generate(requests, leaving):
        order.append(f"{len(requests)} requests")
        for r in requests[::-1]:
            yield Sampled(
                prompt_id=r.prompt_id, sample=r.sample, prompt_tokens=r.prompt_tokens, tokens=(1, 2), logprobs=(0.0, 0.0),
                text=("\\boxed{0}", "\\boxed{-1}", "\\boxed{0}")[r.sample], finish_reason="stop", policy_version=0,
            )  # fmt: skip

    sampler = SimpleNamespace(
        wake=lambda part: order.append(f"wake {part}"), sleep=lambda: order.append("sleep"), reset_cache=lambda: order.append("reset"),
        judging=judging, generate=generate,
    )  # fmt: skip
    judge = AdapterJudge(Genrm(judge="adapter", model="nowhere", sampling=(0.7, 3), max_tokens=8), split_paragraphs)
    judge.encode = Encoder(critic_tokenizer(), 200)
    phase = AdapterPhase(judge, Path("nowhere"), SimpleNamespace(sum=lambda values: values))  # type: ignore[arg-type]
    phase.sampler = sampler  # type: ignore[assignment]
    pending, found = PendingGroups([], lambda groups: None, True), []
    assert phase(pending, lambda: {"asked": 1.0}) == {"asked": 1.0} and order == []  # nothing to ask: nobody wakes

    def put(solution: str) -> None:
        rollout = Sampled(
            prompt_id="p", sample=0, prompt_tokens=(1,), tokens=(1,), logprobs=(0.0,), text=solution, finish_reason="stop", policy_version=0
        )
        ask = partial(lambda text, said: found.append(judge.submit(Prompt(id="p", text="1+1=?", answer="2"), text)), rollout)
        pending.held.append((done(Outcome.CORRECT), ask))

    for solution in ("1+1=2", "1+1=3", "1+1=2", "1" * 400):
        put(solution)
    phase(pending, dict)
    assert order == ["wake weights", "wake kv_cache", "reset", "judge on", "6 requests", "judge off", "sleep"]
    said = [verdict.result(timeout=0) for verdict in found]
    assert said[:3] == [Verdict.flawed(0)] * 3 and said[3] == Verdict.unknown("too_long")  # the majority of three, in whatever order
    assert judge.metrics() == {
        "genrm/deduplicated": 1.0, "genrm/replies": 6.0, "genrm/requests": 6.0, "genrm/unknown_too_long": 1.0, "genrm/alive": 1.0,
        "genrm/critique_tokens": 2.0,
    }  # fmt: skip
    put("1+1=2")
    phase(pending, dict)
    assert found[-1].result(timeout=0) == Verdict.flawed(0) and order.count("6 requests") == 1 and "0 requests" not in order  # remembered
    # An evaluation without one right answer asks nobody, and holds nothing back; inverse: what nobody has looked at is held.
    pending.held.append((done(Outcome.WRONG), lambda said: order.append("told")))
    with pytest.raises(AssertionError, match="questions are held back"):
        pending.groups(measuring=True)
    assert not phase.needed(pending) and order[-1] == "told" and pending.groups(measuring=True) == []


def test_a_run_with_policy_and_judge_on_one_engine(parts):
    """Warm start, KL term, evaluations, an export, through the main job. Killed and stopped within a step, and with a mixture: `make
    kill-matrix`."""
    root, ended = parts
    assert ended["runs"]["whole"]["status"] == [0], ended["runs"]["whole"]["said"]
    folder = root / "whole" / "judged"
    rows = RunReader(folder).metrics()
    first, second = steps = [row for row in rows if "mismatch/gate" in row]
    assert [row["step"] for row in steps] == [1, 2] and all(row["mismatch/gate"] <= 1.0001 for row in steps)
    # Nothing is right before the first update: nobody asks, and no question is left. Then the judge's own verdicts, none of them hidden.
    assert not {"genrm/overlap", "genrm/replies", "time/judge_wake"} & first.keys()
    assert second["genrm/unknown"] == 0.0 == second["genrm/overlap"] and second["time/judge_wait"] > 0 and second["genrm/replies"] >= 1.0
    verdicts = [row["verdict"] for row in RunReader(folder).rollouts(2) if row["verdict"]]
    assert len(verdicts) > 4 and {verdict["kind"] for verdict in verdicts} <= {"sound", "flawed"}
    evaluations = {row["step"]: row for row in rows if "eval/arith-test/accuracy" in row}
    assert evaluations.keys() == {0, 2} and evaluations[0]["eval/arith-test/accuracy"] == 0.0
    assert not any("/flawed_ratio" in name for name in evaluations[0]) and any("/flawed_ratio" in name for name in evaluations[2])
    # The reference is the policy after the warm start, which has trained adapters alone, not the base.
    assert first["loss/kl_reference"] == 0.0 < second["loss/kl_reference"]
    started, ended_at = (read_adapter(folder / "policy" / f"step-{step:06d}" / "adapter") for step in (0, 2))
    assert max(t.abs().max() for name, t in started.items() if name.endswith("B")) > 0
    assert any(not torch.equal(started[name], tensor) for name, tensor in ended_at.items())
    plan = json.loads((folder / "plan.json").read_text())
    assert 0 < plan["judging_mib"] == plan["sampling_mib"]


MAKES = """
import os, signal, sys, time
from pathlib import Path
from soundrl.engine.launch.last_words import RANK
from soundrl.engine.lora.adapter_sync import own_folder
place, how = Path(sys.argv[1]), sys.argv[2]
own = own_folder(place)
(own / "adapter").mkdir()
(place.parent / f"{how}.made").write_text(own.name)
while not (place.parent / f"{how}.goes").exists():
    time.sleep(0.01)
if how == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "stopped":
    RANK.end(0)
"""


def test_the_folder_of_a_killed_run_goes_with_the_next_run(tmp_path):
    """That of one that lives does not, nor what has another name; and each goes with its own process where that was not killed."""
    (place := tmp_path / "memory").mkdir()
    (tmp_path / "makes.py").write_text(MAKES)
    (other := place / "soundrl-other").mkdir()

    def made(how: str) -> tuple[BaseProcess, Path]:
        process, name = fork(tmp_path / "makes.py", [str(place), how], apart(), tmp_path / "log"), tmp_path / f"{how}.made"
        while not (name.exists() and name.read_text()):
            assert process.is_alive(), (tmp_path / "log").read_text()
            time.sleep(0.01)
        return process, place / name.read_text()

    def ended(how: str, process: BaseProcess) -> int | None:
        (tmp_path / f"{how}.goes").touch()
        process.join()
        return process.exitcode

    started = {how: made(how) for how in ("lives", "killed", "stopped")}
    assert {*place.iterdir()} == {other, *(folder for _, folder in started.values())}
    assert [ended(how, started[how][0]) for how in ("killed", "stopped")] == [-9, 0]
    assert (started["killed"][1] / "adapter").is_dir() and not started["stopped"][1].exists()  # witness
    last, folder = made("ends")
    assert {*place.iterdir()} == {other, folder, started["lives"][1]}
    assert ended("ends", last) == ended("lives", started["lives"][0]) == 0 and {*place.iterdir()} == {other}
