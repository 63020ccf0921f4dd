"""Judges that we serve ourselves: N vLLM API servers in processes of their own, watched by real generations and started again.

    python -m soundrl.genrm.serve --model models/FAPO-GenRM-4B --workers 2

Each listens on loopback alone (the command's `--host` widens it) and asks for a token on every route, which is drawn where the environment
holds none, leaves it with the last server, and reaches servers through theirs (a command line can be read by every user of the machine). A
server that has died, or has not generated a token for anybody for `SICK_SECONDS`, is killed and started again on the same port, so that a
pool that knows its URL finds it again by itself.

Servers that share their GPUs with a policy that needs all of the memory *sleep* (vLLM's level 1: weights in host memory, no KV cache) but
for the phase in which they judge. In their sleep nobody asks them, and none is started: its memory belongs to others then.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from soundrl.fapo.waiting import GIVEN_UP, announce
from soundrl.genrm.pool.endpoint import Failure
from soundrl.genrm.serve.server import LOOPBACK, MAX_RESTARTS, SICK_SECONDS, START_SECONDS, Serving, Worker

TOKEN_ENV = "SOUNDRL_GENRM_TOKEN"
LOOK_SECONDS = 5.0

log = logging.getLogger(__name__)
T = TypeVar("T")


class ServeError(ValueError):
    """A judge could not be started, or dies whenever it is."""


class JudgeServers(AbstractContextManager["JudgeServers"]):
    """Starts workers at once and watches them from a thread; `urls` are ready after `wait()`. `sleeps`: they can `sleep()` and `wake()`,
    on GPUs alone.

    >>> with JudgeServers(Serving(model=Path("models/genrm"), workers=2), logs=Path("runs/x")) as servers:
    ...     servers.wait()
    ...     EndpointJudge(servers.urls, "genrm")
    """

    def __init__(self, settings: Serving, logs: Path | None = None, sleeps: bool = False) -> None:
        self.token = token = own_token(settings.host)
        self.settings = settings = settings.planned()
        self.folder = folder = logs or Path(tempfile.mkdtemp(prefix="genrm-"))
        folder.mkdir(parents=True, exist_ok=True)
        self.workers = [Worker(settings, number, token, folder, sleeps) for number in range(settings.workers)]
        hold(token)
        self.urls: Sequence[str] = [worker.url for worker in self.workers]
        self.asleep = self._closed = False
        self._looking = threading.Lock()
        """Held while workers are looked after, so that nobody is asked or started while they fall asleep."""
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="genrm-watch", daemon=True)
        self.answered = 0
        """Workers that were waited for and are there."""
        self._until = 0.0
        """Where they are waited for, until when (`time.monotonic`)"""
        announce(self)
        for worker in self.workers:
            worker.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def started(self) -> int:
        """Processes so far, restarts included."""
        return sum(worker.started for worker in self.workers)

    def waits(self) -> list[str]:
        """Workers that load."""
        left = self._until - time.monotonic()
        return [f"judge {worker.url} to load, {GIVEN_UP} in {left:.0f} s" for worker in self.workers] if left > 0 else []

    def wait(self, seconds: float = START_SECONDS) -> None:
        """Until every worker has generated a token; then they are watched. Raises `ServeError` with the last line of the log of one that
        has ended or is not ready in time, and `ValueError` where one refuses the very question (no chat template)."""
        self._until = end = time.monotonic() + seconds
        for worker in self.workers:
            fault = worker.awaited(end)
            self.answered += 1
            if isinstance(fault, Failure) and not fault.retry:
                asyncio.run(worker.endpoint.check())  # raises, and says why
            if fault is not None:
                status = worker.process and worker.process.returncode
                what = f"is not ready after {seconds:.0f} s" if worker.alive else f"ended with status {status}"
                raise ServeError(f"the judge's server {what}: {worker.last_words()} ({worker.log})")
        self._until = 0.0
        if not self._watcher.is_alive():
            self._watcher.start()

    def sleep(self) -> None:
        """Every worker gives its GPU memory back, or is killed: afterwards others may take it. Nothing may be under way."""
        with self._looking:
            for worker, obeyed in zip(self.workers, self._all(lambda worker: worker.obeys("sleep?level=1")), strict=True):
                if not obeyed:
                    log.warning("judge %s does not fall asleep: killed until it is needed again (%s)", worker.url, worker.log)
                    worker.stop()
            self.asleep = True

    def wake(self, seconds: float = START_SECONDS) -> None:
        """Until every worker has generated a token. One that does not wake is started again; one that does not come back in `seconds` is
        named in a warning and left to the watch, as any that dies: the pool goes on without it."""
        with self._looking:
            for worker, obeyed in zip(self.workers, self._all(lambda worker: worker.obeys("wake_up")), strict=True):
                worker.until = time.monotonic() + SICK_SECONDS
                if not obeyed:
                    worker.start_again()
            self.asleep = False
        self._until = end = time.monotonic() + seconds
        for worker in self.workers:
            if worker.awaited(end, MAX_RESTARTS) is not None:
                log.warning("judge %s has not woken up: %s (%s)", worker.url, worker.last_words(), worker.log)
            self.answered += 1
        self._until = 0.0

    def close(self) -> None:
        """End all processes. May be called twice."""
        self._ended.set()
        if self._watcher.is_alive():
            self._watcher.join()
        for worker in self.workers:
            worker.stop()
            worker.held.close()
        if not self._closed:
            self._closed = True
            release(self.token)

    def _all(self, what: Callable[[Worker], T]) -> list[T]:
        """At once: one that lets us wait makes nobody else look sick."""
        with ThreadPoolExecutor(len(self.workers)) as hands:
            return list(hands.map(what, self.workers))

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            with self._looking:
                if self.asleep:
                    continue
                self._all(Worker.look)
                for worker in self.workers:
                    if not worker.alive or time.monotonic() > worker.until:
                        worker.start_again()


DRAWN: list[str] = []
"""Tokens that the environment holds for servers of this process, each as often as servers ask for it."""


def own_token(host: str) -> str:
    """The token of the environment, drawn where it holds none. ValueError where nobody could know a drawn one, since `host` is reached by
    others."""
    token = os.environ.get(TOKEN_ENV, "").strip()
    if not token and host not in LOOPBACK:
        raise ValueError(f"--host {host} can be reached by others: put a token into ${TOKEN_ENV}, here and where judges are asked")
    return token or secrets.token_urlsafe(24)


def hold(token: str) -> None:
    """Connections of this process find a drawn token in the environment until the last server that asks for it is gone: whoever is asked
    afterwards (a teacher's endpoint) would be sent what is none of his, and servers that others start would all share it."""
    if token in DRAWN or not os.environ.get(TOKEN_ENV, "").strip():
        DRAWN.append(token)
        os.environ[TOKEN_ENV] = token


def release(token: str) -> None:
    if token in DRAWN:
        DRAWN.remove(token)
        if token not in DRAWN and os.environ.get(TOKEN_ENV) == token:
            del os.environ[TOKEN_ENV]


def keep_token(folder: Path, token: str) -> None:
    """Writes the drawn token where its owner alone reads it, and says where."""
    with open(os.open(folder / "token", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token)
    print(f"export {TOKEN_ENV}=$(cat {folder / 'token'})")


def main(settings: Serving) -> None:
    """Serve until a signal comes; says how to ask, and where a drawn token is kept."""
    drawn = not os.environ.get(TOKEN_ENV, "").strip()
    with JudgeServers(settings) as servers:
        servers.wait()
        if drawn:
            keep_token(servers.folder, servers.token)
        here = socket.gethostname() if settings.host in ("0.0.0.0", "::") else ""
        urls = [f"http://{here}:{worker.port}/v1" if here else worker.url for worker in servers.workers]
        print(f"holds {servers.settings.max_length} tokens of prompt and critique", file=sys.stderr)
        print(f"--genrm.urls {' '.join(urls)} --genrm.model {settings.name}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
