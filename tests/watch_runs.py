"""The watch in the main job itself, on two ranks, with a judge on loopback: a run under an alarm waits, saved, until its judge is well, or
stops; one that was killed reports the same second opinions. `make kill-matrix`."""

import json
import re
import threading
from pathlib import Path

from fake_judge import MODEL, Handler, Script, Server, said
from survival import job, metrics, weights
from survival import said as console

from soundrl.engine.environments.arithmetic.chains import first_flaw, parse
from soundrl.engine.files.run_reader import RunReader
from soundrl.engine.recipes import ARITH_SOLUTIONS

PROBE, NEVER = 100 + 20 + 60, 10**9


def exact(handler: Handler) -> int:
    """What the world's oracle says of the solution in a question."""
    content = handler.body["messages"][0]["content"]
    problem = re.search(r"^\d+(?:[+\-*]\d+)+\?[12]$", content, re.MULTILINE)
    steps = re.findall(r"^<paragraph_\d+>\n(.*?)\n</paragraph_\d+>$", content, re.MULTILINE | re.DOTALL)
    if problem is None:  # a trial question
        return -1
    flaw = first_flaw(parse(problem[0] + "\n"), "\n".join(steps))
    return -1 if flaw is None else min(flaw[0], len(steps) - 1)


class Judge:
    """Exact, but for the second opinion (of three votes), which calls every solution with a 7 in it flawed. From the `bad`th question on it
    says sound to all, until a whole probe has been answered so."""

    def __init__(self, bad: int) -> None:
        self.bad, self.asked, self.lock = bad, 0, threading.Lock()

    def __call__(self, handler: Handler, number: int) -> None:
        at = exact(handler)
        if handler.body["temperature"] > 0:
            second = 0 if "7" in handler.body["messages"][0]["content"].rpartition("[Solution]")[2] else at
            handler.send(200, said(f"\\boxed{{{second}}}"))
            return
        with self.lock:
            self.asked += 1
            bad = self.bad <= self.asked < self.bad + 2 * PROBE
        handler.send(200, said(f"\\boxed{{{-1 if bad else at}}}"))


def watched(server: Server, *more: object, least: float = 0) -> tuple[object, ...]:
    settings = ("--genrm.judge", "endpoint", "--genrm.urls", server.url, "--genrm.model", MODEL, "--genrm.probe", ARITH_SOLUTIONS, 1, least)
    return (*settings, "--genrm.second", "votes", 0.5, *more)


def goes_bad(folder: Path, judge: Judge) -> Script:
    """From the first step on that stands in the run's metrics."""

    def script(handler: Handler, number: int) -> None:
        if judge.bad == NEVER and (folder / "metrics.jsonl").is_file() and "genrm/probe_f1" in (folder / "metrics.jsonl").read_text():
            judge.bad = judge.asked
        judge(handler, number)

    return script


def test_a_run_waits_for_a_judge_under_an_alarm_and_goes_on(tmp_path):
    judge = Judge(NEVER)
    server = Server(goes_bad(tmp_path / "arith", judge))
    done = job(tmp_path, *watched(server, "--genrm.alarm", "pause", "--run.eval-every", 0, "--run.steps", 3, least=0.85))
    server.stop()
    assert done.returncode == 0, console(done)
    assert judge.asked > judge.bad + 2 * PROBE  # witness: it was bad, and asked until it was well
    rows = [row for row in RunReader(tmp_path / "arith").metrics() if "genrm/alarm" in row]
    assert [row["genrm/alarm"] for row in rows] == [0.0, 1.0, 0.0]
    out = done.stdout
    assert "step 2: alarm: recall: the judge calls flawed solutions sound" in out, console(done)
    assert "the run waits for a judge that is well, and asks it again in 10 s" in out and "step 2: no alarm any more: " in out
    assert out.index("asks it again in 10 s") < out.index("no alarm any more") < out.index("step    3/3")
    for row in rows:
        both, agree = row["genrm/second_count"], row["genrm/second_agreement"]
        assert both > 0 and 0.0 <= agree < 1.0 and row["genrm/second_unknown"] == 0.0
    lines = [json.loads(line) for line in (tmp_path / "arith" / "disagreements.jsonl").read_text().splitlines()]
    kinds = sum(line["first"]["kind"] != line["second"]["kind"] for line in lines if line["step"] == 1)
    assert kinds == round(rows[0]["genrm/second_count"] * (1 - rows[0]["genrm/second_agreement"])) > 0
    assert lines == sorted(lines, key=lambda line: (line["step"], line["prompt_id"], line["sample"]))
    assert all(line["second"]["votes"] for line in lines) and {line["step"] for line in lines} >= {1, 2}


def test_a_run_stops_under_an_alarm_and_goes_on_when_its_judge_is_well(tmp_path):
    judge = Judge(NEVER)
    server = Server(goes_bad(tmp_path / "arith", judge))
    stop = watched(server, "--genrm.alarm", "stop", "--run.eval-every", 0, "--run.steps", 3)
    first = job(tmp_path, *stop)
    (error,) = (line for line in first.stderr.splitlines() if line.startswith("error: "))
    assert first.returncode == 2 and "step 2: the judge is under an alarm (genrm.alarm stop): recall: " in error, console(first)
    judge.bad = judge.asked  # still bad: it is asked, and nothing is trained
    again = job(tmp_path, *stop)
    assert again.returncode == 2 and "step 2: the judge is under an alarm" in again.stderr and "step    3/3" not in again.stdout, console(
        again
    )
    judge.bad = NEVER + 1  # for good
    done = job(tmp_path, *stop)
    server.stop()
    assert done.returncode == 0 and "step 2: no alarm any more: " in done.stdout and "step    3/3" in done.stdout, console(done)
    rows = [row for row in RunReader(tmp_path / "arith").metrics() if "genrm/alarm" in row]
    assert [(row["step"], row["genrm/alarm"]) for row in rows] == [(1, 0.0), (2, 1.0), (3, 0.0)]


def test_a_killed_run_reports_the_same_second_opinions(tmp_path):
    server = Server(Judge(NEVER))
    whole = job(tmp_path / "whole", *watched(server))
    killed = job(tmp_path / "killed", *watched(server), KILL="training,all,5", WITNESS=tmp_path / "witness")
    assert whole.returncode == 0 and killed.returncode != 0 and (tmp_path / "witness").exists(), console(killed)
    done = job(tmp_path / "killed", *watched(server))
    server.stop()
    assert done.returncode == 0, console(done)
    runs = [tmp_path / name / "arith" for name in ("killed", "whole")]
    for ours, theirs in zip(*map(metrics, runs), strict=True):
        assert ours == theirs and ours.get("genrm/alarm", 0.0) == 0.0
    assert weights(runs[0]) == weights(runs[1])

    def told(name: str) -> list[tuple]:
        lines = (tmp_path / name / "arith" / "disagreements.jsonl").read_text().splitlines()
        return [
            (row["step"], row["prompt_id"], row["sample"], row["first"]["kind"], row["second"]["step"]) for row in map(json.loads, lines)
        ]

    assert told("killed") == told("whole") and len({step for step, *_ in told("whole")}) == 6  # and the first evaluation
