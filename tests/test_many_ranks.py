"""64 ranks and 32 prompts a mini-batch: planned, exchanged among all of them, dealt, and started."""

import json
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import start
from safetensors.torch import load_file
from test_memory_plan import QWEN_7B
from tiny import fixed_samples, write_tiny
from transformers import AutoConfig

from soundrl.engine.exchange import exchange
from soundrl.engine.packing import micro_batches
from soundrl.engine.planning.command import planned
from soundrl.engine.recipes import fapo_7b
from soundrl.engine.schedule import minibatches
from soundrl.fapo.pending import PendingGroups, done
from soundrl.fapo.records import Outcome, Prompt, Rollout

RANKS, PROMPTS, SAMPLES = 64, 32, 4


class Shared:
    """Collectives of threads: what every one of them brings, in rank order."""

    def __init__(self, size: int) -> None:
        self.parts: list = [None] * size
        self.barrier = threading.Barrier(size)

    def gather(self, rank: int, own) -> list:
        self.parts[rank] = own
        self.barrier.wait(600)
        parts = list(self.parts)
        self.barrier.wait(600)
        return parts


class Of:
    """A rank among them."""

    device = torch.device("cpu")

    def __init__(self, rank: int, shared: Shared) -> None:
        self.rank, self.size, self.shared = rank, len(shared.parts), shared

    def gather_array(self, own: np.ndarray) -> list[np.ndarray]:
        return self.shared.gather(self.rank, own)

    def sum(self, values: list[float]) -> list[float]:
        return np.sum(self.shared.gather(self.rank, values), axis=0).tolist()


def rollouts(prompt: Prompt) -> list[Rollout]:
    rng = np.random.default_rng(int(prompt.id))
    lengths = rng.integers(1, 40, SAMPLES)
    return [
        Rollout(
            prompt_id=prompt.id,
            sample=i,
            prompt_tokens=np.arange(3),
            tokens=rng.integers(0, 18, n),
            logprobs=-rng.random(n),
            text="",
            finish_reason="stop",
            policy_version=1,
        )
        for i, n in enumerate(lengths)
    ]


def assign(groups) -> None:
    for group in groups:
        group.rewards, group.kept = [1.0, -1.0] * (SAMPLES // 2), [True] * SAMPLES
        group.advantages = [0.25 * (1 + int(group.prompt.id) % 5) * (-1) ** i for i in range(SAMPLES)]


def trained(rank: int, shared: Shared) -> list:
    """What each round of each window holds, as (tokens' sum, advantage) of every sample, by rank."""
    prompts = [Prompt(id=str(i), text="", answer="") for i in range(PROMPTS)]
    own = prompts[rank :: len(shared.parts)]  # half of 64 ranks have none
    pending = PendingGroups(own, assign, decisive=True)
    for prompt in own:
        for rollout in rollouts(prompt):
            right = int(prompt.id) % 3 and rollout.sample == 0  # a third of the groups waits for no verdict
            pending.by_prompt[prompt.id].add(rollout, done(Outcome.CORRECT if right else Outcome.WRONG), done(None))
    ranks = Of(rank, shared)
    rounds = []
    for minibatch in minibatches(exchange(prompts, pending, ranks), PROMPTS, 128):  # type: ignore[arg-type]
        for window in minibatch.trained():
            for each in micro_batches([s.length for s in window], ranks.size, 128):
                rounds.append([[(int(window[i].tokens.sum()), window[i].advantage) for i in hand] for hand in each])
    return rounds


def test_64_ranks_know_the_same_and_train_each_sequence_once():
    shared, said = Shared(RANKS), {}
    threads = [threading.Thread(target=lambda rank=rank: said.update({rank: trained(rank, shared)})) for rank in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert len(said) == RANKS and all(rounds == said[0] for rounds in said.values())
    everything = sorted(sample for each in said[0] for hand in each for sample in hand)
    assert len(everything) == PROMPTS * SAMPLES and all(advantage != 0.0 for _, advantage in everything)
    # Inverse: a rank alone, that holds everything, trains the same.
    (alone,) = [trained(0, Shared(1))]
    assert sorted(sample for each in alone for hand in each for sample in hand) == everything


def test_64_ranks_are_planned(tmp_path):
    AutoConfig.for_model("qwen2", **QWEN_7B, tie_word_embeddings=False).save_pretrained(tmp_path)
    config = replace(fapo_7b(), model=replace(fapo_7b().model, path=str(tmp_path)))
    assert config.optim.minibatch_prompts == 32
    plan = planned(config, RANKS, 80.0)
    plan.check()


def test_64_ranks_start(tmp_path):
    """Three of them in turns, with a fake process group: their rows of the weights, and as many micro-batches as all others."""
    folder, of, budget = write_tiny(tmp_path / "model"), (0, 17, RANKS - 1), 128
    out = tmp_path / "said.json"
    arguments = json.dumps({"folder": str(folder), "ranks": RANKS, "of": of, "budget": budget})
    ended = start([sys.executable, "tests/workers/many_ranks.py", arguments, str(out)])
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    said = {int(rank): words for rank, words in json.loads(out.read_text()).items()}
    weights, samples = load_file(folder / "model.safetensors"), fixed_samples(512)
    expected: dict[int, list[int]] = {rank: [] for rank in of}
    for start_, stop in ((0, 256), (256, 512)):
        lengths = [s.length for s in samples[start_:stop] if s.advantage]
        for each in micro_batches(lengths, RANKS, budget):
            for rank in of:
                expected[rank].append(sum(lengths[i] for i in each[rank]))
    for rank, words in said.items():
        assert words["size"] == RANKS
        assert len(words["tokens"]) == len(expected[0]) > 1  # nobody waits in a collective that others do not enter
        assert [tokens for tokens in words["tokens"] if tokens > 2] == [tokens for tokens in expected[rank] if tokens]
        for name, rows in words["rows"].items():
            part = -(-len(weights[name]) // RANKS)
            own = weights[name][part * rank : part * (rank + 1)]
            assert rows == len(own) and words["first"][name] == pytest.approx(own.flatten()[:2].tolist())
    assert said[RANKS - 1]["rows"]["model.norm.weight"] == 1 and any(
        rows == 0 for rows in said[RANKS - 1]["rows"].values()
    )  # 18 of 64 have one
