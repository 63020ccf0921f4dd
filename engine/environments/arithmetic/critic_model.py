"""The model folder of the embedded world's GenRM: a tokenizer that reads the judge's prompt, and a freshly seeded decoder.

The prompt is the one every judge gets (`genrm/prompts.py`). What is the same in each, introduction, headings, tags and task, becomes one
token a piece, and a number up to 99 is one token, so that a prompt of 1,500 characters has about 60 tokens. The decoder is Llama's:
with rotary positions, copying from the solution is learned in hundreds of steps.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from soundrl.engine.environments.arithmetic.chains import END, PAD
from soundrl.genrm.prompts import critique_messages

HIDDEN, LAYERS, HEADS, FFN, CONTEXT = 128, 3, 4, 344, 256
PARAGRAPHS = 16
"""Tags with higher numbers are spelled in characters."""
USER, JUDGE, UNKNOWN = "<user>", "<judge>", "<?>"
CHAT_TEMPLATE = "{% for m in messages %}" + USER + "{{ m['content'] }}{% endfor %}" + JUDGE
_MARK = "#"
"""Stands in no fixed part of the prompt."""


def fixed_parts() -> list[str]:
    """The pieces of a prompt that do not depend on what is judged, with and without reference answer."""
    parts = []
    for reference in (_MARK, None):
        parts += critique_messages(_MARK, [_MARK], reference)[0]["content"].split(_MARK)
    last = [part for part in parts if part.startswith("\n</paragraph_0>")]
    return list(
        dict.fromkeys(
            [part for part in parts if part not in last]
            + [f"\n</paragraph_{i}>\n\n<paragraph_{i + 1}>\n" for i in range(PARAGRAPHS)]
            + [last[0].replace("_0>", f"_{i}>", 1) for i in range(PARAGRAPHS)]
        )
    )


def critic_tokenizer() -> PreTrainedTokenizerFast:
    """Fixed parts, the critic's words, numbers below 100 and the world's signs; anything else is `<?>`."""
    fixed = [*fixed_parts(), " ok ", " wrong ", "\\boxed{", "}"]
    signs = [*"+-*=?#\n", *(str(i) for i in range(10)), *(f"{i:02d}" for i in range(100))]
    vocab = {token: i for i, token in enumerate([PAD, END, USER, JUDGE, UNKNOWN, *fixed, *signs])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    longest_first = "|".join(re.escape(part) for part in sorted(fixed, key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(longest_first + r"|\d{1,2}|[\s\S]"), behavior="isolated")  # type: ignore[assignment]
    tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, JUDGE],
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def write_arith_critic(folder: Path, seed: int) -> None:
    """Write tokenizer, config and random weights as a Hugging Face folder (fp32 safetensors)."""
    tokenizer: Any = critic_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        intermediate_size=FFN,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
