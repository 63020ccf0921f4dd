r"""A pool of worker processes that can be killed at any moment, with a limit of CPU time on each comparison.

What a comparison may take is counted in CPU seconds of its worker, on the kernel's own clock of that process, which C loops and the
parser's recursion cannot escape and which stands still while other processes run: a busy machine changes no
result. (CPU seconds are not the same
on every processor; the limits are many times what any right answer was seen to need.) The wall clock ends only a worker that makes no
progress at all: one that was stopped, or sleeps.

A worker over its limit gets SIGKILL: `future.result(timeout)` alone would stop waiting and leave the worker busy, so that a few hostile
answers would tie up the pool. It is replaced by a fork of a process that has everything imported, which takes milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
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
from dataclasses import dataclass
from typing import Any

from soundrl.fapo.verify.worker import MAX_MESSAGE, send

_END_SECONDS = 10.0
_TICK = 0.01  # seconds: no limit is watched more finely
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT)

logger = logging.getLogger(__name__)


class _Exhausted(Exception):
    """The worker has used its CPU time."""


class _Stuck(OSError):
    """The process has used no CPU time for too long."""


@dataclass(frozen=True)
class _Worker:
    pid: int
    connection: socket.socket


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a whole process, all threads, resolved to microseconds; OSError where there is no such process any more."""
    # Linux's clock id of another process (clock_getcpuclockid(3)): the inverted pid above three bits that say "scheduler's clock".
    return time.clock_gettime((~pid << 3) | 2)


def receive(connection: socket.socket, pid: int, stall_limit: float, cpu_end: float = math.inf) -> Any:
    """The next message of the process `pid`. Raises `EOFError` where it has closed the connection, `_Exhausted` where its CPU clock passes
    `cpu_end` before, `_Stuck` where that has not moved for `stall_limit` seconds of wall-clock time."""
    used, since = cpu_seconds(pid), time.monotonic()
    while True:
        # One thread uses no more CPU time than passes, so it pays to sleep for as long as it has left.
        left = since + stall_limit - time.monotonic()
        connection.settimeout(max(min(cpu_end - used, left), _TICK))
        try:
            message = connection.recv(MAX_MESSAGE)
        except TimeoutError:
            before, used = used, cpu_seconds(pid)
            if used > cpu_end:
                raise _Exhausted from None
            if used - before >= _TICK / 10:
                since = time.monotonic()
            elif time.monotonic() - since >= stall_limit:
                raise _Stuck(f"process {pid} has used no CPU time for {stall_limit:g} seconds") from None
        else:
            if not message:
                raise EOFError
            return json.loads(message)


