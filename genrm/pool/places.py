"""Who is asked next, and where: workers with so many places each, and the questions that wait for one.

Questions that begin alike (the solutions of one problem) have a worker in common, their *home*, which keeps that beginning in its prefix
cache: each goes there unless it is `NEAR` busier than the idlest, then to the next in the question's own order of workers. That order is a
hash of beginning and worker (rendezvous): all ranks have the same, and so has a run that goes on; a worker that leaves moves no other's.
"""

from __future__ import annotations

import asyncio
import bisect
import hashlib
import itertools
import math
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from soundrl.genrm.pool.endpoint import Endpoint, Failure
from soundrl.genrm.verdict import UNREACHABLE

NEAR = 16
"""For every so many places a worker may have one request more than the idlest (at least one): an eighth more at most, from half of its
places on; below that a server has room to spare."""
AHEAD = 32
"""Waiting questions that are looked through for one whose home has the free place. No more than these can be passed by: once all of them
wait for busy homes, the first goes anywhere."""
OWN = 16  # last requests that tell how quick a worker is
Order = tuple[int, int]  # a question's priority and arrival, smallest first


@dataclass(eq=False)
class Worker:
    """One endpoint and what is known of it."""

    endpoint: Endpoint
    slots: int
    outstanding: int = 0
    requests: int = 0
    strikes: int = 0  # failures and lost hedges in a row; a reply ends it
    reason: str = UNREACHABLE  # of its last failure
    closed_until: float = 0.0  # loop time; `Retry-After`
    probe: asyncio.Task[None] | None = None  # runs while the worker is ejected
    ejections: int = 0  # since it was last steady
    since: float = 0.0  # loop time of its last ejection or return
    replied: float = -math.inf  # loop time of its last reply
    took: deque[float] = field(default_factory=lambda: deque(maxlen=OWN))  # seconds of its last requests; of one that lost a hedge at least

    @property
    def ejected(self) -> bool:
        return self.probe is not None


class Waiting(NamedTuple):
    """A question that waits for a place; sorted by the first two."""

    order: Order
    number: int
    place: asyncio.Future[Worker]
    avoid: Collection[Worker]
    strict: bool
    homes: Sequence[Worker]
    """All workers, in the order in which they are to have the question's beginning."""

    def live(self) -> list[Worker]:
        """Who may take it, its home first."""
        live = [worker for worker in self.homes if not worker.ejected]
        others = [worker for worker in live if worker not in self.avoid]
        return others if others or self.strict else live


class Places:
    """`await places.take(…)`, a place on one of `workers`, and `release` it. Once all are out for `gone_after` seconds nobody waits."""

    def __init__(self, workers: Sequence[Worker], gone_after: float) -> None:
        self.workers, self.gone_after = workers, gone_after
        self.waiting: list[Waiting] = []
        self._numbers = itertools.count()

    def homes(self, near: str) -> list[Worker]:
        """Workers in the order in which questions that begin with `near` like them. By their numbers: the ports of servers that a run
        starts are others when it goes on."""
        digests = [hashlib.blake2b(f"{number} {near}".encode(), digest_size=8).digest() for number in range(len(self.workers))]
        return [self.workers[number] for number in sorted(range(len(digests)), key=digests.__getitem__)]

    async def take(
        self, order: Order, homes: Sequence[Worker], until: float, avoid: Collection[Worker] = (), strict: bool = False
    ) -> Worker:
        """A place on a worker; `avoid` those while others live (`strict`: in any case). Raises `Failure` where none can come."""
        if all(not worker.ejected and worker.closed_until > until for worker in self.workers):
            raise Failure(self.workers[0].reason, "every worker asks to be left alone past the deadline", retry=False)
        place: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        bisect.insort(self.waiting, Waiting(order, next(self._numbers), place, avoid, strict, homes))
        self.give()
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self.release(place.result())
            raise

    def release(self, worker: Worker) -> None:
        worker.outstanding -= 1
        self.give()

    def give(self) -> None:
        """Give free places to those who wait, in the order of their questions; nobody waits where every worker has been out for long."""
        gone_since = asyncio.get_running_loop().time() - self.gone_after
        if all(worker.ejected and worker.since <= gone_since for worker in self.workers):
            waiting, self.waiting = self.waiting, []
            for entry in waiting:
                if not entry.place.done():
                    entry.place.set_exception(Failure(UNREACHABLE, f"no worker has answered for {self.gone_after:.0f} s", retry=False))
        while (found := self._next()) is not None:
            number, worker = found
            worker.outstanding += 1
            self.waiting.pop(number).place.set_result(worker)

    def _next(self) -> tuple[int, Worker] | None:
        """Whose turn it is, by the place in the queue, and where: the first of `AHEAD` whose home has a place, else the first of all."""
        now = asyncio.get_running_loop().time()
        free = [w for w in self.workers if not w.ejected and w.closed_until <= now and w.outstanding < w.slots]
        first, number = None, 0
        while free and number < len(self.waiting) and (first is None or number < AHEAD):
            entry = self.waiting[number]
            if entry.place.done():  # cancelled
                del self.waiting[number]
                continue
            live = entry.live()
            worker = self._best(live, free)
            if worker is not None and worker is live[0]:
                return number, worker
            if worker is not None and first is None:
                first = number, worker
            number += 1
        return first

    def _best(self, live: Sequence[Worker], free: Collection[Worker]) -> Worker | None:
        """The first of `live` that is `free` and hardly busier than the idlest of these."""
        able = [worker for worker in live if worker in free]
        least = min((worker.outstanding for worker in able), default=0)
        return next((worker for worker in able if worker.outstanding <= least + max(1, worker.slots // NEAR)), None)
