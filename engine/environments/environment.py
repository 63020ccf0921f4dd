"""What a run is about: its problems, how a response is checked, who knows the truth, and how a solution splits into steps.

This is all that a task of one's own has to say. Problem files are the usual environment; another is known by its name, which stands in
`data.train`, in `data.test` (its own test sets) and, where it writes fresh weights, in `model.path`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from soundrl.fapo.data.left_out import LeftOut
from soundrl.fapo.data.prompt_stream import PromptSource
from soundrl.fapo.named import is_named, named
from soundrl.fapo.records import Prompt, Reply, Rollout, Said, Turn
from soundrl.genrm.prompts import PROMPTS, prompt_in, split_paragraphs

if TYPE_CHECKING:  # the settings ask it what it has before torch is imported
    from soundrl.engine.config import Config
    from soundrl.fapo.measures import Oracle, Truth

NAMED = {
    "arith": "soundrl.engine.environments.arithmetic.arithmetic:Arithmetic",
    "arith-tools": "soundrl.engine.environments.arithmetic.with_calculator:WithCalculator",
}
ALTERED = "soundrl.engine.environments.arithmetic.knobs:with_knobs"
"""Of `arith?…`, by the name."""
HUB = "hub:"
"""Before the name of a taskset of the package `verifiers` (`hub`)."""
FILES = "soundrl.engine.environments.files:ProblemFiles"

Source = list[Prompt] | PromptSource
Worked = Callable[[int, int], list[tuple[Prompt, str | Sequence[Turn]]]]
"""(step, steps in all) → the warm start's prompts and responses of that step, over all ranks. Of a response of several turns the policy
learns its own."""
_LABEL = re.compile(r"^\[(?=(?:tool|reply)\b)", re.MULTILINE | re.IGNORECASE)
_BLANK = re.compile(r"\n\s*\n")


class LostReply(RuntimeError):
    """What a tool has said is lost by no fault of the call: the machine killed it. The rollout ends as `lost`, and leaves its group."""


class Environment(ABC):
    """Of one run; `tokenizer` is the policy's. Imported without torch: what needs it is imported where it is used."""

    oracle: ClassVar[Oracle | None] = None
    """Whether a right response is sound, exactly; where there is one it judges (`genrm.judge oracle`) and measures."""
    kinds: ClassVar[tuple[str, ...]] = ()
    """Of flaws, as the oracle names them."""
    schemas: Sequence[dict[str, Any]] = ()
    """JSON schemas of functions that the policy may call, of which prompts with messages tell it (`engine.environments.tools`)."""

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
        """What the policy is told after a turn of its own that it has ended (`rollout.answer_text`), at once or later; None: the rollout is
        whole. `rollout` holds all turns so far. Asked from one thread; `LostReply` in the future ends the rollout as `lost`."""
        return None

    def transcript(self, turns: Sequence[Turn]) -> str:
        """Several turns as a judge and a reader see them: what the environment has said is one paragraph with its label, so that a verdict
        may name a tool call; and nobody else writes such a label.

        Worked example: own "6*7?", reply of `calculator` "42", own "So 42." → "6*7?", "[tool calculator] 42", "So 42." in paragraphs.
        """
        said = []
        for turn in turns:
            label = f"tool {turn.tool}" if turn.tool else "reply"
            text = _LABEL.sub("(", turn.text) if turn.own else f"[{label}] {_BLANK.sub(chr(10), turn.text.strip())}"
            said.append(text.strip("\n"))
        return "\n\n".join(filter(None, said))

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
    """Whether it names an environment: one of ours, a taskset (`hub:gsm8k`), or one's own by path (`my_env.py:make`)."""
    return own_world(name) or name.startswith(HUB) or is_named(name)


def own_world(name: str) -> bool:
    """Whether it names one of ours, as it is or altered (`arith?flaws=4`)."""
    return name in NAMED or name.startswith("arith?")


def answers(environment: object) -> bool:
    """Whether it has replies of its own; of a class, or of a function that makes one, whether it may have."""
    respond = getattr(environment, "respond", None)
    return getattr(respond, "__func__", respond) is not Environment.respond


def environment_of(name: str) -> type[Environment]:
    """By `Data.environment`, one of `data.test` or `model.path`: what the name or path stands for, else problem files. One's own may be a
    function, (configuration, tokenizer) → `Environment`, of which nothing else is known."""
    if name.startswith(HUB):
        return named("soundrl.engine.environments.hub:hub_environment")(name)
    if own_world(name) and name not in NAMED:
        return named(ALTERED)(name)
    return named(NAMED.get(name) or (name if is_named(name) else FILES))


def build_environment(name: str, config: Config, tokenizer: Any) -> Environment:
    """That which `name` stands for. ValueError where it is none."""
    made = environment_of(name)
    built = made(config, tokenizer) if callable(made) else made
    if not isinstance(built, Environment):
        raise ValueError(f"{name} makes no Environment, but a {type(built).__name__}; name a class of it, or a function that makes one")
    return built
