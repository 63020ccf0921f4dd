"""How a rank ends before its time: its error once, with rank, host and phase; what is half written is taken back; nothing hangs.

Beside a launcher of ours (`launcher.py`) a rank sends its words over a socket, and the launcher says them when all ranks have ended, the
first fault last. Under bare torchrun a rank says them itself. `Ctrl-C`, SIGTERM and SIGHUP are seen by a thread, because the
main one may stand in a collective, where no Python handler runs. They ask for a stop: the run saves within its grace (`PlannedStop`), or,
where it is not yet under way (`Rank.stops`), ends at once.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import select
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from soundrl.engine.launch.words import Heedless, kept, say, stopped, stopping
from soundrl.fapo.printable import one_line

LAUNCHER = "SOUNDRL_LAUNCHER"  # descriptor of the socket to the launcher; a message is a datagram of JSON, and its end is the launcher's
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RESTART = 75  # EX_TEMPFAIL: the same command goes on
LONGEST_TRACEBACK = 20_000  # characters of a message; the whole stands in a file
PATIENCE = 5.0  # seconds that torchrun has to end a rank whose neighbour failed
ONE_SIGNAL = 2.0  # seconds in which what comes is the first signal once more: srun and torchrun both hand it on
STEP = re.compile(r"^step \d+")
FULL = (errno.ENOSPC, errno.EDQUOT)
NEIGHBOUR = re.compile(  # how gloo, NCCL and the store say that another rank has gone
    r"Connection (closed|reset) by peer|Application timeout caused pair closure|Broken pipe|remote process exited|ncclRemoteError|"
    r"Connection was likely closed|failed to recv, got 0 bytes|recvValue failed|Socket closed|NCCL communicator was aborted"
)


class UserError(ValueError):
    """Something for the user to mend: shown as one line, without traceback."""


class PlannedStop(Exception):
    """The run has saved after a signal (`Rank.asked`): its text is the one line that is said, the status is 0. On every rank alike."""


class ComeAgain(Exception):
    """A fault that a restart mends, such as a judge that is gone: one line without traceback, status `RESTART`."""


class Rank:
    """This process as one of a run."""

    def __init__(self) -> None:
        self.number = int(os.environ.get("RANK", "0"))
        self.where = "start"  # the phase, as `Timeline` names it
        self.home: Path | None = None  # the run folder that is asked for; errors are written there
        self.folder: Path | None = None  # the same from the moment on that this run writes to it
        self.unfinished: list[Callable[[], None]] = []
        self.asked: signal.Signals | None = None
        """The first signal that came, or that the launcher handed on: the run saves and raises `PlannedStop`, within `left()`."""
        self.asked_at = 0.0  # time.monotonic()
        self.grace = 25.0  # seconds from the first signal to the end, the second number of `run.patience`
        self.beaten = self.since = time.monotonic()  # of the last beat, and of the phase
        self.ended: set[str] = set()
        """Phases that have been gone through, see `phase`"""
        self.bereft: Callable[[], bool] = lambda: False
        """Whether a rank has gone, see `hang`"""
        self._stops, self._speaker = False, threading.RLock()
        self.launcher: socket.socket | None = None
        self.parent = os.getppid()

    @property
    def name(self) -> str:
        return f"[rank {self.number}, {socket.gethostname()}]"

    @property
    def stops(self) -> bool:
        """Whether the run looks at `asked`; a signal ends it at once where it does not. Set `grace` first."""
        return self._stops

    @stops.setter
    def stops(self, value: bool) -> None:
        self._stops = value
        self.tell("grace", self.grace if value else 0.0)

    def left(self) -> float:
        """Seconds of grace; infinity where nobody has asked for a stop."""
        return math.inf if self.asked is None else max(0.0, self.asked_at + self.grace - time.monotonic())

    def beat(self) -> None:
        """Something has come forward: a rollout, a verdict, a micro-batch, bytes of a file. Costs 0.1 µs; from any thread."""
        self.beaten = time.monotonic()

    def tell(self, name: str, value: Any) -> bool:
        """Set an attribute of this rank's `Child` in the launcher, and `where`; False where there is no launcher."""
        if self.launcher is None:
            return False
        with contextlib.suppress(OSError):  # it has gone, which the watch sees
            self.launcher.send(json.dumps({name: value, "where": self.where}).encode())
        return True

    @property
    def phase(self) -> str:
        """`where` without the step's number."""
        return STEP.sub("step", self.where)

    def enter(self, phase: str) -> None:
        if not phase.startswith(f"{self.where}, "):
            self.ended.add(self.phase)
        self.where = phase
        self.beat()
        self.since = self.beaten
        self.tell("where", phase)

    def claim_end(self) -> None:
        """From here on this thread alone says what we end of; another one waits for the end."""
        if not self._speaker.acquire(blocking=False):
            threading.Event().wait()

    def end(self, status: int) -> None:
        """At once: interpreter shutdown would wait for collectives of ranks that have not failed."""
        try:
            self.take_back()
            with contextlib.suppress(OSError, ValueError):  # whoever read it may have gone
                sys.stdout.flush()
        finally:
            os._exit(status)

    def take_back(self) -> None:
        """What is half written."""
        while self.unfinished:
            with contextlib.suppress(OSError):
                self.unfinished.pop()()

    def watch(self) -> None:
        """Ends this process when it is told to, and when its launcher has gone."""
        if LAUNCHER in os.environ:
            self.launcher = socket.socket(fileno=int(os.environ.pop(LAUNCHER)))
            os.set_inheritable(self.launcher.fileno(), False)
        sys.stdout, sys.stderr = Heedless(sys.stdout), Heedless(sys.stderr)
        caught, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        catch(lambda *_: None)
        signal.set_wakeup_fd(wake)
        os.register_at_fork(after_in_child=uncaught)  # a fork's signals are its own
        threading.Thread(target=self._watch, args=(caught,), name="signals", daemon=True).start()

    def _watch(self, caught: int) -> None:
        inputs = [caught] if self.launcher is None else [caught, self.launcher.fileno()]
        while True:
            ready, _, _ = select.select(inputs, [], [], min(1.0, self.left()))
            if caught in ready:
                number = os.read(caught, 1)[0]
                if number in SIGNALS:
                    self._signalled(signal.Signals(number))
            elif ready and (words := self._told()):
                if words not in signal.Signals.__members__:
                    self.end(1)  # another rank has failed, and says so; or a second signal came
                self._ask(signal.Signals[words])
            elif ready or os.getppid() != self.parent:
                say(f"error: {self.name} the launcher has gone; ended in {self.where}")
                self.end(1)
            elif self.asked is not None and self.left() == 0.0:
                self._stop(self.asked, f"the grace of {self.grace:g} s ran out (run.patience); ")

    def _told(self) -> str:
        """What the launcher says: a signal's name, or that we end. Nothing where it has gone (a reset: with words of ours unread)."""
        with contextlib.suppress(OSError):
            return "" if self.launcher is None else self.launcher.recv(16).decode()
        return ""

    def _signalled(self, number: signal.Signals) -> None:
        if self.asked is None:
            self._ask(number)
        elif self.launcher is None and time.monotonic() > self.asked_at + ONE_SIGNAL:  # else the launcher counts them
            self._stop(number)

    def _ask(self, number: signal.Signals) -> None:
        # torchrun ends ranks by SIGTERM where another one has failed: that is no news, and nothing can be saved then.
        if not self.stops or (self.launcher is None and number == signal.SIGTERM and self.bereft()):
            self._stop(number)
        if self.asked is None:
            self.asked_at, self.asked = time.monotonic(), number
            if not self.tell("asked", number.name) and self.number == 0:
                say(stopping(number, self.grace))

    def _stop(self, number: signal.Signals, why: str = "") -> None:
        """At once."""
        self.claim_end()
        if not self.tell("words", ["signal", why, ""]) and (why or number != signal.SIGTERM) and self.number == 0:
            say(why + stopped(number, self))
        self.end(128 + number)

    @contextlib.contextmanager
    def speaks(self) -> Iterator[None]:
        """Around the main job: whatever comes out of it is said, and ends the process."""
        try:
            yield
        except PlannedStop as stop:
            self.claim_end()
            if not self.tell("words", ["stop", str(stop), ""]) and self.number == 0:
                say(str(stop))
            self.tell("done", True)
            self.end(0)
        except BaseException as error:  # SystemExit too: a rank that leaves before the others is a fault
            self._say(error)
            raise
        self.tell("done", True)

    def _say(self, error: BaseException) -> None:
        kind, status, text = explained(error, self)
        trace = "".join(traceback.format_exception(error))
        self.take_back()
        placed = kind in ("failed", "lost") or (kind == "user" and foreign(error))
        at = f" in {self.where}" if placed else ""
        if placed and kind != "lost":
            at += self._written(trace)
        if kind == "lost" and self.launcher is None:
            threading.Event().wait(PATIENCE)  # torchrun ends us meanwhile, unless the rank that failed is on another machine
        if kind == "again" and self.number and self.launcher is None:
            self.end(status)  # the first rank says it for all
        self.last(kind, one_line(text) + at, trace[-LONGEST_TRACEBACK:] if kind == "failed" else "", status)

    def last(self, kind: str, words: str, trace: str, status: int) -> None:
        """The last words, by the launcher where there is one, and the end."""
        self.claim_end()
        if not self.tell("words", [kind, words, trace]):
            say(f"{trace}error: {self.name} {words}")
            if kind != "lost" and "TORCHELASTIC_ERROR_FILE" in os.environ:  # torchrun's own report, which comes last, quotes it
                extra = {"py_callstack": f"{self.name} {words}", "timestamp": str(int(time.time()))}
                Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps({"message": {"message": words, "extraInfo": extra}}))
        self.end(status)

    def _written(self, trace: str) -> str:
        if self.home is None:
            return ""
        path = self.home / f"error-rank{self.number}.txt"
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            path.write_text(trace)
        except OSError as error:
            return f" (its traceback cannot be written: {error.strerror})"
        return f" (traceback in {path})"


