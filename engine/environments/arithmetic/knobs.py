"""The embedded world altered for an experiment: an environment whose name says what is altered, `arith?flaws=4&misses=skip:0.5,guess:0.5`.

    python engine/train.py arith --data.train 'arith?false_alarms=0.4' --data.test arith

Nothing of it is a setting of a run: who does not experiment never meets it. The oracle that judges is altered; the one that measures
(`truth`) is exact.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.parse import parse_qsl

from soundrl.engine.environments.arithmetic import chains
from soundrl.engine.environments.arithmetic.arithmetic import Arithmetic
from soundrl.fapo.records import Check, Prompt, Rollout, Said, Verdict
from soundrl.fapo.reward_rule import step_ratio_reward

if TYPE_CHECKING:
    from soundrl.engine.config import Config
    from soundrl.fapo.measures import Truth

ALARM = "alarm"
"""Kind of a flaw that is none."""


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """Each with what leaves the world as it is."""

    flaws: float = 1.0
    """Planted flaws in the warm start's demonstrations, as a multiple: with 4 sound rollouts are scarce when RL begins."""
    lengths: tuple[int, ...] = (3, 4)
    """Operations that a problem may have, up to 6."""
    scale: int = 1
    """Width of the fresh policy, as a multiple; its parameters grow by the square."""
    false_alarms: float = 0.0
    """Share of sound solutions that the judge calls flawed, drawn for each by a hash of prompt and sample."""
    misses: Mapping[str, float] = field(default_factory=dict)
    """Share of flawed solutions, by kind of flaw, that it calls sound, drawn alike."""
    blind: tuple[str, ...] = ()
    """Kinds of flaw that it never sees: an error that a group's mean cannot take out."""
    harsh: int = 0
    """Number of operations: it calls every solution of such problems flawed."""
    flawed: Literal["penalised", "leave"] = "penalised"
    """`leave`: a flawed solution gets no verdict, so that it leaves its group (set --genrm.unknown drop 1)."""
    reward: Literal["fapo", "step-ratio"] = "fapo"
    """`step-ratio`: what is right earns the share of its steps before the first wrong one (arXiv 2510.22543 Fig. 7), for fapo.lam 0."""

    def __post_init__(self) -> None:
        shares = {"false_alarms": self.false_alarms, **{f"misses of {kind}": share for kind, share in self.misses.items()}}
        odd = [f"{name}={share}: a share is 0 … 1" for name, share in shares.items() if not 0 <= share <= 1]
        odd += [f"{kind}: no kind of flaw; use {', '.join(chains.KINDS)}" for kind in {*self.misses, *self.blind} - {*chains.KINDS}]
        odd += [f"flaws={self.flaws}: use 0 or more"] if not 0 <= self.flaws < float("inf") else []
        odd += [f"scale={self.scale}: use 1 … 8"] if not 1 <= self.scale <= 8 else []
        odd += [f"lengths={self.lengths}: use 1 … 6"] if not all(1 <= k <= 6 for k in self.lengths) or not self.lengths else []
        if odd:
            raise ValueError(odd[0])

    @classmethod
    def of(cls, name: str) -> Knobs:
        """Those that the environment's `name` holds. ValueError, with the name, for one that there is not, or a value that it cannot have.

        >>> Knobs.of("arith?blind=skip,guess&misses=0.5").misses["false"], Knobs.of("arith?lengths=5,6").lengths
        (0.5, (5, 6))
        """
        _, _, query = name.partition("?")
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
            if len(dict(pairs)) < len(pairs):
                raise ValueError("one is given twice")
            return cls(**{key: _value(key, text) for key, text in pairs})
        except ValueError as error:
            raise ValueError(f"environment {name}: {error}") from None

    def verdict(self, prompt: Prompt, rollout: Rollout) -> Verdict:
        """The altered oracle's."""
        problem = chains.parse(prompt.text)
        flaw = chains.first_flaw(problem, rollout.text)
        if flaw is not None and (flaw[1] in self.blind or _share(prompt, rollout, "miss") < self.misses.get(flaw[1], 0.0)):
            flaw = None
        if flaw is None and (len(problem.operations) == self.harsh or _share(prompt, rollout, "alarm") < self.false_alarms):
            flaw = int(_share(prompt, rollout, "step") * len(chains.steps(rollout.text))), ALARM
        if flaw is None:
            return Verdict.sound()
        return Verdict.unknown("left") if self.flawed == "leave" else Verdict.flawed(*flaw)


def _value(key: str, text: str) -> Any:
    known = {f.name for f in dataclasses.fields(Knobs)}
    if key not in known:
        raise ValueError(f"no knob is called {key}; there are {', '.join(sorted(known))}")
    if key in ("flawed", "reward"):
        choices = {"flawed": ("penalised", "leave"), "reward": ("fapo", "step-ratio")}[key]
        if text not in choices:
            raise ValueError(f"{key}={text}; use {' or '.join(choices)}")
        return text
    try:
        if key == "blind":
            return tuple(text.split(","))
        if key == "lengths":
            return tuple(map(int, text.split(",")))
        if key == "misses":
            shares = dict.fromkeys(chains.KINDS, text) if ":" not in text else dict(pair.split(":") for pair in text.split(","))
            return {kind: float(share) for kind, share in shares.items()}
        return int(text) if key in ("scale", "harsh") else float(text)
    except ValueError:
        raise ValueError(f"{key}={text} cannot be read") from None


def _share(prompt: Prompt, rollout: Rollout, what: str) -> float:
    """A number in [0, 1) that follows from prompt, sample and `what`."""
    key = f"{what}/{prompt.id}/{rollout.sample}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=6).digest(), "big") / 2**48


class KnobbedArithmetic(Arithmetic):
    """Made by `with_knobs`."""

    knobs: ClassVar[Knobs]

    def __init__(self, config: Config, tokenizer: Any) -> None:
        name, lam = config.data.environment, config.fapo.lam
        if config.run.critic:
            raise ValueError(f"{name} is altered for a policy, and run.task is {config.run.task}; set --data.train arith")
        if self.knobs.reward == "step-ratio" and lam:
            raise ValueError(f"{name} pays by its own rule, to which fapo.lam {lam} would add another; set --fapo.lam 0")
        super().__init__(config, tokenizer)

    @staticmethod
    def write_model(config: Config, folder: Any) -> None:
        from soundrl.engine.environments.arithmetic.models import write_arith_model

        write_arith_model(folder, config.run.seed, Knobs.of(config.model.path).scale)

    @property
    def truth(self) -> Truth:
        from soundrl.fapo.measures import Truth

        return Truth(chains.oracle, self.kinds)

    def check(self, prompt: Prompt, rollout: Rollout) -> Said:
        said = super().check(prompt, rollout)
        if self.knobs.reward == "fapo":
            return said
        reward = step_ratio_reward(said.outcome, self.knobs.verdict(prompt, rollout), len(chains.steps(rollout.text)))
        return Check(outcome=said.outcome, reward=reward, extracted=said.extracted)


def with_knobs(name: str) -> type[KnobbedArithmetic]:
    """The class that stands for `arith?…`. ValueError where no world is called so."""
    knobs = Knobs.of(name)
    source = partial(chains.ArithSource, lengths=knobs.lengths, flaws=knobs.flaws)
    same = dataclasses.replace(knobs, flaws=1.0, lengths=(3, 4), scale=1, reward="fapo") == Knobs()
    oracle = chains.oracle if same else knobs.verdict  # one that is as it was also measures
    return type("KnobbedArithmetic", (KnobbedArithmetic,), {"knobs": knobs, "oracle": staticmethod(oracle), "source": staticmethod(source)})
