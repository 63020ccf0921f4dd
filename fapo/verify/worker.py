r"""The process side of the pool: gets ready once, and works in a fork of itself.

    python -P -s -m soundrl.fapo.verify.worker SOCKET_FD MEMORY_LIMIT_BYTES WORK

WORK is `math` (comparing by math-verify), `reasoning-gym` (its scorers), `tools:…` (functions that a policy calls), or the path of a
user's function that rewards. For the first two this process
has one thread and imports no torch, so that forking it is safe and takes milliseconds; the trainer, which holds threads of vLLM, torch and
gloo, is never forked. The fork answers; this process waits for its end, kills what the fork has left behind, tells of it where it was not
planned, and forks the next. Both write packets of JSON to the one socket: `["ready", 0, text]`, or `["broken", 0, text]` where it cannot
get ready; `["fork", 0, pid]`, `["read", number, ""]` where the reference of that request is read, `["result", number, value]`,
`["ended", 0, signal]` (0 = it ended by itself). When the trainer goes away, by whatever signal, both end.

The limit of CPU time is the kernel's: a timer on the process's own CPU clock ends the fork by SIGPROF, which C loops and the parser's
recursion cannot escape. (A user's function can: the pool looks at the whole family's CPU time too.)
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import mmap
import os
import resource
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, Protocol

from soundrl.fapo.data.rows import DataError
from soundrl.fapo.verify.processes import adopt, end_children, end_with_parent

ANSWERS_PER_WORKER = 500  # a fork is replaced after so many answers: sympy's caches only grow
REPLACE = 3  # exit status of such a fork
MAX_MESSAGE = 1 << 20
PACKET = 1 << 16
"""Bytes of a request that goes through the socket, whose buffer is small; longer ones go as a file in memory."""
READY_LIMIT = 120.0
"""CPU seconds for a user's file to be run."""
MATH = "math"


class Work(Protocol):
    """What a process does with a request (`job`)."""

    says: str
    """Of itself, when it is ready."""

    def read(self, *job: Any) -> bool:
        """Reads the reference, which is not charged to the answer. False = it cannot."""
        ...

    def answer(self, *job: Any) -> Any:
        """The result, plain JSON."""


def work_of(name: str) -> Work:
    """Imported where it is needed: the kinds have little in common."""
    if name == MATH:
        from soundrl.fapo.verify.compare import Comparison

        return Comparison()
    if name == "reasoning-gym":
        from soundrl.fapo.verify.puzzle import Puzzles

        return Puzzles()
    if name.startswith("tools:"):
        from soundrl.fapo.verify.called import Called

        return Called(name)
    from soundrl.fapo.verify.own import Own

    return Own(name)


def send_job(connection: socket.socket, message: list[Any]) -> None:
    """One packet, so that a fork that ends in the middle leaves no half of it to the next."""
    data = json.dumps(message).encode()
    if len(data) <= PACKET:
        connection.send(data)
        return
    with open(os.memfd_create("job"), "r+b") as file:
        file.write(data)
        file.flush()
        socket.send_fds(connection, [b"[]"], [file.fileno()])


def receive_job(connection: socket.socket) -> list[Any]:
    """Empty where the other side has gone."""
    data, files, _, _ = socket.recv_fds(connection, MAX_MESSAGE, 1)
    for descriptor in files:
        with open(descriptor, "rb") as file:
            file.seek(0)
            data = file.read()
    return json.loads(data) if data else []


def serve(connection: socket.socket, memory_limit: int, work: Work, busy: mmap.mmap) -> int:
    """Answers `[number, gold_cpu_limit, cpu_limit, job]`; returns the process's exit status: 0 = the other side has gone. `busy` is 1 while
    it works: an end then was not planned, whatever its status."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    send(connection, "fork", 0, os.getpid())
    for _ in range(ANSWERS_PER_WORKER):
        if not (message := receive_job(connection)):
            return 0
        number, gold_limit, limit, job = message
        busy[0] = 1
        result: Any = "gold"
        try:
            # The reference is read once a fork, and not charged to the answer.
            if limited(gold_limit, work.read, *job):
                send(connection, "read", number)
                result = limited(limit, work.answer, *job)
        except MemoryError:
            result = "memory"
        end_children()
        # sympy swallows a MemoryError now and then and goes on; the peak tells. An equality that was found is an equality.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if isinstance(result, str) and result != "equal" and peak > 0.9 * memory_limit:
            result = "memory"
        send(connection, "result", number, result)
        busy[0] = 0
        if result == "memory" or peak > 0.7 * memory_limit:
            break
    return REPLACE


def limited(seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result; SIGPROF ends this process where it takes more CPU time. The kernel looks at its ticks, so that what ends
    between two of them is measured here, and so are children that have ended."""
    start = _used()
    _default(signal.SIGPROF)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        return function(*arguments)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        if _used() - start > seconds:
            _default(signal.SIGPROF)
            os.kill(os.getpid(), signal.SIGPROF)


def _used() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def _default(signum: int) -> None:
    """What the trainer's thread, or a user's function, blocks or ignores would lift the limit."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signum, signal.SIG_DFL)


def send(connection: socket.socket, kind: str, number: int, value: Any = "") -> None:
    connection.send(json.dumps([kind, number, value]).encode())


def _ready(connection: socket.socket, name: str) -> Work | None:
    """The work, or what keeps it from being done is told."""
    try:
        work = limited(READY_LIMIT, work_of, name)
    except BaseException as error:  # noqa: BLE001 — whatever a user's file does when it is run
        send(connection, "broken", 0, (str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}")[:2000])
        return None
    send(connection, "ready", 0, work.says)
    return work


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def main() -> None:
    """Entry of the process."""
    end_with_parent()
    adopt()
    connection, memory_limit, name = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    if name != MATH:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a user's function may print any amount
    if (work := _ready(connection, name)) is None:
        return
    if name != MATH:
        memory_limit += _address_space()  # beyond what its imports take
    # What is imported lives as long as the process: no fork's garbage collector needs to walk, and so copy, it.
    gc.freeze()
    # SIGTERM to the group ends the fork at once; this process reaps it, finds nobody to tell, and goes.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent, code, busy = os.getpid(), REPLACE, mmap.mmap(-1, 1)
    while code:
        busy[0] = 0
        if (pid := os.fork()) == 0:
            status = 1
            try:
                end_with_parent()
                adopt()
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                status = serve(connection, memory_limit, work, busy) if os.getppid() == parent else 0
            finally:  # nothing of this process's own end is done twice
                os._exit(status)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        end_children()
        if busy[0] or code not in (0, REPLACE):
            send(connection, "ended", 0, max(-code, 0))
            code = code or REPLACE


if __name__ == "__main__":
    with contextlib.suppress(ConnectionError):
        main()
