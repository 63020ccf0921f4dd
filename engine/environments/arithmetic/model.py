"""The model folder of the embedded world: a character tokenizer and a freshly seeded 0.6 M-parameter decoder.

The block is OPT's (LayerNorm, ReLU, learned positions): transformers and vLLM both know it, and on CPU it costs a third
of a SwiGLU/RMSNorm block of the same size, whose elementwise work is not fused in eager mode.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from soundrl.engine.environments.arithmetic.chains import ALPHABET, END, PAD

HIDDEN, LAYERS, HEADS, FFN, CONTEXT = 128, 3, 4, 512, 128


def arith_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character of `ALPHABET`, then pad and end."""
    vocab = {token: i for i, token in enumerate([*ALPHABET, PAD, END])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")  # type: ignore[assignment]
    tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, clean_up_tokenization_spaces=False, model_max_length=CONTEXT
    )


def write_arith_model(folder: Path, seed: int) -> None:
    """Write tokenizer, config and random weights as a Hugging Face folder (fp32 safetensors)."""
    tokenizer: Any = arith_tokenizer()
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        word_embed_proj_dim=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        ffn_dim=FFN,
        max_position_embeddings=CONTEXT,
        activation_function="relu",
        dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
        bos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = OPTForCausalLM(config)
    model.generation_config.do_sample = True
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
