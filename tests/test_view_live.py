"""The inspector beside a run that goes on: it reads what is new, holds no lock, writes nothing, and forgets what it need not hold."""

import fcntl
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from view_runs import group_of, metrics, write_run, write_step, write_trace

from soundrl.engine.files.run_folder import locked
from soundrl.view import lock, trace_index
from soundrl.view import run as run_of
from soundrl.view.api import answer
from soundrl.view.cache import Cache
from soundrl.view.labels import put
from soundrl.view.lock import holder
from soundrl.view.runs import Runs
from soundrl.view.tail import Tail

HOLD = "import sys, fcntl, os, socket\nf = open(sys.argv[1], 'a+')\nfcntl.flock(f, fcntl.LOCK_EX)\nf.truncate(0)\n"
HOLD += "f.write(f'process {os.getpid()} on {socket.gethostname()}\\n')\nf.flush()\nprint('held', flush=True)\nsys.stdin.read()\n"


@pytest.fixture
def root(tmp_path):
    write_run(tmp_path / "runs" / "one")
    return tmp_path / "runs"


def test_a_run_that_goes_on_is_known_by_its_lock(root):
    file, runs = root / "one" / ".lock", Runs(root)
    assert holder(root / "one") == "free"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        assert holder(root / "one") == "held" and answer(runs, "runs.json", {})["runs"][0]["state"] == "running"
        assert answer(runs, "runs.json", {})["runs"][0]["eta"] == 10.0  # one step of ten seconds is left
        old = time.time() - 3600
        for name in ("metrics.jsonl", "trace.json"):
            os.utime(root / "one" / name, (old, old))
        page = answer(runs, "one/run.json", {})
        assert page["state"] == "stalled" and page["advice"][0]["what"].startswith("nothing new for 360 times")
        other.kill()
    assert holder(root / "one") == "free" and answer(runs, "runs.json", {})["runs"][0]["state"] == "stopped"


def test_a_lock_of_another_machine_is_not_seen(root):
    runs = Runs(root)
    (root / "one" / ".lock").write_text("process 1 on elsewhere\n")
    assert holder(root / "one") == "elsewhere" and answer(runs, "runs.json", {})["runs"][0]["state"] == "running"  # its files are new
    old = time.time() - 3600
    for name in ("metrics.jsonl", "trace.json"):
        os.utime(root / "one" / name, (old, old))
    assert answer(runs, "runs.json", {})["runs"][0]["state"] == "stopped"


def test_another_process_of_that_number_holds_nothing(root, tmp_path, monkeypatch):
    file = root / "one" / ".lock"
    file.write_text(f"process {os.getpid()} on {os.uname().nodename}\n")
    listed = tmp_path / "locks"
    monkeypatch.setattr(lock, "LISTED", listed)
    inode = file.stat().st_ino
    for line, held in (
        (f"FLOCK  ADVISORY  WRITE {os.getpid()} 00:01:{inode} 0 EOF", "held"),
        (f"FLOCK  ADVISORY  WRITE 1 00:01:{inode} 0 EOF", "free"),
    ):
        listed.write_text(f"1: {line}\n")  # a layered file system, which names another device
        assert holder(root / "one") == held


def test_a_run_that_begins_is_never_in_the_way(root):
    """A hundred times: the inspector looks all the while, and the run's own lock is had at once."""
    runs, stop, looks = Runs(root), threading.Event(), []

    def look():
        while not stop.is_set():
            looks.append(answer(runs, "runs.json", {})["runs"][0]["state"])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(100):
            locked(root / "one").close()  # ValueError where it cannot be had
    finally:
        stop.set()
        thread.join()
    assert looks  # witness
    held = (root / "one" / ".lock").open("a+")
    fcntl.flock(held, fcntl.LOCK_SH)  # what a look must not do: with it the run could not begin
    with pytest.raises(ValueError, match="is being written by"):
        locked(root / "one")
    held.close()


