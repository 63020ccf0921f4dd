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
STEP = "#/run/one/step/30"
Rows = list[dict[str, float]]
RAISED: dict[str, tuple[Rows, str, str, str | None, Rows]] = {}
"""By a name: rows, level, beginning of what is told, link; and rows that are just well enough"""


def raised(name: str, level: str, what: str, link: str | None, bad: Rows, well: Rows) -> None:
    RAISED[name] = (bad, level, what, link, well)


raised("gate", "alarm", "sampler and trainer drift apart: 52%", None, after(20, mismatch__gate=1.026), after(20, mismatch__gate=1.024))
signal = [after(25, reward__groups_with_signal=share) for share in (0.4, 0.6)]
raised("signal", "alarm", "60% of the groups train nothing", STEP, *signal)
raised("cut", "alarm", "26% of the responses are cut", f"{STEP}?filter=cut", after(25, tokens__cut=0.26), after(25, tokens__cut=0.24))
reasons = after(25, genrm__unknown=0.11, genrm__unknown_timeout=3.0, genrm__unknown_no_box=1.0)
what = "11% of the judged rollouts have no verdict: timeout 15, no_box 5"
raised("unknown", "alarm", what, f"{STEP}?filter=unknown", reasons, after(25, genrm__unknown=0.09))
crashed, few = after(25, verify__unknown=0.5, verify__crash=4.0), after(25, verify__unknown=0.05)
raised("verifier", "alarm", "the verifier failed for 50% of the rollouts: crash 20", f"{STEP}?filter=unknown", crashed, few)
long, usual = after(30, time__train=25.0, time__step=31.0), after(30, time__train=23.0, time__step=29.0)
raised("phase", "alarm", "train took 6 times its median", f"{STEP}/anatomy", long, usual)
raised("skipped", "alarm", "optimizer steps were left out", STEP, after(30, optim__skipped=1.0), after(30, optim__skipped=0.0))
raised("drift", "alarm", "the judge's watch is under an alarm: the run's console", "#/run/one/judge", after(30, genrm__alarm=2.0), WELL)
raised("worse", "alarm", "the last evaluation is below the first", None, [*WELL, *EVALUATED], [*WELL, EVALUATED[0]])
waiting = [after(20, time__judge_wait=seconds) for seconds in (2.5, 1.9)]
raised("waiting", "advice", "25% of a step is waiting for verdicts", f"{STEP}/anatomy", *waiting)
ranks = [after(20, time__rank_wait=seconds) for seconds in (2.5, 1.9)]
raised("ranks", "advice", "25% of a step ranks wait", f"{STEP}/anatomy", *ranks)
raised("sync", "advice", "26% of a step brings weights", None, after(20, time__sync=2.6), after(20, time__sync=2.4))
fallen = [after(20, loss__entropy=nats) for nats in (0.12, 0.13)]
raised("entropy", "advice", "the policy's entropy has fallen by 76%", None, *fallen)
clipped, less = after(20, loss__clip_high=0.15, loss__clip_low=0.06), after(20, loss__clip_high=0.19)
raised("clipped", "advice", "21% of the tokens are clipped", None, clipped, less)
late = [after(30, genrm__latency_alarm=alarms) for alarms in (1.0, 0.0)]
raised("latency", "note", "some critiques take very long", "#/run/one/judge", *late)


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
