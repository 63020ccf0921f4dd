"""Seeds, the plain-torch sampler, and nucleus sampling."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import write_tiny
from transformers import AutoModelForCausalLM

from soundrl.engine.config import Model
from soundrl.engine.exchange import exchange
from soundrl.engine.files.model_folder import end_tokens, load_tokenizer
from soundrl.engine.files.rollout_file import RolloutWriter, read_file
from soundrl.engine.ranks import Ranks
from soundrl.engine.recipes import RECIPES
from soundrl.engine.rollouts import Rollouts
from soundrl.engine.samplers.sampler import Draw, derived_seed
from soundrl.engine.samplers.torch_sampler import TorchSampler, nucleus
from soundrl.engine.samplers.vllm_sampler import VllmSampler
from soundrl.engine.telemetry.timeline import TIMELINE
from soundrl.fapo.data.prompt_stream import PromptStream, distinct
from soundrl.fapo.pending import PendingGroups, done
from soundrl.fapo.records import Group, Outcome, Prompt, Rollout

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
    return Draw(**(settings | changes)).requests(PROMPTS, samples)


def test_tokens_do_not_depend_on_the_batch(sampler):
    _, generator = sampler
    together = {(r.prompt_id, r.sample): r for r in generator.generate(requests())}
    alone = {(r.prompt_id, r.sample): r for request in requests() for r in generator.generate([request])}
    assert together.keys() == alone.keys() and len({tuple(r.tokens) for r in alone.values()}) > 6
    assert all(together[k].tokens.tolist() == alone[k].tokens.tolist() for k in alone)


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
    before = [r.tokens.tolist() for r in generator.generate(requests(1))]
    version = generator.version
    with torch.no_grad():
        generator.load((name, 2 * parameter.detach().clone()) for name, parameter in generator.model.named_parameters())
    after = list(generator.generate(requests(1)))
    assert [r.tokens.tolist() for r in after] != before and {r.policy_version for r in after} == {version + 1}


def test_a_token_without_log_probability_is_kept_and_written_as_nan(tmp_path):
    """vLLM says NaN, or None, for a token of probability ~1."""
    engine = VllmSampler.__new__(VllmSampler)
    engine.version, engine.poisoned, engine.tokenizer = 3, False, SimpleNamespace(decode=lambda tokens, **_: "t")
    said = SimpleNamespace(token_ids=[5, 6, 7], logprobs=SimpleNamespace(logprobs=[None, math.nan, -math.inf]), finish_reason="stop")
    rollout = engine._rollout(requests(1)[0], said)
    assert len(rollout.logprobs) == 3 and not any(map(math.isfinite, rollout.logprobs))
    assert engine.poisoned  # the next sync clears the memory of keys and values
    with RolloutWriter(tmp_path / "rank-0.arrows") as file:
        file.add([Group(prompt=Prompt(id="p", text="p", answer="a"), rollouts=[rollout], outcomes=[Outcome.CORRECT], verdicts=[None])])
    (row,) = read_file(tmp_path / "rank-0.arrows")[0].to_pylist()
    assert math.isnan(row["logprobs"][0]) and math.isnan(row["logprobs"][1]) and row["logprobs"][2] == -math.inf
    assert row["tokens"] == [5, 6, 7]


class Engine:
    """Says what it is asked, and answers each request with as many tokens as `lengths` says."""

    slots, version = 2, 1

    def __init__(self, lengths: dict[str, int]) -> None:
        self.lengths, self.asked = lengths, list[tuple[str, int]]()

    def generate(self, requests, leaving):
        self.asked += [(request.prompt_id, request.sample) for request in requests]
        for request in requests:
            own = self.lengths[request.prompt_id]
            yield Rollout(
                prompt_id=request.prompt_id,
                sample=request.sample,
                prompt_tokens=request.prompt_tokens,
                tokens=[1] * own,  # type: ignore[arg-type]
                logprobs=[-1.0] * own,  # type: ignore[arg-type]
                text="",
                finish_reason="stop",
                policy_version=1,
            )


TASK = SimpleNamespace(collect=lambda prompts, rollouts, beside, into: collected(prompts, rollouts))


def collected(prompts, rollouts) -> PendingGroups:
    pending = PendingGroups(prompts, lambda groups: None, decisive=False)
    for rollout in rollouts:
        pending.by_prompt[rollout.prompt_id].add(rollout, done(Outcome.WRONG), done(None))
    return pending


def sampling(rank: int, ranks: int, shared: int, lengths: dict[str, int], samples: int = 2) -> tuple[Engine, Rollouts]:
    config, engine = RECIPES["arith"](), Engine(lengths)
    rollout = dataclasses.replace(config.rollout, tensor_parallel=shared, samples=samples)
    config = dataclasses.replace(config, rollout=rollout, run=dataclasses.replace(config.run, eval_sampling=(samples, 1.0, 1.0)))
    of = SimpleNamespace(rank=rank, size=ranks, sum=lambda values: values)
    nothing = dict.fromkeys(("add", "flush", "lacks"), lambda *given: None)
    underway = SimpleNamespace(ranks=of, begin=lambda *given: {}, **nothing)
    return engine, Rollouts(TASK, engine, lambda p: np.ones(len(p.text)), config, underway)  # type: ignore[arg-type]


@pytest.mark.parametrize(("ranks", "shared"), [(1, 1), (2, 1), (3, 1), (4, 2)])
def test_a_batch_that_crosses_an_epoch_is_the_same_on_any_number_of_engines(ranks, shared):
    """Each engine samples its part of the step's prompts, and each rank keeps its part of those: together all, each once."""
    source = [Prompt(id=f"p{i}", text=f"{i}", answer="1") for i in range(5)]
    prompts = distinct(PromptStream(source, 0).take(8))
    asked, kept = [], []
    for rank in range(ranks):
        engine, rollouts = sampling(rank, ranks, shared, {p.id: 3 for p in prompts})
        kept.append({group.prompt.id: [r.sample for r in group.rollouts] for group in rollouts(prompts, 1)})
        asked.append(engine.asked)
    # Witness: the epoch ends within the batch, so a problem is there twice, under two ids.
    assert {f"p{i}" for i in range(5)} < {prompt.id for prompt in prompts} and "#2" in "".join(prompt.id for prompt in prompts)
    assert sorted(id_ for part in kept for id_ in part) == sorted(prompt.id for prompt in prompts)
    assert all(samples == [0, 1] for part in kept for samples in part.values())
    assert all(asked[rank] == asked[rank // shared * shared] for rank in range(ranks))


@pytest.mark.parametrize(("ranks", "shared"), [(1, 1), (3, 1), (4, 2), (12, 2)])
def test_an_evaluation_deals_problems_and_samples(ranks, shared):
    prompts = [Prompt(id=f"p{i}", text="x", answer="1") for i in range(5)]
    kept, asked = [], []
    for rank in range(ranks):
        engine, rollouts = sampling(rank, ranks, shared, {p.id: 3 for p in prompts}, samples=3)
        kept += [(r.prompt_id, r.sample) for group in rollouts.evaluate(prompts, 0) for r in group.rollouts]
        asked.append(len(engine.asked))
    assert sorted(kept) == [(f"p{i}", sample) for i in range(5) for sample in range(3)]
    engines = ranks // shared
    assert max(asked) - min(asked) <= 1 and sum(asked) == 15 * shared and engines <= 15  # not 3 at once where 5 problems are dealt


def test_what_was_long_is_sampled_first():
    """A problem's own last length decides, before that the length of its text; the judge still gets what trains first, first."""

    def counted() -> dict[str, float]:
        (event,) = [event for event in TIMELINE.drain() if event["ph"] == "C"]
        return event["args"]

    prompts = [Prompt(id=name, text="x" * n, answer="1") for name, n in (("a", 9), ("b", 2), ("c", 4))]
    lengths = {"a": 10, "b": 20, "c": 40}
    engine, rollouts = sampling(0, 1, 1, lengths)
    pending = rollouts(prompts, 1)
    assert engine.asked == [("a", 0), ("a", 1), ("c", 0), ("c", 1), ("b", 0), ("b", 1)]
    assert [group.prompt.id for group in pending] == ["a", "b", "c"]
    TIMELINE.begin(0)
    TIMELINE.step["generate"] = 6.0
    rollouts.learn(prompts, batch := exchange(prompts, pending, SimpleNamespace(rank=0, size=1, gather_array=lambda own: [own])))  # type: ignore[arg-type]
    assert counted() == {"longest first, seconds won (model)": 0.0}  # in two places 10 + 20 + 40 rounds in any order
    engine.asked.clear()
    rollouts(prompts, 2)
    assert engine.asked == [("c", 0), ("c", 1), ("b", 0), ("b", 1), ("a", 0), ("a", 1)]
    assert rollouts.expected("new", 5) == pytest.approx(5 * (10 + 40 + 20) / (9 + 2 + 4))  # others needed 70 tokens for 15
    engine.slots = 3
    rollouts.learn(prompts, batch)  # in three places 10 10 20 20 40 40 takes 60 rounds, 40 40 20 20 10 10 takes 50
    assert counted() == {"longest first, seconds won (model)": pytest.approx(TIMELINE.step["generate"] * (60 / 50 - 1))}


def test_nucleus_keeps_the_smallest_sufficient_set():
    log_p = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    kept = nucleus(log_p, 0.7).exp()
    assert kept.tolist() == pytest.approx([0.625, 0.375, 0.0, 0.0])
    assert torch.equal(nucleus(log_p, 1.0), log_p)
    assert nucleus(log_p, 0.01).exp().tolist() == [1.0, 0.0, 0.0, 0.0]
    assert math.isclose(nucleus(log_p, 0.81).exp().sum().item(), 1.0, abs_tol=1e-6)