RANK = Rank()


def catch(handler: Callable[..., None]) -> None:
    """Handle `SIGNALS`, but for those that whoever started us ignores (nohup)."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def uncaught() -> None:
    signal.set_wakeup_fd(-1)
    catch(signal.SIG_DFL)  # type: ignore[arg-type]


@contextlib.contextmanager
def undone(undo: Callable[[], None]) -> Iterator[None]:
    """`undo` runs where the block does not come to its end, whatever ends it but SIGKILL."""
    RANK.unfinished.append(undo)
    try:
        yield
    except BaseException:
        undo()
        raise
    finally:
        if undo in RANK.unfinished:
            RANK.unfinished.remove(undo)


def remove(path: Path) -> None:
    """A file or a folder; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def explained(error: BaseException, rank: Rank) -> tuple[str, int, str]:
    """What kind of end an error is (`user`, `again`, `failed`, `lost`), the exit status, and its text."""
    text = str(error)
    if isinstance(error, UserError):
        return "user", 2, text
    if isinstance(error, ComeAgain):
        return "again", RESTART, text + kept(rank.folder)
    cause = f"{type(error).__name__}: {text}".removesuffix(": ")
    name = error.filename if isinstance(error, OSError) else None
    if (isinstance(error, OSError) and error.errno in FULL) or re.search(r"No space left on device|os error (28|122)\b", text):
        place = f" ({name})" if name else ""
        return "user", 1, f"no space left on device, or no inodes{place}; what was whole stays whole; free some{kept(rank.folder)}"
    if rank.folder is not None and isinstance(error, OSError) and not (rank.folder / "config.json").exists():
        return "user", 1, f"{rank.folder} was deleted or moved while the run wrote to it; only rollouts of the step under way are lost"
    if isinstance(error, OSError) and rank.home is not None and name and Path(os.fsdecode(name)).is_relative_to(rank.home):
        return "user", 1, f"cannot write {name}: {os.strerror(error.errno or 0)}; mend that, or choose another --run.folder"
    if isinstance(error, RuntimeError) and NEIGHBOUR.search(text):
        return "lost", 1, "lost the connection to another rank: " + text.splitlines()[0][:200]
    if isinstance(error, SystemExit):
        return "failed", error.code if isinstance(error.code, int) and error.code else 1, f"left by sys.exit({error.code!r})"
    return "failed", 1, cause


def foreign(error: BaseException) -> bool:
    """Whether a user's mistake comes from a library's error, of which the place is worth keeping."""
    cause = error.__cause__
    frames = traceback.extract_tb(cause.__traceback__) if cause is not None else []
    return bool(frames) and ("site-packages" in frames[-1].filename or "dist-packages" in frames[-1].filename)
