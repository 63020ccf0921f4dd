"""A pool of worker processes that can be killed at any moment, with one deadline per comparison.

The clock of a comparison starts when a ready worker is sent the pair and ends with SIGKILL: `future.result(timeout)` alone would stop
waiting and leave the worker busy, so that a few hostile answers would tie up the pool. A killed worker is replaced by a fork of a process
that has everything imported, which takes milliseconds.
"""

from __future__ import annotations

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

from soundrl.fapo.verify.worker import CONTROL, receive_exactly, receive_message, send_message

_START_SECONDS = 120.0
_END_SECONDS = 10.0


@dataclass(frozen=True)
class _Worker:
    pid: int
    connection: socket.socket


class _ForkServer:
    """The process that workers are forked from; started at once, restarted where it has died."""

    def __init__(self, memory_limit: int) -> None:
        self._memory_limit = memory_limit
        self._lock = threading.Lock()
        self._closed = False
        self.starts = 0
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
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
        ours.settimeout(_START_SECONDS)
        self._control = ours
        self._ready = False
        self.starts += 1

    def fork(self) -> _Worker:
        """Forks a worker.

        Raises:
            RuntimeError: the server is closed, or does not start.
        """
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
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [CONTROL.pack(b"F", 0)], [theirs.fileno()])
                _, pid = CONTROL.unpack(receive_exactly(self._control, CONTROL.size))
            except (EOFError, OSError):
                ours.close()
                raise
        self._ready = True
        return _Worker(pid, ours)

    def end_worker(self, worker: _Worker) -> None:
        """Kills a worker and lets its parent reap it."""
        worker.connection.close()
        with self._lock:
            if self._closed or self._process.poll() is not None:
                return
            # Its parent reaps it only when told so below: the pid cannot belong to anyone else yet.
            os.kill(worker.pid, signal.SIGKILL)
            try:
                self._control.sendall(CONTROL.pack(b"R", worker.pid))
            except OSError:
                self._end()
                self._start()

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
    """Compares pairs in `workers` processes, each pair under a limit of time and memory.

    Args:
        workers: Number of processes and of the daemon threads that wait on them.
        time_limit: Seconds of wall-clock time for one pair, from the moment a ready worker has it.
        memory_limit: Bytes of address space of a worker.
    """

    def __init__(self, *, workers: int, time_limit: float, memory_limit: int) -> None:
        if workers < 1 or time_limit <= 0:
            raise ValueError(f"workers and time_limit must be positive, not {workers} and {time_limit}")
        self.time_limit = time_limit
        self.counts: Counter[str] = Counter()
        """`killed` (over the time limit), `died`, `memory`, `replaced` (after its share of answers)."""
        self._owner = os.getpid()
        self._server = _ForkServer(memory_limit)
        self._jobs: queue.SimpleQueue[tuple[str, str, Future[str]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._threads = [threading.Thread(target=self._serve, name=f"verifier-{index}", daemon=True) for index in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, gold: str, answer: str) -> Future[str]:
        """Queues a pair. The result is `equal`, `different`, `gold`, `answer`, `incomparable`, `time`, `memory` or `died`.

        Raises:
            RuntimeError: the pool is closed, or this is a fork of the process that made it.
        """
        if os.getpid() != self._owner:
            raise RuntimeError("a verifier cannot be used in a fork of the process that made it; make one there")
        future: Future[str] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the verifier is closed")
            self._jobs.put((gold, answer, future))
        return future

    def close(self) -> None:
        """Kills all workers; pairs that are not decided yet are cancelled or fail with `RuntimeError`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job:
                job[2].cancel()
        for _ in self._threads:
            self._jobs.put(None)
        self._server.close()
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        worker: _Worker | None = None
        while True:
            job = self._jobs.get()
            if job is None:
                break
            gold, answer, future = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                worker = worker or self._server.fork()
                result, worker = self._evaluate(worker, gold, answer)
            except (RuntimeError, OSError) as error:
                worker = None
                future.set_exception(error)
                continue
            if self._closed and result == "died":
                future.set_exception(RuntimeError("the verifier was closed"))
            else:
                future.set_result(result)
        if worker:
            self._server.end_worker(worker)

    def _evaluate(self, worker: _Worker, gold: str, answer: str) -> tuple[str, _Worker | None]:
        """Returns the result, and the worker where it can serve on."""
        result = ""
        message = {"gold": gold, "answer": answer}
        remaining = self.time_limit
        for attempt in range(2):
            start = time.monotonic()
            try:
                worker.connection.settimeout(max(remaining, 0.001))
                send_message(worker.connection, message)
                reply = receive_message(worker.connection)
            except TimeoutError:
                result, kind = "time", "killed"
            except (EOFError, OSError):
                result, kind = "died", "died"
            else:
                if not reply["last"]:
                    worker.connection.settimeout(None)
                    return reply["result"], worker
                result, kind = reply["result"], "memory" if reply["result"] == "memory" else "replaced"
            with self._lock:
                self.counts[kind] += 1
            self._server.end_worker(worker)
            if result != "died" or attempt or self._closed:
                break
            # Whatever killed it may have meant another process: once more, in what is left of the time. A new process is not charged.
            remaining -= time.monotonic() - start
            worker = self._server.fork()
        return result, None
