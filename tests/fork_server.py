"""Processes of the tests' workers, forked from one that has imported what nearly all of them import: that takes each ten seconds else.

`multiprocessing`'s fork server: it starts with the first worker, imports `PRELOADED` and does nothing else; no thread runs in it, and no
process group, engine or CUDA context was ever made there. What a forked process has, a started one would have after its imports.
"""

from __future__ import annotations

import atexit
import os
import runpy
import sys
import warnings
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


def fork(script: Path | str, arguments: list[str], environment: dict[str, str], log: Path, place: Path = ROOT) -> BaseProcess:
    """A process that runs `script` in the folder `place` as `python script *arguments` would, or `python -m` where it is a module's name,
    both of its outputs into `log`. The first one's environment decides what modules read where they are imported, so all must agree on it
    but for ranks and ports."""
    with environ(environment):
        forkserver.ensure_running()
    process = FORKED.Process(target=_work, args=(script, arguments, environment, log.absolute(), place))
    process.start()
    return process


def _work(script: Path | str, arguments: list[str], environment: dict[str, str], log: Path, place: Path) -> None:
    with log.open("ab", buffering=0) as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(place)
    sys.argv = [str(script), *arguments]
    sys.path[0] = str(script.parent if isinstance(script, Path) else place)  # as for any script or module

    from soundrl.engine.launch.last_words import RANK

    RANK.parent = os.getppid()  # who has imported it is not who waits for this rank
    try:
        if isinstance(script, Path):
            runpy.run_path(str(script), run_name="__main__")
        else:
            warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)
            runpy.run_module(script, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # a forked process leaves without
