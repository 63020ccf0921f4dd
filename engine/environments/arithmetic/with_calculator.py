"""Arithmetic with a tool as an environment of several turns: the recipe `arith-tools`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from soundrl.engine.environments.arithmetic import calculator, called_chains
from soundrl.engine.environments.arithmetic.arithmetic import Arithmetic
from soundrl.fapo.records import Prompt, Reply, Rollout, Turn

if TYPE_CHECKING:
    from soundrl.engine.config import Config


class WithCalculator(Arithmetic):
    """The model is `arith`'s: a call, a refusal and a result are written in the same characters."""

    oracle = staticmethod(called_chains.oracle)
    kinds = called_chains.KINDS
    source = called_chains.CalledSource

    def __init__(self, config: Config, tokenizer: Any) -> None:
        if config.run.critic:
            raise ValueError(
                f"arith-tools has no solutions for run.task {config.run.task} to judge; set --data.train arith --data.test arith"
            )
        super().__init__(config, tokenizer)

    def respond(self, prompt: Prompt, rollout: Rollout) -> Reply | None:
        return calculator.reply(rollout.answer_text)

    def transcript(self, turns: Sequence[Turn]) -> str:
        return calculator.transcript(turns)
