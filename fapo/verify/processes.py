"""What Linux says of a process and of those that come from it, and how all of these are ended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a whole process, all threads, resolved to microseconds; OSError where there is no such process any more."""
    # Linux's clock id of another process (clock_getcpuclockid(3)): the inverted pid above three bits that say "scheduler's clock".
    return time.clock_gettime((~pid << 3) | 2)


def children(pid: int) -> list[int]:
    """Of a process that lives; empty where it does not."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def family(pid: int, most: int) -> list[int]:
    """A process and all that come from it, the first `most` + 1 of them."""
    found = [pid]
    for each in found:
        if len(found) > most:
            break
        found += children(each)
    return found


def family_seconds(pids: list[int]) -> float:
    """CPU seconds of `pids` together, with what their children have used that are reaped by now (in ticks of 10 ms)."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError, ValueError):
            ended = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[13:15]
            total += cpu_seconds(pid) + sum(map(int, ended)) / _TICKS
    return total


def end_with_parent() -> None:
    """This process is killed when the one that made it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt() -> None:
    """Whoever comes from this process, and has lost its own parent, becomes its child: nobody gets away from `end_children`."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_children() -> None:
    """Kill and reap all that come from this process, which has called `adopt`."""
    while found := children(os.getpid()):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in found:  # theirs are ours now
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
