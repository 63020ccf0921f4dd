"""The records that every stage passes on: prompt → rollout → outcome → verdict → group (plain data, no behaviour)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One problem, ready to be sampled."""

    id: str
    """Unique in its data set, e.g. `gsm8k-train.jsonl:17`; seeds and the run's ledger are derived from it."""
    messages: tuple[dict[str, str], ...] | None = None
    """Chat messages (`role`, `content`), rendered by the policy's chat template; None = `text` is sent as it is."""
    text: str
    """The problem in plain words: what the verifier, the judge and a reader see."""
    answer: str
    """Reference answer; never shown to the policy."""
    source: str = ""
    """Name of the data set."""
    form: str | None = "box"
    """Where its answer will stand (`verify.answer.FORMS`); None = it asks for no form that is known, and a box is looked for."""
    verifier: str = ""
    """Who checks it, where its row says so (`verify.verifiers.VERIFIERS`); empty = follows from the form."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """The row's other columns, plain JSON, where a verifier asks for them; else empty."""
    difficulty: float | None = None
    """Of the column that `data.difficulty` names: the curriculum goes from low to high; None = it names none."""
    solution: str | None = None
    """Worked solution, the target of a warm start; None where the data has none."""
    steps: int | None = None
    """Critic rows: number of paragraphs of the solution to be judged, whose first wrong one `answer` names (-1 = none)."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A part of a rollout in which one side speaks."""

    text: str
    own: bool
    """The policy's; else the environment's."""
    tool: str = ""
    """Name of the tool whose result it is."""
    failed: bool = False
    """The tool gave an error."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What an environment answers to a turn of the policy."""

    text: str
    tool: str = ""
    """Name of the tool whose result it is."""
    failed: bool = False
    """The tool gave an error."""


@dataclass(kw_only=True, eq=False)
class Rollout:
    """One sampled completion. Any sequences of numbers make it; it holds arrays, as a step has millions of tokens."""

    prompt_id: str
    sample: int
    """Index 0 … G−1 within the group."""
    prompt_tokens: np.ndarray
    """int32"""
    tokens: np.ndarray
    """Response token ids, int32, with the end-of-sequence token where one was sampled; of several turns all, the environment's too."""
    logprobs: np.ndarray
    """Sampler's log-probability of each response token, float32, *after* temperature (processed), same length as `tokens`; 0 where a token
    is not the policy's own."""
    text: str
    """The response, decoded without special tokens; of several turns all, as they are judged (`Environment.transcript`)."""
    finish_reason: str
    """`stop` (end token), `length` (cut at the token limit), `turns` (at the limit of turns) or `lost` (a tool's reply was lost)."""
    policy_version: int
    """Number of weight syncs before this rollout was sampled."""
    mask: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))
    """uint8, same length as `tokens`: 1 = the policy's own token, 0 = the environment's, which has no log-probability and no loss. Not
    given: all are its own."""
    turns: tuple[Turn, ...] = ()
    """Where there is more than one."""
    # For who looks at the run later; nothing is computed from them.
    sampled: float = 0.0
    """When it was whole, in Unix seconds; 0 = not recorded."""
    verified: float = 0.0
    """When its outcome came, the same."""
    paragraphs: tuple[str, ...] = ()
    """The solution cut as its judge counts steps; empty where it is not judged."""
    window: int | None = None
    """Where it trained, `UPDATE` × optimizer step of its step + window of that (`soundrl.engine.schedule`); None = it trained nothing."""

    @property
    def answer_text(self) -> str:
        """Where the final answer is looked for: the policy's last turn."""
        return next((turn.text for turn in reversed(self.turns) if turn.own), self.text)

    @property
    def answer_start(self) -> int:
        """Where that turn begins in `tokens`. Mask 1 1 0 0 1 → 4."""
        others = np.flatnonzero(self.mask == 0)
        return int(others[-1]) + 1 if len(others) else 0

    def __post_init__(self) -> None:
        self.mask = np.asarray(self.mask, np.uint8) if len(self.mask) else np.ones(len(self.tokens), np.uint8)
        self.prompt_tokens, self.tokens = np.asarray(self.prompt_tokens, np.int32), np.asarray(self.tokens, np.int32)
        self.logprobs = np.asarray(self.logprobs, np.float32)


