"""What the policy samples: a step's rollouts and those of an evaluation, verified and on their way to the judge.

Requests are dealt over the engines, longest expected first; the ranks that share an engine pass it the same requests, and each keeps,
verifies and judges a part of its own. Where and when a rollout is sampled changes nothing in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from soundrl.engine.config import Config
from soundrl.engine.encode import Encoder
from soundrl.engine.environments.environment import Environment, answers
from soundrl.engine.exchange import StepBatch
from soundrl.engine.files.underway import Underway
from soundrl.engine.launch.last_words import RANK
from soundrl.engine.longest_first import ExpectedLengths, rounds_of_decoding
from soundrl.engine.packing import deal
from soundrl.engine.phases import WON
from soundrl.engine.samplers.sampler import Draw, Request, Sampler
from soundrl.engine.samplers.turns import Turns
from soundrl.engine.telemetry.timeline import TIMELINE
from soundrl.fapo.pending import PendingGroups
from soundrl.fapo.records import Prompt, Rollout
from soundrl.fapo.task import Beside, Task


class Rollouts:
    """Samples with `sampler` what `task` verifies and judges; `environment`, where it answers, has its say between the turns. Calls are the
    same on every rank."""

    def __init__(
        self, task: Task, sampler: Sampler, encode: Encoder, config: Config, underway: Underway, environment: Environment | None = None
    ) -> None:
        self.task, self.sampler, self.encode, self.config, self.underway = task, sampler, encode, config, underway
        self.turns: Turns | None = None
        if environment is not None and answers(environment):
            self.turns = Turns(sampler, encode, environment, config.rollout.turns[0])
        self.ranks = underway.ranks
        self.shared = config.rollout.tensor_parallel
        self.expected, self.hands = ExpectedLengths(), list[list[int]]()
        self.beside: Callable[[int], Beside] | None = None
        """By the step, who is told of each question to the judge"""

    def __call__(self, prompts: Sequence[Prompt], step: int, into: PendingGroups | None = None) -> PendingGroups:
        """Sample and verify this rank's groups of `prompts`, the step's in their global order, or further ones of it, `into` those that are
        there; each correct rollout goes to the judge as it finishes, while others are still sampled. What an earlier start has sampled is
        not sampled again. Leaves early where the run is asked to stop (`RANK.asked`)."""
        rollout, run = self.config.rollout, self.config.run
        draw = Draw(run_seed=run.seed, phase="train", step=step, temperature=rollout.temperature, max_new_tokens=rollout.max_new_tokens)
        asked = [(prompt.id, self.encode(prompt)) for prompt in prompts]
        hands, hand, own = self._dealt([self.expected(id_, len(tokens)) for id_, tokens in asked])
        mine, version = {prompts[i].id: (prompts[i], asked[i][1]) for i in hand}, self.sampler.version
        if into is None:
            self.hands = hands
        known = self.underway.begin(step, version, mine) if into is None else self.underway.more(version, mine)
        requests = [r for r in draw.requests([asked[i] for i in hand], rollout.samples) if (r.prompt_id, r.sample) not in known]
        self.underway.lacks(len(requests))
        with TIMELINE("generate"):
            # In the global order: what trains first is judged first.
            mine = [prompts[i] for i in sorted(own)]
            pending = self._collect(mine, self._sampled(requests, prompts) if requests else (), self._told(step), known=known, into=into)
            self.underway.flush()
        with TIMELINE("verify"):
            pending.outcomes()
        return pending

    def evaluate(self, prompts: Sequence[Prompt], step: int) -> PendingGroups:
        """Sample the evaluation after `step`; (problem, sample) pairs are dealt, so a group holds the samples that are this rank's, one at
        least. The same seeds at every call: two evaluations differ by the weights alone."""
        samples, temperature, top_p = self.config.run.eval_sampling
        seeds = {"run_seed": self.config.run.seed, "phase": "eval", "step": 0}
        draw = Draw(**seeds, temperature=temperature, max_new_tokens=self.config.rollout.max_new_tokens, top_p=top_p)
        asked = [(prompt.id, self.encode(prompt)) for prompt in prompts]
        lengths = [self.expected(id_, len(tokens)) for id_, tokens in asked]
        _, hand, own = self._dealt([length for length in lengths for _ in range(samples)])  # number = problem × samples + sample
        requests = [draw.request(*asked[number // samples], number % samples) for number in hand]
        mine = {(asked[number // samples][0], number % samples) for number in own}
        problems = [prompts[i] for i in sorted({number // samples for number in own})]
        pending = self._collect(problems, self._sampled(requests, prompts) if requests else (), self._told(step), mine=mine)
        first = {id_: i * samples for i, (id_, _) in enumerate(asked)}
        found = [0.0] * (len(asked) * samples)
        for rollout in (rollout for group in pending for rollout in group.rollouts):
            found[first[rollout.prompt_id] + rollout.sample] = len(rollout.tokens)
        found = self.ranks.sum(found)  # each length is some rank's, and 0 on all others
        for id_, tokens in asked:
            self.expected.learn(id_, len(tokens), found[first[id_] : first[id_] + samples])
        return pending

    def learn(self, prompts: Sequence[Prompt], batch: StepBatch) -> None:
        """How long the step's responses were. The trace gets the seconds of sampling that their order has won, by a model: every round of
        decoding takes the same time, and without the order engines would take turns at the prompts."""
        lengths = [[len(batch.samples[i].tokens) for i in group] for group in batch.groups]
        for prompt, group, own in zip(prompts, batch.groups, lengths, strict=True):
            self.expected.learn(prompt.id, len(batch.samples[group.start].prompt_tokens) if own else 0, own)
        if self.ranks.rank:
            return  # all would say the same
        turns = [range(engine, len(prompts), len(self.hands)) for engine in range(len(self.hands))]
        before, after = (
            rounds_of_decoding([[length for i in hand for length in lengths[i]] for hand in hands], self.sampler.slots)
            for hands in (turns, self.hands)
        )
        TIMELINE.count(WON, TIMELINE.step.get("generate", 0.0) * (before / max(after, 1) - 1))

    def _dealt(self, lengths: Sequence[float]) -> tuple[list[list[int]], list[int], list[int]]:
        """Indices of `lengths` that each engine samples, longest first, those of this rank's engine, and of these this rank's own."""
        engine, place = divmod(self.ranks.rank, self.shared)
        hands = deal(lengths, self.ranks.size // self.shared)
        return hands, hands[engine], hands[engine][place :: self.shared]

    def _told(self, step: int) -> Beside | None:
        return None if self.beside is None else self.beside(step)

    def _sampled(self, requests: Sequence[Request], prompts: Sequence[Prompt]) -> Iterator[Rollout]:
        """Rollouts as they are whole."""
        if self.turns is None:
            return self.sampler.generate(requests, leaving)
        return self.turns.generate(requests, {prompt.id: prompt for prompt in prompts}, leaving)

    def _collect(
        self,
        prompts: Sequence[Prompt],
        sampled: Iterable[Rollout],
        beside: Beside | None,
        mine: set[tuple[str, int]] | None = None,
        known: Mapping[tuple[str, int], Rollout] = MappingProxyType({}),
        into: PendingGroups | None = None,
    ) -> PendingGroups:
        """Of what is `sampled` the rollouts of `prompts`, and of these those that are `mine` (of an evaluation); None: all. Those that are
        `known` come first."""
        ids = {prompt.id for prompt in prompts}

        def finished() -> Iterator[Rollout]:
            yield from (rollout for rollout in known.values() if rollout.prompt_id in ids)
            for rollout in sampled:
                RANK.beat()
                rollout.sampled = time.time()
                if rollout.prompt_id in ids if mine is None else (rollout.prompt_id, rollout.sample) in mine:
                    if mine is None:
                        self.underway.add(rollout)
                    yield rollout

        pending = self.task.collect(prompts, finished(), beside, into)
        for group in pending:
            group.leaving = leaving
        return pending


def leaving() -> bool:
    """Whether the run is asked to stop, on this rank."""
    return RANK.asked is not None
