"""Chat requests over one worker or many: balanced by outstanding work, retried on another worker, hedged, with ejection and return.

One request's way: *place* (by priority, then age, where its beginning is known: `genrm/pool/places.py`) → *send* → reply. What can go
wrong, and what is done (the thresholds are the constants below):

* An attempt fails (408, 429, 5xx, a connection fault, an unusable reply): the question goes to a worker that has not failed it, at once;
  where there is none, after a pause that doubles and is jittered. `Retry-After` closes that worker for as long as it says.
* A worker keeps a request for long, and that is its own doing: it is *slow* (by its last replies against those of the others), *silent*
  (it has answered nobody since), or has *lost* it (it takes several times as long as anybody's). A copy goes to another free worker (a
  *hedge*), and where that fails one to the next; the first answer counts. A critique may be long: that alone is no reason.
* A worker refuses connections: it is *ejected*, gets nothing more, and is tried by a real generation of one token, with growing pauses,
  until it answers. One with three strikes in a row (failures, lost hedges) is ejected as well, but never more than half of the pool.
* No worker is left for a while: what waits fails, and new requests fail at once, until one returns.

Runs in one event loop; deadlines are the caller's (`asyncio.timeout`), and cancelling closes the connection.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import random
import statistics
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from soundrl.genrm.pool.endpoint import Endpoint, Failure, Reply
from soundrl.genrm.pool.places import OWN, Order, Places, Worker
from soundrl.genrm.verdict import BAD_REPLY, HTTP_5XX, UNREACHABLE

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0  # seconds before the same worker is asked again, or an ejected one probed
STRIKES = 3
STEADY_SECONDS = 60.0  # a worker that has served this long since its return starts again with the first pause
PROBE_SECONDS = 20.0
GONE_SECONDS = 30.0  # how long questions wait for any worker at all, where nobody is expected to start one again
SLOW = 4.0  # times the others' median: a worker whose own is as large is slow, and is waited for no longer than that
SILENT = 1.5  # times the others' longest
LOST = 4.0  # times the others' longest
LEAST_PATIENCE = 0.05
LEAST_REPLIES = 20  # of the others, before a worker is compared with them
_LATENCIES = 256  # of all workers
_EJECTING = (UNREACHABLE, HTTP_5XX, BAD_REPLY)

log = logging.getLogger(__name__)


class ScorerPool:
    """`await pool.complete(make_body, deadline)` on any of `endpoints` (all serve the same model), `concurrency` at once on each. With no
    worker left for `gone_after` seconds (default `GONE_SECONDS`) requests fail at once. `ValueError` for no endpoint or one given twice."""

    def __init__(self, endpoints: Sequence[Endpoint], *, concurrency: int, attempts: int, gone_after: float | None = None):
        if not endpoints or len({endpoint.url for endpoint in endpoints}) < len(endpoints):
            raise ValueError("genrm.urls must name at least one endpoint, and each only once")
        self.workers = [Worker(endpoint, concurrency) for endpoint in endpoints]
        self.attempts = attempts
        self.gone_after = GONE_SECONDS if gone_after is None else gone_after
        self.places = Places(self.workers, self.gone_after)
        self.counts: Counter[str] = Counter()
        """`requests`, `hedges`, `ejections`, `returns`, `probes`."""
        self.retries: Counter[str] = Counter()
        """By the reason of the failure before."""
        # Its own generator: the jitter of retries must not move the run's random numbers.
        self._jitter = random.Random()
        self._latencies: deque[tuple[Worker, float]] = deque(maxlen=_LATENCIES)
        self._arrivals = itertools.count()

    async def check(self, context: int = 0) -> None:
        """One trial completion on every worker. Raises `ValueError` (see `Endpoint.check`), within 30 s."""
        await asyncio.gather(*(worker.endpoint.check(context) for worker in self.workers))

    async def complete(self, make_body: Callable[[], bytes], deadline: float, priority: int = 0, near: str = "") -> tuple[Reply, float]:
        """A reply, within `deadline` seconds of its first request, and those seconds. Raises `Failure` (the last one), or `TimeoutError`.
        The body is made when there is a worker to send it to: questions that wait do not hold it. The smallest `priority` waits least.
        Bodies that begin alike have the same `near`."""
        loop, order, homes = asyncio.get_running_loop(), (priority, next(self._arrivals)), self.places.homes(near)
        worker = await self.places.take(order, homes, until=loop.time() + deadline)
        async with asyncio.timeout(deadline) as clock:
            body, end, failed, attempts, rounds = make_body(), clock.when() or 0.0, set[Worker](), 0, 0
            while True:
                try:
                    return await self._attempt(worker, body, order, homes), loop.time() - end + deadline
                except Failure as failure:
                    failed.add(worker)
                    attempts += not failure.refused  # else nobody was asked, and that worker is ejected
                    pause = 0.0
                    if all(other in failed or other.ejected for other in self.workers):
                        failed, rounds = {worker}, rounds + 1
                        pause = self._pause(rounds)
                    # A pause that ends past the deadline would only hold the caller.
                    if not failure.retry or attempts == self.attempts or loop.time() + pause >= end:
                        raise
                    self.retries[failure.reason] += 1
                    await asyncio.sleep(pause)
                    worker = await self.places.take(order, homes, until=end, avoid=failed)

    def stats(self) -> dict[str, Any]:
        """Counters since the start, and by worker (in the order of the endpoints) requests so far and under way. From any thread."""
        counts = {name: self.counts[name] for name in ("requests", "hedges", "ejections", "returns")}
        alive, workers = sum(not w.ejected for w in self.workers), [(w.requests, w.outstanding) for w in self.workers]
        return counts | {"retries": dict(self.retries), "alive": alive, "workers": workers}

    def waits(self) -> list[str]:
        """Workers that have requests or are left out, and how many questions are queued. From any thread."""
        said = [(w, f"judge {w.endpoint.url}{' (left out)' * w.ejected}, requests under way: {w.outstanding}") for w in self.workers]
        queued = sum(not entry.place.done() for entry in self.places.waiting.copy())
        return [line for w, line in said if w.outstanding or w.ejected] + ([f"queued questions: {queued}"] if queued else [])

    async def forgive(self) -> None:
        """End probes and take every worker in again; no request may be under way."""
        probes = [worker.probe for worker in self.workers if worker.probe is not None]
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)
        self._take_in(self.workers)

    # Requests

    async def _attempt(self, worker: Worker, body: bytes, order: Order, homes: Sequence[Worker]) -> Reply:
        """One request at `worker`, whose place is taken; where that takes too long a hedge, and another where that one fails. Raises
        `Failure`, the last of them."""
        loop = asyncio.get_running_loop()
        asked, failed, since, first = [worker], 0, loop.time(), self._send(worker, body)
        running = {first}
        try:
            while True:
                if running == {first} and failed < len(asked) < len(self.workers):
                    place = partial(self.places.take, order, homes, until=math.inf, avoid=tuple(asked), strict=True)
                    running.add(asyncio.ensure_future(self._hedge(body, place, asked, since, late=failed > 0)))
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                faults = {task: task.exception() for task in done}
                failed += sum(fault is not None for fault in faults.values())
                if None in faults.values():
                    if not first.done():
                        worker.took.append(loop.time() - since)
                        self._strike(worker, "loses every hedge")
                    return next(task for task in done if faults[task] is None).result()
                if first.done() and failed >= len(asked):  # a hedge that still waits for its place is no hope
                    return done.pop().result()  # raises
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _hedge(self, body: bytes, place: Callable[[], Awaitable[Worker]], asked: list[Worker], since: float, late: bool) -> Reply:
        """The request of `since` again, once it is `late`, at a worker that joins `asked`, as soon as one is free."""
        loop = asyncio.get_running_loop()
        # What is too long may not be known yet when it begins, and changes with what the workers do meanwhile.
        while not late and ((patience := self._patience(asked[0], since)) is None or loop.time() < since + patience):
            await asyncio.sleep(FIRST_PAUSE if patience is None else since + patience - loop.time())
        other = await place()
        asked.append(other)
        self.counts["hedges"] += 1
        return await self._send(other, body)

    def _patience(self, worker: Worker, since: float) -> float | None:
        """Seconds that a request, at `worker` since then, may take; None (any time) until there is something to compare with."""
        others = [seconds for who, seconds in self._latencies if who is not worker]
        if len(others) < LEAST_REPLIES:
            return None
        slow = SLOW * statistics.median(others)
        if len(worker.took) == OWN and statistics.median(worker.took) >= slow:
            return max(LEAST_PATIENCE, slow)
        return max(LEAST_PATIENCE, max(others) * (LOST if worker.replied > since else SILENT))

    def _send(self, worker: Worker, body: bytes) -> asyncio.Task[Reply]:
        loop = asyncio.get_running_loop()

        async def exchange() -> Reply:
            self.counts["requests"] += 1
            worker.requests += 1
            started = loop.time()
            try:
                reply = await worker.endpoint.complete(body)
            except Failure as failure:
                self._failed(worker, failure)
                raise
            worker.strikes, worker.replied = 0, loop.time()
            worker.took.append(worker.replied - started)
            self._latencies.append((worker, worker.replied - started))
            return replace(reply, worker=worker.endpoint.url)

        task = loop.create_task(exchange())
        # A callback, not a `finally`: a task cancelled before its first step runs none of its own code.
        task.add_done_callback(lambda _: self.places.release(worker))
        return task

    def _failed(self, worker: Worker, failure: Failure) -> None:
        worker.reason = failure.reason
        if failure.retry_after:
            loop = asyncio.get_running_loop()
            worker.closed_until = max(worker.closed_until, loop.time() + failure.retry_after)
            loop.call_at(worker.closed_until, self.places.give)
        if failure.reason in _EJECTING:
            self._strike(worker, failure.detail, refused=failure.refused)

    def _strike(self, worker: Worker, why: str, refused: bool = False) -> None:
        worker.strikes += 1
        if refused or worker.strikes >= STRIKES:
            self._eject(worker, why, hard=refused)

    def _pause(self, attempt: int) -> float:
        """`FIRST_PAUSE` doubled each time, of which a random half is waited for certain."""
        return min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(attempt - 1, 16)) * self._jitter.uniform(0.5, 1.0)

    # Ejection and return

    def _eject(self, worker: Worker, why: str, hard: bool) -> None:
        """Take `worker` out until a probe succeeds; unless `hard`, at most half of the pool may be out."""
        out = sum(other.ejected for other in self.workers)
        if worker.ejected or (not hard and 2 * (out + 1) > len(self.workers)):
            return
        loop = asyncio.get_running_loop()
        worker.ejections = worker.ejections + 1 if loop.time() - worker.since <= STEADY_SECONDS else 1
        worker.since = loop.time()
        self.counts["ejections"] += 1
        log.warning("judge %s is left out (%s)", worker.endpoint.url, why)
        worker.probe = loop.create_task(self._until_it_answers(worker))
        loop.call_later(self.gone_after, self.places.give)

    async def _until_it_answers(self, worker: Worker) -> None:
        attempt = worker.ejections
        while True:
            await asyncio.sleep(self._pause(attempt))
            attempt += 1
            self.counts["probes"] += 1
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    await worker.endpoint.probe()
                break
            except (Failure, TimeoutError) as error:
                log.info("judge %s is still out (%s)", worker.endpoint.url, error)
                self.places.give()
        worker.since = asyncio.get_running_loop().time()
        self.counts["returns"] += 1
        log.warning("judge %s is back", worker.endpoint.url)
        self._take_in([worker])

    def _take_in(self, workers: Sequence[Worker]) -> None:
        for worker in workers:
            worker.probe, worker.strikes, worker.closed_until = None, 0, 0.0
        self.places.give()
