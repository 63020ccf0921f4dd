"""Prompts → token ids, as the model's chat template and tokenizer want them; worked solutions → supervised responses; and what an
environment replies → the tokens that stand between two turns of the policy."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from jinja2 import TemplateError

from soundrl.fapo.data.rows import RowError, shown
from soundrl.fapo.records import Prompt, Reply, Turn

_MARK = "soundrl-continues-here"
"""Stands for the text of an assistant turn while the template writes what comes before it."""
_REPLY = "soundrl-replies-here"
"""Stands for what a tool says while the template writes what comes before and after it."""
log = logging.getLogger(__name__)
_THINKING = re.compile(r"(\s*)[<\[]([\w:]*think\w*)[>\]]\s*(?:[<\[]/\2[>\]]\s*)?\Z", re.IGNORECASE)
TOOLS = """You may call these functions, a JSON object a line:
{}
To call one, end your turn with a line
<tool_call>{{"name": "its name", "arguments": {{"a parameter": "its value"}}}}</tool_call>
and its result is what you are told next."""
_LOOKS = re.compile(r"[<\[◁].+[>\]▷]", re.DOTALL)
_ASKED = Prompt(id="a reply", text="1+1?", answer="2")


class Encoder:
    """Prompts to token ids. Nothing is remembered: the text of a prompt is its own key, and a data set has too many of them.

    `max_prompt_tokens` bounds a prompt, in tokens. `tools`: JSON schemas of what the policy may call, which prompts with messages tell it.
    """

    def __init__(self, tokenizer: Any, max_prompt_tokens: int, tools: Sequence[dict[str, Any]] = ()) -> None:
        self.tokenizer, self.max_prompt_tokens, self.tools = tokenizer, max_prompt_tokens, list(tools)
        # What the tokenizer puts before a text (BOS); what some put behind it (EOS) would end the prompt.
        plain, full = (list(tokenizer("1", add_special_tokens=special)["input_ids"]) for special in (False, True))
        begin = next((n for n in range(len(full)) if full[n : n + len(plain)] == plain), 0)
        self.prefix = tuple(full[:begin])

    def __call__(self, prompt: Prompt) -> np.ndarray:
        """Token ids of the prompt, int32, up to where the response begins: with BOS, once, where no template decides that.

        `RowError` (a ValueError), naming the row, where it is too long or the template refuses it.
        """
        text = self.render(prompt)
        try:
            tokens = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        except (TypeError, UnicodeEncodeError):
            raise RowError("half of a surrogate pair; write whole characters", "prompt", prompt.id) from None
        if (prompt.messages is None or self.tokenizer.chat_template is None) and tokens[: len(self.prefix)] != self.prefix:
            tokens = self.prefix + tokens
        if len(tokens) > self.max_prompt_tokens:
            raise RowError(
                f"{len(tokens)} tokens, but model.max_length − rollout.max_new_tokens leaves {self.max_prompt_tokens}; "
                "raise model.max_length, lower rollout.max_new_tokens, or remove the row",
                "prompt",
                prompt.id,
            )
        return np.array(tokens, np.int32)

    def render(self, prompt: Prompt) -> str:
        """The text that is tokenized. A last message of the assistant is continued: it stands at the end, letter by letter.

        Without a chat template (a base model) the messages' plain texts. `RowError` where the template refuses the messages, or leaves
        out what a user or the system says.
        """
        if prompt.messages is None:
            return prompt.text
        *asked, last = prompt.messages if self._told else described(prompt.messages, self.tools)
        begun = last["content"] if last["role"] == "assistant" else ""
        if last["role"] != "assistant":
            asked.append(last)
        if self.tokenizer.chat_template is None:
            return "\n\n".join([*(message["content"] for message in asked), begun])
        if not begun.strip():
            return self._apply(prompt, asked, True)
        # The template's own words for continuing a message look for its text, which templates trim, and which may stand there twice.
        head, mark, _ = self._apply(prompt, [*asked, {**last, "content": _MARK}], False).rpartition(_MARK)
        if not mark:
            raise RowError("the chat template leaves out the last message, of the assistant; remove it", "prompt", prompt.id)
        # Some templates open or skip the thinking there; whether it does is for the row to say.
        return _THINKING.sub(r"\1", head) + begun

    def response(self, text: str) -> np.ndarray:
        """Token ids of a supervised response, int32, its end token included. ValueError where the tokenizer has none."""
        if self.tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no eos_token, so no response can be taught to end; set one in tokenizer_config.json")
        return np.array([*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id], np.int32)

    def worked(self, said: str | Sequence[Turn]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of a supervised response and their mask, uint8: 1 = what is learned. Of several turns the policy's own, each with its
        end token."""
        turns = (Turn(text=said, own=True),) if isinstance(said, str) else said
        end = self.tokenizer.eos_token_id
        parts = [self.response(t.text) if t.own else self.reply(Reply(text=t.text, tool=t.tool), end) for t in turns]
        return np.concatenate(parts), np.repeat(np.array([t.own for t in turns], np.uint8), [len(part) for part in parts])

    def reply(self, reply: Reply, ended: int = -1) -> np.ndarray:
        """Token ids, int32, that follow a turn of the policy up to where its next one begins: what the chat template writes between them,
        and the reply; without a template the reply alone. `ended`: the token that the turn has ended with, which is not repeated.

        The reply is data: what looks like a control token in it is text. ValueError where the template knows no turn after one of the
        assistant.
        """
        # No control token may come of it, nor one that is not special and means something all the same: </tool_response>.
        cuts = [0, *(found.start() + 1 for found in self._control.finditer(reply.text)), len(reply.text)]
        parts = [reply.text[begin:end] for begin, end in pairwise(cuts)]
        try:
            said = [id_ for part in parts for id_ in self.tokenizer(part, add_special_tokens=False, split_special_tokens=True)["input_ids"]]
        except (TypeError, UnicodeEncodeError):
            raise ValueError(f"a reply holds half of a surrogate pair ({ascii(reply.text)[:80]}); write whole characters") from None
        before, after = self._glue
        end = next((n for n, id_ in enumerate(before) if id_ == ended), -1)
        # Some templates write a space or a line before the end token, which the policy did not.
        before = before[end + 1 :] if not self.tokenizer.decode(before[: max(end, 0)]).strip() else before
        return np.array([*before, *said, *after], np.int32)

    @cached_property
    def _control(self) -> re.Pattern[str]:
        """The tokenizer's own tokens that look like marks."""
        marks = {token.content for token in self.tokenizer.added_tokens_decoder.values() if _LOOKS.fullmatch(token.content)}
        return re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))) or r"(?!)")

    @cached_property
    def _told(self) -> bool:
        """Whether the template tells the policy of its tools, or there are none."""
        if not self.tools:
            return True
        asked = [{"role": "user", "content": "1+1?"}]
        return self.tokenizer.chat_template is not None and all(
            tool["function"]["name"] in self._apply(_ASKED, asked, True, tools=[tool]) for tool in self.tools
        )

    @cached_property
    def _glue(self) -> tuple[list[int], list[int]]:
        """Tokens between the text of an assistant's turn and a tool's, and between that and the assistant's next. A template that knows no
        tool gets the reply as a user's message."""
        if self.tokenizer.chat_template is None:
            return [], []
        why = ""
        for role in ("tool", "user"):
            last = {"role": role, "content": _REPLY} | ({"name": "tool"} if role == "tool" else {})
            messages = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": _MARK}, last]
            try:
                text = self._apply(_ASKED, messages, True)
            except RowError as error:
                why = error.reason.partition("(")[2].rpartition(")")[0] or error.reason
                continue
            between, replied, after = text.rpartition(_MARK)[2].partition(_REPLY)
            if _MARK in text and replied:
                if role == "user":
                    log.warning("the chat template knows no role tool: what an environment replies stands in a message of the user")
                return tuple(self.tokenizer(part, add_special_tokens=False)["input_ids"] for part in (between, after))  # type: ignore
            why = "it leaves out the assistant's turn, or the reply"
        raise ValueError(f"the chat template takes no reply after a turn of the assistant ({why}); use another, or a task of one turn")

    def _apply(
        self, prompt: Prompt, messages: list[dict[str, str]], generation: bool, tools: Sequence[dict[str, Any]] | None = None
    ) -> str:
        given = tools or (self.tools if self.tools and self._told else None)
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation, tools=given)
        except (TemplateError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise RowError(f"the chat template refuses these messages ({why}); change or remove the row", "prompt", prompt.id) from None
        for message in messages:
            if message["role"] in ("system", "developer", "user") and message["content"].strip() not in text:
                said = f"the message of the {message['role']} ({shown(message['content'])})"
                raise RowError(f"the chat template leaves out {said}; write it as the user's", "prompt", prompt.id)
        return text


def described(messages: Sequence[dict[str, str]], tools: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The messages with the tools in words, where a chat template has no place for them: in front of the first one, of the system or the
    user."""
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    first, *rest = messages
    return [first | {"content": f"{TOOLS.format(listed)}\n\n{first['content']}"}, *rest]
