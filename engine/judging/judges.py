"""The judge of a run: its environment's oracle, endpoints that others serve, or servers of our own on each node."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from soundrl.engine.config import Config, Genrm
from soundrl.engine.environments.environment import Environment
from soundrl.engine.files.adapter_folder import Base
from soundrl.engine.files.model_folder import check_folder
from soundrl.engine.judging.adapter_judge import AdapterJudge, AdapterPhase
from soundrl.engine.judging.judge_watch import JudgeWatch, build_watch
from soundrl.engine.judging.judging_phase import JudgingPhase
from soundrl.engine.judging.phase import Phase
from soundrl.engine.planning.command import planned
from soundrl.engine.planning.plan import judge_length
from soundrl.engine.ranks import Ranks
from soundrl.engine.samplers.sampler import Sampler
from soundrl.fapo.corrected import Errors
from soundrl.fapo.judging import Judge
from soundrl.fapo.measures import Split
from soundrl.fapo.task import OracleJudge
from soundrl.genrm.pool.address import checked_url, own_host
from soundrl.genrm.pool.judge import EndpointJudge
from soundrl.genrm.prompts import prompt_in
from soundrl.genrm.serve.servers import START_SECONDS, TOKEN_ENV, JudgeServers, ServeError, Serving

SERVED_NAME = "genrm"


@dataclass(frozen=True)
class BuiltJudge:
    """The judge and what belongs to it."""

    judge: Judge | None
    ready: Callable[[], None] = lambda: None
    """Waits until it answers; a collective. ValueError where it does not."""
    phase: Phase | None = None
    """Where the judge sleeps but for a phase of its own."""
    close: Callable[[], None] = lambda: None
    """Ends its connections, and the servers that were started for it."""
    watch: JudgeWatch | None = None

    def metrics(self, step: int) -> dict[str, float]:
        """What it says of itself on this rank, and what its watch asks of it while it is awake. A collective."""
        if self.judge is None or self.watch is None:
            return {} if self.judge is None else self.judge.metrics()
        said, found = self.judge.metrics(), self.watch.asked(step)
        if self.phase is not None and self.watch.second_judge is not None:
            self.watch.second_judge.rest()  # the servers are about to sleep
        return said | found

    def enter(self, sampler: Sampler, base: Base | None) -> None:
        """Where it is asked in the policy's own engine: that is here, and awake. ValueError for an adapter of another base."""
        if isinstance(self.phase, AdapterPhase):
            self.phase.enter(sampler, base)

    def errors(self, name: str) -> Errors | None:
        """What second opinions say of it, see `JudgeWatch.errors`."""
        return None if self.watch is None else self.watch.errors(name)

    @property
    def gone(self) -> bool:
        """Whether nobody is left to ask."""
        return self.judge is not None and self.judge.gone

    def state(self) -> dict[str, Any] | None:
        """What its watch remembers from step to step; plain JSON, of rank 0."""
        return None if self.watch is None else self.watch.state()

    def restore(self, state: dict[str, Any] | None) -> None:
        if self.watch is not None and state is not None:
            self.watch.restore(state)


def build_judge(config: Config, environment: Environment, ranks: Ranks, say: Callable[[str], None], begins: bool = True) -> BuiltJudge:
    """A collective where the judge is no oracle. ValueError for a judge that does not answer or is too short for question and critique, for
    one on loopback that ranks of other machines are to ask, where judges and the policy do not fit on the GPUs, not even in turns, and for
    one below the F1 of `genrm.probe` where the run `begins`: one that goes on has let its judge in before, its watch compares with that
    start, and a restart must not end a run for a row that falls the other way."""
    g = config.genrm
    if g.judge == "none":
        return BuiltJudge(None)
    if g.judge == "oracle":
        oracle = type(environment).oracle
        assert oracle is not None  # as the settings have asked
        return BuiltJudge(OracleJudge(oracle))
    if g.judge == "adapter":
        judge = AdapterJudge(g, environment.split)
        return BuiltJudge(judge, phase=AdapterPhase(judge, Path(g.model), ranks))
    # While somebody may start a judge again, questions wait for it as long as they would for an answer.
    urls, model, servers, why, gone_after, askers = g.urls, g.model, None, "", g.deadline[0], (ranks.rank, ranks.size)
    if g.judge == "serve":
        # On each node its first rank starts servers, which the node's own ranks ask: their addresses and their token stay there. Where
        # those of one node sleep, all do: a phase is a collective.
        first = ranks.node.first
        why = ranks.first_said(serial_phase(config, ranks) if first else "")
        own = None
        if first:
            servers = serve(config, ranks, sleeps=bool(why))
            own = servers.urls, servers.token
        urls, os.environ[TOKEN_ENV] = ranks.of_node(own)
        model = SERVED_NAME
        gone_after = START_SECONDS  # a server that has died is started again, which takes as long as loading the model
        askers = ranks.node.rank, ranks.node.ranks
    else:
        check_reached_by_all(urls, ranks)
    more: dict[str, Any] = {
        "concurrency": places(g.concurrency, *askers),
        "longest_prompt": config.model.max_length,
        "gone_after": gone_after,
    }
    judge = endpoint_judge(g, urls, model, environment.split, **more)

    watch = build_watch(config, environment, judge, ranks, say)

    def ready() -> None:
        if servers is not None:
            try:
                servers.wait()
            except ServeError as error:
                raise ValueError(f"genrm.model is {g.model}, but {error}") from error
        ranks.barrier()
        judge.check()
        say(f"judge: asked by the prompt {judge.asked.name}, {judge.because}")
        if watch.second_judge is not None:
            watch.second_judge.check()
        if begins:
            watch.admit()

    def close() -> None:
        watch.close()
        judge.close()
        if servers is not None:
            servers.close()

    # On CPU servers load while the policy does. On a GPU vLLM measures, as it starts, what memory others leave: nobody else may move then.
    beside = g.judge == "serve" and ranks.device.type == "cpu" and not why  # who is put to sleep has loaded
    if not beside:
        ready()
    if why:
        say(f"judge: {why}")
    return BuiltJudge(
        judge,
        ready if beside else lambda: None,
        JudgingPhase(judge, servers, ranks) if why else None,
        close,
        watch,
    )


