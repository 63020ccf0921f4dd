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
from pathlib import Path

from soundrl.engine.launch.last_words import RANK


def forked(ranks: int, work: Callable[[int], None], log: Path | None = None) -> list[int]:
    """`work(rank)` in each of `ranks` forks, with torchrun's environment, what they say behind what is in `log`; statuses, −9 of one that
    was killed. The others are killed a second after one ends otherwise than with 0: nobody waits for a rank that has died."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))  # as the launcher holds it: nobody gets it but rank 0
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(held.getsockname()[1]), "GROUP_RANK": "0"}
        where |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        sys.stdout.flush()
        pids = []
        for rank in range(ranks):
            if not (pid := os.fork()):
                _end(rank, work, where, log)
            pids.append(pid)
        ended: dict[int, int] = {}
        while len(ended) < ranks:
            for pid in [pid for pid in pids if pid not in ended]:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    ended[pid] = os.waitstatus_to_exitcode(status)
            if any(ended.values()) and len(ended) < ranks:
                time.sleep(1.0)  # until the others have said of what
                for pid in [pid for pid in pids if pid not in ended]:
                    os.kill(pid, signal.SIGKILL)  # a child that nobody has waited for: its number is no other's
            time.sleep(0.02)
    return [ended[pid] for pid in pids]


def _end(rank: int, work: Callable[[int], None], where: dict[str, str], log: Path | None) -> None:
    """In the fork, which never comes back into its parent's loop."""
    if log is not None:
        with log.open("ab", buffering=0) as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
    os.environ |= where | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
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
        sys.stderr.flush()
        os._exit(status)
