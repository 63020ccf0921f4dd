r"""A pool of worker processes that can be killed at any moment, with a limit of CPU time on each comparison.

What a comparison may take is counted in CPU seconds of its process, which stand still while other processes run: a busy machine changes no
result. (CPU seconds are not the same on every processor; the limits are many times what any right answer was seen to need.) The wall clock
ends only a process that makes no progress at all: one that was stopped, or sleeps.

A comparison over its limit is killed, or a few hostile answers would tie up the pool. The next is made in a fork of a process that has
everything imported, which takes milliseconds (`worker`).
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

from soundrl.fapo.verify.worker import MAX_MESSAGE
from soundrl.fapo.waiting import announce

_END_SECONDS = 10.0
_TICK = 0.001  # CPU seconds: less is no progress
_CRASHES = (0, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT)
"""What ends a process whose comparison is at fault; 0 = an exit by itself in the middle of one."""
_AGAIN = ("memory", "crash", "killed", "stuck")
"""Results that are asked for once more, of a fresh fork: what killed it may have meant another process, and its memory may have been full
of earlier answers."""

logger = logging.getLogger(__name__)


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a whole process, all threads, resolved to microseconds; OSError where there is no such process any more."""
    # Linux's clock id of another process (clock_getcpuclockid(3)): the inverted pid above three bits that say "scheduler's clock".
    return time.clock_gettime((~pid << 3) | 2)


