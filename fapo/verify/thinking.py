r"""Finds where a response's thinking ends. What is thought is not read, and a response cut in mid thought has no answer.

Every usual pair of marks is known, in any case: `<think>` (DeepSeek, Qwen, GLM, …) and its spellings `<thinking>`, `<thought>`,
`<reasoning>`, `<seed:think>`; `[THINK]` (Magistral), `◁think▷` (Kimi), `<|begin_of_thought|>` (Sky-T1), `<|START_THINKING|>` (Command A),
`<|inner_prefix|>` (Apertus), `<unused94>thought` and `<|channel>thought` (Gemma); and the channels of gpt-oss, also as they read when
special tokens are left out: `analysis…assistantfinal…`.

A mark closes the first open part of its kind and all that was opened within it, so that a mark that is only mentioned in thought does not
swallow the answer. Text behind the last part counts. Where a part is still open there is no answer, and it does not matter whether
the response stopped or was cut, nor whether the response or its prompt had opened the part: who never closes it has given no answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

_WORD = r"(?:think|thinking|thoughts?|reason|reasoning|reflection|analysis|scratchpad)"
_MARK = re.compile(
    rf"<(?P<a_close>/?)\s*(?:[a-z_]{{1,16}}:)?(?P<a>{_WORD})\s*>"
    rf"|\[(?P<b_close>/?)(?P<b>{_WORD})\]"
    rf"|◁(?P<c_close>/?)(?P<c>{_WORD})▷"
    rf"|<\|(?P<d_close>/|end_?(?:of_?)?)?(?:(?:begin|start)_?(?:of_?)?)?(?P<d>{_WORD})\|>"
    r"|(?P<e><\|inner_(?:prefix|(?P<e_close>suffix))\|>)|(?P<f><unused94>\s*(?:thoughts?)?|(?P<f_close><unused95>))"
    r"|(?P<g><\|channel>\s*thoughts?|(?P<g_close><channel\|>))",
    re.IGNORECASE,
)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
# Without special tokens nothing stands between a channel's name and its text.
_BARE_FIRST = re.compile(r"\A\s*(?:analysis|commentary)(?=[^\s:.,;)\-])")
_BARE_CHANNEL = re.compile(r"assistant(?:analysis|commentary|(final))")
_KINDS = "abcdefg"


def answer_part(text: str, thinks: bool = False) -> str | None:
    """What follows the thinking parts; None where one never ends. `thinks`: the prompt has opened one."""
    channels = list(_CHANNEL.finditer(text))
    if channels:
        return answer_part(text[channels[-1].end() :]) if channels[-1][1].lower() == "final" else None
    if thinks or _BARE_FIRST.match(text):
        bare = list(_BARE_CHANNEL.finditer(text))
        if bare:
            return answer_part(text[bare[-1].end() :]) if bare[-1][1] else None
        if not thinks:
            return None
    parts, end = _open_parts(text, ["any"] if thinks else [])
    return None if parts else text[end:]


def opens(prompt: str) -> bool:
    """Whether a rendered prompt ends within a thinking part that it opens: in `<think>` as its last word, or in an `analysis` channel.

    Marks that stand earlier are read over, as prompts explain them to the policy; of a prompt that ends in the beginning of the response
    itself give that alone to `answer_part`.
    """
    tail = prompt[-200:].rstrip()
    channel = list(_CHANNEL.finditer(tail))
    if channel and channel[-1].end() == len(tail):
        return channel[-1][1].lower() != "final"
    marks = list(_MARK.finditer(tail))
    return bool(marks) and marks[-1].end() == len(tail) and not _closes(marks[-1])


class Thoughts:
    """What the verifier has to know of a rollout's thinking, from its tokens.

    Some tokenizers have special tokens for marks (`[THINK]`, channels), which a response's text leaves out: such a text is decoded again,
    and all other special tokens are taken off. `tokenizer`: a Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        # What `skip_special_tokens` leaves out: also added tokens that are special without having a role.
        special = set(tokenizer.all_special_tokens) | {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._others = sorted((token for token in special if not _is_mark(token)), key=len, reverse=True)
        self._decodes = len(self._others) < len(special)

    def opened_by(self, prompt_tokens: Sequence[int] | np.ndarray) -> bool:
        """Whether the prompt ends within a thinking part; see `opens`."""
        return opens(self.tokenizer.decode(np.asarray(prompt_tokens[-48:]).tolist(), skip_special_tokens=False))

    def text(self, text: str, tokens: Sequence[int] | np.ndarray) -> str:
        """The response with all of its marks; `text` is what was decoded without special tokens."""
        if not self._decodes:
            return text
        text = self.tokenizer.decode(np.asarray(tokens).tolist(), skip_special_tokens=False)
        for token in self._others:
            text = text.replace(token, "")
        return text


def _is_mark(token: str) -> bool:
    return _MARK.fullmatch(token) is not None or token in ("<|channel|>", "<|message|>", "<|constrain|>", "<|channel>")


def _closes(mark: re.Match[str]) -> bool:
    return any(mark[f"{kind}_close"] for kind in _KINDS)


def _open_parts(text: str, parts: list[str]) -> tuple[list[str], int]:
    """The kinds of the parts that are open at the end of the text, outermost first, and where the last closing mark ends."""
    end = 0
    for mark in _MARK.finditer(text):
        kind = _kind(mark)
        if not _closes(mark):
            parts.append(kind)
            continue
        end = mark.end()
        # What the prompt opened, of whatever kind, is closed by a `think`, and by any mark that closes nothing else.
        alike = (kind,) if kind in parts and kind[1:] != "think" else (kind, "any")
        del parts[next((i for i, part in enumerate(parts) if part in alike), len(parts)) :]
    return parts, end


def _kind(mark: re.Match[str]) -> str:
    """One name for what may close what: models mix `<think>` and `</thinking>`, not `<think>` and `</reasoning>`."""
    shape = next(kind for kind in _KINDS if mark[kind] is not None)
    return shape + (mark[shape].lower()[:5] if shape in "abcd" else "")
