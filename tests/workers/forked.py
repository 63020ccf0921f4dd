"""Worlds of ranks as forks of one process that has imported what they need: a start costs no import."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from soundrl.engine.launch.last_words import RANK


def world(size: int, log: Path, work: Callable[..., Any], *arguments: Any) -> list[int]:
    """`work` on `size` ranks; the exit status of each, negative where a signal ended it. The others end with the first that fails; what
    they say is in `log`."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))  # the kernel gives it to nobody but rank 0
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(held.getsockname()[1]), "LOCAL_WORLD_SIZE": str(size)}
        sys.stdout.flush()
        ranks: dict[int, int] = {}
        for number in range(size):
            if (pid := os.fork()) == 0:
                out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
                os.dup2(out, 1)
                os.dup2(out, 2)
                os.environ |= where | {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(size), "GROUP_RANK": "0"}
                RANK.number, RANK.parent = number, os.getppid()
                status = 1
                try:
                    work(*arguments)
                    status = 0
                except BaseException:  # noqa: BLE001 — a fork must not go on as its parent
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(status)
            ranks[pid] = number
        ended: dict[int, int] = {}
        while len(ended) < size:
            pid, status = os.waitpid(-1, 0)
            if pid not in ranks:
                continue
            ended[ranks[pid]] = os.waitstatus_to_exitcode(status)
            if ended[ranks[pid]]:
                time.sleep(1.0)  # until the others have said of what
                for other, number in ranks.items():
                    if number not in ended:
                        os.kill(other, signal.SIGKILL)
    return [ended[number] for number in range(size)]
