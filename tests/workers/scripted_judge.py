"""A judge whose verdicts follow from the question and whose answers come when the script says: delays, hold-ups, silence."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random

from soundrl.fapo.records import Prompt, Rollout, Verdict


def verdict_of(rollout: Rollout) -> Verdict:
    """Half sound, some unknown, the rest flawed; a function of the rollout alone."""
    value = Random(f"verdict/{rollout.prompt_id}/{rollout.sample}").random()
    return Verdict.sound() if value < 0.5 else Verdict.unknown("no_box") if value < 0.6 else Verdict.flawed(1)


class ScriptedJudge:
    """`workers` threads that sleep for `seconds(rollout)`, questions in the order they came. Prompts in `silent` get no answer, the one of
    `hold` none before `release`."""

    def __init__(self, workers: int, seconds: Callable[[Rollout], float], silent: Collection[str] = ()) -> None:
        self.pool, self.seconds, self.silent = ThreadPoolExecutor(workers), seconds, silent
        self.held, self.released = "", threading.Event()
        self.asked: list[str] = []
        """Prompt ids, in the order of the questions."""
        self.busy: list[tuple[float, float]] = []
        """Start and end of every answer, `time.perf_counter`."""

    def submit(self, prompt: Prompt, rollout: Rollout, priority: int = 0) -> Future[Verdict]:
        self.asked.append(prompt.id)
        return Future() if prompt.id in self.silent else self.pool.submit(self._answer, rollout)

    def hold(self, prompt: str) -> None:
        self.held, self.released = prompt, threading.Event()

    def release(self) -> None:
        self.released.set()

    def _answer(self, rollout: Rollout) -> Verdict:
        start = time.perf_counter()
        if rollout.prompt_id == self.held:
            self.released.wait(60)
        time.sleep(self.seconds(rollout))
        self.busy.append((start, time.perf_counter()))
        return verdict_of(rollout)

    def check(self) -> None:
        """Always ready."""

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self.pool.shutdown()
