"""What every sampler offers the engine: requests in, rollouts out as they finish, weights by their Hugging Face names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor

from soundrl.engine.config import Config
from soundrl.engine.files.adapter_folder import adapted, read_shape
from soundrl.engine.policy import Policy
from soundrl.engine.ranks import Ranks
from soundrl.fapo.records import Rollout

if TYPE_CHECKING:
    from soundrl.engine.samplers.vllm_routes import Routes


@dataclass(kw_only=True, eq=False)
class Request:
    """One completion to sample."""

    prompt_id: str
    sample: int
    prompt_tokens: np.ndarray
    """int32"""
    seed: int
    temperature: float
    """0 = the likeliest token each time; log-probabilities are those of temperature 1 then."""
    max_new_tokens: int
    top_p: float = 1.0
    ignore_end: bool = False
    """Sample exactly `max_new_tokens` tokens (probes of the weight sync)."""

    def __post_init__(self) -> None:
        self.prompt_tokens = np.asarray(self.prompt_tokens, np.int32)


def derived_seed(run_seed: int, phase: str, step: int, prompt_id: str, sample: int) -> int:
    """Seed of one rollout, from what it is and not from when or where it is sampled: no engine state, no batch order.

    53 bits, so that it survives JSON and any sampler's integer type.
    """
    key = f"{run_seed}/{phase}/{step}/{prompt_id}/{sample}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 11


def seed_of_turn(seed: int, turn: int) -> int:
    """Seed of a rollout's turn, from the rollout's own: the first one's is that itself. 53 bits."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{turn}".encode(), digest_size=8).digest(), "big") >> 11 if turn else seed


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How completions are sampled, and what their seeds follow from beside prompt and number."""

    run_seed: int
    phase: str
    """`train`, `eval`, …"""
    step: int
    temperature: float
    max_new_tokens: int
    top_p: float = 1.0

    def request(self, prompt_id: str, prompt_tokens: np.ndarray, sample: int) -> Request:
        return Request(
            prompt_id=prompt_id,
            sample=sample,
            prompt_tokens=prompt_tokens,
            seed=derived_seed(self.run_seed, self.phase, self.step, prompt_id, sample),
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
            top_p=self.top_p,
        )

    def requests(self, prompts: Iterable[tuple[str, np.ndarray]], samples: int) -> list[Request]:
        """`samples` requests for each (prompt id, prompt tokens), group after group."""
        return [self.request(id_, tokens, i) for id_, tokens in prompts for i in range(samples)]


More = Callable[[bool], Sequence[Request] | None]
"""Requests that have come since the sampler has asked last. True: it has nothing else to do, so that it may be kept waiting for a moment
(`turns.LOOK`). None: none will come but what it yields brings more."""


def no_more(idle: bool) -> None:
    """Where everything is asked at once."""


class Sampler(Protocol):
    """A sampling engine in this process. `version` counts weight loads and is written into every rollout; `engine` is its number among
    the engines of the run, `leads` whether this rank is the first that shares it, and `slots` how many requests are sampled at once, the
    others waiting in the order they came. One that `adapts` holds the base itself, and takes adapters."""

    version: int
    adapts: bool
    leads: bool
    engine: int
    slots: int

    @property
    def routes(self) -> Routes | None:
        """The experts that its routers choose; None where there are none, or they cannot be heard."""
        ...

    def generate(self, requests: Sequence[Request], leaving: Callable[[], bool] = lambda: False, more: More = no_more) -> Iterator[Rollout]:
        """Yield each completion as it finishes, in any order, of `requests` and of what `more` brings meanwhile; log-probabilities are the
        processed ones (after temperature). What is not finished when it is `leaving` is dropped."""
        ...

    def of_engine(self, value: Any) -> Any:
        """The picklable `value` of the first rank of this engine, on all of its ranks, which call it in step."""
        ...

    def sleep(self) -> None:
        """Give weights and KV cache back to the trainer (no-op where memory is not shared)."""
        ...

    def wake(self, part: str) -> None:
        """Take memory again: `weights`, then after loading `kv_cache`."""
        ...

    def load(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the weights by `tensors`, (Hugging Face name, full tensor); consumes the iterable once."""
        ...

    def adapt(self, folder: Path) -> None:
        """Where it `adapts`, in place of `load`: compute with the adapter in `folder` (PEFT's format), which may go afterwards."""
        ...

    def reset_cache(self) -> None:
        """Forget cached prefixes: they belong to the old weights."""
        ...

    def close(self) -> None: ...


def build_sampler(config: Config, policy: Policy, ranks: Ranks) -> Sampler:
    """The sampler that `rollout.engine` names, started."""
    if config.rollout.engine == "torch":
        from soundrl.engine.samplers.torch_sampler import TorchSampler

        return TorchSampler(policy.folder, policy.tokenizer, config.model, ranks)
    from soundrl.engine.samplers.vllm_sampler import Room, VllmSampler

    room = None
    if policy.adapters is not None and config.own_adapters:
        from soundrl.engine.planning.plan import judge_length

        judge = Path(config.genrm.model)
        ranks_held = policy.adapters.shape.rank, read_shape(judge, "genrm.model").rank
        layers = {*(name.rpartition(".")[2] for name in policy.adapters.layers), *adapted(judge)}
        room = Room(ranks_held, judge_length(config, policy.folder), tuple(sorted(layers)))
    return VllmSampler(policy.folder, policy.tokenizer, config.model, config.rollout, ranks, adapters=room)
