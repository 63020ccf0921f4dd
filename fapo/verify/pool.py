r"""A pool of worker processes that can be killed at any moment, with a limit of CPU time on each request: a comparison, the score of a
puzzle, or a call of a user's function.

What a request may take is counted in CPU seconds of its process, which stand still while other processes run: a busy machine changes no
result. (CPU seconds are not the same on every processor; the limits are many times what any right answer was seen to need.) The wall clock
ends only a process that makes no progress at all: one that was stopped, or sleeps.

One over its limit is killed, or a few hostile answers would tie up the pool. The next is made in a fork of a process that has
everything imported, which takes milliseconds (`worker`).

A user's function may do anything that its user may: the pool limits what it takes, and is no sandbox. All processes that come from it are
counted together, and end with its call.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future
from typing import Any

from soundrl.fapo.verify.processes import children, cpu_seconds, family, family_seconds
from soundrl.fapo.verify.worker import MATH, MAX_MESSAGE, send_job
from soundrl.fapo.waiting import announce

_END_SECONDS = 10.0
_TICK = 0.001  # CPU seconds: less is no progress
_LOOK = 0.25  # seconds between looks at a user's function and its children
_FAMILY = 64
"""Most processes that come from a call of a user's function."""
_LEAST = 0.01
"""CPU seconds a second that such a call must use, or it stands still: one that sleeps in small pieces does too."""
_CRASHES = (0, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT)
"""What ends a process whose comparison is at fault; 0 = an exit by itself in the middle of one."""
_AGAIN = ("memory", "crash", "killed", "stuck")
_AGAIN_OWN = ("memory", "crash", "killed")
"""Results that are asked for once more, of a fresh fork: what killed it may have meant another process, and its memory may have been full
of earlier answers. The second: of other work than comparing."""
_ENDED = ("cpu", "gold/cpu", "exit", "forks", *_AGAIN)

logger = logging.getLogger(__name__)


class Broken(ValueError):
    """The work cannot be done at all; the message says why."""


