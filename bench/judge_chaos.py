"""How much time do dying, slow and silent judges cost? Four worker processes on loopback, 512 samples, wall clock against the ideal.

    python bench/judge_chaos.py                  # the table, about two minutes
    python bench/judge_chaos.py --soak 30        # minutes of random kills, stops and faults; ends with the count of lost samples

A worker takes 0.1 s a sample, 8 at once; the ideal is samples × 0.1 s ÷ (8 × workers that work). In every row scored + unscored =
submitted, and each scored verdict is checked against the truth.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from soundrl.fapo.records import Prompt, Rollout, Verdict
from soundrl.genrm.judge import EndpointJudge

SAMPLES, SECONDS, SLOTS = 512, 0.1, 8
WORKER = """
import random, sys, time
sys.path.insert(0, sys.argv[1])
from fake_judge import Server, find_flaw
port, seconds, faults = int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
def script(handler, number):
    time.sleep(seconds)
    fault = random.random()
    if fault < faults / 3:
        handler.reset()
    elif fault < faults * 2 / 3:
        handler.send(random.choice((429, 500, 503)), {})
    elif fault < faults:
        handler.send(200, b"<html>")
    else:
        find_flaw(handler, number)
Server(script, port)
print("ready", flush=True)
time.sleep(1e6)
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
        tests = str(Path(__file__).resolve().parent.parent / "tests")
        command = [sys.executable, "-c", WORKER, tests, str(self.port), *self.arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None and self.process.stdout.readline() == b"ready\n"

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def truth(i: int) -> Verdict:
    return Verdict.flawed(1) if i % 3 else Verdict.sound()


def submit(judge: EndpointJudge, start: int, count: int) -> list[Future[Verdict]]:
    def rollout(i: int) -> Rollout:
        text = f"Sum {i}.\n\n{'So 2+2=5.' if i % 3 else 'Fine.'}"
        return Rollout(prompt_id="p", sample=i, prompt_tokens=(), tokens=(), logprobs=(), text=text, finish_reason="stop", policy_version=0)

    prompt = Prompt(id="p", text="What is 2+2?", answer="4")
    return [judge.submit(prompt, rollout(i)) for i in range(start, start + count)]


def tally(verdicts: list[Verdict], start: int = 0) -> tuple[int, int]:
    """Wrong verdicts and unknown ones."""
    unknown = sum(verdict.kind == "unknown" for verdict in verdicts)
    return sum(v.kind != "unknown" and v != truth(start + i) for i, v in enumerate(verdicts)), unknown


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
    print(
        f"{name:<44} wall {wall:6.2f} s = {wall / ideal:4.2f} × ideal  wrong {wrong}  unknown {unknown}  "
        f"requests {stats['requests'] / samples:4.2f} ×  hedges {stats['hedges']}  ejections {stats['ejections']}  +{memory:.0f} MiB",
        flush=True,
    )
    for worker in workers:
        worker.signal(signal.SIGCONT)
        worker.kill()


def restore(workers: list[Process]) -> None:
    for worker in workers:
        worker.kill()
    time.sleep(20)
    for worker in workers:
        worker.start()


def table() -> None:
    case("healthy", [Process() for _ in range(4)], 4)
    case("G1 one of 4 killed", [Process() for _ in range(4)], 3, lambda ws: ws[0].kill())
    case("G2 three of 4 killed", [Process() for _ in range(4)], 1, lambda ws: [w.kill() for w in ws[:3]])
    case("G3 all killed, restored after 20 s", [Process() for _ in range(4)], 4, restore)
    case("G5 one 10 × slower", [Process(10 * SECONDS), *(Process() for _ in range(3))], 3.1)
    case("G6 one never answers (stopped)", [Process() for _ in range(4)], 3, lambda ws: ws[0].signal(signal.SIGSTOP))
    case("G7 30 % faults on each", [Process(faults=0.3) for _ in range(4)], 4, attempts=8)
    case("G14 10,000 queued", [Process(0.01) for _ in range(4)], 40, samples=10_000)


@dataclass(frozen=True)
class Arguments:
    soak: float = 0.0
    """Minutes of random faults; 0 = the table."""
    seed: int = 0
    """Of the faults."""


def soak(minutes: float, seed: int) -> None:
    rng, workers = random.Random(seed), [Process(0.02, faults=0.05) for _ in range(4)]
    end, done, wrong, unknown, events, level = time.monotonic() + 60 * minutes, 0, 0, 0, 0, []
    with EndpointJudge([f"http://127.0.0.1:{w.port}/v1" for w in workers], "judge-model", concurrency=SLOTS, deadline=60.0) as judge:
        while time.monotonic() < end:
            futures = submit(judge, done, SAMPLES)
            victim, kind = rng.choice(workers), rng.choice(("kill", "stop", "flap"))
            time.sleep(rng.uniform(0.0, 1.0))
            events += 1
            victim.signal(signal.SIGSTOP if kind == "stop" else signal.SIGKILL)
            time.sleep(rng.uniform(0.2, 3.0))
            if kind == "stop":
                victim.signal(signal.SIGCONT)
            else:
                victim.process.wait()
                victim.start()
            part = tally([future.result(300) for future in futures], done)
            wrong, unknown, done = wrong + part[0], unknown + part[1], done + SAMPLES
            memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
            level.append((len(os.listdir("/proc/self/fd")), memory))
        stats = judge.stats()
    for worker in workers:
        worker.kill()
    tenth = level[len(level) // 10]
    print(f"{done} samples, {events} faults, {stats['ejections']} ejections: wrong {wrong}, unknown {unknown}")
    print(f"descriptors and MiB after a tenth: {tenth[0]}, {tenth[1]:.0f}; at the end {level[-1][0]}, {level[-1][1]:.0f}")
    if wrong or stats["submitted"] != stats["scored"] + stats["unscored"] or stats["submitted"] != done:
        raise SystemExit("a sample was lost, or its verdict is not its own")


if __name__ == "__main__":
    chosen = tyro.cli(Arguments)
    soak(chosen.soak, chosen.seed) if chosen.soak else table()