class Outcome(str, Enum):
    """What the verifier says of an answer. They are never merged; only `CORRECT` earns +1. `UNKNOWN` (the machine or a user's verifier
    failed) and `UNSCORED` (that one says that there is nothing to say) earn nothing at all: the rollout leaves its group."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    UNPARSEABLE = "unparseable"
    UNKNOWN = "unknown"
    UNSCORED = "unscored"

    @property
    def outcome(self) -> Outcome:
        """Itself, as of a `Check` that says nothing else."""
        return self

    @property
    def reward(self) -> None:
        """The rule's."""

    @property
    def extracted(self) -> None:
        """Not said."""

    @property
    def reason(self) -> str:
        """Not said."""
        return ""

    @property
    def leaves(self) -> bool:
        """Whether the rollout leaves its group."""
        return self in (Outcome.UNKNOWN, Outcome.UNSCORED)


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a verifier says of a response, in full."""

    outcome: Outcome
    reward: float | None = None
    """Before λ and shaping; None = the rule's ±1."""
    extracted: str | None = None
    """The answer that was found."""
    reason: str = ""
    """Of `UNKNOWN`: what went wrong, one of `verify.own.REASONS`, where it is known."""


Said = Outcome | Check


@dataclass(frozen=True)
class Verdict:
    """What the judge says of a correct rollout. `unknown` is never counted as sound, nor as flawed."""

    kind: str
    """`sound`, `flawed` or `unknown`."""
    step: int | None = None
    """`flawed`: index of the first wrong step, from 0; None of a judge that says whether, and not where."""
    reason: str = ""
    """`flawed`: the kind of flaw where it is known; `unknown`: why there is no verdict (`timeout`, `no_box`, …)."""
    # What it cost and came from; two verdicts that say the same are equal.
    critique: str = field(default="", compare=False, repr=False)
    """What the judge wrote (of the first vote); empty for an oracle."""
    tokens: int = field(default=0, compare=False, repr=False)
    """Completion tokens of all votes, as the servers count them; 0 where they do not, and for a remembered answer."""
    seconds: float = field(default=0.0, compare=False, repr=False)
    """From the first request to the reply, of the slowest vote; 0 for a remembered answer."""
    worker: str = field(default="", compare=False, repr=False)
    """Address of the endpoint that gave the reply (of the first vote)."""
    votes: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """What each of several votes said: `sound`, `flawed 2` or the reason of an unknown one; empty where there was one vote."""
    asked: float = field(default=0.0, compare=False, repr=False)
    """When its first request went out, in Unix seconds, after the wait for a free worker; 0 where nobody was asked."""
    answered: float = field(default=0.0, compare=False, repr=False)
    """When its last reply came, the same."""

    @classmethod
    def sound(cls) -> Verdict:
        return cls("sound")

    @classmethod
    def flawed(cls, step: int | None, reason: str = "") -> Verdict:
        return cls("flawed", step, reason)

    @classmethod
    def unknown(cls, reason: str) -> Verdict:
        return cls("unknown", None, reason)


@dataclass(kw_only=True)
class Group:
    """The G rollouts of one prompt, with what each stage has said of them; the lists run parallel to `rollouts`."""

    prompt: Prompt
    rollouts: list[Rollout]
    outcomes: list[Outcome] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)
    """A verifier's own rewards (`Check.reward`); empty or None = the rule's."""
    extracted: list[str | None] = field(default_factory=list)
    """The answers that were found; empty = not said."""
    reasons: list[str] = field(default_factory=list)
    """Why an outcome is unknown, where that is known (`Check.reason`); empty = not said."""
    verdicts: list[Verdict | None] = field(default_factory=list)
    """None = not judged, since the answer was not correct."""
    rewards: list[float] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)
    kept: list[bool] = field(default_factory=list)
    """False = left the group (unknown outcome or verdict): no gradient, and no part in the group's mean and spread."""

    @property
    def signal(self) -> bool:
        """Whether it trains anything: some of its rewards differ."""
        return any(advantage != 0.0 for advantage in self.advantages)