class _Worker:
    """One process of `worker`, started when it is needed, and the fork of it that works."""

    def __init__(self, work: str, memory_limit: int, stall_limit: float) -> None:
        self._work, self._memory_limit, self._stall_limit = work, memory_limit, stall_limit
        self._watched = work != MATH
        self.process: subprocess.Popen[bytes] | None = None
        self.closed = False
        """True = what is started is ended at once."""
        self.since = 0.0
        """When its request began (`time.monotonic`); 0: it has none."""
        self.says = ""
        """Of its work, once it is ready."""

    def _start(self) -> subprocess.Popen[bytes]:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.settimeout(min(self._stall_limit, _LOOK) if self._watched else self._stall_limit)
        # A narrow environment: nothing of the trainer's (tokens, CUDA, proxies) is of use in there.
        kept = ("PATH", "LANG", "LD_LIBRARY_PATH", "SYSTEMROOT", *(("HOME", "TMPDIR") if self._watched else ()))
        environment = {key: os.environ[key] for key in kept if key in os.environ}
        seed = os.environ.get("PYTHONHASHSEED", "")
        # One thread each: there are many of them, and a fork has one.
        environment |= {"PYTHONHASHSEED": seed if seed.isdigit() else "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-s", "-m", "soundrl.fapo.verify.worker", str(theirs.fileno()), str(self._memory_limit), self._work],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd=None if self._watched else "/",  # a user's function finds its files where the run does
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._fork, self._asked, self._base = self.process.pid, 0, 0.0
        if self.closed:
            self.interrupt()
        return self.process

    def ask(self, job: tuple[Any, ...], gold_limit: float, limit: float) -> Any:
        """The result of one request. Raises `OSError` where the process has gone, `TimeoutError` where it is stuck: it is of no more
        use; `Broken` where it never will be."""
        process = self.process or self._start()
        # A number, since one that was asked in vain may be answered later: its fork had been killed before it took the request.
        self._asked += 1
        if self._watched and self._fork != process.pid:
            self._base = family_seconds([self._fork])
        send_job(self._connection, [self._asked, gold_limit, limit, job])
        is_read, self._why = False, ""
        while True:
            kind, number, value = self._receive(process, limit)
            if kind == "fork":
                self._fork, self._base = value, 0.0
            elif kind == "ready":
                self.says = value
            elif kind == "broken":
                raise Broken(value)
            elif number not in (0, self._asked):
                continue
            elif kind == "result":
                return value
            elif kind == "read":
                is_read = True
            elif self._why:
                return self._why
            elif value == signal.SIGPROF:
                return "cpu" if is_read else "gold/cpu"
            elif value == 0 and self._watched:
                return "exit" if is_read else "killed"  # before it took the request: an earlier call left a thread that ended it
            else:
                return "crash" if value in _CRASHES else "killed"

    def _receive(self, process: subprocess.Popen[bytes], limit: float) -> list[Any]:
        used, since = -1.0, time.monotonic()
        while True:
            try:
                message = self._connection.recv(MAX_MESSAGE)
            except TimeoutError:
                now = self._watch(process, limit) if self._watched else cpu_seconds(self._fork)
                if self._watched and (waited := time.monotonic() - since) < self._stall_limit:
                    used = now if used < 0 else used
                    continue
                least = _LEAST * waited if self._watched else _TICK  # pyright: ignore[reportPossiblyUnboundVariable]
                before, used, since = used, now, time.monotonic()
                if used - before < least:
                    raise TimeoutError(f"process {self._fork} has used no CPU time for {self._stall_limit:g} seconds") from None
            else:
                if not message:
                    raise OSError(f"process {process.pid} has ended (exit status {process.wait()})")
                try:
                    kind, number, value = json.loads(message)
                except ValueError:
                    raise OSError(f"process {self._fork} wrote what is no message") from None
                return [kind, number, value]

    def _watch(self, process: subprocess.Popen[bytes], limit: float) -> float:
        """CPU seconds of a call with all that has come from it, which is ended where that is too much: its own timer does not see
        children, and can be lifted."""
        pids = family(self._fork, _FAMILY)
        used = family_seconds(pids)
        if self._fork != process.pid and not self._why:
            self._why = "forks" if len(pids) > _FAMILY else "cpu" if used - self._base > limit + _LOOK else ""
            if self._why:
                self._kill(process)
        return used

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        if self._fork in children(process.pid):  # the number may be another's by now
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._fork, signal.SIGKILL)

    def waits(self) -> list[str]:
        """Its request under way, if any."""
        since, process = self.since, self.process
        if not since or process is None:
            return []
        used = "that has gone"
        with contextlib.suppress(OSError):
            used = f"of {cpu_seconds(self._fork):.2f} CPU seconds"
        return [f"verifier process {self._fork} {used}, with one answer for {time.monotonic() - since:.0f} s"]

    def interrupt(self) -> None:
        """Ends the fork, also one that is stopped; the process too, where it has none yet."""
        for signum in (signal.SIGTERM, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                if process := self.process:
                    os.killpg(process.pid, signum)
        if self._watched and (process := self.process):
            self._kill(process)  # a user's function may ignore the signal

    def end(self) -> None:
        if process := self.process:
            self._connection.close()
            self.interrupt()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            self.process = None


class WorkerPool:
    """Does `work` (see `worker`) in `workers` processes, which start when they are needed, each request under limits of CPU time and
    memory. By default it compares pairs of reference and answer.

    * `cpu_limit`: CPU seconds of a process for one request; reading the reference is not counted. 500 right comparisons took 0.29 at most
      (`bench/verifier_load.py`), so that a processor many times slower gives the same verdicts.
    * `gold_cpu_limit`: CPU seconds for reading a reference, and for all of a comparison that checks one.
    * `memory_limit`: bytes of address space of each process. math-verify itself takes about 70 MiB. For other work, beyond what its
      imports take.
    * `stall_limit`: a process that has made no progress in so many seconds of wall-clock time is given up when as many more have passed.
    """

    def __init__(
        self,
        *,
        work: str = MATH,
        workers: int = 2,
        cpu_limit: float = 10.0,
        gold_cpu_limit: float = 60.0,
        memory_limit: int = 512 * 1024**2,
        stall_limit: float = 120.0,
    ) -> None:
        if min(workers, cpu_limit, gold_cpu_limit, stall_limit) <= 0:
            raise ValueError(f"the verifier's {workers=}, {cpu_limit=}, {gold_cpu_limit=} and {stall_limit=} must be positive")
        self.cpu_limit, self.gold_cpu_limit = cpu_limit, gold_cpu_limit
        self.counts: Counter[str] = Counter()
        """Requests that ended a process, by result: `cpu`, `gold/cpu`, `memory`, `crash`, `killed`, `stuck`, `exit`, `forks` (see
        `submit`)."""
        self.workers = [_Worker(work, memory_limit, stall_limit) for _ in range(workers)]
        self.answered = 0
        """Requests that have ended, in whatever way."""
        self._again = _AGAIN if work == MATH else _AGAIN_OWN
        self._owner = os.getpid()
        self._jobs: queue.SimpleQueue[tuple[tuple[Any, ...], float, Future[Any]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._threads = [threading.Thread(target=self._serve, args=[worker], name="verifier", daemon=True) for worker in self.workers]
        for thread in self._threads:
            thread.start()
        announce(self)

    def waits(self) -> list[str]:
        """Requests under way, and how many wait for a process."""
        queued = self._jobs.qsize()
        return [line for worker in self.workers for line in worker.waits()] + ([f"queued answers: {queued}"] if queued else [])

    @property
    def says(self) -> str:
        """Of the work, once a process was ready."""
        return next((worker.says for worker in self.workers if worker.says), "")

    def submit(self, *job: Any, checks_gold: bool = False) -> Future[Any]:
        """Queues a request, plain JSON: a pair of reference and answer; `checks_gold` allows the whole of it what a reference may take. The
        result is what the work says, or

        * `equal`, `different`, `incomparable`, or what the parser cannot read: `gold`, `answer`;
        * `cpu`, `memory`: the limit that the comparison came to, twice where it is memory; `gold/cpu`: while the reference was read;
        * `crash`: the comparison brought down two processes (a fault in the parser's C code);
        * `killed`, `stuck`: two processes were killed from outside (the system's out-of-memory killer), stood still, or did not start:
          nothing is known of the answer;
        * `exit`, `forks`, of a user's function: it ended its process, or made too many.

        The future raises `Broken` where the work cannot be done at all. Raises `RuntimeError` where the pool is closed, or this is a fork
        of the process that made it; so do futures that are not done when it is closed.
        """
        if os.getpid() != self._owner:
            raise RuntimeError("a verifier cannot be used in a fork of the process that made it; make one there")
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the verifier is closed")
            self._jobs.put((job, self.gold_cpu_limit if checks_gold else self.cpu_limit, future))
        return future

    def close(self) -> None:
        """Ends all processes; what is not decided yet fails."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for worker in self.workers:
                    worker.closed = True
                    worker.interrupt()
                    self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _serve(self, worker: _Worker) -> None:
        while asked := self._jobs.get():
            job, limit, future = asked
            broken: Broken | None = None
            result, worker.since = "killed", time.monotonic()
            for _ in range(2):
                if self._closed:
                    break
                try:
                    result, why = worker.ask(job, self.gold_cpu_limit, limit), "by a signal"
                except Broken as error:
                    broken = error
                    worker.end()
                    break
                except OSError as error:
                    result, why = "stuck" if isinstance(error, TimeoutError) else "killed", str(error)
                    worker.end()
                if ended := isinstance(result, str) and result in _ENDED:
                    with self._lock:
                        self.counts[result] += 1
                if not (ended and result in self._again):
                    break
                if result in ("killed", "stuck") and not self._closed:
                    logger.warning("a verifier process was %s: %s", result, why)
            worker.since, self.answered = 0.0, self.answered + 1
            if broken is not None:
                future.set_exception(broken)
            elif self._closed and result in ("killed", "stuck", "crash"):
                future.set_exception(RuntimeError("the verifier was closed"))
            else:
                future.set_result(result)
        worker.end()
