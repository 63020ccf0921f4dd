"""What a run is about: its problems, how a response is checked, who knows the truth, and how a solution splits into steps.

This is all that a task of one's own has to say. Problem files are the usual environment; another is known by its name, which stands in
`data.train`, in `data.test` (its own test sets) and, where it writes fresh weights, in `model.path`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from soundrl.fapo.data.left_out import LeftOut
from soundrl.fapo.data.prompt_stream import PromptSource
from soundrl.fapo.named import is_named, named
from soundrl.fapo.records import Prompt, Reply, Rollout, Said
from soundrl.genrm.prompts import PROMPTS, prompt_in, split_paragraphs

if TYPE_CHECKING:  # the settings ask it what it has before torch is imported
    from soundrl.engine.config import Config
    from soundrl.fapo.measures import Oracle, Truth

NAMED = {"arith": "soundrl.engine.environments.arithmetic.arithmetic:Arithmetic"}
FILES = "soundrl.engine.environments.files:ProblemFiles"

Source = list[Prompt] | PromptSource
Worked = Callable[[int, int], list[tuple[Prompt, str]]]
"""(step, steps in all) → the warm start's prompts and responses of that step, over all ranks."""


class Environment(ABC):
    """Of one run; `tokenizer` is the policy's. Imported without torch: what needs it is imported where it is used."""

    oracle: ClassVar[Oracle | None] = None
    """Whether a right response is sound, exactly; where there is one it judges (`genrm.judge oracle`) and measures."""
    kinds: ClassVar[tuple[str, ...]] = ()
    """Of flaws, as the oracle names them."""

    def __init__(self, config: Config, tokenizer: Any) -> None:
        self.config, self.tokenizer = config, tokenizer

    @staticmethod
    def write_model(config: Config, folder: Path) -> None:
        """Writes a model folder with fresh weights, by `run.seed`."""
        raise ValueError(f"model.path is {config.model.path}, which has no model of its own; name a model folder")

    @abstractmethod
    def problems(self, left_out: LeftOut) -> Source:
        """The training problems; rows that cannot be used are told to `left_out`."""

    def tests(self) -> dict[str, list[Prompt]]:
        """Its own test sets, by name."""
        return {}

    def unusable(self, rows: Sequence[Prompt]) -> list[str | None]:
        """Why a row's reference answer cannot be compared with, each; None = it can."""
        return [None] * len(rows)

    def ready(self, row: Prompt) -> list[str]:
        """What there is to say of how responses are checked, tried on a training row before the first step. ValueError where they cannot
        be checked."""
        return []

    @abstractmethod
    def demonstrations(self, problems: Source) -> Worked:
        """The warm start's, from the training problems. ValueError where there are none."""

    @abstractmethod
    def check(self, prompt: Prompt, rollout: Rollout) -> Said | Future[Said]:
        """Whether the response's answer is right, at once or later, or what it earns (`Check`). Asked of each rollout as it finishes, from
        one thread; never of a critic's, whose answer is a step."""

    def respond(self, prompt: Prompt, rollout: Rollout) -> Reply | None | Future[Reply | None]:
        """What the policy is told after a turn of its own, at once or later; None: the rollout is whole. `rollout` holds all turns so far.
        Asked from one thread."""
        return None

    def split(self, text: str) -> Sequence[str]:
        """The steps of a response, as a judge is to number them; never empty."""
        return split_paragraphs(text)

    @property
    def truth(self) -> Truth | None:
        from soundrl.fapo.measures import Truth

        oracle = type(self).oracle
        return None if oracle is None else Truth(oracle, self.kinds)

    def close(self) -> None:  # noqa: B027
        """Ends what `check` has started."""


def trained_prompt(config: Config) -> str:
    """Name of the prompt that a critic is trained on: `genrm.prompt`, else that of the folder it starts from, else own. ValueError where
    the folder names one that is not known, or `run.task` has nothing to reward in it."""
    asked = PROMPTS[config.genrm.prompt] if config.genrm.prompt else prompt_in(Path(config.model.path))
    if asked.name != asked.of:
        raise ValueError(f"genrm.prompt {asked.name} trains nobody; train on {asked.of}, which judges of {asked.name} were trained on")
    if config.run.task == "critic" and not asked.locates:
        raise ValueError(f"genrm.prompt {asked.name} asks for no step, which run.task critic rewards; set --run.task critic-outcome")
    return asked.name


def is_environment(name: str) -> bool:
    """Whether it names an environment: one of ours, or one's own by path (`my_env.py:make`)."""
    return name in NAMED or is_named(name)


def environment_of(name: str) -> type[Environment]:
    """By `Data.environment`, one of `data.test` or `model.path`: what the name or path stands for, else problem files."""
    return named(NAMED.get(name) or (name if is_named(name) else FILES))
