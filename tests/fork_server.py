"""Processes of the tests' workers, forked from one that has imported what nearly all of them import: that takes each ten seconds else.

`multiprocessing`'s fork server: it starts with the first worker, imports `PRELOADED` and does nothing else; no thread runs in it, and no
process group, engine or CUDA context was ever made there. What a forked process has, a started one would have after its imports.
"""

from __future__ import annotations

import atexit
import os
import runpy
import sys
from contextlib import contextmanager
from multiprocessing import forkserver, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRELOADED = ["transformers", "vllm", "soundrl.engine.train", "soundrl.engine.samplers.vllm_sampler", "soundrl.engine.tools.sync_doctor"]
FORKED = get_context("forkserver")
FORKED.set_forkserver_preload(PRELOADED)


@contextmanager
def environ(environment: dict[str, str]):
    """What a process that starts inside finds as its own."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def fork(script: Path, arguments: list[str], environment: dict[str, str], log: Path) -> BaseProcess:
    """A process that runs `script` as `python script *arguments` would, both of its outputs into `log`. The first one's environment decides
    what modules read where they are imported, so all must agree on it but for ranks and ports."""
    with environ(environment):
        forkserver.ensure_running()
    process = FORKED.Process(target=_work, args=(str(script), arguments, environment, str(log)))
    process.start()
    return process


def _work(script: str, arguments: list[str], environment: dict[str, str], log: str) -> None:
    with Path(log).open("ab", buffering=0) as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)  # as for any script

    from soundrl.engine.launch.last_words import RANK

    RANK.parent = os.getppid()  # who has imported it is not who waits for this rank
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a forked process leaves without
