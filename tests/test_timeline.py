"""What is hidden, idle and critical, on hand-made traces; and the file that a killed run leaves."""

import json
import time

import pytest

from soundrl.engine.phases import hidden, shares, union
from soundrl.engine.telemetry.timeline import Timeline, TraceFile
from soundrl.engine.tools.trace import exclusive, read_trace, steps_of


class Alone:
    def sum(self, values: list[float]) -> list[float]:
        return values


def phase(rank: int, name: str, start: float, end: float) -> dict:
    return {"name": name, "cat": "phase", "ph": "X", "ts": start * 1e6, "dur": (end - start) * 1e6, "pid": rank, "tid": 0}


def call(rank: int, name: str, start: float, end: float) -> list[dict]:
    base = {"name": name, "cat": "judge", "id": f"{rank}/{name}", "pid": rank, "tid": 0}
    return [base | {"ph": "b", "ts": start * 1e6}, base | {"ph": "e", "ts": end * 1e6}]


# Two ranks, a step of 10 s. Rank 0 samples longer, so rank 1 waits for it; rank 1's judge is the slower one.
HAND_MADE = [
    *(phase(0, "step", 0, 10), phase(0, "generate", 0, 4), phase(0, "rank_wait", 4, 4)),
    *(phase(0, "judge_wait", 5, 6), phase(0, "train", 4, 9), phase(0, "sync", 9, 10)),
    *(phase(1, "step", 0, 10), phase(1, "generate", 0, 3), phase(1, "rank_wait", 3, 4)),
    *(phase(1, "judge_wait", 7, 9), phase(1, "train", 4, 9), phase(1, "sync", 9, 10)),
    *(*call(0, "a 0", 1, 3), *call(0, "a 1", 2, 4), *call(0, "b 0", 5, 6)),
    *call(1, "c 0", 2, 8),
]


def test_a_hand_made_trace():
    (row,) = steps_of(HAND_MADE)
    assert row["seconds"] == 10
    assert row["share/generate"] == pytest.approx(0.35)
    assert row["share/train"] == pytest.approx((4 + 3) / 20)  # without the waits inside it
    assert row["idle"] == pytest.approx((1 + 1 + 2) / 20)
    # Rank 0 judges from 1 to 4 and from 5 to 6 and waits 1 s of it; rank 1 judges from 2 to 8 and waits from 7 on, 1 s of it.
    assert row["overlap"] == pytest.approx(1 - (1 + 1) / (4 + 6))
    path = {name[5:]: row[name] for name in row if name.startswith("path/")}
    assert path == {"generate": 4, "judge_wait": 1, "train": 4, "sync": 1}  # all of rank 0, which nobody waited for: 10 s
    assert sum(path.values()) == row["seconds"]


def test_hidden_counts_what_is_judged_once():
    assert hidden([], [(0, 1)]) == (0, 1)
    assert hidden([(0, 1)], [(0, 1)]) == (1, 1)  # serial: nothing hidden
    assert hidden([(0, 5), (4, 6)], [(1, 2), (1, 3), (7, 9)]) == (2, 4)
    assert hidden([(0, 5)], []) == (0, 0)
    assert union([(3, 5), (0, 2), (1, 2.5)]) == [(0, 2.5), (3, 5)]


def test_phases_nest_and_reach_the_trace(tmp_path):
    timeline = Timeline()
    timeline.begin(3)
    with timeline("step"):
        with timeline("train"):
            with timeline("judge_wait"):
                time.sleep(0.02)
            with timeline.detail("micro-batch"):
                pass
    now = time.perf_counter()
    said = timeline.judged([("p 0", now - 1.0, now)], Alone())
    taken = timeline.take()
    assert taken["time/judge_wait"] >= 0.02 > taken["time/train"] and taken["time/step"] >= taken["time/judge_wait"] + taken["time/train"]
    assert 0.9 < said["genrm/overlap"] < 1 - 0.02 + 1e-3
    assert timeline.judged([], Alone()) == {}
    file = TraceFile(tmp_path / "trace.json")
    file.add(timeline.drain())
    assert timeline.drain() == []
    cut_off = (tmp_path / "trace.json").read_text()
    events = read_trace(tmp_path / "trace.json")
    assert [event["name"] for event in events] == ["judge_wait", "micro-batch", "train", "step", "p 0", "p 0"]
    assert {event["pid"] for event in events} == {3} and abs(events[0]["ts"] / 1e6 - time.time()) < 60
    (tmp_path / "torn.json").write_text(cut_off + '{"name": "half')
    assert read_trace(tmp_path / "torn.json") == events
    file.close()
    assert json.loads((tmp_path / "trace.json").read_text())[:-1] == events  # a whole file is plain JSON
    assert read_trace(tmp_path / "trace.json")[:-1] == events
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="is no trace of a run"):
        read_trace(tmp_path / "other.json")


def test_shares_in_one_line():
    metrics = {
        "time/step": 2.0,
        "time/generate": 1.0,
        "time/train": 0.6,
        "time/judge_wait": 0.1,
        "time/evaluate": 9.0,
        "genrm/overlap": 0.94,
    }
    assert shares(metrics) == "2.0 s: generate 50%, train 30%, judge wait 5%, judging hidden 94%"
    assert exclusive([phase(0, "train", 0, 2), phase(0, "judge_wait", 1, 2)]) == {"train": 1e6, "judge_wait": 1e6}
