"""Problem files: a reference answer a row, compared by the verifier; of a critic, labelled solutions."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import TYPE_CHECKING

from soundrl.engine.environments.environment import Environment, Source, Worked, trained_prompt
from soundrl.fapo.data.files import boxed_solution, load_prompts
from soundrl.fapo.data.left_out import LeftOut
from soundrl.fapo.data.prompt_stream import PromptStream
from soundrl.fapo.records import Prompt, Rollout, Said
from soundrl.fapo.verify.thinking import Thoughts
from soundrl.fapo.verify.verifiers import Verifiers
from soundrl.genrm.critic_data.labelled import load_critic

if TYPE_CHECKING:
    from soundrl.engine.config import Config


def load_file(config: Config, path: str, max_rows: int | None, left_out: LeftOut) -> list[Prompt]:
    """The problems of a file or of a `rg:` set, or the critic's solutions."""
    if config.run.critic:
        return load_critic(path, max_rows=max_rows, left_out=left_out, prompt=trained_prompt(config))
    return load_prompts(path, instruction=config.data.instruction, max_rows=max_rows, left_out=left_out)


def worked(row: Prompt) -> str:
    """The row's solution as a response. ValueError where it is none."""
    return boxed_solution(row.solution or "", row.answer)


class ProblemFiles(Environment):
    @cached_property
    def verifiers(self) -> Verifiers:
        return Verifiers(self.config.data.verifier, self.config.data.reward)

    @cached_property
    def thoughts(self) -> Thoughts:
        return Thoughts(self.tokenizer)

    def problems(self, left_out: LeftOut) -> list[Prompt]:
        return [row for path in self.config.data.train for row in load_file(self.config, path, None, left_out)]

    def unusable(self, rows: Sequence[Prompt]) -> list[str | None]:
        return super().unusable(rows) if self.config.run.critic else self.verifiers.unusable(rows)

    def demonstrations(self, problems: Source) -> Worked:
        rows = [row for row in problems if row.solution is not None] if isinstance(problems, list) else []
        if not rows:
            steps, train = self.config.warm_start.steps, " ".join(self.config.data.train)
            raise ValueError(f"warm_start.steps is {steps}, but no row of {train} has a solution; set --warm-start.steps 0")
        stream = PromptStream(rows, self.config.run.seed)
        # The same on every rank, and dealt like any other samples.
        return lambda step, steps: [(row, worked(row)) for row in stream.take(self.config.warm_start.batch)]

    def check(self, prompt: Prompt, rollout: Rollout) -> Future[Said]:
        begin, read = rollout.answer_start, rollout.tokens  # of several turns the last one's: what a tool has said is no answer
        text = self.thoughts.text(rollout.answer_text, read[begin:])
        thinks = self.thoughts.opened_by(read[:begin] if begin else rollout.prompt_tokens)
        return self.verifiers.submit(prompt, rollout, text, thinks)

    def close(self) -> None:
        if "verifiers" in vars(self):  # else nothing has been checked
            self.verifiers.close()
