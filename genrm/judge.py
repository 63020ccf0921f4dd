"""The judge behind one URL: any OpenAI-compatible chat endpoint, asked from one background thread.

`submit` renders the prompt (`genrm/prompts.py`) and returns a future at once; a thread with an event loop does the rest, so the
caller can be plain code. One loop and one `asyncio.timeout` around a whole request, retries included, is what makes the deadline
hold whatever the server does: cancelling closes the connection. A thread per request could not be stopped.

Retries: 408, 429, 5xx, connection faults and unusable replies, up to `attempts` in all, after a pause that doubles from half a
second, is jittered by half, and is never shorter than the server's `Retry-After`. Other 4xx are our own fault and are not repeated.
A reply that arrived whole but holds no verdict is the model's word and is not asked for again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import threading
import time
from collections import Counter, OrderedDict, deque
from concurrent.futures import Future
from functools import partial
from typing import Any

from soundrl.fapo.records import Prompt, Rollout, Verdict
from soundrl.genrm.endpoint import CHECK_SECONDS, Endpoint, Failure
from soundrl.genrm.prompts import critique_messages, neutralise, split_paragraphs
from soundrl.genrm.verdict import CLOSED, TIMEOUT, parse_verdict

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_LATENCIES_KEPT = 10_000


class EndpointJudge:
    """Judges rollouts through one endpoint; implements `soundrl.fapo.judging.Judge`.

    `submitted = scored + unscored + pending` at every moment, and every future ends in a `Verdict`. The same question (problem,
    solution, reference) is asked once: while it is open all askers share one request, afterwards its verdict is remembered, up to
    `cache_size`, unless it is `unknown`. The temperature is 0 by default, and above it the seed sent follows from the question, so
    that a resumed run asks for the same verdicts.

    >>> with EndpointJudge("http://127.0.0.1:8000/v1", "genrm") as judge:
    ...     judge.check()
    ...     judge.submit(prompt, rollout).result()
    Verdict(kind='flawed', step=2, reason='')

    Raises `ValueError`, naming the setting and its cure, for an address or a number that cannot work.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        token_env: str = "SOUNDRL_GENRM_TOKEN",
        allow_http: bool = False,
        with_reference: bool = True,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_tokens: int = 8192,
        deadline: float = 600.0,
        concurrency: int = 64,
        attempts: int = 4,
        cache_size: int = 65_536,
        special_tokens: tuple[str, ...] = (),
    ):
        """`deadline`: seconds from a request's first byte to its verdict, retries included (the wait for one of the `concurrency`
        places is not part of it). `special_tokens`: those of the served tokenizer where it is known (`prompts.control_tokens`)."""
        if deadline <= 0 or concurrency < 1 or attempts < 1 or max_tokens < 1 or temperature < 0:
            raise ValueError("genrm: deadline must be above 0, concurrency, attempts and max_tokens at least 1, temperature at least 0")
        neutralise(" ".join(special_tokens), special_tokens)  # a token that cannot be broken is found here, not in mid run
        self.endpoint = Endpoint(url, model, token_env=token_env, allow_http=allow_http)
        self.with_reference = with_reference
        self.sampling: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}
        self.deadline = deadline
        self.attempts = attempts
        self.special_tokens = special_tokens
        # Its own generator: the jitter of retries must not move the run's random numbers.
        self._jitter = random.Random()
        self._cache: OrderedDict[str, Verdict] = OrderedDict()
        self._cache_size = cache_size
        self._open: dict[str, list[Future[Verdict]]] = {}
        self._flights: set[asyncio.Task[Verdict]] = set()
        self._counts: Counter[str] = Counter()
        self._retries: Counter[str] = Counter()
        self._unknown: Counter[str] = Counter()
        self._latencies: deque[float] = deque(maxlen=_LATENCIES_KEPT)
        self._lock = threading.Lock()
        self._closed = False
        self._client = self.endpoint.client(concurrency)
        self._slots = asyncio.Semaphore(concurrency)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="genrm-judge", daemon=True)
        self._thread.start()

    def __enter__(self) -> EndpointJudge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self) -> None:
        """Prove with one trial request that the endpoint answers. Raises `ValueError` (see `Endpoint.check`), within 30 s, and
        `RuntimeError` after `close`."""
        if self._closed:
            raise RuntimeError("the judge is closed")

        async def bounded() -> None:
            async with asyncio.timeout(CHECK_SECONDS):
                await self.endpoint.check(self._client)

        try:
            asyncio.run_coroutine_threadsafe(bounded(), self._loop).result()
        except TimeoutError:
            raise ValueError(
                f"{self.endpoint.url} gave no answer in {CHECK_SECONDS:.0f} s: is the judge still loading, or genrm.urls wrong?"
            ) from None

    def submit(self, prompt: Prompt, rollout: Rollout) -> Future[Verdict]:
        """Queue one rollout; returns at once. The future cannot be cancelled and ends in a `Verdict`, `unknown(reason)` for every
        fault of network or model (reasons: `verdict.REASONS`). Raises `RuntimeError` after `close`."""
        paragraphs = split_paragraphs(rollout.text)
        reference = prompt.answer if self.with_reference else None
        messages = critique_messages(prompt.text, paragraphs, reference, self.special_tokens)
        key = hashlib.sha256(json.dumps(messages).encode()).hexdigest()
        future: Future[Verdict] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            if self._closed:
                raise RuntimeError("the judge is closed")
            self._counts["submitted"] += 1
            # Under the lock: whatever was counted reaches the loop before `close` does.
            self._loop.call_soon_threadsafe(self._start, key, messages, len(paragraphs), future)
        return future

    def stats(self) -> dict[str, Any]:
        """Counters since the start. Example: `{"submitted": 8, "scored": 7, "unscored": 1, "pending": 0, "sound": 5, "flawed": 2,
        "unknown": {"timeout": 1}, "deduplicated": 0, "requests": 9, "retries": {"http_5xx": 1}, "latency_p50": 1.2, "latency_p99": 3.4,
        "latencies": [...]}`; latencies are seconds from place to verdict of the last 10,000 requests."""
        with self._lock:
            counts, latencies = dict(self._counts), list(self._latencies)
            unknown, retries = dict(self._unknown), dict(self._retries)
        names = ("submitted", "sound", "flawed", "deduplicated", "requests")
        stats: dict[str, Any] = {name: counts.get(name, 0) for name in names}
        stats["scored"], stats["unscored"] = stats["sound"] + stats["flawed"], sum(unknown.values())
        stats["pending"] = stats["submitted"] - stats["scored"] - stats["unscored"]
        ordered = sorted(latencies)
        p50, p99 = (ordered[round(q * (len(ordered) - 1))] if ordered else 0.0 for q in (0.5, 0.99))
        return stats | {"unknown": unknown, "retries": retries, "latency_p50": p50, "latency_p99": p99, "latencies": latencies}

    def metrics(self) -> dict[str, float]:
        """`stats` for the run's metrics, with `genrm/unknown_<reason>` for each reason that has occurred."""
        stats = self.stats()
        out = {f"genrm/{name}": float(stats[name]) for name in ("latency_p50", "latency_p99", "requests", "deduplicated")}
        out["genrm/retries"] = float(sum(stats["retries"].values()))
        return out | {f"genrm/unknown_{reason}": float(count) for reason, count in sorted(stats["unknown"].items())}

    def close(self) -> None:
        """Cancel what is open (those futures end in `unknown("closed")`), close connections and thread. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            asyncio.run_coroutine_threadsafe(self._shut(), self._loop)
        self._thread.join(timeout=5.0)

    # Everything below runs in the loop's thread: `_open`, `_flights` and `_cache` need no lock.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def _start(self, key: str, messages: list[dict[str, str]], n_paragraphs: int, future: Future[Verdict]) -> None:
        known = self._cache.get(key)
        if known is not None:
            self._cache.move_to_end(key)
            self._deliver(known, [future], deduplicated=1)
        elif key in self._open:
            self._open[key].append(future)
        else:
            self._open[key] = [future]
            flight = self._loop.create_task(self._judge(key, messages, n_paragraphs))
            self._flights.add(flight)  # the loop itself holds tasks weakly
            flight.add_done_callback(partial(self._land, key))

    def _land(self, key: str, flight: asyncio.Task[Verdict]) -> None:
        self._flights.discard(flight)
        futures = self._open.pop(key)
        fault = None if flight.cancelled() else flight.exception()
        if fault is not None:  # a fault of this program, which must be seen
            for future in futures:
                future.set_exception(fault)
            return
        verdict = Verdict.unknown(CLOSED) if flight.cancelled() else flight.result()
        if verdict.kind != "unknown":
            self._cache[key] = verdict
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        self._deliver(verdict, futures, deduplicated=len(futures) - 1)

    def _deliver(self, verdict: Verdict, futures: list[Future[Verdict]], deduplicated: int) -> None:
        with self._lock:
            if verdict.kind == "unknown":
                self._unknown[verdict.reason] += len(futures)
            else:
                self._counts[verdict.kind] += len(futures)
            self._counts["deduplicated"] += deduplicated
        # After the counters: who has seen the verdict finds it counted.
        for future in futures:
            future.set_result(verdict)

    async def _judge(self, key: str, messages: list[dict[str, str]], n_paragraphs: int) -> Verdict:
        sampling = dict(self.sampling)
        if sampling["temperature"] > 0:
            sampling["seed"] = int(key[:7], 16)
        body = self.endpoint.body(messages, **sampling)
        async with self._slots:
            started = time.monotonic()
            try:
                async with asyncio.timeout(self.deadline) as clock:
                    return await self._ask(body, n_paragraphs, clock)
            except TimeoutError:
                return Verdict.unknown(TIMEOUT)
            finally:
                with self._lock:
                    self._latencies.append(time.monotonic() - started)

    async def _ask(self, body: bytes, n_paragraphs: int, clock: asyncio.Timeout) -> Verdict:
        for attempt in range(1, self.attempts + 1):
            with self._lock:
                self._counts["requests"] += 1
            try:
                reply = await self.endpoint.complete(self._client, body)
            except Failure as failure:
                pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (attempt - 1)) * self._jitter.uniform(0.5, 1.0)
                pause = max(pause, failure.retry_after or 0.0)
                end = clock.when()
                # A pause that ends past the deadline would only hold a place.
                if not failure.retry or attempt == self.attempts or (end is not None and self._loop.time() + pause >= end):
                    return Verdict.unknown(failure.reason)
                with self._lock:
                    self._retries[failure.reason] += 1
                await asyncio.sleep(pause)
            else:
                return parse_verdict(reply.text, reply.finish_reason, n_paragraphs)
        raise AssertionError("unreachable: the last attempt returns")

    async def _shut(self) -> None:
        flights = list(self._flights)
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        await self._client.aclose()
        self._loop.stop()
