"""How much time do dying, slow and silent judges cost? Four worker processes on loopback, 512 samples, wall clock against the ideal.

    python bench/judge_chaos.py                  # the table, about two minutes
    python bench/judge_chaos.py --soak 30        # minutes of random faults: nothing lost or doubled, memory and descriptors flat

A worker takes 0.1 s a sample, 8 at once; the ideal is samples × 0.1 s ÷ (8 × workers that work). In every row scored + unscored =
submitted, and each verdict is checked against its own sample's truth. Appends JSON lines to bench/results/judge_chaos.jsonl.

The soak: in every round of 512 samples one to four workers are killed, or stopped, together, for up to 5 s, and one request in ten is
answered with a fault (FAULTS below). One sample in eight has no verdict in it, by its own reason: it must be unknown, never sound.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from soundrl.fapo.records import Prompt, Rollout, Verdict
from soundrl.genrm.pool.judge import EndpointJudge

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from fake_judge import NO_VERDICT  # noqa: E402

SAMPLES, SECONDS, SLOTS = 512, 0.1, 8
WORKER = """
import random, re, sys, time
sys.path.insert(0, sys.argv[1])
from fake_judge import BAD_BODIES, NO_VERDICT, Server, find_flaw, half_a_body, hang, short_content_length
port, seconds, faults = int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
def answer(handler):
    planted = re.search(r"Say nothing (\\d+)", handler.body["messages"][0]["content"])
    handler.send(200, NO_VERDICT[int(planted[1])][0]) if planted else find_flaw(handler, 0)
def twice(handler):
    answer(handler)
    answer(handler)
def late(handler):
    time.sleep(9 * seconds)
    answer(handler)
FAULTS = [
    lambda handler: handler.send(random.choice((500, 503)), {}),
    lambda handler: handler.send(429, {}, Retry_After="1"),
    lambda handler: handler.send(200, random.choice(list(BAD_BODIES.values()))),
    lambda handler: handler.reset(),
    half_a_body, short_content_length, twice, late, lambda handler: hang(handler, 0),
]
def script(handler, number):
    time.sleep(seconds)
    (random.choice(FAULTS) if random.random() < faults else answer)(handler)
