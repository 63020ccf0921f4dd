"""A run that makes no progress says so: what each rank does and waits for, by name, in one page; then it ends with a status that restarts.

*Beats*: a rank beats at every phase and detail of its timeline, wherever it calls `RANK.beat()`, and when something comes of what it waits
for (`soundrl.fapo.waiting`). It is *silent* since its last beat. A phase may be silent for `patience` seconds, thrice as long as it
was seen to be where it ended well, and ten times `patience` where it has not been gone through yet.

*A hang*: every rank that answers is silent for longer than it may be. A rank that is asks the others, over a socket of its own:
collectives, the store (its host may be the one that stands still) and the disk may be what hangs. One that does not answer in `ANSWER`
seconds, twice, is stopped, or its machine has gone. The lowest rank that answers writes the page, and all end.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from soundrl.engine.launch.hang_report import Page, cause, has_an_end, page_of, report
from soundrl.engine.launch.last_words import LONGEST_TRACEBACK, RANK, RESTART
from soundrl.engine.launch.words import kept, say
from soundrl.engine.ranks import Ranks
from soundrl.fapo.printable import one_line
from soundrl.fapo.waiting import announced

ANSWER = 2.0  # seconds in which a rank answers, however busy it is
STATES = {
    "T": "it is stopped (SIGSTOP)",
    "t": "a debugger holds it",
    "Z": "it has ended",
    "D": "it waits for a disk",
    "": "its machine or the network stands still",
}
"""Of processes, by the letters of proc(5); empty: on another machine"""
DEAD = ("T", "t", "Z")
LOOPBACK = "127.0.0.1"
LONGEST_CAUSE = 2000  # characters of a line; the page holds all
LOOK = 1.0  # seconds between looks, at most; less where patience is short


def watch_progress(ranks: Ranks, patience: float) -> Watch:
    """Watch this run until `close`. A collective. Where ranks cannot reach each other (a firewall) nobody is watched, and that is said."""
    watch = Watch(ranks, patience)
    missed = sorted({rank for part in ranks.gather(watch.unreached()) for rank in part})
    if missed:
        if ranks.main:
            who = ", ".join(map(str, missed))
            say(f"warning: no hang will be reported: rank {who} cannot be reached on its own port (a firewall?)")
        watch.close()
    else:
        watch.start()
    return watch


class Watch:
    """The watch of one rank: a thread that looks, and one that answers others."""

    def __init__(self, ranks: Ranks, patience: float) -> None:
        self.rank, self.patience = ranks.rank, patience
        self.longest: dict[str, float] = {}
        """Seconds of silence by phase, of those that came to an end"""
        self.young: int | None = None
        """A rank that was seen to be no longer silent than it may"""
        self._silence, self._phase, self._count = 0.0, "", answers()
        self._told = 0.0
        """The beat since which a wait was reported that has an end"""
        self._closed = threading.Event()
        family, host = own_address(ranks)
        # The first rank's address is a name, which may mean another one here than elsewhere.
        self.server = Answers(family, "" if ranks.main and host != LOOPBACK else host, self)
        own = (host, self.server.server_address[1], os.getpid(), socket.gethostname())
        told = ranks.gather((own, secrets.token_hex(16)))
        self.places: list[tuple[str, int, int, str]] = [place for place, _ in told]
        """Of each rank: host and port, process, the machine's name"""
        self.others = [rank for rank in range(ranks.size) if rank != ranks.rank]
        self.secret = told[0][1]
        self.threads = [
            threading.Thread(target=self.server.serve_forever, args=(0.2,), name="hang answers", daemon=True),
            threading.Thread(target=self._watch, name="hang watch", daemon=True),
        ]
        self.threads[0].start()

    def start(self) -> None:
        RANK.beat()
        RANK.bereft = lambda: bool(self.unreached())
        self.threads[1].start()

    def close(self) -> None:
        """May be called twice."""
        if not self._closed.is_set():
            self._closed.set()
            RANK.bereft = lambda: False
            self.server.shutdown()
            self.server.server_close()

    @property
    def silent(self) -> float:
        return time.monotonic() - RANK.beaten

    @property
    def limit(self) -> float:
        """Seconds that this rank may be silent in its phase."""
        if RANK.phase not in RANK.ended:
            return 10 * self.patience
        return max(self.patience, 3 * self.longest.get(RANK.phase, 0.0))

    def look(self) -> None:
        """Beat where something has come, and learn how long a phase is silent."""
        count = answers()
        if count > self._count:  # less where one of them has gone, which is no news
            RANK.beat()
        self._count = count
        silence = self.silent
        if silence < self._silence:  # it has come to an end
            self.longest[self._phase] = max(self.longest.get(self._phase, 0.0), self._silence)
        self._silence, self._phase = silence, RANK.phase

    def beat(self) -> Page:
        return {"silent": self.silent, "limit": self.limit}

    def page(self) -> Page:
        """What this rank does and waits for; JSON."""
        _, _, pid, host = self.places[self.rank]
        return page_of(f"rank {self.rank} (process {pid} on {host})", self.silent, self.limit)

    def ask(self, rank: int, what: str) -> Page | None:
        """`beat` (`silent` and `limit` alone), `page`, or `end`: the rank says nothing and ends. None where it does not answer."""
        try:
            with socket.create_connection(self.places[rank][:2], ANSWER) as connection:
                connection.sendall(json.dumps({"secret": self.secret, "what": what}).encode() + b"\n")
                return json.loads(b"".join(iter(lambda: connection.recv(1 << 16), b"")))
        except (OSError, ValueError):
            return None

    def ask_all(self, ranks: Sequence[int], what: str) -> dict[int, Page]:
        """What those say that answer."""
        with ThreadPoolExecutor(min(32, len(ranks) or 1)) as hands:
            answers = hands.map(lambda rank: self.ask(rank, what), ranks)
            return {rank: page for rank, page in zip(ranks, answers, strict=True) if page is not None}

    def unreached(self) -> list[int]:
        """Ranks that do not answer."""
        answers = self.ask_all(self.others, "beat")
        return [rank for rank in self.others if rank not in answers]

    def _watch(self) -> None:
        wait, looked = min(LOOK, self.patience / 10), time.monotonic()
        while not self._closed.wait(wait):
            if time.monotonic() > looked + wait + ANSWER:  # we were stopped ourselves, as all ranks of a paused container are
                RANK.beat()
            self.look()
            if self.silent > self.limit and (pages := self.hang()) is not None:
                self.tell(pages)
            looked = time.monotonic()

    def hang(self) -> dict[int, Page] | None:
        """The pages of all that answer, where this rank is the first of them and none is as young as it may be; else None."""
        if self.young is not None and (beat := self.ask(self.young, "beat")) is not None and beat["silent"] <= beat["limit"]:
            return None
        beats = self.ask_all(self.others, "beat")
        # Once more: nobody is called dead for a moment in which his interpreter was busy.
        beats |= self.ask_all([rank for rank in self.others if rank not in beats and state(*self.places[rank][2:]) not in DEAD], "beat")
        self.young = next((rank for rank, beat in beats.items() if beat["silent"] <= beat["limit"]), None)
        if self.young is not None or self.silent <= self.limit or min(beats, default=self.rank) < self.rank:
            return None
        return {self.rank: self.page()} | self.ask_all(list(beats), "page")

    def tell(self, pages: dict[int, Page]) -> None:
        """The page of the run, its line, and the end of all ranks; but for a wait that has an end of its own."""
        missing = {
            rank: f"(process {pid} on {host}) does not answer: {STATES.get(state(pid, host), 'its interpreter is busy')}"
            for rank, (_, _, pid, host) in enumerate(self.places)
            if rank not in pages
        }
        ends = has_an_end(pages, missing)
        if ends and self._told == RANK.beaten:
            return
        why = cause(pages, missing)
        text = report(why, pages, missing)
        place = written(text)
        shortest = min(page["silent"] for page in pages.values())
        line = one_line(f"no progress on any rank for {shortest:.0f} s: {why[:LONGEST_CAUSE]}{place}")
        if ends:
            self._told = RANK.beaten
            say(f"warning: {line.partition('; kept: ')[0]}; the run waits on")
            return
        shown = "" if place else text[:LONGEST_TRACEBACK]
        RANK.claim_end()  # our own main thread is about to lose those neighbours
        RANK.tell("words", ["again", line, shown])  # before the launcher sees anybody end
        self.ask_all([rank for rank in pages if rank != self.rank], "end")
        for rank in missing:  # nothing else ends a process that is stopped
            _, _, pid, host = self.places[rank]
            if host == socket.gethostname():
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        threading.Timer(ANSWER, os._exit, (RESTART,)).start()  # for a disk on which nothing can be taken back
        RANK.last("again", line, shown, RESTART)


