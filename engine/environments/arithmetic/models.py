"""The model folders of the embedded world: a tokenizer and a freshly seeded decoder, of the policy and of its GenRM.

The policy's block is OPT's (LayerNorm, ReLU, learned positions; 0.6 M parameters): transformers and vLLM both know it, and on CPU it costs
a third of a SwiGLU/RMSNorm block of the same size, whose elementwise work is not fused in eager mode.

The GenRM reads the prompt that it is made for (`genrm/prompts.py`). What is the same in each, introduction, headings, tags and task,
becomes one token a piece, and a number up to 99 is one token, so that a prompt of 1,500 characters has about 60 tokens. The decoder is
Llama's: with rotary positions, copying from the solution is learned in hundreds of steps.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from soundrl.engine.environments.arithmetic.chains import ALPHABET, END, PAD
from soundrl.genrm.prompts import PROMPTS

HIDDEN, LAYERS, HEADS = 128, 3, 4
PARAGRAPHS = 16
"""Tags with higher numbers are spelled in characters."""
USER, JUDGE, UNKNOWN = "<user>", "<judge>", "<?>"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '" + USER + "' if m['role'] == 'user' else '" + JUDGE + "' }}{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}" + JUDGE + "{% endif %}"
)
_MARK = "#"
"""Stands in no fixed part of the prompt."""


def _tokenizer(tokens: Sequence[str], piece: str, unknown: str, context: int, **special: Any) -> PreTrainedTokenizerFast:
    """One token a match of `piece`."""
    made = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=unknown))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(piece), behavior="isolated")  # type: ignore[assignment]
    made.decoder = decoders.Fuse()  # type: ignore[assignment]
    special |= {"pad_token": PAD, "eos_token": END, "clean_up_tokenization_spaces": False, "model_max_length": context}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def arith_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character of `ALPHABET`, then pad and end."""
    return _tokenizer([*ALPHABET, PAD, END], r"[\s\S]", PAD, 128)


def fixed_parts(prompt: str = "own") -> list[str]:
    """The pieces of a prompt that do not depend on what is judged, with and without reference answer."""
    asked = [PROMPTS[prompt].messages(_MARK, [_MARK], reference)[0]["content"] for reference in (_MARK, None)]
    parts = [part for text in asked for part in text.split(_MARK)]
    if not PROMPTS[prompt].locates:
        return list(dict.fromkeys([*parts, "\n\n"]))
    last = next(part for part in parts if part.startswith("\n</paragraph_0>"))
    between = [f"\n</paragraph_{i}>\n\n<paragraph_{i + 1}>\n" for i in range(PARAGRAPHS)]
    ends = [last.replace("_0>", f"_{i}>", 1) for i in range(PARAGRAPHS)]
    return list(dict.fromkeys([*(part for part in parts if part != last), *between, *ends]))


def critic_tokenizer(prompt: str = "own") -> PreTrainedTokenizerFast:
    """Fixed parts of `prompt`, the critic's words, numbers below 100 and the world's signs; anything else is `<?>`."""
    words = [] if PROMPTS[prompt].locates else ["True", "False"]
    fixed = [*fixed_parts(prompt), " ok ", " wrong ", "\\boxed{", "}", *words]
    signs = [*"+-*=?#\n", *(str(i) for i in range(10)), *(f"{i:02d}" for i in range(100))]
    longest_first = "|".join(re.escape(part) for part in sorted(fixed, key=len, reverse=True))
    tokens = [PAD, END, USER, JUDGE, UNKNOWN, *fixed, *signs]
    made = _tokenizer(tokens, longest_first + r"|\d{1,2}|[\s\S]", UNKNOWN, 256, additional_special_tokens=[USER, JUDGE])
    made.chat_template = CHAT_TEMPLATE
    return made


def _write(folder: Path, seed: int, kind: tuple[Any, Any], tokenizer: Any, **shape: Any) -> None:
    """Tokenizer, config and random weights of `kind` (its configuration, its model) as a Hugging Face folder (fp32 safetensors)."""
    configuration, decoder = kind
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    shape = {"hidden_size": HIDDEN, **shape, "vocab_size": len(tokenizer), "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    shape |= {"max_position_embeddings": tokenizer.model_max_length, "dtype": "float32"}
    config = configuration(bos_token_id=end, eos_token_id=end, pad_token_id=pad, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = decoder(config)
    model.generation_config.do_sample = decoder is OPTForCausalLM or None
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_arith_model(folder: Path, seed: int, scale: int = 1) -> None:
    """The policy's; `scale` multiplies its width."""
    width = HIDDEN * scale
    shape = {"hidden_size": width, "word_embed_proj_dim": width, "ffn_dim": 4 * width, "activation_function": "relu"}
    rates = {"dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0}
    _write(folder, seed, (OPTConfig, OPTForCausalLM), arith_tokenizer(), **shape, **rates)


def write_arith_critic(folder: Path, seed: int, prompt: str = "own") -> None:
    """The GenRM's, which reads `prompt` alone."""
    shape = {"num_key_value_heads": HEADS, "intermediate_size": 344, "tie_word_embeddings": False}
    _write(folder, seed, (LlamaConfig, LlamaForCausalLM), critic_tokenizer(prompt), **shape)
