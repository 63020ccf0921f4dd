"""The judge as a second adapter of the policy's base, asked in the policy's own engine: the memory of one model, no second process.

    sample, questions held back → engine sleeps until the outcomes are here → wakes with the judge on → verdicts → sleeps → train

Questions and replies are those of a served judge: the same prompt, the same template, the same parser, the same seeds.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from soundrl.engine.config import Genrm
from soundrl.engine.encode import Encoder
from soundrl.engine.files.adapter_folder import Base, its_base, other_base
from soundrl.engine.judging.phase import Phase, Timed
from soundrl.engine.ranks import Ranks
from soundrl.engine.rollouts import leaving
from soundrl.engine.samplers.sampler import Request, Sampler
from soundrl.engine.samplers.vllm_sampler import VllmSampler
from soundrl.engine.telemetry.timeline import TIMELINE
from soundrl.fapo.data.rows import RowError
from soundrl.fapo.judging import Judge
from soundrl.fapo.pending import PendingGroups
from soundrl.fapo.records import Prompt, Rollout, Verdict
from soundrl.genrm.pool.judge import FREE
from soundrl.genrm.prompts import prompt_in
from soundrl.genrm.verdict import CLOSED, TOO_LONG, Reply, majority

Split = Callable[[str], Sequence[str]]
WORKER = "adapter"
KEPT = 65_536  # verdicts that are remembered


class Asked(NamedTuple):
    """One question, and all who wait for its verdict."""

    key: str
    tokens: np.ndarray | None
    """int32; None: there is no room for question and critique"""
    paragraphs: int
    waiting: list[Future[Verdict]]


class AdapterJudge(Judge):
    """Implements `soundrl.fapo.judging.Judge` over `answer`, which the run calls when its engine is free. A question that comes twice is
    asked once; whoever comes later gets what is remembered."""

    encode: Encoder
    """Of the engine that is asked"""

    def __init__(self, g: Genrm, split: Split) -> None:
        self.settings, self.split = g, split
        self.asked = prompt_in(Path(g.model), g.prompt)
        self.open: dict[str, Asked] = {}
        self.known: dict[str, Verdict] = {}
        self.counts: Counter[str] = Counter()

    def submit(self, prompt: Prompt, rollout: Rollout, priority: int = 0) -> Future[Verdict]:
        verdict: Future[Verdict] = Future()
        verdict.set_running_or_notify_cancel()
        paragraphs = self.split(rollout.text)
        messages = self.asked.messages(prompt.text, paragraphs, prompt.answer if self.settings.reference else None)
        key = hashlib.sha256(json.dumps(messages).encode()).hexdigest()
        if (known := self.known.get(key)) is not None or key in self.open:
            self.counts["deduplicated"] += 1
        if known is not None:
            verdict.set_result(replace(known, **FREE))
            return verdict
        if key not in self.open:
            try:
                tokens = self.encode(Prompt(id=key, text="", answer="", messages=tuple(messages)))
            except RowError:
                tokens = None
            self.open[key] = Asked(key, tokens, len(paragraphs), [])
        self.open[key].waiting.append(verdict)
        return verdict

    def answer(self, generate: Callable[[Sequence[Request]], Iterator[Rollout]]) -> None:
        """Every question that waits, with the engine's `generate`, which wears the judge."""
        asked, self.open = self.open, {}
        (temperature, votes), began = self.settings.sampling, time.time()
        requests = [
            Request(
                prompt_id=question.key,
                sample=vote,
                prompt_tokens=question.tokens,
                seed=int(hashlib.sha256(f"{question.key}{vote or ''}".encode()).hexdigest()[:7], 16),
                temperature=temperature,
                max_new_tokens=self.settings.max_tokens,
            )
            for question in asked.values()
            if question.tokens is not None
            for vote in range(votes)
        ]
        said = dict[str, dict[int, Verdict]]()
        for reply in generate(requests) if requests else ():
            question = asked[reply.prompt_id]
            verdict = self.asked.read(Reply(reply.text, reply.finish_reason, len(reply.tokens)), question.paragraphs)
            now = time.time()
            cost: dict[str, Any] = {"tokens": len(reply.tokens), "seconds": now - began, "asked": began, "answered": now}
            said.setdefault(question.key, {})[reply.sample] = replace(verdict, critique=reply.text, worker=WORKER, **cost)
            self.counts.update(replies=1, requests=1, tokens=len(reply.tokens))
        for question in asked.values():
            found = [verdict for _, verdict in sorted(said.get(question.key, {}).items())]
            whole = Verdict.unknown(TOO_LONG if question.tokens is None else CLOSED) if len(found) < votes else found[0]
            if votes > 1 and len(found) == votes:
                whole = replace(majority(found), critique=found[0].critique, worker=WORKER, tokens=sum(v.tokens for v in found))
            if whole.kind == "unknown":
                self.counts[f"unknown_{whole.reason}"] += len(question.waiting)
            else:
                self.known[question.key] = whole
                if len(self.known) > KEPT:
                    del self.known[next(iter(self.known))]
            for number, verdict in enumerate(question.waiting):
                verdict.set_result(replace(whole, **FREE) if number else whole)

    def metrics(self) -> dict[str, float]:
        replies, tokens = self.counts["replies"], self.counts.pop("tokens", 0)
        out = {f"genrm/{name}": float(count) for name, count in self.counts.items()} | {"genrm/alive": 1.0}
        self.counts.clear()
        return out | ({"genrm/critique_tokens": tokens / replies} if replies else {})


class AdapterPhase(Phase):
    """Each rank's engine judges what is the rank's own, where any rank has a question."""

    always = False
    sampler: VllmSampler

    def __init__(self, judge: AdapterJudge, folder: Path, ranks: Ranks) -> None:
        super().__init__(ranks)
        self.judge, self.folder = judge, folder

    def enter(self, sampler: Sampler, base: Base | None) -> None:
        """The engine, awake, takes the judge's adapter. ValueError where that belongs to another base than the policy's."""
        assert isinstance(sampler, VllmSampler)
        if other := other_base(its_base(self.folder), base):
            raise ValueError(f"genrm.model {self.folder}: {other}")
        self.sampler = sampler
        self.judge.encode = Encoder(sampler.tokenizer, sampler.longest - self.judge.settings.max_tokens)
        sampler.hold(self.folder)

    def ask(self, pending: PendingGroups) -> PendingGroups:
        """Puts the questions that were held back, whose outcomes are here, and answers them."""
        pending.ask()
        with TIMELINE.detail("judged by the adapter"):
            self.judge.answer(lambda requests: self.sampler.generate(requests, leaving))
        return pending

    @contextmanager
    def awake(self, timed: Timed) -> Iterator[None]:
        """The policy's engine wears the judge within."""
        with timed("judge_wake"):
            for part in ("weights", "kv_cache"):
                self.sampler.wake(part)
            self.sampler.reset_cache()
        with self.sampler.judging():
            yield
        with timed("judge_sleep"):
            self.sampler.sleep()
