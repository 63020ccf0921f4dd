"""The embedded world with an end: a dozen problems, shorter ones easier."""

from dataclasses import replace

from soundrl.engine.environments.arithmetic.arithmetic import Arithmetic
from soundrl.engine.environments.arithmetic.chains import ArithSource
from soundrl.fapo.data.left_out import LeftOut
from soundrl.fapo.records import Prompt


class Few(Arithmetic):
    def problems(self, left_out: LeftOut) -> list[Prompt]:  # type: ignore[override]
        source = ArithSource(self.config.run.seed)
        return [replace(prompt, difficulty=float(len(prompt.text))) for prompt in map(source.prompt, range(12))]
