"""Ranks forked from a process that has imported everything once: importing torch and the engine costs more than what is done with them.
They are processes of their own, join over gloo, and die of SIGKILL as any do; the launcher has no part in it."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable

from soundrl.engine.launch.last_words import RANK


def forked(ranks: int, work: Callable[[int], None]) -> list[int]:
    """`work(rank)` in each of `ranks` forks, with torchrun's environment; statuses, −9 of one that was killed. The others are killed as
    soon as one ends otherwise than with 0: nobody waits for a rank that has died."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))  # as the launcher holds it: nobody gets it but rank 0
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(held.getsockname()[1]), "GROUP_RANK": "0"}
        os.environ |= where | {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        sys.stdout.flush()
        pids = []
        for rank in range(ranks):
            if not (pid := os.fork()):
                _end(rank, work)
            pids.append(pid)
        ended: dict[int, int] = {}
        while len(ended) < ranks:
            for pid in [pid for pid in pids if pid not in ended]:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    ended[pid] = os.waitstatus_to_exitcode(status)
            if any(ended.values()):
                for pid in [pid for pid in pids if pid not in ended]:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
    return [ended[pid] for pid in pids]


def _end(rank: int, work: Callable[[int], None]) -> None:
    """In the fork, which never comes back into its parent's loop."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    RANK.number, RANK.parent = rank, os.getppid()
    status = 1
    try:
        work(rank)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 — whatever it is, the status says so
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)