class _ForkServer:
    """The process that workers are forked from; started at once, restarted where it has died."""

    def __init__(self, memory_limit: int, stall_limit: float) -> None:
        self._memory_limit, self._stall_limit = memory_limit, stall_limit
        self._lock = threading.Lock()
        self._closed = False
        self.starts = 0
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # A narrow environment: nothing of the trainer's (tokens, CUDA, proxies) is of use in there.
            environment = {key: os.environ[key] for key in ("PATH", "LANG", "LD_LIBRARY_PATH", "SYSTEMROOT") if key in os.environ}
            environment |= {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-s", "-m", "soundrl.fapo.verify.worker", str(theirs.fileno()), str(self._memory_limit)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._control = ours
        self._ready = False
        self.starts += 1

    def fork(self) -> _Worker:
        """A new worker. Raises `RuntimeError` where the server is closed or does not start."""
        with self._lock:
            for attempt in range(2):
                if self._closed:
                    raise RuntimeError("the verifier is closed")
                try:
                    return self._fork()
                except (EOFError, OSError) as error:
                    self._end()
                    if attempt:
                        raise RuntimeError(f"the verifier's process does not start (exit status {self._process.returncode})") from error
                    self._start()
        raise AssertionError("unreachable")

    def _fork(self) -> _Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                socket.send_fds(self._control, [b"0"], [theirs.fileno()])
                pid = receive(self._control, self._process.pid, self._stall_limit)
            except (EOFError, OSError):
                ours.close()
                raise
        self._ready = True
        return _Worker(pid, ours)

    def end_worker(self, worker: _Worker) -> int:
        """Kills a worker and lets its parent reap it. Returns the signal that had ended it before, SIGKILL where it was alive or nothing is
        known, and 0 where it ended by itself."""
        worker.connection.close()
        with self._lock:
            if self._closed or self._process.poll() is not None:
                return signal.SIGKILL
            try:
                # Its parent reaps it only when told so below: the pid cannot belong to anyone else yet.
                os.kill(worker.pid, signal.SIGKILL)
                send(self._control, worker.pid)
                return receive(self._control, self._process.pid, self._stall_limit)
            except (EOFError, OSError):
                self._end()
                self._start()
                return signal.SIGKILL

    def _end(self) -> None:
        # It sees the end of the socket, kills and reaps its workers, and goes; while it still imports it has none.
        self._control.close()
        try:
            self._process.wait(_END_SECONDS if self._ready else 0)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._end()


class WorkerPool:
    """Compares pairs in `workers` processes, each pair under limits of CPU time and memory.

    * `cpu_limit`: CPU seconds of a process for one comparison; reading the reference is not counted. 500 right ones took 0.29 at most
      (`bench/verifier_load.py`), so that a processor many times slower gives the same verdicts.
    * `gold_cpu_limit`: CPU seconds for reading a reference, and for all of a comparison that checks one.
    * `memory_limit`: bytes of address space of each process. math-verify itself takes about 70 MiB.
    * `stall_limit`: seconds of wall-clock time without any progress after which a process is given up.
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
        numbers = {"workers": workers, "cpu_limit": cpu_limit, "gold_cpu_limit": gold_cpu_limit, "stall_limit": stall_limit}
        for name, value in numbers.items():
            if not value > 0:
                raise ValueError(f"the verifier's {name} is {value}, but must be positive")
        self.cpu_limit, self.gold_cpu_limit, self.stall_limit = cpu_limit, gold_cpu_limit, stall_limit
        self.counts: Counter[str] = Counter()
        """Workers that were given up: `cpu`, `memory`, `crash`, `killed`, `stuck` (see `submit`), `replaced` (after their share)."""
        self._owner = os.getpid()
        self._server = _ForkServer(memory_limit, stall_limit)
        self._jobs: queue.SimpleQueue[tuple[str, str, bool, Future[str]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._threads = [threading.Thread(target=self._serve, name=f"verifier-{index}", daemon=True) for index in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, gold: str, answer: str, *, checks_gold: bool = False) -> Future[str]:
        """Queues a pair; `checks_gold` allows the whole of it what a reference may take. The result is one of

        * `equal`, `different`, `incomparable`, or what the parser cannot read: `gold`, `answer`;
        * `cpu`, `memory`: the limit that the comparison came to, on a fresh worker too; `gold/cpu`: while the reference was read;
        * `crash`: the comparison brought down two workers, the second a fresh one (a fault in the parser's C code);
        * `killed`, `stuck`: two workers were killed from outside (the system's out-of-memory killer), or stood still, or there was none:
          nothing is known of the answer.

        Raises `RuntimeError` where the pool is closed, or this is a fork of the process that made it.
        """
        if os.getpid() != self._owner:
            raise RuntimeError("a verifier cannot be used in a fork of the process that made it; make one there")
        future: Future[str] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the verifier is closed")
            self._jobs.put((gold, answer, checks_gold, future))
        return future

    def close(self) -> None:
        """Kills all workers; pairs that are not decided yet are cancelled or fail with `RuntimeError`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        with contextlib.suppress(queue.Empty):
            while job := self._jobs.get_nowait():
                job[-1].cancel()
        for _ in self._threads:
            self._jobs.put(None)
        self._server.close()
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        worker: _Worker | None = None
        while job := self._jobs.get():
            gold, answer, checks_gold, future = job
            if not future.set_running_or_notify_cancel():
                continue
            result = "killed"
            for attempt in range(2):
                fresh = worker is None
                try:
                    worker = worker or self._server.fork()
                except (RuntimeError, OSError) as error:
                    logger.warning("no verifier process: %s", error)
                    result = "killed"
                    break
                result, is_last = self._ask(worker, gold, answer, self.gold_cpu_limit if checks_gold else self.cpu_limit)
                if is_last:
                    result, worker = self._end(worker, result), None
                # What killed it may have meant another process, and its memory may have been full of earlier answers: once more.
                if self._closed or attempt or not (result in ("killed", "stuck", "crash") or (result == "memory" and not fresh)):
                    break
            if self._closed and result in ("killed", "stuck", "crash"):
                future.set_exception(RuntimeError("the verifier was closed"))
            else:
                future.set_result(result)
        if worker:
            self._server.end_worker(worker)

    def _ask(self, worker: _Worker, gold: str, answer: str, cpu_limit: float) -> tuple[str, bool]:
        """The result of one worker, and whether that was its last; `died` where it has gone."""
        reply: dict[str, Any] = {}
        try:
            start = cpu_seconds(worker.pid)
            send(worker.connection, {"gold": gold, "answer": answer})
            # Two replies: when the reference is read, and when it is compared. Each has its own allowance.
            for limit in (self.gold_cpu_limit, cpu_limit):
                reply = receive(worker.connection, worker.pid, self.stall_limit, start + limit)
                # By the worker's own count, so that it does not matter how late this thread looks.
                if reply["cpu"] - start > limit:
                    raise _Exhausted
                if "result" in reply:
                    return reply["result"], reply["last"]
                start = reply["cpu"]
        except _Exhausted:
            return "cpu" if reply else "gold/cpu", True
        except _Stuck:
            return "stuck", True
        except (EOFError, OSError, ValueError):
            return "died", True
        raise AssertionError("unreachable")

    def _end(self, worker: _Worker, result: str) -> str:
        """Ends a worker that is not to go on, counts why, and says what ended one that `died`."""
        ended_by = self._server.end_worker(worker)
        if result == "died":
            # An exit by itself in the middle of a comparison is a fault of the comparison, as a crash is.
            result = "crash" if ended_by in (0, *_CRASHES) else "killed"
        kind = result.rpartition("/")[2] if result in ("cpu", "gold/cpu", "memory", "crash", "killed", "stuck") else "replaced"
        with self._lock:
            self.counts[kind] += 1
        if kind in ("killed", "stuck") and not self._closed:
            logger.warning("a verifier process (pid %d) was %s (signal %d)", worker.pid, kind, ended_by)
        return result
