"""The judge of a run: the embedded world's oracle, endpoints that others serve, or servers of our own on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from soundrl.engine.config import Config
from soundrl.engine.policy import check_folder
from soundrl.engine.world import World
from soundrl.fapo import arith
from soundrl.fapo.judging import Judge
from soundrl.fapo.task import OracleJudge
from soundrl.genrm.judge import EndpointJudge
from soundrl.genrm.labelled import load_labelled
from soundrl.genrm.probe import PROBE_ROWS, Probe
from soundrl.genrm.prompts import split_paragraphs
from soundrl.genrm.serve import START_SECONDS, TOKEN_ENV, JudgeServers, Serving

SERVED_NAME = "genrm"


def build_judge(config: Config, world: World) -> tuple[Judge | None, Callable[[], None]]:
    """The judge, checked (it answers), and what ends the servers that were started for it. A collective where judges are served."""
    g = config.genrm
    if g.judge == "none":
        return None, lambda: None
    if g.judge == "oracle":
        return OracleJudge(arith.oracle), lambda: None
    urls, model, close, gone_after = g.urls, g.model, lambda: None, None
    if g.judge == "serve":
        servers = serve(config) if world.main else None
        # The servers' addresses and their token, from rank 0 to all.
        urls, token = world.gather(None if servers is None else (servers.urls, os.environ[TOKEN_ENV]))[0]
        os.environ[TOKEN_ENV], model = token, SERVED_NAME
        close = close if servers is None else servers.close
        gone_after = START_SECONDS  # a server that has died is started again, which takes as long as loading the model
    judge = EndpointJudge(
        urls,
        model,
        max_tokens=g.max_tokens,
        temperature=g.sampling[0],
        votes=g.sampling[1],
        deadline=g.deadline[0],
        step_deadline=g.deadline[1],
        concurrency=g.concurrency,
        gone_after=gone_after,
        with_reference=g.reference,
        allow_http=g.allow_http,
        # The world writes a step a line.
        split=arith.steps if config.data.train == "arith" else split_paragraphs,
    )
    judge.check()
    return judge, close


def build_probe(config: Config, judge: Judge | None, world: World) -> Callable[[int], dict[str, float]]:
    """The probe of `genrm.probe`, on rank 0; nothing where there is none."""
    name, every = config.genrm.probe
    if not name or not world.main or not isinstance(judge, EndpointJudge):
        return lambda step: {}
    return Probe(judge, load_labelled(name, max_rows=PROBE_ROWS), every)


def serve(config: Config) -> JudgeServers:
    """Start the servers of `genrm.model` and wait until they generate. Their logs stand in the run's parent folder."""
    folder = check_folder(config.genrm.model, "genrm.model")
    servers = JudgeServers(
        Serving(
            model=folder,
            name=SERVED_NAME,
            workers=config.genrm.workers,
            dtype=config.model.dtype,
            memory=config.rollout.memory,
            eager=config.rollout.eager,
        ),
        logs=Path(config.run.folder) / "logs",
    )
    servers.wait()
    return servers