class _Worker:
    """One process of `worker`, started when it is needed, and the fork of it that compares."""

    def __init__(self, memory_limit: int, stall_limit: float) -> None:
        self._memory_limit, self._stall_limit = memory_limit, stall_limit
        self.process: subprocess.Popen[bytes] | None = None
        self.closed = False
        """True = what is started is ended at once."""
        self.since = 0.0
        """When its comparison began (`time.monotonic`); 0: it has none."""

    def _start(self) -> subprocess.Popen[bytes]:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.settimeout(self._stall_limit)
        # A narrow environment: nothing of the trainer's (tokens, CUDA, proxies) is of use in there.
        environment = {key: os.environ[key] for key in ("PATH", "LANG", "LD_LIBRARY_PATH", "SYSTEMROOT") if key in os.environ}
        environment |= {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-s", "-m", "soundrl.fapo.verify.worker", str(theirs.fileno()), str(self._memory_limit)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._fork, self._asked = self.process.pid, 0
        if self.closed:
            self.interrupt()
        return self.process

    def ask(self, gold: str, answer: str, gold_limit: float, limit: float) -> str:
        """The result of one comparison. Raises `OSError` where the process has gone, `TimeoutError` where it is stuck: it is of no more
        use."""
        process = self.process or self._start()
        # A number, since one that was asked in vain may be answered later: its fork had been killed before it took the request.
        self._asked += 1
        self._connection.send(json.dumps([self._asked, gold, answer, gold_limit, limit]).encode())
        is_read = False
        while True:
            kind, number, value = self._receive(process)
            if kind == "fork":
                self._fork = value
            elif number not in (0, self._asked):
                continue
            elif kind == "result":
                return value
            elif kind == "read":
                is_read = True
            elif value == signal.SIGPROF:
                return "cpu" if is_read else "gold/cpu"
            else:
                return "crash" if value in _CRASHES else "killed"

    def _receive(self, process: subprocess.Popen[bytes]) -> list:
        used = -1.0
        while True:
            try:
                message = self._connection.recv(MAX_MESSAGE)
            except TimeoutError:
                before, used = used, cpu_seconds(self._fork)
                if used - before < _TICK:
                    raise TimeoutError(f"process {self._fork} has used no CPU time for {self._stall_limit:g} seconds") from None
            else:
                if not message:
                    raise OSError(f"process {process.pid} has ended (exit status {process.wait()})")
                return json.loads(message)

    def waits(self) -> list[str]:
        """Its comparison under way, if any."""
        since, process = self.since, self.process
        if not since or process is None:
            return []
        used = "that has gone"
        with contextlib.suppress(OSError):
            used = f"of {cpu_seconds(self._fork):.2f} CPU seconds"
        return [f"verifier process {self._fork} {used}, with one comparison for {time.monotonic() - since:.0f} s"]

    def interrupt(self) -> None:
        """Ends the fork, also one that is stopped; the process too, where it has none yet."""
        for signum in (signal.SIGTERM, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                if process := self.process:
                    os.killpg(process.pid, signum)

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
    """Compares pairs in `workers` processes, which start when they are needed, each pair under limits of CPU time and memory.

    * `cpu_limit`: CPU seconds of a process for one comparison; reading the reference is not counted. 500 right ones took 0.29 at most
      (`bench/verifier_load.py`), so that a processor many times slower gives the same verdicts.
    * `gold_cpu_limit`: CPU seconds for reading a reference, and for all of a comparison that checks one.
    * `memory_limit`: bytes of address space of each process. math-verify itself takes about 70 MiB.
    * `stall_limit`: a process that has made no progress in so many seconds of wall-clock time is given up when as many more have passed.
    """

    def __init__(
        self,
        *,
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
        """Comparisons that ended a process, by result: `cpu`, `gold/cpu`, `memory`, `crash`, `killed`, `stuck` (see `submit`)."""
        self.workers = [_Worker(memory_limit, stall_limit) for _ in range(workers)]
        self.answered = 0
        """Comparisons that have ended, in whatever way."""
        self._owner = os.getpid()
        self._jobs: queue.SimpleQueue[tuple[str, str, float, Future[str]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._threads = [threading.Thread(target=self._serve, args=[worker], name="verifier", daemon=True) for worker in self.workers]
        for thread in self._threads:
            thread.start()
        announce(self)

    def waits(self) -> list[str]:
        """Comparisons under way, and how many wait for a process."""
        queued = self._jobs.qsize()
        return [line for worker in self.workers for line in worker.waits()] + ([f"queued comparisons: {queued}"] if queued else [])

    def submit(self, gold: str, answer: str, *, checks_gold: bool = False) -> Future[str]:
        """Queues a pair; `checks_gold` allows the whole of it what a reference may take. The result is one of

        * `equal`, `different`, `incomparable`, or what the parser cannot read: `gold`, `answer`;
        * `cpu`, `memory`: the limit that the comparison came to, twice where it is memory; `gold/cpu`: while the reference was read;
        * `crash`: the comparison brought down two processes (a fault in the parser's C code);
        * `killed`, `stuck`: two processes were killed from outside (the system's out-of-memory killer), stood still, or did not start:
          nothing is known of the answer.

        Raises `RuntimeError` where the pool is closed, or this is a fork of the process that made it; so do futures that are not done when
        it is closed.
        """
        if os.getpid() != self._owner:
            raise RuntimeError("a verifier cannot be used in a fork of the process that made it; make one there")
        future: Future[str] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the verifier is closed")
            self._jobs.put((gold, answer, self.gold_cpu_limit if checks_gold else self.cpu_limit, future))
        return future

    def close(self) -> None:
        """Ends all processes; pairs that are not decided yet fail."""
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
        while job := self._jobs.get():
            gold, answer, limit, future = job
            result, worker.since = "killed", time.monotonic()
            for _ in range(2):
                if self._closed:
                    break
                try:
                    result, why = worker.ask(gold, answer, self.gold_cpu_limit, limit), "by a signal"
                except OSError as error:
                    result, why = "stuck" if isinstance(error, TimeoutError) else "killed", str(error)
                    worker.end()
                if result in ("cpu", "gold/cpu", *_AGAIN):
                    with self._lock:
                        self.counts[result] += 1
                if result not in _AGAIN:
                    break
                if result in ("killed", "stuck") and not self._closed:
                    logger.warning("a verifier process was %s: %s", result, why)
            worker.since, self.answered = 0.0, self.answered + 1
            if self._closed and result in ("killed", "stuck", "crash"):
                future.set_exception(RuntimeError("the verifier was closed"))
            else:
                future.set_result(result)
        worker.end()
