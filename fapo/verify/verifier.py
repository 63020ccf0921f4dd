"""Says whether a response's final answer is the reference answer: correct, wrong, no answer, unparseable, or timeout.

Three stages: `box` finds the answer, `rule` decides the clear cases in the caller's thread, and what is left goes to math-verify in
processes that are killed at a deadline. math-verify's own timeouts are SIGALRM, which works in the main thread only (versions before 0.9
then answered "wrong" in silence), and is off here. The verdict is the same from any thread and from asyncio.

What each outcome means:

* `correct`: equal by the strict rule or by math-verify.
* `wrong`: compared and different, or of a form that is never accepted (hedged, chained, rounded, not carried out; see `rule`).
* `no_answer`: no box after the thinking part, or an open or empty one.
* `unparseable`: there is an answer, but it is too long, in another alphabet, or math-verify cannot read it.
* `timeout`: the comparison came to its limit of time or memory, or its process died. `counts` tells them apart.
"""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import Future
from types import TracebackType

from soundrl.fapo.verify.box import final_box
from soundrl.fapo.records import Outcome
from soundrl.fapo.verify.rule import check_gold, list_length, rule
from soundrl.fapo.verify.pool import WorkerPool

_OUTCOMES = {
    "equal": Outcome.CORRECT,
    "different": Outcome.WRONG,
    "answer": Outcome.UNPARSEABLE,
    "incomparable": Outcome.UNPARSEABLE,
    "time": Outcome.TIMEOUT,
    "memory": Outcome.TIMEOUT,
    "died": Outcome.TIMEOUT,
}


class Verifier:
    """Checks final answers; thread-safe, usable as a context manager.

    Args:
        workers: Number of processes for what the strict rule leaves undecided.
        time_limit: Seconds of wall-clock time for one comparison; then its process is killed. Waiting for a free process is not charged.
        memory_limit: Bytes of address space of each process. math-verify itself takes about 70 MiB.
    """

    def __init__(self, *, workers: int = 2, time_limit: float = 1.0, memory_limit: int = 512 * 1024**2) -> None:
        self.pool = WorkerPool(workers=workers, time_limit=time_limit, memory_limit=memory_limit)
        self.counts: Counter[str] = Counter()
        """Verdicts so far: one per outcome (`wrong`), and one per outcome and reason (`wrong/chain`, `timeout/memory`)."""
        self._lock = threading.Lock()

    def verify(self, response: str, gold: str) -> Outcome:
        """Checks a whole response; see `submit`. Blocks until it is decided."""
        return self.submit(response, gold).result()

    def submit(self, response: str, gold: str) -> Future[Outcome]:
        """Checks a whole response; in asyncio, await `asyncio.wrap_future(verifier.submit(…))`.

        Args:
            response: The policy's text, with thinking part and box.
            gold: Reference answer, in LaTeX or plain text.

        Returns:
            A future, finished already where the strict rule decides. It fails with `ValueError` where math-verify cannot read the
            reference.

        Raises:
            ValueError: the reference is empty or cannot be used; `check_gold` finds such references when data is loaded.
            RuntimeError: the verifier is closed.
        """
        check_gold(gold)
        box = final_box(response, parts=list_length(gold))
        if box is None:
            return self._decided(Outcome.NO_ANSWER, "no box")
        if box.hedged:
            return self._decided(Outcome.WRONG, "hedged")
        return self.submit_answer(box.text, gold)

    def submit_answer(self, answer: str, gold: str) -> Future[Outcome]:
        """Compares an answer that is taken out of its response already; otherwise as `submit`."""
        ruling = rule(gold, answer)
        if ruling.outcome is not None:
            return self._decided(ruling.outcome, ruling.reason)
        outcome: Future[Outcome] = Future()
        outcome.set_running_or_notify_cancel()
        self.pool.submit(ruling.gold, ruling.answer).add_done_callback(lambda done: self._finish(done, outcome, gold))
        return outcome

    def check_gold(self, gold: str) -> None:
        """Checks that a reference can be compared with: by the strict rule alone, or by math-verify.

        Raises:
            ValueError: it cannot; the message shows it.
        """
        check_gold(gold)
        # Compared with a fresh symbol, whatever the strict rule cannot decide alone is parsed.
        ruling = rule(gold, r"\mathcal{Q}")
        if ruling.outcome is None:
            result = self.pool.submit(ruling.gold, ruling.gold).result()
            if result not in ("equal", "different"):
                raise ValueError(f"the reference answer {gold[:200]!r} cannot be compared with: math-verify says {result!r}")

    def close(self) -> None:
        """Ends all processes. Answers that are not decided yet fail."""
        self.pool.close()

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _decided(self, outcome: Outcome, reason: str) -> Future[Outcome]:
        self._count(outcome, reason)
        future: Future[Outcome] = Future()
        future.set_result(outcome)
        return future

    def _count(self, outcome: Outcome, reason: str) -> None:
        with self._lock:
            self.counts[outcome.value] += 1
            self.counts[f"{outcome.value}/{reason}"] += 1

    def _finish(self, done: Future[str], outcome: Future[Outcome], gold: str) -> None:
        if done.cancelled():
            outcome.set_exception(RuntimeError("the verifier was closed"))
            return
        error = done.exception()
        if error:
            outcome.set_exception(error)
        elif done.result() == "gold":
            outcome.set_exception(ValueError(f"math-verify cannot read the reference answer {gold[:200]!r}"))
        else:
            verdict = _OUTCOMES[done.result()]
            self._count(verdict, done.result())
            outcome.set_result(verdict)