def endpoint_judge(g: Genrm, urls: Sequence[str], model: str, split: Split, **more: Any) -> EndpointJudge:
    """That asks as the settings say, but for what `more` says otherwise."""
    how: dict[str, Any] = {"max_tokens": g.max_tokens, "temperature": g.sampling[0], "votes": g.sampling[1], "concurrency": g.concurrency}
    how |= {"deadline": g.deadline[0], "step_deadline": g.deadline[1], "prompt": g.prompt, "with_reference": g.reference}
    how |= {"allow_http": g.allow_http, "split": split, **more}
    return EndpointJudge(urls, model, **how)


def places(concurrency: int, rank: int, ranks: int) -> int:
    """The part of one of so many ranks that ask an endpoint in `genrm.concurrency`, which is theirs together; at least one."""
    each, left = divmod(concurrency, ranks)
    return max(1, each + (rank < left))


def check_reached_by_all(urls: Sequence[str], ranks: Ranks) -> None:
    """ValueError for an address on loopback where ranks run on several machines. A collective."""
    hosts = set(ranks.gather(socket.gethostname()))
    for url in urls:
        name = urlsplit(checked_url(url, allow_http=True)[0]).hostname or ""
        host = own_host(name) or name
        if len(hosts) > 1 and (host in ("localhost", "::1") or host.startswith("127.")):
            raise ValueError(
                f"genrm.urls: {url} is each machine's own loopback, but the run has ranks on {len(hosts)}; give an address that all reach, "
                "or set --genrm.judge serve, which starts judges on each of them"
            )


def over_ranks(parts: list[dict[str, float]]) -> dict[str, float]:
    """The judge's metrics of all ranks as one: counters add up, of quantiles and judges alive the largest counts, of critiques' tokens the
    mean over replies; what one rank alone has (a probe) stays. Example: requests 3 and 4, latency_p99 1.0 and 2.0 → 7 and 2.0."""
    out: dict[str, float] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [part[name] for part in parts if name in part]
        out[name] = max(values) if name == "genrm/alive" or name.endswith(("_p50", "_p99")) else sum(values)
    if tokens := [part["genrm/critique_tokens"] * part["genrm/replies"] for part in parts if "genrm/critique_tokens" in part]:
        out["genrm/critique_tokens"] = sum(tokens) / out["genrm/replies"]
    return out


def serial_phase(config: Config, ranks: Ranks) -> str:
    """Why the served judge sleeps but for a phase of its own, by the memory plan; empty where it does not (on CPU nothing sleeps).
    ValueError, with the cure, where judge and policy do not fit even in turns."""
    if ranks.device.type == "cpu":
        return ""
    plan = planned(config, ranks.size, None)
    plan.check()
    return plan.judging if plan.serial else ""


def serve(config: Config, ranks: Ranks, sleeps: bool) -> JudgeServers:
    """Start the `genrm.workers` servers of `genrm.model` of this node. Their logs stand in the run's parent folder, those of several nodes
    apart."""
    folder = check_folder(config.genrm.model, "genrm.model", trains=False)
    prompt_in(folder, config.genrm.prompt)
    return JudgeServers(
        Serving(
            model=folder,
            name=SERVED_NAME,
            workers=config.genrm.workers[0],
            tensor_parallel=config.genrm.workers[1],
            max_length=judge_length(config, folder),
            dtype=config.model.dtype,
            memory=config.rollout.memory,
            eager=config.rollout.eager,
        ),
        logs=Path(config.run.folder) / "logs" / (f"node-{ranks.node.number}" if ranks.node.ranks < ranks.size else ""),
        sleeps=sleeps,
    )
