"""Arithmetic as an environment: the recipe `arith`, and with `run.task` critic the training of its GenRM."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from soundrl.engine.environments.arithmetic import chains
from soundrl.engine.environments.arithmetic.critic import ROWS, ArithCriticSource
from soundrl.engine.environments.environment import Environment, Worked, trained_prompt
from soundrl.fapo.data.left_out import LeftOut
from soundrl.fapo.records import Check, Outcome, Prompt, Rollout

if TYPE_CHECKING:
    from soundrl.engine.config import Config

Chains = chains.ArithSource | ArithCriticSource
PLANTED_FROM = 0.6
"""Share of the warm start after which demonstrations have errors, and a critic leaves its drills: with errors from the first step on,
arithmetic never forms."""


class Arithmetic(Environment):
    oracle = staticmethod(chains.oracle)
    kinds = chains.KINDS
    source: type[chains.ArithSource] = chains.ArithSource

    @staticmethod
    def write_model(config: Config, folder: Path) -> None:
        from soundrl.engine.environments.arithmetic.models import write_arith_critic, write_arith_model

        if config.run.critic:
            write_arith_critic(folder, config.run.seed, trained_prompt(config))
        else:
            write_arith_model(folder, config.run.seed)

    def problems(self, left_out: LeftOut) -> Chains:
        seed = self.config.run.seed
        return ArithCriticSource(seed, prompt=trained_prompt(self.config)) if self.config.run.critic else self.source(seed)

    def tests(self) -> dict[str, list[Prompt]]:
        """One seed for all runs, so that theirs can be compared; the second set asks for the tens digit, where carries pay, or holds flaws
        of kinds that no critic is trained on."""
        if self.config.run.critic:
            asked = trained_prompt(self.config)
            sets: tuple[Chains, ...] = tuple(ArithCriticSource(0, "test", unseen, asked) for unseen in (False, True))
        else:
            sets = (self.source(0, "test"), self.source(0, "test", place=2))
        return {source.name: [source.prompt(i) for i in range(self.config.data.test_rows or ROWS)] for source in sets}

    def demonstrations(self, problems: Chains) -> Worked:
        batch = self.config.warm_start.batch
        # Far from the indices that the rollouts use, so that no RL prompt has been a demonstration.
        return lambda step, steps: [problems.demonstration(2**40 + step * batch + i, step >= PLANTED_FROM * steps) for i in range(batch)]

    def check(self, prompt: Prompt, rollout: Rollout) -> Check:
        outcome = chains.verify(prompt.answer, rollout.answer_text, rollout.finish_reason == "stop")
        digit = outcome in (Outcome.CORRECT, Outcome.WRONG)
        return Check(outcome=outcome, extracted=chains.after_mark(rollout.answer_text) if digit else None)

    def split(self, text: str) -> tuple[str, ...]:
        return chains.steps(text)
