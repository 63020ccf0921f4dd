"""Tiny random models of real architectures, with the embedded world's tokenizer."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from soundrl.engine.environments.arithmetic.models import arith_tokenizer, write_arith_model
from soundrl.engine.exchange import StepBatch
from soundrl.engine.packing import Sample
from soundrl.engine.ranks import Ranks
from soundrl.engine.schedule import Minibatch

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MIXTURES: dict[str, dict] = {
    "qwen3_moe": EXPERTS | {"norm_topk_prob": True},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 48},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
}
"""Kinds with experts. Those that take no `head_dim` have two heads: vLLM's attention on CPU takes none below 32."""


def write_tiny(folder: Path, kind: str = "qwen3", tied: bool = True, seed: int = 0) -> Path:
    """A 2-layer `llama`, `qwen2`, `qwen3` or one of `MIXTURES` (or the embedded world's `opt`) with large random weights, as a safetensors
    folder."""
    if kind == "opt":
        write_arith_model(folder, seed)
        return folder
    tokenizer = arith_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.eos_token_id}
    shape = {k: v for k, v in SHAPE.items() if not (kind == "qwen2" and k == "head_dim")}
    if kind in MIXTURES:
        shape = {k: v for k, v in SHAPE.items() if k != "head_dim"} | {"num_attention_heads": 2, "num_key_value_heads": 2} | MIXTURES[kind]
        shape |= {"head_dim": 32} if kind in ("qwen3_moe", "mixtral") else {}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), tie_word_embeddings=tied, dtype="float32", **shape, **ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def fixed_samples(count: int = 24) -> list[Sample]:
    """Random sequences of many lengths with advantages 0, +, −, + and made-up sampler log-probabilities."""
    rng = random.Random(5)
    out = []
    for i in range(count):
        prompt, response = (tuple(rng.randrange(18) for _ in range(rng.randint(1, top))) for top in (12, 40))
        advantage = (0.0, 1.2, -0.7, 2.5)[i % 4]
        out.append(Sample(prompt_tokens=prompt, tokens=response, logprobs=tuple(-rng.random() * 6 for _ in response), advantage=advantage))
    return out


def known(ranks: Ranks, *parts: list[Sample]) -> list[Minibatch]:
    """A mini-batch of each part, of one window, whose advantages are known already; the same on every rank."""
    samples = [sample for part in parts for sample in part]
    groups = [range(sum(map(len, parts[:i])), sum(map(len, parts[: i + 1]))) for i in range(len(parts))]
    batch = StepBatch(samples, groups, [False] * len(parts), np.array([s.advantage for s in samples]), {}, ranks)
    return [Minibatch(batch, [g], [[g]]) for g in range(len(parts))]
