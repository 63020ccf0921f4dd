"""A Llama of SmolLM2's vocabulary with random weights, for benchmarks that move bytes: what the weights are matters to none of them."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 49152


def write_model(folder: Path, layers: int, hidden: int) -> PreTrainedTokenizerFast:
    """A model folder with a tokenizer of two words, which is returned; 30 `layers` and `hidden` 576 are SmolLM2-135M's."""
    heads = max(1, hidden // 64)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 3),
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")), eos_token="b")
    tokenizer.save_pretrained(folder)
    return tokenizer