def test_new_steps_are_seen(root):
    runs = Runs(root)
    assert answer(runs, "one/series.json", {})["steps"] == [1, 2, 3]
    assert answer(runs, "one/run.json", {})["steps"]["train"] == [1, 2, 3]
    with (root / "one" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics(4))[:40])  # a line that is being written
        file.flush()
        assert answer(runs, "one/series.json", {"after": "3"})["steps"] == []
        file.write(json.dumps(metrics(4))[40:] + "\n")
    write_step(root / "one", 4, [[group_of("p:0", "ssww")]])
    write_trace(root / "one", 4)
    assert answer(runs, "one/series.json", {"after": "3"})["steps"] == [4]
    page = answer(runs, "one/run.json", {})
    assert page["steps"]["train"] == [1, 2, 3, 4] and page["state"] == "ended" and page["step"] == 4
    assert answer(runs, "one/step-000004/train.json", {})["groups"][0]["cells"] == "ssww"
    assert answer(runs, "one/step-000004/anatomy.json", {})["begin"] == 1_700_000_030.0


def test_a_step_that_is_being_written_is_read_anew(root):
    runs, folder = Runs(root), root / "one" / "rollouts" / "step-000004"
    write_step(root / "one", 4, [[group_of("p:0", "ssww"), group_of("p4:1", "ffww")]])
    whole = folder / "rank-0.arrows"
    data = whole.read_bytes()
    part = folder / "rank-0.arrows.part"
    whole.rename(part)
    part.write_bytes(data[: len(data) // 2])
    first = answer(runs, "one/step-000004/train.json", {})
    assert [group["cells"] for group in first["groups"]] == ["ssww"] and "read up to rollout 4" in first["faults"][0]
    part.write_bytes(data)
    part.rename(whole)
    second = answer(runs, "one/step-000004/train.json", {})
    assert [group["cells"] for group in second["groups"]] == ["ssww", "ffww"] and second["faults"] == []
    assert [place[0] for place in answer(runs, "one/prompt.json", {"id": "p4:1"})["places"]] == [4]


def test_a_run_that_begins_anew_forgets_the_old_one(root):
    runs = Runs(root)
    assert answer(runs, "one/series.json", {})["steps"] == [1, 2, 3] and answer(runs, "one/step-000003/anatomy.json", {})["ranks"]
    assert answer(runs, "one/judge.json", {})["disagreements"]
    (root / "one" / "metrics.jsonl").write_text(json.dumps(metrics(1, reward__correct=0.125)) + "\n")
    (root / "one" / "disagreements.jsonl").write_text("")
    write_trace(root / "one", 1)
    page = answer(runs, "one/series.json", {})
    assert page["steps"] == [1] and page["series"]["reward/correct"] == [0.125]
    assert answer(runs, "one/judge.json", {})["disagreements"] == []
    assert answer(runs, "one/step-000003/anatomy.json", {})["ranks"] == []  # the trace knows nothing of it any more


def test_a_longer_file_with_another_beginning_is_another_file(tmp_path):
    file, lines = tmp_path / "x.jsonl", []
    tail = Tail(file, lambda at, line: lines.append((at, line)), lines.clear)
    assert tail.read()  # not there
    file.write_text("one\ntwo\n")
    assert tail.read() and lines == [(0, b"one"), (4, b"two")]
    file.write_text("une\ndeux\ntrois\n")
    assert tail.read() and [line for _, line in lines] == [b"une", b"deux", b"trois"]
    with file.open("a") as more:
        more.write("quatre\ncin")
    assert tail.read() and [line for _, line in lines][3:] == [b"quatre"]


def test_nothing_is_written_and_nothing_needs_to_be(root):
    """Every page of a folder that nobody may write to, whose files are the same afterwards."""
    runs = Runs(root)
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in root.rglob("*") if file.is_file()}
    folders = [root, *(folder for folder in root.rglob("*") if folder.is_dir())]
    for path in (*before, *folders):
        path.chmod(0o444 if path in before else 0o555)
    try:
        for name in (
            "run",
            "series",
            "judge",
            "step-000002/train",
            "step-000002/train/group-0",
            "step-000002/train/rollout-0-1",
            "step-000002/anatomy",
        ):
            assert answer(runs, f"one/{name}.json", {})
        assert answer(runs, "one/find.json", {"q": "68"})["hits"] and answer(runs, "one/prompt.json", {"id": "p:0"})["places"]
        assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in root.rglob("*") if file.is_file()} == before
    finally:
        for path in (*folders, *before):
            path.chmod(0o755)


