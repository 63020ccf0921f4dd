"""Problem files: a reference answer a row, compared by the verifier; of a critic, labelled solutions."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

from soundrl.engine.environments.environment import Environment, Source, Worked, trained_prompt
from soundrl.fapo.data.files import Reading, boxed_solution, load_prompts
from soundrl.fapo.data.left_out import LeftOut
from soundrl.fapo.data.mixture import Mixture
from soundrl.fapo.data.prompt_stream import PromptStream
from soundrl.fapo.data.sources import weighed
from soundrl.fapo.records import Prompt, Rollout, Said
from soundrl.fapo.verify.thinking import Thoughts
from soundrl.fapo.verify.verifiers import Verifiers, needs_row
from soundrl.genrm.critic_data.labelled import load_critic

if TYPE_CHECKING:
    from soundrl.engine.config import Config


def load_file(config: Config, source: str, left_out: LeftOut, train: bool = False) -> Mixture:
    """The problems of a source, which is the only part of what is returned, or the critic's solutions; of a test set `data.test_rows`."""
    data = config.data
    rows = None if train else data.test_rows or None
    if config.run.critic:
        return Mixture([source], [load_critic(source, max_rows=rows, left_out=left_out, prompt=trained_prompt(config))])
    reading = Reading(
        columns=data.columns, form=data.form, rows=needs_row(data.verifier), difficulty=data.difficulty[0] if train else ""
    )  # fmt: skip
    return Mixture([source], [load_prompts(source, instruction=data.instruction, max_rows=rows, left_out=left_out, reading=reading)])


def worked(row: Prompt) -> str:
    """The row's solution as a response, or a critic's critique as it is. ValueError where it is none."""
    return boxed_solution(row.solution or "", row.answer) if row.steps is None else row.solution or ""


class ProblemFiles(Environment):
    @cached_property
    def verifiers(self) -> Verifiers:
        return Verifiers(self.config.data.verifier, self.config.data.reward)

    @cached_property
    def thoughts(self) -> Thoughts:
        return Thoughts(self.tokenizer)

    def problems(self, left_out: LeftOut) -> list[Prompt]:
        sources, weights = zip(*map(weighed, self.config.data.train), strict=True)
        parts = [load_file(self.config, source, left_out, train=True) for source in sources]
        return Mixture(sources, parts, [weight or Fraction(1) for weight in weights] if any(weights) else None)

    def unusable(self, rows: Sequence[Prompt]) -> list[str | None]:
        return super().unusable(rows) if self.config.run.critic else self.verifiers.unusable(rows)

    def ready(self, row: Prompt) -> list[str]:
        return super().ready(row) if self.config.run.critic else self.verifiers.ready(row)

    def demonstrations(self, problems: Source) -> Worked:
        rows = problems.kept(lambda row: None if row.solution is None else row) if isinstance(problems, Mixture) else []
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