class Answers(socketserver.ThreadingTCPServer):
    """On loopback alone where all ranks are on one machine."""

    daemon_threads = True

    def __init__(self, family: socket.AddressFamily, host: str, watch: Watch) -> None:
        self.address_family, self.watch = family, watch
        super().__init__((host, 0), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked has gone, or was none of ours."""


class Handler(socketserver.StreamRequestHandler):
    """Answers one question of another rank of this run, which knows the secret."""

    timeout = ANSWER
    server: Answers

    def handle(self) -> None:
        asked = json.loads(self.rfile.readline(1024))
        if not hmac.compare_digest(str(asked["secret"]).encode(), self.server.watch.secret.encode()):
            return
        watch = self.server.watch
        self.wfile.write(json.dumps(watch.beat() if asked["what"] == "beat" else watch.page()).encode())
        if asked["what"] == "end":
            self.wfile.flush()
            RANK.claim_end()
            RANK.tell("words", ["lost", "", ""])
            RANK.end(RESTART)


def answers() -> int:
    return sum(waiting.answered for waiting in announced())


def written(text: str) -> str:
    """Where the page stands, and what is kept; empty where there is no folder yet or the disk does not answer: it may be what hangs."""
    folder, said = RANK.folder or RANK.home, list[str]()

    def write() -> None:
        assert folder is not None
        path = folder / time.strftime("hang-%Y%m%d-%H%M%S.txt")
        with contextlib.suppress(OSError):  # it stands on the console then
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(text)
            said.append(f" ({path}){kept(RANK.folder)}")

    if folder is not None:
        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        writer.join(ANSWER)
    return "".join(said)


def own_address(ranks: Ranks) -> tuple[socket.AddressFamily, str]:
    """How and where other ranks reach this machine: as they reach the first rank where we are it, else the address from which it is
    reached."""
    if int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size)) == ranks.size:
        return socket.AF_INET, LOOPBACK
    master = os.environ["MASTER_ADDR"]
    family, _, _, _, address = socket.getaddrinfo(master, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as route:
        route.connect(address)  # sends nothing
        return family, master if ranks.main else route.getsockname()[0]


def state(pid: int, host: str) -> str:
    """Of a process, see `STATES`."""
    if host != socket.gethostname():
        return ""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"
