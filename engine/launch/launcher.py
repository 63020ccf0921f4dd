"""Starts the ranks of a run on this machine and says, once all have ended, which one failed first, of what and in which phase.

What `torchrun --standalone` would do, without importing torch (seconds, and 300 MB), and with the ranks' own words last.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from glob import glob
from pathlib import Path

from soundrl.engine.launch.last_words import LAUNCHER, catch, remove
from soundrl.engine.launch.words import kept, say, stopped, stopping

LOOK = 0.2  # seconds between looks at processes; words wake us at once
GRACE = 2.0  # seconds in which other ranks may say what they die of
PATIENCE = 4.0  # seconds that a rank has to end when it is told to
ONE_SIGNAL = 0.5  # seconds in which what comes is the first signal once more: timeout(1) sends it to us and to our process group


class Stopped(BaseException):
    """A signal came before there was any rank."""

    def __init__(self, number: int) -> None:
        self.number = signal.Signals(number)


def stop(number: int, _: object) -> None:
    """Signal handler of the launcher until it starts ranks; a second signal changes nothing."""
    catch(lambda *_: None)
    raise Stopped(number)


class Asked:
    """Signal handler of the launcher beside ranks: the first signal asks them to stop, a second one ends them."""

    def __init__(self) -> None:
        self.first: signal.Signals | None = None
        self.at, self.again = 0.0, False

    def __call__(self, number: int, _: object) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first, self.at = signal.Signals(number), now
        elif now > self.at + ONE_SIGNAL:
            self.again = True


class Child:
    """A rank: its process, what it said last, and how it ended."""

    def __init__(self, rank: int, size: int, port: int, arguments: Sequence[str]) -> None:
        self.rank, self.where, self.words, self.ended_at = rank, "start", ("", "", ""), 0.0
        self.folder: str | None = None
        self.asked, self.grace = "", 0.0
        """The signal by which it was asked to stop, and seconds that it takes for that; 0: it ends at once"""
        self.done = self.told = False
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        own = {key: str(value) for key, value in numbers.items()} | {"MASTER_ADDR": "127.0.0.1", LAUNCHER: str(theirs.fileno())}
        self.socket.setblocking(False)
        with theirs:
            # A session of its own: Ctrl-C is the launcher's to hand on.
            self.process = subprocess.Popen(
                [sys.executable, "-u", *arguments], env=os.environ | own, pass_fds=[theirs.fileno()], start_new_session=True
            )

    def hear(self) -> bool:
        """Take what it has sent; False when it has ended."""
        ended = self.process.poll() is not None  # asked first, so that its last words are not missed
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while data := self.socket.recv(1 << 20):
                vars(self).update(json.loads(data))  # see `Rank.tell`
        return not ended

    def say(self, words: str) -> None:
        """`end`, or the name of the signal that has come."""
        with contextlib.suppress(OSError):
            self.socket.send(words.encode())

    @property
    def failed(self) -> bool:
        """Ended by itself, and not at the end of the job."""
        return self.process.returncode is not None and not self.told and (self.process.returncode != 0 or not self.done)

    def said(self) -> str:
        """Its own words, or what its exit status says."""
        kind, words, _ = self.words
        status = self.process.returncode
        if kind == "signal" or (not kind and status < 0):
            name = signal.Signals(-status if status < 0 else status - 128).name
            hint = " (out of memory? `dmesg` says so)" if name == "SIGKILL" else ""
            return f"died of {name}{hint} in {self.where}"
        return words or f"ended with status {status} in {self.where}"


def processes() -> int:
    """One a GPU; on a CPU two, each with half of the cores: half of a step is Python, and two ranks of one thread beat one of two."""
    if "NPROC" in os.environ:
        return int(os.environ["NPROC"])
    if glob("/dev/nvidia[0-9]*") or any(map(os.path.exists, ("/dev/kfd", "/dev/dxg"))):
        from torch.cuda import device_count

        if device_count():
            return device_count()
    return min(2, os.cpu_count() or 1)


def launch(arguments: Sequence[str]) -> int:
    """Run this script again, one process a rank; returns the exit status: 0, that of the rank that failed first, or 128 + a signal."""
    size = processes()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // size)))
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))  # bound, not listened on: the kernel gives it to nobody but rank 0, who asks for it by number
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(held.getsockname())  # sends nothing, but needs a route
    except OSError as error:
        say(f"error: this machine has no loopback interface ({error.strerror}); try `ip link set lo up`")
        return 1
    asked, children = Asked(), list[Child]()
    catch(asked)  # nothing is raised from here on, so that no rank is started and forgotten
    for rank in range(size):
        children.append(Child(rank, size, held.getsockname()[1], arguments))
    watch(children, asked)
    status = report(children, asked.first)
    for folder in {child.folder for child in children if child.folder is not None}:
        for part in Path(folder).glob("*/*.part"):  # of a rank that had no time to take it back
            remove(part)
    return status


def watch(children: Sequence[Child], asked: Asked) -> None:
    """Until all have ended, or one has failed; then the others have a moment to say what of, and are ended. A signal is handed on."""
    alive, deadline, handed = list(children), math.inf, False
    while alive and time.monotonic() < deadline and not asked.again:
        select.select([child.socket for child in alive], [], [], LOOK)
        for child in [child for child in alive if not child.hear()]:
            alive.remove(child)
            child.ended_at = time.monotonic()
            if child.failed:
                deadline = min(deadline, child.ended_at + GRACE)
        # A signal to one rank alone (srun sends it to each) means all of them.
        asked.first = asked.first or next((signal.Signals[child.asked] for child in alive if child.asked), None)
        if asked.first is not None and not handed and alive:
            handed, grace = True, max(child.grace for child in children)
            if grace > 0:
                say(stopping(asked.first, grace))
            for child in alive:
                child.say(asked.first.name)
            deadline = min(deadline, time.monotonic() + grace + PATIENCE)
    end(children)


def end(children: Sequence[Child]) -> None:
    """Nobody runs afterwards."""
    for child in children:
        if child.hear():
            child.told = True
            child.say("end")
    limit = time.monotonic() + PATIENCE
    for child in children:
        try:
            child.process.wait(max(0.0, limit - time.monotonic()))
        except subprocess.TimeoutExpired:  # it has stopped, or stands in code that no thread can leave
            child.process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # it waits for a disk that does not answer
                child.process.wait(PATIENCE)


def report(children: Sequence[Child], by: signal.Signals | None = None) -> int:
    """Say what went wrong, the first fault last; ranks that only lost their neighbours are silent unless nobody says more. `by`: the signal
    that has stopped the run."""
    failed = sorted((child for child in children if child.failed), key=lambda child: child.ended_at)
    failed = [child for child in failed if child.words[0] != "lost"] or failed
    if any(child.words[0] == "again" for child in failed):  # a rank that hangs is killed by one that says so
        failed = [child for child in failed if child.words[0]]
    if all(child.words[0] == "stop" for child in children):
        say(children[0].words[1])
        return 0
    if by is not None and (failed or any(child.told for child in children)) and all(child.words[0] == "signal" for child in failed):
        first = (failed or list(children))[0]
        say(first.words[1] * (first.words[0] == "signal") + stopped(by, first))
        return 128 + by
    if not failed:
        return 0
    host = socket.gethostname()
    lines: dict[str, list[Child]] = {}
    for child in failed:
        lines.setdefault(child.said(), []).append(child)
    for words, ranks in reversed(lines.items()):
        first, told = ranks[0], ranks[0].words[0] in ("user", "again")  # the cure stands in it
        numbers = ", ".join(str(rank) for rank in sorted(child.rank for child in ranks))
        who = "" if len(ranks) == len(children) and told else f"[rank {numbers}, {host}] "
        say(f"{first.words[2]}error: {who}{words}{'' if told else kept(first.folder)}")
    status = failed[0].process.returncode
    return 128 - status if status < 0 else status or 1
