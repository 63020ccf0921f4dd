"""Is a judge that is full, and healthy, left alone? Our own vLLM server under ten minutes of a queue that no trial question gets through.

    python bench/judge_saturated.py                 # `make judge-saturated`
    python bench/judge_saturated.py --minutes 3

The server is `starts/judge` on one core, one critique at a time, each as long as it may be. `QUEUE` questions are always under way, and
the watch's own, of one token, waits behind them for longer than it is waited for (`PROBE_SECONDS`), again and again, and for more than
`SICK_SECONDS` in all. The server answers others all the time, so it must not be started again. Appends a line to
bench/results/judge_saturated.jsonl; ends with status 1 where it was started twice, or where each trial was answered.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter, deque
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import tyro

from soundrl.engine.recipes import ARITH_SOLUTIONS
from soundrl.fapo.records import Verdict
from soundrl.genrm.critic_data.labelled import load_labelled
from soundrl.genrm.pool.judge import EndpointJudge
from soundrl.genrm.serve import server
from soundrl.genrm.serve.servers import JudgeServers, Serving, Worker

ROOT = Path(__file__).resolve().parent.parent
QUEUE, TOKENS = 600, 64


@dataclass(frozen=True)
class Arguments:
    minutes: float = 10.0


def main(arguments: Arguments) -> None:
    from record import machine

    command, fault, trials = Worker.command, Worker.fault, Counter[str]()

    def trial(worker: Worker):
        found = fault(worker)
        trials["answered" if found is None else type(found).__name__] += 1
        return found

    rows = load_labelled(ARITH_SOLUTIONS, max_rows=400)
    serving = Serving(model=ROOT / "starts" / "judge", eager=True, max_length=256)
    one_at_a_time = patch.object(Worker, "command", lambda self: [*command(self), "--max-num-seqs", "1"])
    with one_at_a_time, patch.object(Worker, "fault", trial), JudgeServers(serving) as servers:
        servers.wait()
        trials.clear()
        longest = {"ignore_eos": True, "min_tokens": TOKENS}
        settings = {"max_tokens": TOKENS, "concurrency": QUEUE, "deadline": 3600.0, "extra": longest}
        with EndpointJudge(servers.urls, serving.name, **settings) as judge:
            start, asked, seconds = time.monotonic(), 0, []
            under_way: deque[Future[Verdict]] = deque()
            while (now := time.monotonic()) < start + 60 * arguments.minutes:
                while len(under_way) < QUEUE:
                    row = rows[asked % len(rows)]
                    under_way.append(judge.critique(row.problem, row.steps, row.answer, fresh=True))
                    asked += 1
                seconds += [under_way.popleft().result().seconds for _ in range(len(under_way)) if under_way[0].done()]
                time.sleep(0.2)
            answered, started = judge.answered, servers.started
    record = {
        "minutes": arguments.minutes,
        "questions_under_way": QUEUE,
        "answered": answered,
        "median_seconds_of_an_answer": round(statistics.median(seconds), 1) if seconds else None,
        "trials": dict(trials),
        "seconds_without_a_trial_before_it_is_stuck": server.SICK_SECONDS,
        "started": started,
    }
    print(json.dumps(record, indent=1))
    with (ROOT / "bench" / "results" / "judge_saturated.jsonl").open("a") as file:
        file.write(json.dumps(record | {"stamp": machine("cpu") | {"elapsed": round(now - start)}}) + "\n")
    if started != 1 or not trials["TimeoutError"]:
        raise SystemExit("the server was started again, or was never full")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