def label(said, **more):
    return {"step": 2, "kind": "train", "g": 0, "sample": 1, "label": said, **more}


def test_labels_are_written_and_taken_back(root):
    run = Runs(root).run("one")
    assert put(run, label(2)) == {"label": 2}
    row = json.loads((root / "one" / "labels.jsonl").read_text())
    assert row["id"] == "2/p:0/1" and row["label"] == 2 and row["steps"][2] == "68+7=85" and row["answer"] == "1"
    assert answer(Runs(root), "one/step-000002/train/rollout-0-1.json", {})["label"] == 2
    put(run, label(-1))
    assert run.labels.of("2/p:0/1") == -1
    put(run, label(None))
    assert run.labels.of("2/p:0/1") is None and not (root / "one" / "labels.jsonl").exists()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (label(5), "no paragraph of the 5"), (label(-2), "no paragraph"), (label(0, sample=2), "has not been judged"),
        (label(0, g=9), "no group 9"),
        (label(0, step=9), "no rollouts of step 9"), (label(True), "whole numbers"), (label(0.0), "whole numbers"),
        (label(0, g="0"), "whole numbers"),
        (label(0, more=1), "nothing else"), ([], "is an object"), (label(0, kind=3), "kind is a word"), (label(0, kind="../x"), "no kind"),
    ],
)  # fmt: skip
def test_what_is_no_label_is_refused(root, said, why):
    with pytest.raises(ValueError, match=why):
        put(Runs(root).run("one"), said)
    assert not (root / "one" / "labels.jsonl").exists()


def test_two_writers_lose_nothing(root):
    runs = Runs(root)
    told = [
        label(-1, step=step, g=g, sample=sample) for step in (1, 2, 3) for g, samples in ((0, (0, 1)), (1, (0, 1))) for sample in samples
    ]
    threads = [threading.Thread(target=lambda part=part: [put(runs.run("one"), said) for said in part]) for part in (told[::2], told[1::2])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs.run("one").labels.all()) == len(told) == 12


def test_the_cache_is_bounded_in_bytes(root, monkeypatch):
    class Of:
        def __init__(self, size):
            self.size = size

    cache = Cache(100)
    assert cache("a", 1, lambda: Of(60)).size == 60 and cache("a", 1, lambda: Of(1)).size == 60
    assert cache("a", 2, lambda: Of(50)).size == 50 and cache.bytes == 50  # another stamp: read anew
    cache("b", 1, lambda: Of(40))
    cache("a", 2, lambda: Of(0))
    cache("c", 1, lambda: Of(40))
    assert list(cache.held) == ["a", "c"] and cache.bytes == 90  # the longest unused went
    assert cache("d", 1, lambda: Of(101)).size == 101 and "d" not in cache.held
    small = Cache(15_000)
    monkeypatch.setattr(run_of, "STEPS", small)
    runs = Runs(root)
    for step in (1, 2, 3, 1):
        answer(runs, f"one/step-{step:06d}/train.json", {})
    assert 0 < small.bytes <= 15_000 and len(small.held) == 2


def test_a_trace_that_is_not_read_yet_is_said(root, monkeypatch):
    """Its thread is slow here: the page comes all the same, with how far it is; and later with all."""
    gate, read = threading.Event(), trace_index.marks_in

    def slow(chunk, base):
        gate.wait(20)
        return read(chunk, base)

    monkeypatch.setattr(trace_index, "marks_in", slow)
    monkeypatch.setattr(trace_index, "PATIENCE", 0.05)
    runs = Runs(root)
    page = answer(runs, "one/run.json", {})
    assert page["time"]["phases"] == [] and page["faults"] == ["trace.json is being read: 0% so far; load the page again"]
    gate.set()
    index = runs.run("one").trace
    while index.thread is not None:
        time.sleep(0.01)
    page = answer(runs, "one/run.json", {})
    assert page["time"]["steps"] == 3 and page["faults"] == []


def test_a_trace_in_chunks_is_the_same(root, monkeypatch):
    whole = answer(Runs(root), "one/step-000002/anatomy.json", {})
    monkeypatch.setattr(trace_index, "CHUNK", 700)
    assert answer(Runs(root), "one/step-000002/anatomy.json", {}) == whole
