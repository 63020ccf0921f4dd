"""Seeds, the plain-torch sampler, and nucleus sampling."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from tiny import write_tiny
from transformers import AutoModelForCausalLM

from soundrl.engine import rollouts
from soundrl.engine.config import Model
from soundrl.engine.files.model_folder import end_tokens, load_tokenizer
from soundrl.engine.files.rollout_file import RolloutWriter, read_file
from soundrl.engine.ranks import Ranks
from soundrl.engine.recipes import RECIPES
from soundrl.engine.samplers.sampler import derived_seed, requests_for
from soundrl.engine.samplers.torch_sampler import TorchSampler, nucleus
from soundrl.engine.samplers.vllm_sampler import VllmSampler
from soundrl.engine.timeline import Timeline
from soundrl.fapo.data.prompt_stream import PromptStream, distinct
from soundrl.fapo.records import Group, Outcome, Prompt

PROMPTS = [("a", (7, 1, 10, 2, 14)), ("b", (3,)), ("c", tuple(range(17)))]


def test_seeds_follow_from_what_a_rollout_is():
    assert derived_seed(0, "train", 1, "arith-train:0:5", 3) == derived_seed(0, "train", 1, "arith-train:0:5", 3)
    parts = [(0, "train", 1, "p", 0), (1, "train", 1, "p", 0), (0, "eval", 1, "p", 0), (0, "train", 2, "p", 0), (0, "train", 1, "q", 0)]
    seeds = {derived_seed(*part) for part in [*parts, (0, "train", 1, "p", 1)]}
    assert len(seeds) == 6 and all(0 <= seed < 2**53 for seed in seeds)
    assert derived_seed(0, "train", 1, "p", 0) == 7897212240380045  # a resumed run on another version must sample the same


@pytest.fixture(scope="module", params=["opt", "qwen3"])
def sampler(request, tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("model") / request.param, request.param)
    ranks = Ranks.__new__(Ranks)
    object.__setattr__(ranks, "device", torch.device("cpu"))
    object.__setattr__(ranks, "rank", 0)
    return folder, TorchSampler(folder, load_tokenizer(folder), Model(path=str(folder), dtype="float32"), ranks)


def requests(samples: int = 3, **changes):
    settings = {"run_seed": 0, "phase": "train", "step": 1, "temperature": 0.8, "max_new_tokens": 12}
    return requests_for(PROMPTS, samples, **(settings | changes))


def test_tokens_do_not_depend_on_the_batch(sampler):
    _, generator = sampler
    together = {(r.prompt_id, r.sample): r for r in generator.generate(requests())}
    alone = {(r.prompt_id, r.sample): r for request in requests() for r in generator.generate([request])}
    assert together.keys() == alone.keys() and len({r.tokens for r in alone.values()}) > 6
    assert all(together[k].tokens == alone[k].tokens for k in alone)


def test_logprobs_are_the_tempered_ones_of_the_model(sampler):
    folder, generator = sampler
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for rollout in generator.generate(requests()):
        logits = model(torch.tensor([[*rollout.prompt_tokens, *rollout.tokens]])).logits[0]
        log_p = torch.log_softmax(logits / 0.8, -1)
        first = len(rollout.prompt_tokens) - 1
        expected = [log_p[first + i, token].item() for i, token in enumerate(rollout.tokens)]
        assert rollout.logprobs == pytest.approx(expected, abs=1e-4)
        ended = rollout.tokens[-1] in end_tokens(folder, generator.tokenizer)
        assert rollout.finish_reason == ("stop" if ended else "length")
        assert ended or len(rollout.tokens) == 12


def test_loaded_weights_sample_something_else_and_count(sampler):
    _, generator = sampler
    before = [r.tokens for r in generator.generate(requests(1))]
    version = generator.version
    with torch.no_grad():
        generator.load((name, 2 * parameter.detach().clone()) for name, parameter in generator.model.named_parameters())
    after = list(generator.generate(requests(1)))
    assert [r.tokens for r in after] != before and {r.policy_version for r in after} == {version + 1}


def test_a_token_without_log_probability_is_kept_and_written_as_nan(tmp_path):
    """vLLM says NaN, or None, for a token of probability ~1."""
    engine = VllmSampler.__new__(VllmSampler)
    engine.version, engine.tokenizer = 3, SimpleNamespace(decode=lambda tokens, **_: "t")
    said = SimpleNamespace(token_ids=[5, 6, 7], logprobs=SimpleNamespace(logprobs=[None, math.nan, -math.inf]), finish_reason="stop")
    rollout = engine._rollout(requests(1)[0], said)
    assert len(rollout.logprobs) == 3 and not any(map(math.isfinite, rollout.logprobs))
    with RolloutWriter(tmp_path / "rank-0.arrows") as file:
        file.add([Group(prompt=Prompt(id="p", text="p", answer="a"), rollouts=[rollout], outcomes=[Outcome.CORRECT], verdicts=[None])])
    (row,) = read_file(tmp_path / "rank-0.arrows")[0].to_pylist()
    assert math.isnan(row["logprobs"][0]) and math.isnan(row["logprobs"][1]) and row["logprobs"][2] == -math.inf
    assert row["tokens"] == [5, 6, 7]


@pytest.mark.parametrize(("ranks", "shared"), [(1, 1), (2, 1), (3, 1), (4, 2)])
def test_a_batch_that_crosses_an_epoch_is_the_same_on_any_number_of_engines(ranks, shared):
    """Each engine samples its part of the step's prompts, and each rank keeps its part of those: together all, each once."""
    source = [Prompt(id=f"p{i}", text=f"{i}", answer="1") for i in range(5)]
    config = RECIPES["arith"]()
    config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, tensor_parallel=shared, samples=2))
    asked, kept = [], []

    class Engine:
        def generate(self, requests):
            asked.append([request.prompt_id for request in requests if request.sample == 0])
            return iter(())

    task = SimpleNamespace(collect=lambda prompts, rollouts: kept.append([p.id for p in prompts]) or SimpleNamespace(outcomes=lambda: None))
    for rank in range(ranks):
        prompts = distinct(PromptStream(source, 0).take(8))
        rollouts.rollout(prompts, task, Engine(), lambda p: (1,), config, SimpleNamespace(rank=rank, size=ranks), 1, Timeline())  # type: ignore[arg-type]
    # Witness: the epoch ends within the batch, so a problem is there twice, under two ids.
    assert {f"p{i}" for i in range(5)} < {prompt.id for prompt in prompts} and "#2" in "".join(prompt.id for prompt in prompts)
    assert sorted(id_ for part in kept for id_ in part) == sorted(prompt.id for prompt in prompts)
    assert all(asked[rank] == asked[rank // shared * shared] and set(kept[rank]) <= set(asked[rank]) for rank in range(ranks))


def test_nucleus_keeps_the_smallest_sufficient_set():
    log_p = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    kept = nucleus(log_p, 0.7).exp()
    assert kept.tolist() == pytest.approx([0.625, 0.375, 0.0, 0.0])
    assert torch.equal(nucleus(log_p, 1.0), log_p)
    assert nucleus(log_p, 0.01).exp().tolist() == [1.0, 0.0, 0.0, 0.0]
    assert math.isclose(nucleus(log_p, 0.81).exp().sum().item(), 1.0, abs_tol=1e-6)
