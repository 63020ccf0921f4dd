"""What the inspector tells a person to do: each check is raised by a run that it is for, and by none that is well."""

import json
import os
import time

import pytest
from view_runs import metrics, write_config

from soundrl.engine.files.run_folder import RunFolder
from soundrl.view.advice import advice, alarms_of
from soundrl.view.checks import CHECKS
from soundrl.view.runs import Runs


def run_of(tmp_path, rows, **settings):
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, **settings)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = Runs(folder.parent).run("one")
    run.metrics.read()
    return run


def told(run, state="running", updated=None):
    return advice(run, state, time.time() if updated is None else updated)


WELL = [metrics(step) for step in range(1, 31)]


def after(step, **more):
    """Well, and from that step on otherwise."""
    return [metrics(n, **(more if n >= step else {})) for n in range(1, 31)]


EVALUATED = [
    {"step": n, "eval/a/accuracy": m, "eval/a/accuracy_low": m - 0.05, "eval/a/accuracy_high": m + 0.05} for n, m in ((0, 0.5), (30, 0.39))
]
RAISED = {  # rows, level, beginning of what is told, page of the link; rows that are just well enough
    "gate": (after(20, mismatch__gate=1.026), "alarm", "sampler and trainer drift apart: 52%", None, after(20, mismatch__gate=1.024)),
    "signal": (after(25, reward__groups_with_signal=0.4), "alarm", "60% of the groups train nothing", "#/run/one/step/30", after(25, reward__groups_with_signal=0.6)),
    "cut": (after(25, tokens__cut=0.26), "alarm", "26% of the responses are cut", "#/run/one/step/30?filter=cut", after(25, tokens__cut=0.24)),
    "unknown": (
        after(25, genrm__unknown=0.11, genrm__unknown_timeout=3.0, genrm__unknown_no_box=1.0), "alarm",
        "11% of the judged rollouts have no verdict: timeout 15, no_box 5", "#/run/one/step/30?filter=unknown", after(25, genrm__unknown=0.09),
    ),
    "verifier": (after(25, verify__unknown=0.5, verify__crash=4.0), "alarm", "the verifier failed for 50% of the rollouts: ", "#/run/one/step/30?filter=unknown", after(25, verify__unknown=0.05)),
    "phase": (after(30, time__train=25.0, time__step=31.0), "alarm", "train took 6 times its median", "#/run/one/step/30/anatomy", after(30, time__train=23.0, time__step=29.0)),
    "skipped": (after(30, optim__skipped=1.0), "alarm", "optimizer steps were left out", "#/run/one/step/30", after(30, optim__skipped=0.0)),
    "drift": (after(30, genrm__alarm=2.0), "alarm", "the judge's watch is under an alarm: the run's console", "#/run/one/judge", WELL),
    "worse": ([*WELL, *EVALUATED], "alarm", "the last evaluation is below the first", None, [*WELL, EVALUATED[0]]),
    "waiting": (after(20, time__judge_wait=2.5), "advice", "25% of a step is waiting for verdicts", "#/run/one/step/30/anatomy", after(20, time__judge_wait=1.9)),
    "ranks": (after(20, time__rank_wait=2.5), "advice", "25% of a step ranks wait", "#/run/one/step/30/anatomy", after(20, time__rank_wait=1.9)),
    "sync": (after(20, time__sync=2.6), "advice", "26% of a step brings weights", None, after(20, time__sync=2.4)),
    "entropy": (after(20, loss__entropy=0.12), "advice", "the policy's entropy has fallen by 76%", None, after(20, loss__entropy=0.13)),
    "clipped": (after(20, loss__clip_high=0.15, loss__clip_low=0.06), "advice", "21% of the tokens are clipped", None, after(20, loss__clip_high=0.19)),
    "latency": (after(30, genrm__latency_alarm=1.0), "note", "some critiques take very long", "#/run/one/judge", after(30, genrm__latency_alarm=0.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", RAISED)
def test_each_check_is_raised_and_is_not(tmp_path, name):
    rows, level, what, link, well = RAISED[name]
    found = told(run_of(tmp_path, rows))
    assert len(found) == 1 and found[0]["level"] == level and found[0]["what"].startswith(what) and found[0]["link"] == link, found
    assert found[0]["why"] and found[0]["do"]
    assert told(run_of(tmp_path, well)) == []


def test_a_run_that_is_well_or_has_just_begun_is_told_nothing(tmp_path):
    assert told(run_of(tmp_path, WELL)) == [] and told(run_of(tmp_path, WELL[:1])) == [] and told(run_of(tmp_path, [])) == []


def test_every_check_is_tested():
    """Those of files beside the metrics are below: a failed rank, a stall, rows left out, no probe."""
    assert len(CHECKS) == len(RAISED) + 4


def test_a_rank_that_has_failed(tmp_path):
    run = run_of(tmp_path, WELL)
    (run.path / "error-rank1.txt").write_text("Traceback (most recent call last):\n  File …\nRuntimeError: out of memory\n")
    assert told(run) == []  # it has been mended, and goes on
    found = told(run, "stopped")
    assert found[0]["what"] == "a rank has failed: error-rank1.txt: RuntimeError: out of memory"


def test_a_run_that_has_stalled(tmp_path):
    run = run_of(tmp_path, WELL)
    assert told(run, "running", time.time() - 1000) == []
    (run.path / "hang-20261129-0712.txt").write_text("rank 0 waits for verdicts\nmore\n")
    found = told(run, "stalled", time.time() - 1000)
    assert found[0]["what"] == "nothing new for 100 times a usual step; hang-20261129-0712.txt: rank 0 waits for verdicts"


def test_notes_of_what_is_missing(tmp_path):
    run = run_of(tmp_path, WELL)
    (run.path / "left_out.jsonl").write_text("{}\n")
    config = json.loads((run.path / "config.json").read_text())
    config["genrm"]["probe"] = ["", 0]
    (run.path / "config.json").write_text(json.dumps(config))
    os.utime(run.path / "config.json", (1, 1))
    assert [found["what"] for found in told(run)] == ["no probe watches the judge", "rows of the data were left out"]


def test_advice_waits_until_no_alarm_stands(tmp_path):
    rows = after(20, time__judge_wait=2.5, genrm__latency_alarm=1.0)
    assert [found["level"] for found in told(run_of(tmp_path, rows))] == ["advice", "note"]
    rows = after(20, time__judge_wait=2.5, genrm__latency_alarm=1.0, tokens__cut=0.5, optim__skipped=1.0)
    assert [found["level"] for found in told(run_of(tmp_path, rows))] == ["alarm", "alarm"]


def test_alarms_of_the_watch_are_on_the_disk(tmp_path):
    """As the run's folder writes them: when they change; and what an interrupted run has written behind its state is written again."""
    from dataclasses import replace
    from types import SimpleNamespace

    from soundrl.engine.launch.last_words import RANK
    from soundrl.engine.recipes import RECIPES

    base = RECIPES["arith-genrm"]()
    base = replace(base, run=replace(base.run, folder=str(tmp_path / "runs"), name="one"))
    ranks, before = SimpleNamespace(rank=0, size=1, main=True, gather=lambda value: [value]), (RANK.home, RANK.folder)
    first = RunFolder(base, ranks)  # type: ignore[arg-type]
    with first.claimed():
        pass
    for step, standing in (
        (1, {}),
        (2, {"steps": "steps: 2.1"}),
        (3, {"steps": "steps: 2.1"}),
        (4, {"steps": "steps: 2.1", "jumped": "jumped: 0.4"}),
        (5, {}),
    ):
        first.log(step, {"reward/mean": 0.5})
        first.alarms(step, standing)
    file = tmp_path / "runs" / "one" / "alarms.jsonl"
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [2, 4, 5]
    run = Runs(tmp_path / "runs").run("one")
    assert alarms_of(run) == [[2, "steps: 2.1"], [4, "jumped: 0.4"]] and run.alarms.standing() == {}
    marks = first.mark(4)
    first.close()
    (tmp_path / "runs" / "one" / "underway").mkdir()
    (tmp_path / "runs" / "one" / "underway" / "starts").write_text("1\n")
    again = RunFolder(base, ranks)  # type: ignore[arg-type]
    with again.claimed():
        assert again.goes_on
        again.marks = marks
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [2, 4]
    again.alarms(5, {"jumped": "jumped: 0.4", "steps": "steps: 2.1"})  # stand already
    assert len(file.read_text().splitlines()) == 2
    again.close()
    RANK.home, RANK.folder = before
    run.metrics.read()
    found = told(run)
    assert found[0]["what"] == "the judge's watch is under an alarm: steps: 2.1; jumped: 0.4" and alarms_of(run)[0][0] == 2


def test_alarms_of_a_run_that_wrote_no_texts(tmp_path):
    run = run_of(tmp_path, after(25, genrm__alarm=1.0))
    assert alarms_of(run) == [[25, "1 alarms of the judge's watch; the run's console says which"]]
