"""Does a router in front of two judges lose anything when one of them is killed? Our own vLLM servers on CPU behind `vllm-router`.

    make judge-router               # installs vllm-router 0.1.17 into build/router first
    python bench/judge_router.py --router build/router/bin/vllm-router --policy cache_aware

`starts/judge` is served twice, each server with the token; the router stands in front, hands the pool's token on, and is all that the pool
knows. In the middle of `--questions` questions one server is killed, group and all, and stays dead. Every verdict must be what the
other server says when it is asked alone. Appends a line to bench/results/judge_router.jsonl; ends with status 1 where one is not.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import tyro

from soundrl.engine.recipes import ARITH_SOLUTIONS
from soundrl.fapo.records import Verdict
from soundrl.genrm.critic_data.labelled import Labelled, load_labelled
from soundrl.genrm.pool.judge import EndpointJudge
from soundrl.genrm.serve.machine import reserve_port
from soundrl.genrm.serve.servers import JudgeServers, Serving

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 600.0


@dataclass(frozen=True)
class Arguments:
    router: Path
    """The `vllm-router` of an environment of its own: it is no dependency of ours."""
    questions: int = 400
    concurrency: int = 16
    policy: str = "power_of_two"
    """Of the router; `cache_aware` has each server render each prompt first."""


def command(router: Path, port: int, urls: list[str], policy: str) -> list[str]:
    """The router's. It needs no key: it asks for `/health` alone by itself, and hands on whatever token a question has."""
    words = [str(router), "--host", "127.0.0.1", "--port", str(port), "--worker-urls", *urls, "--policy", policy]
    return [*words, "--health-check-interval-secs", "2", "--health-failure-threshold", "2", "--log-level", "warning"]


def until_ready(url: str, token: str, router: subprocess.Popen[bytes]) -> None:
    """Until the router lists a model. SystemExit where it ends or time does first."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and router.poll() is None:
        try:
            asked = urllib.request.Request(f"{url}/models", headers={"authorization": f"Bearer {token}"})
            with urllib.request.urlopen(asked, timeout=10) as reply:
                if json.load(reply)["data"]:
                    return
        except (OSError, ValueError, KeyError):
            time.sleep(0.5)
    raise SystemExit(f"the router is not ready (ended with {router.poll()}): see its log")


def ask(judge: EndpointJudge, rows: list[Labelled]) -> list[Future[Verdict]]:
    return [judge.critique(row.problem, row.steps, row.answer, fresh=True) for row in rows]


def version(router: Path) -> str:
    code = "from importlib.metadata import version; print(version('vllm-router'))"
    return subprocess.run([str(router.with_name("python")), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main(arguments: Arguments) -> None:
    from record import machine

    rows = load_labelled(ARITH_SOLUTIONS, max_rows=arguments.questions)
    settings = {"max_tokens": 64, "concurrency": arguments.concurrency, "deadline": PATIENCE}
    serving = Serving(model=ROOT / "starts" / "judge", workers=2, eager=True, max_length=256)
    logs = ROOT / "runs" / "judge_router"
    with JudgeServers(serving, logs=logs) as servers, reserve_port() as held, (logs / "router.log").open("wb") as sink:
        servers.wait()
        servers.asleep = True  # nobody starts the dead one again
        port = held.getsockname()[1]
        words = command(arguments.router, port, [worker.root for worker in servers.workers], arguments.policy)
        held.close()
        started = time.monotonic()
        router = subprocess.Popen(words, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL)
        try:
            url = f"http://127.0.0.1:{port}/v1"
            until_ready(url, servers.token, router)
            with EndpointJudge(url, serving.name, **settings) as judge:
                judge.check()
                futures = ask(judge, rows)
                while judge.answered < len(rows) // 4:
                    time.sleep(0.01)
                victim = servers.workers[0]
                at, under_way = judge.answered, [worker[1] for worker in judge.stats()["workers"]]
                os.killpg(victim.process.pid, signal.SIGKILL)  # type: ignore[union-attr]
                verdicts, stats = [future.result(PATIENCE) for future in futures], judge.stats()
                seconds = time.monotonic() - started
            if victim.alive:
                raise SystemExit("the server was not killed")
            with EndpointJudge(servers.workers[1].url, serving.name, **settings) as judge:
                alone = [future.result(PATIENCE) for future in ask(judge, rows)]
        finally:
            router.kill()
            router.wait()
    record = {
        "router": version(arguments.router),
        "policy": arguments.policy,
        "questions": len(rows),
        "answered_when_killed": at,
        "under_way_when_killed": under_way[0],
        "seconds": round(seconds, 1),
        "unknown": dict(Counter(verdict.reason for verdict in verdicts if verdict.reason)),
        "unlike_the_server_alone": sum(verdict != other for verdict, other in zip(verdicts, alone, strict=True)),
        "kinds": dict(Counter(verdict.kind for verdict in verdicts)),
        **{name: stats[name] for name in ("requests", "retries", "ejections", "alive")},
    }
    print(json.dumps(record, indent=1))
    with (ROOT / "bench" / "results" / "judge_router.jsonl").open("a") as file:
        file.write(json.dumps(record | {"stamp": machine("cpu")}) + "\n")
    if record["unlike_the_server_alone"] or not under_way[0]:
        sys.exit("a verdict was lost or is another one, or nothing was under way")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