Server(script, port)
print("ready", flush=True)
sys.stdin.read()  # until whoever started us ends
"""


class Process:
    """A worker in its own process, on a port that it keeps."""

    def __init__(self, seconds: float = SECONDS, faults: float = 0.0):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.arguments = (str(seconds), str(faults))
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-c", WORKER, str(ROOT / "tests"), str(self.port), *self.arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None and self.process.stdout.readline() == b"ready\n"

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


NOTHING = np.empty(0)


def truth(i: int) -> Verdict:
    """A flaw in paragraph 1 … 6, none, or nothing that could be read as a verdict: a reply to another sample is mostly seen."""
    place = i % 8
    return Verdict.sound() if place == 0 else Verdict.flawed(place) if place < 7 else Verdict.unknown(NO_VERDICT[i % len(NO_VERDICT)][1])


def submit(judge: EndpointJudge, start: int, count: int) -> list[Future[Verdict]]:
    def rollout(i: int) -> Rollout:
        paragraphs = [f"Sum {i}.", *["Fine."] * 6]
        if i % 8 == 7:
            paragraphs[1] = f"Say nothing {i % len(NO_VERDICT)}."
        elif i % 8:
            paragraphs[i % 8] = "So 2+2=5."
        text = "\n\n".join(paragraphs)
        return Rollout(
            prompt_id="p",
            sample=i,
            prompt_tokens=NOTHING,
            tokens=NOTHING,
            logprobs=NOTHING,
            text=text,
            finish_reason="stop",
            policy_version=0,
        )

    prompt = Prompt(id="p", text="What is 2+2?", answer="4")
    return [judge.submit(prompt, rollout(i)) for i in range(start, start + count)]


def tally(verdicts: list[Verdict], start: int = 0) -> tuple[int, Counter[str]]:
    """Wrong verdicts, and by reason the samples that should have one and are unknown."""
    off = [verdict for i, verdict in enumerate(verdicts, start) if verdict != truth(i)]
    return sum(verdict.kind != "unknown" for verdict in off), Counter(verdict.reason for verdict in off if verdict.kind == "unknown")


def show(record: dict[str, Any]) -> None:
    """On the terminal, and a line of the result file."""
    from record import machine  # only now: torch would be most of the memory that is watched

    print("  ".join(f"{name} {value}" for name, value in record.items()), flush=True)
    with (ROOT / "bench" / "results" / "judge_chaos.jsonl").open("a") as file:
        file.write(json.dumps(record | {"stamp": machine("cpu") | {"load": round(os.getloadavg()[0], 1)}}, ensure_ascii=False) + "\n")


def case(name: str, workers: list[Process], able: float, act: Callable[[list[Process]], object] | None = None, **settings: Any) -> None:
    samples = settings.pop("samples", SAMPLES)
    with EndpointJudge(
        [f"http://127.0.0.1:{w.port}/v1" for w in workers], "judge-model", **{"concurrency": SLOTS, "deadline": 60.0} | settings
    ) as judge:
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        futures = submit(judge, 0, samples)
        if act is not None:
            time.sleep(0.5)
            act(workers)
        wrong, unknown = tally([future.result(300) for future in futures])
        wall, stats = time.perf_counter() - start, judge.stats()
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    ideal = samples * SECONDS / (SLOTS * able)
    counts = {name: stats[name] for name in ("hedges", "ejections")} | {"requests_x": round(stats["requests"] / samples, 2)}
    lost = {"wrong": wrong, "unknown": unknown.total()}
    show({"case": name, "seconds": round(wall, 2), "x_ideal": round(wall / ideal, 2), **lost, **counts, "MiB": round(memory)})
    for worker in workers:
        worker.signal(signal.SIGCONT)
        worker.kill()


def restore(workers: list[Process]) -> None:
    for worker in workers:
        worker.kill()
    time.sleep(20)
    for worker in workers:
        worker.start()


def overhead(rate: float = 200.0, samples: int = 2000, seconds: float = 0.02) -> None:
    """What lies between a question and its verdict besides the worker's own time: pool, connection, HTTP and JSON on both sides."""
    workers = [Process(seconds) for _ in range(4)]
    with EndpointJudge([f"http://127.0.0.1:{w.port}/v1" for w in workers], "judge-model", concurrency=SLOTS, deadline=60.0) as judge:
        start, futures = time.perf_counter(), []
        for i in range(samples):
            time.sleep(max(0.0, start + i / rate - time.perf_counter()))
            futures += submit(judge, i, 1)
        wrong, unknown = tally([future.result(300) for future in futures])
        added = [1e3 * (judge.stats()[name] - seconds) for name in ("latency_p50", "latency_p99")]
    show(
        {"case": "G15 200 a second", "p50_ms": round(added[0], 2), "p99_ms": round(added[1], 2), "wrong": wrong, "unknown": unknown.total()}
    )
    for worker in workers:
        worker.kill()


def beginnings(problems: int = 64, solutions: int = 8) -> None:
    """How many solutions, the first of each problem apart, came to a worker that had read their problem; all are asked at once."""
    workers = [Process() for _ in range(4)]
    with EndpointJudge([f"http://127.0.0.1:{w.port}/v1" for w in workers], "judge-model", concurrency=SLOTS, deadline=60.0) as judge:
        futures = {(p, s): judge.critique(f"Sum {p}?", [f"Solution {s}.", "2+2=5"], "4") for p in range(problems) for s in range(solutions)}
        read = {problem: {futures[problem, s].result(300).worker for s in range(solutions)} for problem in range(problems)}
        asked = [requests for requests, _ in judge.stats()["workers"]]
    met = 1 - (sum(map(len, read.values())) - problems) / (problems * (solutions - 1))
    show({"case": "G15 64 problems of 8 solutions", "met": round(met, 3), "busiest_x_mean": round(max(asked) * 4 / sum(asked), 3)})
    for worker in workers:
        worker.kill()


