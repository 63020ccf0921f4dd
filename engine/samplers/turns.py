"""Rollouts of several turns: between two turns of the policy stands what its environment has replied. Token in, token out.

    prompt → turn of the policy → reply → turn of the policy → … → whole rollout

What the policy has sampled is kept as it is, and sent back as it is: nothing is tokenized or rendered a second time. Each rollout goes its
own way: it is in the sampler while others wait for a reply. A turn's seed follows from its rollout's and its number, so neither who replies
first nor who is sampled beside changes what is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace

import numpy as np

from soundrl.engine.encode import Encoder
from soundrl.engine.environments.environment import Environment, LostReply
from soundrl.engine.launch.last_words import RANK
from soundrl.engine.samplers.sampler import Request, Sampler, seed_of_turn
from soundrl.fapo.pending import done
from soundrl.fapo.records import Prompt, Reply, Rollout, Turn

LOOK = 0.2  # seconds that a sampler with nothing to do waits for a reply before it looks whether the run is left
LOST = "lost"
Key = tuple[str, int]


class Turns:
    """Completions of `sampler`, each continued until its environment has no reply to it. `most`: turns of the policy in a rollout."""

    def __init__(self, sampler: Sampler, encode: Encoder, environment: Environment, most: int) -> None:
        self.sampler, self.encode, self.environment, self.most = sampler, encode, environment, most

    def generate(self, requests: Sequence[Request], prompts: Mapping[str, Prompt], leaving: Callable[[], bool]) -> Iterator[Rollout]:
        """Yields each rollout when it is whole. `max_new_tokens` of a request bounds all of a rollout's turns, the environment's too; its
        prompt stands in `prompts`. Ranks that share an engine call it alike, and the first of them asks the environment."""
        yield from _Talk(self, requests, prompts).generate(leaving)


class _Talk:
    """What is under way in one call."""

    def __init__(self, turns: Turns, requests: Sequence[Request], prompts: Mapping[str, Prompt]) -> None:
        self.turns, self.sampler, self.prompts = turns, turns.sampler, prompts
        self.requests: dict[Key, Request] = {(r.prompt_id, r.sample): r for r in requests}
        self.begun: dict[Key, tuple[Rollout, Reply, np.ndarray]] = {}
        """Before the turn that is sampled now, what it replies to, and the reply with its tokens"""
        self.asked: dict[Key, Rollout] = {}
        """To which a reply is to come"""
        self.replies: dict[Key, Future[Reply | None]] = {}
        """The same, on the rank that has asked"""
        self.next, self.whole = list[Request](), list[Rollout]()

    def generate(self, leaving: Callable[[], bool]) -> Iterator[Rollout]:
        for part in self.sampler.generate(list(self.requests.values()), leaving, self._more):
            self._ended(part)
            yield from self._taken()
        yield from self._taken()  # ended by a reply, or for want of one

    def _taken(self) -> list[Rollout]:
        taken, self.whole = self.whole, []
        return taken

    def _ended(self, part: Rollout) -> None:
        """A turn of the policy."""
        key = part.prompt_id, part.sample
        rollout = part
        if key in self.begun:
            before, reply, tokens = self.begun.pop(key)
            rollout = joined(before, reply, tokens, part)
            rollout.text = self.turns.environment.transcript(rollout.turns)
        if rollout.finish_reason != "stop":
            self.whole.append(rollout)
            return
        self.asked[key] = rollout
        if self.sampler.leads:
            said = self.turns.environment.respond(self.prompts[part.prompt_id], rollout)
            self.replies[key] = said if isinstance(said, Future) else done(said)
        self._hear()

    def _more(self, idle: bool) -> list[Request] | None:
        if idle and not self.next and self.replies:
            RANK.beat()
            wait(self.replies.values(), LOOK, FIRST_COMPLETED)
        self._hear()
        taken, self.next = self.next, []
        return taken if taken or self.asked else None

    def _hear(self) -> None:
        """Go on with what has been replied, on all ranks of the engine alike."""
        if not self.asked:
            return
        come = [key for key, reply in self.replies.items() if reply.done()]
        for key, reply in self.sampler.of_engine([(key, heard(self.replies.pop(key))) for key in come]):
            self._go_on(key, self.asked.pop(key), reply)

    def _go_on(self, key: Key, rollout: Rollout, reply: Reply | None | str) -> None:
        asked, spoken, end = self.requests[key], 1 + sum(not turn.own for turn in rollout.turns), rollout.finish_reason
        if isinstance(reply, str):
            end = LOST
        elif reply is not None and spoken == self.turns.most:
            end = "turns"
        elif reply is not None:
            tokens = self.turns.encode.reply(reply, int(rollout.tokens[-1]))
            if not len(tokens):
                raise ValueError(f"the environment's reply in {key[0]} is empty; let respond return None where there is none")
            if (room := asked.max_new_tokens - len(rollout.tokens) - len(tokens)) > 0:
                self.begun[key] = rollout, reply, tokens
                read = np.concatenate((asked.prompt_tokens, rollout.tokens, tokens))
                self.next.append(replace(asked, prompt_tokens=read, seed=seed_of_turn(asked.seed, spoken), max_new_tokens=room))
                return
            end = "length"
        self.whole.append(replace(rollout, finish_reason=end))


def heard(reply: Future[Reply | None]) -> Reply | None | str:
    """`LOST`, where that is what has come. What else an environment raises is its fault, and ends the run."""
    try:
        return reply.result()
    except LostReply:
        return LOST


def joined(before: Rollout, reply: Reply, tokens: np.ndarray, part: Rollout) -> Rollout:
    """The rollout `before` with `reply`, of these `tokens`, and the policy's next turn; without its text.

    Worked example: tokens 5 6, reply 8 8 8, turn 7 → tokens 5 6 8 8 8 7 with mask 1 1 0 0 0 1, and 0 as log-probability of each 8.
    """
    turns = before.turns or (Turn(text=before.text, own=True),)
    said = Turn(text=reply.text, own=False, tool=reply.tool, failed=reply.failed)
    return replace(
        before,
        tokens=np.concatenate((before.tokens, tokens, part.tokens)),
        logprobs=np.concatenate((before.logprobs, np.zeros(len(tokens), np.float32), part.logprobs)),
        mask=np.concatenate((before.mask, np.zeros(len(tokens), np.uint8), part.mask)),
        turns=(*turns, said, Turn(text=part.text, own=True)),
        finish_reason=part.finish_reason,
    )
