"""The judge over one or many OpenAI-compatible chat endpoints, asked from one background thread.

`submit` renders the prompt (`genrm/prompts.py`) and returns a future at once; a thread with an event loop does the rest, so the
caller can be plain code. One loop and one `asyncio.timeout` around a whole question, retries included, is what makes the deadlines
hold whatever the servers do: cancelling closes the connection. A thread per request could not be stopped.

Where a request goes, and what happens when it fails, is `genrm/pool/scorer.py`. A reply that arrived whole but holds no verdict is the
model's word and is not asked for again. A question's answer is kept by the future that asked for it, and every connection serves one
request: a reply that comes late or twice reaches nobody.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from soundrl.fapo.records import Prompt, Rollout, Verdict
from soundrl.fapo.waiting import announce
from soundrl.genrm import reading
from soundrl.genrm.pool.endpoint import Endpoint, Failure
from soundrl.genrm.pool.scorer import ScorerPool
from soundrl.genrm.prompts import JudgePrompt, prompt_of, split_paragraphs
from soundrl.genrm.verdict import CLOSED, TIMEOUT, majority

_REPLIES_KEPT = 10_000
_HELD = 1 << 28  # characters of remembered critiques: 40,000 of the paper's length
MARKS = {"p50": 0.5, "p99": 0.99}
FREE: dict[str, Any] = {"tokens": 0, "seconds": 0.0, "asked": 0.0, "answered": 0.0}  # what a remembered answer costs


class Question(NamedTuple):
    """What is asked for one solution."""

    slot: tuple[str, int]  # the digest of its words, and a number of its own where it is asked afresh (else 0)
    messages: list[dict[str, str]]
    n_paragraphs: int
    priority: int
    near: str  # digest of what stands before the solution, by which questions find the worker that has read it already


@dataclass(eq=False)
class EndpointJudge(AbstractContextManager["EndpointJudge"]):
    """Judges rollouts through one or many endpoints; implements `soundrl.fapo.judging.Judge`.

    `submitted = scored + unscored + pending` at every moment, and every future ends in a verdict. The same question (problem,
    solution, reference) is asked once: while it is open all askers share one request, afterwards its verdict is remembered, up to
    `cache_size`, unless it is `unknown`. The temperature is 0 by default, and above it the seed sent follows from the question and the
    number of the vote, so that a resumed run asks for the same verdicts.

    >>> with EndpointJudge(["http://127.0.0.1:8000/v1", "http://127.0.0.1:8001/v1"], "genrm") as judge:
    ...     judge.check()
    ...     judge.submit(prompt, rollout).result()
    Verdict(kind='flawed', step=2, reason='')

    Raises `ValueError`, naming the setting and its cure, for an address or a number that cannot work.
    """

    urls: str | Sequence[str]
    model: str
    _: KW_ONLY
    token_env: str = "SOUNDRL_GENRM_TOKEN"
    allow_http: bool = False
    prompt: str = "own"  # by name (`prompts.PROMPTS`); empty = what the endpoints say when they are checked, else own
    with_reference: bool = True
    temperature: float = 0.0
    votes: int = 1  # replies a question, of which `decide` makes one verdict
    top_p: float = 1.0
    max_tokens: int = 8192
    longest_prompt: int = 1  # tokens that an endpoint must have room for beside `max_tokens`; `check` asks those that tell
    deadline: float = 600.0  # seconds from a question's first request to its verdict, retries included
    step_deadline: float = 3600.0  # the same from `submit`, the wait for a free worker included
    concurrency: int = 64  # requests under way at once, on each endpoint
    attempts: int = 4
    gone_after: float | None = None  # seconds without any live endpoint until questions fail at once
    cache_size: int = 65_536
    extra: Mapping[str, Any] = field(default_factory=dict)  # further fields of every request (`endpoint.extra_fields`)
    split: Callable[[str], Sequence[str]] = split_paragraphs  # cuts a solution into the paragraphs that verdicts count
    decide: Callable[[Sequence[Verdict]], Verdict] = majority  # or `verdict.unanimous`

    def __post_init__(self) -> None:
        least = min(self.concurrency, self.attempts, self.max_tokens, self.votes)
        if min(self.deadline, self.step_deadline) <= 0 or least < 1 or self.temperature < 0:
            raise ValueError(
                "genrm: deadline must be above 0, concurrency, attempts, max_tokens and votes at least 1, temperature at least 0"
            )
        if self.votes > 1 and self.temperature == 0:
            raise ValueError(
                f"genrm: {self.votes} votes at temperature 0 are one vote {self.votes} times; set a temperature above 0, or 1 vote"
            )
        self.asked = self._prompted(self.prompt)
        """The prompt that questions are put in, and why"""
        self.because = "as nobody has checked its endpoints"
        addresses = [self.urls] if isinstance(self.urls, str) else self.urls
        self.endpoints = [Endpoint(url, self.model, token_env=self.token_env, allow_http=self.allow_http) for url in addresses]
        self.pool = ScorerPool(self.endpoints, concurrency=self.concurrency, attempts=self.attempts, gone_after=self.gone_after)
        self._cache: OrderedDict[str, Verdict] = OrderedDict()
        self._held = 0
        """Characters of critiques in it"""
        self._open: dict[tuple[str, int], asyncio.Task[Verdict]] = {}
        """By the question's slot."""
        self._fresh = itertools.count(1)
        self._counts: Counter[str] = Counter()
        self._unknown: Counter[str] = Counter()
        self._replies: deque[tuple[float, int]] = deque(maxlen=_REPLIES_KEPT)
        """Seconds from place to reply, and tokens, of the last ones"""
        self._told: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="genrm-judge", daemon=True)
        self._thread.start()
        announce(self)

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self) -> None:
        """Prove with a trial request that every endpoint answers, has room for question and critique, and was trained on no other prompt
        than `prompt`. Raises `ValueError` (see `Endpoint.check`), within 30 s, and `RuntimeError` after `close`."""
        if self._closed:
            raise RuntimeError("the judge is closed")
        written = self.asked.sampling.get("max_tokens", self.max_tokens)
        asyncio.run_coroutine_threadsafe(self.pool.check(self.longest_prompt + written), self._loop).result()
        told = {name: endpoint.url for endpoint in self.endpoints for name in endpoint.told}
        chosen = self.prompt or next(iter(told), "")
        for name, url in told.items():
            prompt_of(chosen, name, url)
        self.asked = self._prompted(chosen)
        self.because = (
            "as set" if self.prompt else f"as {told[chosen]} says" if told else "as neither genrm.prompt nor its endpoint names one"
        )
        if self.asked.begun:
            begun = reading.beginning(self.endpoints[0].pieces, outcome=not self.asked.locates)
            self.asked = replace(self.asked, begun=asyncio.run_coroutine_threadsafe(begun, self._loop).result())

    def submit(self, prompt: Prompt, rollout: Rollout, priority: int = 0) -> Future[Verdict]:
        """Queue one rollout. The future cannot be cancelled and ends in a `Verdict`, `unknown(reason)` for every fault of network or model
        (reasons: `verdict.REASONS`). Of the questions that wait for a worker the smallest `priority` goes first, then the oldest. Raises
        `RuntimeError` after `close`."""
        verdict: Future[Verdict] = Future()
        verdict.set_running_or_notify_cancel()
        self.critique(prompt.text, self.split(rollout.text), prompt.answer, priority).add_done_callback(
            lambda said: verdict.set_exception(e) if (e := said.exception()) else verdict.set_result(said.result())
        )
        return verdict

    def critique(
        self, problem: str, paragraphs: Sequence[str], reference: str | None, priority: int = 0, fresh: bool = False
    ) -> Future[Verdict]:
        """The same for a solution that is cut already. `reference` is shown where the judge is made
        `with_reference`. Askers who share a request share the first one's place in the queue as well. `fresh`: the judge itself is asked,
        with the same seed, whatever is remembered or under way, and the answer is not remembered: so is a judge watched."""
        messages = self.asked.messages(problem, paragraphs, reference if self.with_reference else None)
        key = hashlib.sha256(json.dumps(messages).encode()).hexdigest()
        near = hashlib.sha256(json.dumps([problem, reference]).encode()).hexdigest()
        with self._lock:
            if self._closed:
                raise RuntimeError("the judge is closed")
            self._counts["submitted"] += 1
            # Under the lock: whatever was counted reaches the loop before `close` does.
            question = Question((key, next(self._fresh) if fresh else 0), messages, len(paragraphs), priority, near)
            return asyncio.run_coroutine_threadsafe(self._answer(question), self._loop)

    def stats(self) -> dict[str, Any]:
        """Counters since the start. Example: `{"submitted": 8, "scored": 7, "unscored": 1, "pending": 0, "sound": 5, "flawed": 2,
        "unknown": {"timeout": 1}, "deduplicated": 0, "replies": 8, "tokens": 4096, "latency_p50": 1.2, "latency_p99": 3.4}`, and those of
        `ScorerPool.stats`; latencies are seconds from place to reply of the last 10,000."""
        with self._lock:
            counts, unknown, replies = self._counts.copy(), dict(self._unknown), [*self._replies]
        stats: dict[str, Any] = {name: counts[name] for name in ("submitted", "sound", "flawed", "deduplicated", "replies", "tokens")}
        stats |= {"unknown": unknown, "scored": counts["sound"] + counts["flawed"], "unscored": sum(unknown.values())}
        stats["pending"] = stats["submitted"] - stats["scored"] - stats["unscored"]
        seconds = sorted(seconds for seconds, _ in replies)
        return stats | {f"latency_{mark}": quantile(seconds, share) for mark, share in MARKS.items()} | self.pool.stats()

    @property
    def answered(self) -> int:
        """Questions that have their verdict, whichever; and trials of a worker that is left out: such a wait has an end of its own."""
        with self._lock:
            return self._counts["sound"] + self._counts["flawed"] + sum(self._unknown.values()) + self.pool.counts["probes"]

    def waits(self) -> list[str]:
        """Requests under way at each worker, and how many questions wait for a place."""
        return self.pool.waits()

    @property
    def gone(self) -> bool:
        return self.pool.stats()["alive"] == 0

    def metrics(self) -> dict[str, float]:
        """What came since this was last asked (a step): counters, `genrm/unknown_<reason>` for each reason that has occurred in this
        process, and of replies their number, seconds and tokens; and how many workers are `alive`."""
        stats = self.stats()
        counts = {name: stats[name] for name in ("requests", "deduplicated", "hedges", "ejections", "replies")}
        counts |= {"retries": sum(stats["retries"].values())} | {f"unknown_{reason}": n for reason, n in sorted(stats["unknown"].items())}
        out = {f"genrm/{name}": float(count - self._told[name]) for name, count in counts.items()} | {"genrm/alive": float(stats["alive"])}
        self._told = Counter(counts)
        if came := int(out["genrm/replies"]):
            with self._lock:
                replies = [*self._replies][-came:]
            seconds, tokens = (sorted(part) for part in zip(*replies, strict=True))
            out["genrm/critique_tokens"] = sum(tokens) / len(tokens)
            for name, part in (("latency", seconds), ("critique_tokens", tokens)):
                out |= {f"genrm/{name}_{mark}": quantile(part, share) for mark, share in MARKS.items()}
        return out

    def rest(self) -> None:
        """Wait until nothing is under way, `step_deadline` at most, and take in again every worker that was left out: the servers are about
        to sleep, and who is left out is asked until it answers."""
        asyncio.run_coroutine_threadsafe(self._rest(), self._loop).result()

    def close(self) -> None:
        """Cancel what is open (those futures end in `unknown("closed")`), close connections and thread. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            asyncio.run_coroutine_threadsafe(self._shut(), self._loop)
        self._thread.join(timeout=5.0)

    def _prompted(self, name: str) -> JudgePrompt:
        """By its name. ValueError for one that is read and not written, asked for several opinions."""
        prompt = prompt_of(name)
        if prompt.begun and (self.votes > 1 or self.temperature > 0):
            raise ValueError(
                f"genrm.prompt {prompt.name} reads probabilities, which every vote repeats; set genrm.sampling 0 1, or prompt {prompt.of}"
            )
        return prompt

    # Everything below runs in the loop's thread: `_open` and `_cache` need no lock.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    async def _answer(self, question: Question) -> Verdict:
        """What is remembered, what comes of a request for another asker that is under way, or of one of its own."""
        (key, fresh), flight = question.slot, self._open.get(question.slot)
        verdict = None if fresh else self._cache.get(key)
        asks = verdict is None and flight is None
        if asks:
            flight = self._open[question.slot] = asyncio.ensure_future(self._judge(question))
            flight.add_done_callback(lambda _: self._open.pop(question.slot))
        if verdict is None and flight is not None:
            await asyncio.wait({flight})
            verdict = Verdict.unknown(CLOSED) if flight.cancelled() else flight.result()
        assert verdict is not None
        if not fresh and verdict.kind != "unknown":
            before = self._cache.pop(key, None)
            self._cache[key] = replace(verdict, **FREE)
            self._held += len(verdict.critique) - len(before.critique if before else "")
            while len(self._cache) > self.cache_size or self._held > _HELD:
                self._held -= len(self._cache.popitem(last=False)[1].critique)
        with self._lock:  # before it returns: who has seen the verdict finds it counted
            counter, name = (self._unknown, verdict.reason) if verdict.kind == "unknown" else (self._counts, verdict.kind)
            counter[name] += 1
            self._counts["deduplicated"] += not asks
        return verdict if asks or fresh else replace(verdict, **FREE)

    async def _judge(self, question: Question) -> Verdict:
        try:
            async with asyncio.timeout(self.step_deadline):
                votes = await asyncio.gather(*(self._vote(question, vote) for vote in range(self.votes)))
        except TimeoutError:
            return Verdict.unknown(TIMEOUT)
        first, *others = votes
        if not others:
            return first
        cost = {"tokens": sum(vote.tokens for vote in votes), "seconds": max(vote.seconds for vote in votes)}
        cost |= {"asked": min(vote.asked for vote in votes), "answered": max(vote.answered for vote in votes)}
        said = tuple(vote.reason or " ".join(map(str, (vote.kind, *([] if vote.step is None else [vote.step])))) for vote in votes)
        return replace(self.decide(votes), critique=first.critique, worker=first.worker, votes=said, **cost)

    async def _vote(self, question: Question, vote: int) -> Verdict:
        sampling: dict[str, Any] = {"top_p": self.top_p, **self.extra, "temperature": self.temperature, "max_tokens": self.max_tokens}
        if self.temperature > 0:
            sampling["seed"] = int(hashlib.sha256(f"{question.slot[0]}{vote or ''}".encode()).hexdigest()[:7], 16)
        sampling |= self.asked.sampling
        # Made when it is sent: as text in a request's body a question would be held twice while it waits.
        make_body = partial(self.endpoints[0].body, question.messages, **sampling)
        try:
            reply, seconds = await self.pool.complete(make_body, self.deadline, question.priority, question.near)
        except TimeoutError:
            return Verdict.unknown(TIMEOUT)
        except Failure as failure:
            return Verdict.unknown(failure.reason)
        with self._lock:
            self._replies.append((seconds, reply.tokens or 0))
            self._counts.update(replies=1, tokens=reply.tokens or 0)
        verdict = self.asked.read(reply, question.n_paragraphs)
        cost = {"tokens": reply.tokens or 0, "seconds": seconds, "asked": (now := time.time()) - seconds, "answered": now}
        return replace(verdict, critique=verdict.critique or reply.text, worker=reply.worker, **cost)

    async def _rest(self) -> None:
        await asyncio.gather(*self._open.values(), return_exceptions=True)
        await self.pool.forgive()

    async def _shut(self) -> None:
        for flight in self._open.values():
            flight.cancel()
        await self._rest()
        # Those who ask; the future of one that has just ended hears of it a turn later.
        await asyncio.gather(asyncio.sleep(0), *(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
        self._loop.stop()


def quantile(values: Sequence[float], share: float) -> float:
    """Of sorted values; 0 of none."""
    return float(values[round(share * (len(values) - 1))]) if values else 0.0