def table() -> None:
    case("healthy", [Process() for _ in range(4)], 4)
    case("G1 one of 4 killed", [Process() for _ in range(4)], 3, lambda ws: ws[0].kill())
    case("G2 three of 4 killed", [Process() for _ in range(4)], 1, lambda ws: [w.kill() for w in ws[:3]])
    case("G3 all killed, restored after 20 s", [Process() for _ in range(4)], 4, restore)
    case("G5 one 10 × slower", [Process(10 * SECONDS), *(Process() for _ in range(3))], 3.1)
    case("G6 one never answers (stopped)", [Process() for _ in range(4)], 3, lambda ws: ws[0].signal(signal.SIGSTOP))
    case("G7 30 % faults on each", [Process(faults=0.3) for _ in range(4)], 4, attempts=8)
    case("G14 10,000 queued", [Process(0.01) for _ in range(4)], 40, samples=10_000)
    overhead()
    beginnings()


@dataclass(frozen=True)
class Arguments:
    soak: float = 0.0
    """Minutes of random faults; 0 = the table."""
    seed: int = 0
    """Of the faults."""


def levels() -> dict[str, float]:
    """What must stay flat."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    return {"descriptors": len(os.listdir("/proc/self/fd")), "threads": threading.active_count(), "MiB": resident / 2**20}


def soak(minutes: float, seed: int) -> None:
    rng, workers = random.Random(seed), [Process(faults=0.1) for _ in range(4)]
    urls = [f"http://127.0.0.1:{worker.port}/v1" for worker in workers]
    end, done, wrong, unknown, events, seen = time.monotonic() + 60 * minutes, 0, 0, Counter[str](), Counter[str](), []
    # A memory for answers that is full within two rounds: what grows after that is a leak.
    with EndpointJudge(urls, "judge-model", concurrency=SLOTS, attempts=8, deadline=60.0, cache_size=2 * SAMPLES) as judge:
        while time.monotonic() < end:
            futures = submit(judge, done, SAMPLES)
            victims, kind = rng.sample(workers, rng.choice((1, 1, 2, 3, 4))), rng.choice(("kill", "stop"))
            time.sleep(rng.uniform(0.0, 1.0))
            events[f"{kind} {len(victims)}"] += 1
            for victim in victims:
                victim.signal(signal.SIGSTOP if kind == "stop" else signal.SIGKILL)
            time.sleep(rng.uniform(0.2, 5.0))
            for victim in victims:
                if kind == "stop":
                    victim.signal(signal.SIGCONT)
                else:
                    victim.process.wait()
                    victim.start()
            part = tally([future.result(300) for future in futures], done)
            wrong, unknown, done = wrong + part[0], unknown + part[1], done + SAMPLES
            seen.append(levels())
        stats = judge.stats()
    for worker in workers:
        worker.kill()
    tenth = max(1, len(seen) // 10)
    # The lowest of many: what is under way for a moment is no leak.
    early, late = ({name: min(level[name] for level in part) for name in seen[0]} for part in (seen[tenth:][:tenth], seen[-tenth:]))
    counts = {name: stats[name] for name in ("submitted", "scored", "unscored", "requests", "hedges", "ejections", "returns", "retries")}
    record = {"case": "soak", "minutes": minutes, "seed": seed, **counts, "faults": dict(events), "wrong": wrong, "lost": dict(unknown)}
    show(record | {"second tenth": early, "last tenth": late})
    if wrong or unknown or stats["scored"] + stats["unscored"] != done or stats["submitted"] != done:
        raise SystemExit("a sample was lost or doubled, or its verdict is not its own")
    if any(abs(late[name] - early[name]) > 0.05 * early[name] for name in early):
        raise SystemExit("memory, threads or descriptors are not flat (± 5 %)")


if __name__ == "__main__":
    chosen = tyro.cli(Arguments)
    soak(chosen.soak, chosen.seed) if chosen.soak else table()
