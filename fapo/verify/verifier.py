r"""Says whether a response's final answer is the reference answer: correct, wrong, no answer, unparseable, or unknown.

Three stages: `answer` finds the answer, `rule` decides the clear cases in the caller's thread, and what is left goes to math-verify in
processes with a limit of CPU time, see `pool`. (math-verify's own timeouts are SIGALRM, which works in the main thread only, and are off.)
The verdict is the same from any thread and from asyncio, however busy the machine is.

What each outcome means:

* `correct`: equal by the strict rule or by math-verify.
* `wrong`: compared and different, or of a form that is never accepted (hedged, chained, rounded, not carried out; see `rule`).
* `no_answer`: nothing in the form asked for after the thinking part, or an open or empty one, or thinking never ends.
* `unparseable`: there is an answer, but it is too long, in another alphabet, math-verify cannot read it, or comparing it takes more CPU
  time or memory than the limits: a property of the answer. Also where the reference cannot be read, which `check_golds` finds at start.
* `unknown`: the machine's fault: two processes were killed from outside or stood still. Such a rollout leaves its group.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

from soundrl.fapo.pending import then
from soundrl.fapo.records import Check, Outcome
from soundrl.fapo.verify.answer import final_answer
from soundrl.fapo.verify.pool import WorkerPool
from soundrl.fapo.verify.rule import list_length, parsed_part, rule

_OUTCOMES = {"equal": Outcome.CORRECT, "different": Outcome.WRONG, "killed": Outcome.UNKNOWN, "stuck": Outcome.UNKNOWN}
"""Of the pool's results; all others are properties of the answer or its reference, and unparseable."""
_FAULTS = {
    "gold": "math-verify cannot read it",
    "gold/cpu": "reading it takes math-verify more than {limit:g} CPU seconds",
    "cpu": "comparing it with itself takes math-verify more than {limit:g} CPU seconds",
    "memory": "math-verify needs too much memory for it",
    "crash": "it brings the parser down",
}


class Verifier:
    """Checks final answers; thread-safe, usable as a context manager.

    `limits` are `WorkerPool`'s, of the processes for what the strict rule leaves undecided.
    """

    def __init__(self, **limits: Any) -> None:
        self.pool = WorkerPool(**limits)
        self.counts: Counter[str] = Counter()
        """Verdicts so far: one per outcome (`wrong`), and one per outcome and reason (`wrong/chain`, `unparseable/memory`)."""
        self._lock = threading.Lock()

    def verify(self, response: str, gold: str, form: str | None = "box", thinks: bool = False) -> Outcome:
        """Checks a whole response; see `submit`. Blocks until it is decided."""
        return self.submit(response, gold, form, thinks).result()

    def submit(self, response: str, gold: str, form: str | None = "box", thinks: bool = False) -> Future[Outcome]:
        """The outcome alone of `check`."""
        return then(self.check(response, gold, form, thinks), lambda check: check.outcome)

    def check(self, response: str, gold: str, form: str | None = "box", thinks: bool = False) -> Future[Check]:
        """Checks a whole response against a reference in LaTeX or plain text; in asyncio, await `asyncio.wrap_future(verifier.check(…))`.
        The future is finished already where the strict rule decides. Raises `RuntimeError` where the verifier is closed.

        `form`: where the answer stands, see `answer.FORMS`; None = the prompt did not say, and a box is looked for. `thinks`: the prompt
        has opened a thinking part already, see `thinking.opens`.
        """
        answer = None
        try:
            parts = list_length(gold)
        except ValueError:
            outcome = self._decide(Outcome.UNPARSEABLE, "gold")
        else:
            answer = final_answer(response, form=form, parts=parts, thinks=thinks)
            if answer is None:
                outcome = self._decide(Outcome.NO_ANSWER, "none")
            elif answer.hedged:
                outcome = self._decide(Outcome.WRONG, "hedged")
            else:
                outcome = self.submit_answer(answer.text, gold)
        return then(outcome, lambda outcome: Check(outcome=outcome, extracted=answer and answer.text))

    def submit_answer(self, answer: str, gold: str) -> Future[Outcome]:
        """Compares an answer that is taken out of its response already; otherwise as `submit`."""
        try:
            ruling = rule(gold, answer)
        except ValueError:
            return self._decide(Outcome.UNPARSEABLE, "gold")
        if ruling.outcome is not None:
            return self._decide(ruling.outcome, ruling.reason)
        outcome: Future[Outcome] = Future()
        outcome.set_running_or_notify_cancel()  # from here on nobody can cancel it

        def finish(done: Future[str]) -> None:
            if error := done.exception():
                outcome.set_exception(error)
            else:
                self._decide(_OUTCOMES.get(done.result(), Outcome.UNPARSEABLE), done.result(), outcome)

        self.pool.submit(ruling.gold, ruling.answer).add_done_callback(finish)
        return outcome

    def check_golds(self, golds: Iterable[str]) -> list[str | None]:
        """Says of each reference why it cannot be compared with; None = it can. Each text is tried once, in all processes at a time.

        Numbers and words cost no process. Of all others what math-verify would read is parsed here. Each must equal itself in a box.
        Raises `RuntimeError` where the verifier's processes fail, so that nothing is known of the references.
        """
        golds = list(golds)
        faults: dict[str, str | None] = dict.fromkeys(golds)
        parsed: dict[str, Future[str]] = {}
        for gold in faults:
            try:
                if (part := parsed_part(gold)) is not None:
                    parsed[gold] = self.pool.submit(part, part, checks_gold=True)
            except ValueError as error:
                faults[gold] = str(error)
        for gold, future in parsed.items():
            result = future.result()
            if result in ("killed", "stuck"):
                raise RuntimeError(
                    f"the verifier's processes are {result}, so the reference {gold[:200]!r} could not be checked; start again"
                )
            if result not in ("equal", "different"):
                why = _FAULTS.get(result, "math-verify cannot compare it with itself").format(limit=self.pool.gold_cpu_limit)
                faults[gold] = f"the reference answer {gold[:200]!r} cannot be compared with: {why}"
        same = {gold: self.submit(f"\\boxed{{{gold}}}", gold) for gold, why in faults.items() if why is None}
        for gold, future in same.items():
            if (outcome := future.result()) not in (Outcome.CORRECT, Outcome.UNKNOWN):  # the machine's faults are none of the reference
                faults[gold] = f"no answer can equal the reference {gold[:200]!r}: it does not equal itself ({outcome.value})"
        return [faults[gold] for gold in golds]

    def close(self) -> None:
        """Ends all processes. Answers that are not decided yet fail."""
        self.pool.close()

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decide(self, outcome: Outcome, reason: str, future: Future[Outcome] | None = None) -> Future[Outcome]:
        with self._lock:
            self.counts[outcome.value] += 1
            self.counts[f"{outcome.value}/{reason}"] += 1
        future = future or Future()
        future.set_result(outcome)
        return future
