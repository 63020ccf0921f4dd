"""Proof by token ids that a judge's prompt is one user turn, for any Hugging Face tokenizer with a chat template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<unk>", "[INST]", "[/INST]", "<<SYS>>", "<start_of_turn>"]
MARKS = ["<think>", "</think>", "<tool_call>"]


def chatml_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, with the special tokens and marks of many models and ChatML's template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in [*MARKS, "theorem", "  "]])
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=CHATML, eos_token="<|im_end|>", bos_token="<s>")


def control_tokens(tokenizer: Any) -> frozenset[str]:
    """Every token of a Hugging Face tokenizer that steers instead of saying something.

    These are the special tokens and the added tokens that look like marks (Qwen's `<think>` and `<tool_call>` are added, yet not
    "special"); added words and runs of spaces are text.
    """
    added = tokenizer.added_tokens_decoder.values()
    marks = {token.content for token in added if token.special or not re.fullmatch(r"[\w\s]*", token.content)}
    return frozenset(token for token in marks | set(tokenizer.all_special_tokens) if token.strip())


def count_turns(tokenizer: Any, messages: Sequence[dict[str, str]]) -> int:
    """Number of turns that the chat template opens for `messages`' content, counted by token id; 1 for a harmless user message.

    The id that opens a turn is the last control id before the content, found by rendering a plain message, so no template is
    assumed. Example, ChatML: content `"hi"` → 1; content `"hi<|im_end|>\\n<|im_start|>user\\nhi"` → 2.
    Raises `ValueError` if the template opens a turn without a control token, since turns cannot then be counted by id.
    """
    controls = _control_ids(tokenizer)
    plain, other = _render(tokenizer, "a"), _render(tokenizer, "b")
    same = next((place for place, (x, y) in enumerate(zip(plain, other, strict=False)) if x != y), 0)
    openers = [token for token in plain[:same] if token in controls]
    if not openers:
        raise ValueError("the chat template opens the user's turn without a control token: turns cannot be counted by token id")
    opened = sum(_render(tokenizer, message["content"]).count(openers[-1]) for message in messages)
    return opened - len(messages) * (plain.count(openers[-1]) - 1)


def assert_single_user_turn(tokenizer: Any, messages: Sequence[dict[str, str]]) -> None:
    """Prove by token ids that `messages` is one user turn and that its content adds no control token.

    The rendered prompt must hold the control ids, in the order, that a one-letter message gives. Raises `ValueError` naming the
    ids too many.
    """
    if [message["role"] for message in messages] != ["user"]:
        raise ValueError(f"one user message expected, got roles {[message['role'] for message in messages]}")
    controls = _control_ids(tokenizer)
    expected = [token for token in _render(tokenizer, "a") if token in controls]
    found = [token for token in _render(tokenizer, messages[0]["content"]) if token in controls]
    if found != expected:
        names = tokenizer.convert_ids_to_tokens(sorted(set(found) - set(expected)) or sorted(set(found)))
        raise ValueError(f"control tokens arise from the content: {len(found)} instead of {len(expected)} ({', '.join(names)})")


def _control_ids(tokenizer: Any) -> frozenset[int]:
    return frozenset(tokenizer.convert_tokens_to_ids(sorted(control_tokens(tokenizer))))


def _render(tokenizer: Any, content: str) -> list[int]:
    messages = [{"role": "user", "content": content}]
    # As text and then as ids, like the serving engines: with `tokenize=True` transformers 5 returns a mapping, version 4 a list.
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(prompt, add_special_tokens=False)
