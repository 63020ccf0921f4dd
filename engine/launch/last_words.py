"""How a rank ends before its time: its error once, with rank, host and phase; what is half written is taken back; nothing hangs.

Beside a launcher of ours (`launcher.py`) a rank sends its words over a socket, and the launcher says them when all ranks have ended, the
first fault last. Under bare torchrun a rank says them itself. `Ctrl-C`, SIGTERM and SIGHUP are seen by a thread, because the
main one may stand in a collective, where no Python handler runs.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

LAUNCHER = "SOUNDRL_LAUNCHER"  # descriptor of the socket to the launcher; a message is a datagram of JSON, and its end is the launcher's
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LONGEST_TRACEBACK = 20_000  # characters of a message; the whole stands in a file
PATIENCE = 5.0  # seconds that torchrun has to end a rank whose neighbour failed
FULL = (errno.ENOSPC, errno.EDQUOT)
NEIGHBOUR = re.compile(  # how gloo, NCCL and the store say that another rank has gone
    r"Connection (closed|reset) by peer|Application timeout caused pair closure|Broken pipe|remote process exited|ncclRemoteError|"
    r"Connection was likely closed|failed to recv, got 0 bytes|recvValue failed|Socket closed|NCCL communicator was aborted"
)


class UserError(ValueError):
    """Something for the user to mend: shown as one line, without traceback."""


class Rank:
    """This process as one of a run."""

    def __init__(self) -> None:
        self.number = int(os.environ.get("RANK", "0"))
        self.where = "start"  # the phase, as `Timeline` names it
        self.home: Path | None = None  # the run folder that is asked for; errors are written there
        self.folder: Path | None = None  # the same from the moment on that this run writes to it
        self.unfinished: list[Callable[[], None]] = []
        self.launcher: socket.socket | None = None
        self.parent = os.getppid()

    @property
    def name(self) -> str:
        return f"[rank {self.number}, {socket.gethostname()}]"

    def tell(self, name: str, value: Any) -> bool:
        """Set an attribute of this rank's `Child` in the launcher, and `where`; False where there is no launcher."""
        if self.launcher is None:
            return False
        with contextlib.suppress(OSError):  # it has gone, which the watch sees
            self.launcher.send(json.dumps({name: value, "where": self.where}).encode())
        return True

    def enter(self, phase: str) -> None:
        self.where = phase
        self.tell("where", phase)

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
        caught, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        catch(lambda *_: None)
        signal.set_wakeup_fd(wake)
        os.register_at_fork(after_in_child=uncaught)  # a fork's signals are its own
        threading.Thread(target=self._watch, args=(caught,), name="signals", daemon=True).start()

    def _watch(self, caught: int) -> None:
        inputs = [caught] if self.launcher is None else [caught, self.launcher.fileno()]
        while True:
            ready, _, _ = select.select(inputs, [], [], 1.0)
            if caught in ready:
                number = os.read(caught, 1)[0]
                if number in SIGNALS:
                    self._signalled(signal.Signals(number))
            elif ready and self._told():
                self.end(1)  # another rank has failed, and says so
            elif ready or os.getppid() != self.parent:
                say(f"error: {self.name} the launcher has gone; ended in {self.where}")
                self.end(1)

    def _told(self) -> bool:
        """Whether the launcher says that we end; otherwise it has gone (a reset: with words of ours unread)."""
        with contextlib.suppress(OSError):
            return self.launcher is not None and bool(self.launcher.recv(16))
        return False

    def _signalled(self, number: signal.Signals) -> None:
        # torchrun ends ranks by SIGTERM where another one has failed: that is no news.
        if not self.tell("words", ["signal", number.name, ""]) and number != signal.SIGTERM and self.number == 0:
            say(stopped(number, self))
        self.end(128 + number)

    @contextlib.contextmanager
    def speaks(self) -> Iterator[None]:
        """Around the main job: whatever comes out of it is said, and ends the process."""
        try:
            yield
        except BaseException as error:  # SystemExit too: a rank that leaves before the others is a fault
            self._say(error)
            raise
        self.tell("done", True)

    def _say(self, error: BaseException) -> None:
        kind, status, text = explained(error, self)
        trace = "".join(traceback.format_exception(error))
        self.take_back()
        placed = kind != "user" or foreign(error)
        at = f" in {self.where}" if placed else ""
        if placed and kind != "lost":
            at += self._written(trace)
        if kind == "lost" and self.launcher is None:
            threading.Event().wait(PATIENCE)  # torchrun ends us meanwhile, unless the rank that failed is on another machine
        words, trace = one_line(text) + at, trace[-LONGEST_TRACEBACK:] if kind == "failed" else ""
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


def say(text: str) -> None:
    """On standard error, to whoever still reads it: a terminal that was closed must not keep a rank from its end."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text + "\n")  # in one piece: ranks end at the same moment
        sys.stderr.flush()


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
    """What kind of end an error is (`user`, `failed`, `lost`), the exit status, and its text."""
    text = str(error)
    if isinstance(error, UserError):
        return "user", 2, text
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


def one_line(text: str) -> str:
    """Without line breaks and control characters, which would be obeyed by a terminal.

    >>> one_line("two\\n  lines \\x1b[31m")
    'two lines \\\\x1b[31m'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def stopped(number: signal.Signals, rank: Any) -> str:
    """What is said of a signal; `rank`, or the launcher's `Child`, tells where the run was."""
    key = " (Ctrl-C)" if number == signal.SIGINT else ""
    return f"stopped by {number.name}{key} in {rank.where}{kept(rank.folder)}"


def kept(folder: Path | str | None) -> str:
    """`; kept: runs/x/policy/step-000010, start from it: python engine/train.py …`, by what stands in the folder of a run under way."""
    policies = sorted((Path(folder) / "policy").glob("step-*[0-9]")) if folder is not None else []
    if not policies:
        return "; no policy has been exported yet"
    arguments = without(sys.argv[1:], ("--model.path", "--warm-start.steps", "--warm_start.steps"))
    command = ["python", sys.argv[0], *arguments, "--model.path", str(policies[-1]), "--warm-start.steps", "0"]
    return f"; kept: {policies[-1]}, start from it: {one_line(shlex.join(command))}"


def without(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """The command line without these settings and their one value."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        parser.add_argument(name, nargs="?")
    return parser.parse_known_args(arguments)[1]
