"""A run that makes no progress names who waits for what and ends with a status that restarts; nobody is left behind; a slow one runs on.

Two gloo ranks with the timeline, watch, judge and verifier of the main job (`workers/steps.py`); the page is each fault's witness.
"""

import gc
import json
import re
import socket
import stat
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import PATIENCE, Alone, start
from fake_judge import MODEL, Server, find_flaw, hang
from test_stops import await_end

from soundrl.engine.launch import hang as watching
from soundrl.engine.launch.hang import Watch
from soundrl.engine.launch.hang_report import cause, has_an_end, report
from soundrl.engine.launch.last_words import RANK, RESTART
from soundrl.fapo import waiting
from soundrl.fapo.pending import PendingGroups
from soundrl.fapo.records import Prompt
from soundrl.fapo.waiting import announce, announced
from soundrl.genrm.pool.judge import EndpointJudge

HOST = socket.gethostname()


def hung(folder: Path, patience: float, **environment: str) -> tuple[str, str, list[int]]:
    """The line on the console, the page, and the ranks' processes."""
    command = [sys.executable, "tests/workers/steps.py", "--run.folder", str(folder)]
    done = start(command, 1200, NPROC="2", PATIENCE=str(patience), **environment)
    assert done.returncode == RESTART == 75, done.stdout + done.stderr
    pids = [int(line.split()[2]) for line in sorted(done.stdout.splitlines()) if line.startswith("ready")]
    await_end(pids)
    (path,) = (folder / "arith").glob("hang-*.txt")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (line,) = [line for line in done.stderr.splitlines() if line]
    late = min(silent - limit for silent, limit in silences(path.read_text()))
    assert late <= 5, "the bar: patience, or what was learnt, and 5 s"
    assert f" ({path}); nothing was saved yet, the same command begins again" in line and "\x1b" not in line + path.read_text()
    return line, path.read_text(), pids


def silences(page: str) -> list[tuple[int, int]]:
    """Of each rank that has answered: seconds of silence, and how many it might have."""
    return [(int(a), int(b)) for a, b in re.findall(r"^rank \d .* silent for (\d+) s of (\d+)$", page, re.MULTILINE)]


@pytest.mark.parametrize("which", [1, 0])
def test_a_stopped_rank_is_named_by_the_others(which, tmp_path):
    """Rank 0 holds the store as well."""
    line, page, pids = hung(tmp_path, 3.0, FAULT=f"3 {which} stop")
    why = f"rank {which} (process {pids[which]} on {HOST}) does not answer: it is stopped (SIGSTOP)"
    assert line.startswith(f"error: [rank {1 - which}, {HOST}] no progress on any rank for ") and f" s: {why} (" in line
    ((_, limit),) = silences(page)
    assert why in page and limit >= 3
    assert "in step 3, train" in page and re.search(r"in the collective all_reduce of tests/workers/steps\.py:\d+ main\n", page)
    assert re.search(r"^    engine/ranks\.py:\d+ sum$", page, re.MULTILINE)


def test_a_deadlocked_collective_is_named_with_both_places(tmp_path):
    line, page, _ = hung(tmp_path, 3.0, FAULT="3 1 skip")
    places = r"rank 0 in all_reduce of tests/workers/steps\.py:\d+ main \(step 3, train\); "
    places += r"rank 1 in recv of tests/workers/steps\.py:\d+ meet \(step 3, generate\)"
    assert re.search(places, line) and re.search(places, page), line
    assert len(silences(page)) == 2


def test_a_verdict_that_never_comes_and_a_comparison_that_stands_still(tmp_path):
    """A judge that is slow but alive is no hang: in step 2 rank 0 waits longer than `patience` for its verdicts, which come one by
    one, and rank 1 waits for rank 0."""
    turn, times = threading.Lock(), []

    def slow(handler, number: int) -> None:
        text = handler.body["messages"][0]["content"]
        if "never" in text:
            handler.server.broken_off.wait()  # nobody sets it
        else:
            with turn:
                time.sleep(1.5 if "step 2 of rank 0" in text else 0.0)
            times.append(time.monotonic())
            find_flaw(handler, number)

    judge = Server(slow)
    try:
        line, page, _ = hung(tmp_path, 5.0, JUDGE=judge.url, VERIFIES="01", FAULT="3 0 verdict;3 1 verifier")
    finally:
        judge.stop()
    assert len(times) == 3 * 8 and times[15] - times[7] > 5.0 and len(judge.bodies) == 24 + 4  # witness: nobody ended it
    id_ = r"p\\x1b\[31m-7"
    verdict = rf"rank 0 waits for the verdict of {id_} sample 0, asked \d+ s ago, and 3 more, judge {judge.url}, requests under way: 4"
    process = r"verifier process \d+ of \d+\.\d\d CPU seconds, with one answer for \d+ s, queued answers: 3"
    outcome = rf"rank 1 waits for the outcome of {id_} sample 0, and 3 more, {process} \(step 3, generate, wait\)"
    assert re.search(verdict, line) and re.search(outcome, line), line
    assert re.search(rf"^  waits for the verdict of {id_} sample 1, asked", page, re.MULTILINE)
    assert "in step 3, generate, wait for" in page


def page(where: str, collective: str = "", waits: tuple[str, ...] = (), asks: bool = True) -> dict:
    own = {"who": "rank ?", "silent": 61.0, "limit": 60.0, "where": where, "since": 61.0, "collective": collective}
    return own | {"place": "engine/a.py:1 f", "asks": asks, "waits": list(waits), "stacks": {"MainThread": ["engine/a.py:1 f"]}}


VERDICTS = ("the verdict of p 0, asked 61 s ago", "the verdict of p 1, asked 3 s ago", "judge http://h/v1: 2 requests under way")
CAUSES = {  # pages, missing: what is behind
    "one outside": ({0: page("s, train", "all_reduce of x"), 1: page("s", waits=VERDICTS)}, {}, "rank 1 waits for " + VERDICTS[0]),
    "verdicts that nobody waits for": ({0: page("s", waits=VERDICTS, asks=False)}, {}, "rank 0 stands in engine/a.py:1 f (s)"),
    "nothing that has a name": ({0: page("s"), 1: page("s")}, {}, "rank 0, 1 stands in engine/a.py:1 f (s)"),
    "all in one": ({0: page("s", "all_reduce of x"), 1: page("s", "all_reduce of x")}, {}, "rank 0, 1 in all_reduce of x (s)"),
    "one that does not answer": ({0: page("s"), 2: page("s")}, {1: "does not answer"}, "rank 1 does not answer"),
}


@pytest.mark.parametrize("case", CAUSES)
def test_who_is_behind(case):
    pages, missing, said = CAUSES[case]
    why = cause(pages, missing)
    assert why.startswith(said)
    assert f"No progress on any rank. {why}\n" in report(why, pages, missing)
    assert "\x1b" not in report("a", {0: page("s", waits=("\x1b[2J",))}, {})


@pytest.fixture
def watch(monkeypatch):
    monkeypatch.setattr(waiting, "_ALL", [])  # judges of other tests live until they are collected
    made = Watch(Alone(), patience=60.0)  # type: ignore[arg-type]
    yield made
    made.close()
    RANK.where, RANK.beaten = "start", time.monotonic()
    RANK.ended.clear()


def test_a_wait_that_has_an_end_is_told_once_and_no_hang(watch, tmp_path, capsys, monkeypatch):
    """Verdicts that are given up in time: a slow judge must not end a run."""
    monkeypatch.setattr(RANK, "home", tmp_path)
    pages = {0: page("step 3, judge_wait", waits=(f"{VERDICTS[0]}, given up in 240 s",)), 1: page("step 3, train", "all_reduce of x")}
    watch.places = [("", 0, 1, HOST), ("", 0, 1, HOST)]
    assert has_an_end(pages, {}) and not has_an_end(pages, {2: "does not answer"})
    assert not has_an_end({0: page("s", waits=VERDICTS), 1: pages[0]}, {}) and not has_an_end({1: pages[1]}, {})
    watch.tell(pages)
    watch.tell(pages)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: no progress on any rank for 61 s: rank 0 waits for the verdict of p 0, asked 61 s ago, given up in")
    assert line.endswith("; the run waits on") and str(tmp_path) in line
    (file,) = tmp_path.iterdir()
    assert "given up in 240 s" in file.read_text()
    RANK.beat()  # something came, and then nothing again
    file.unlink()
    watch.tell(pages)
    assert "the run waits on" in capsys.readouterr().err


def test_how_long_a_phase_may_be_silent(watch):
    RANK.where = "start"
    RANK.enter("step 1")
    RANK.enter("step 1, train")
    assert watch.limit == 600  # not gone through yet
    RANK.enter("step 1, train, judge_wait")
    assert "step, train" not in RANK.ended
    RANK.enter("step 1, train")
    RANK.enter("step 1")
    RANK.enter("step 2, train")
    assert RANK.ended >= {"step, train", "step, train, judge_wait"} and watch.limit == 60
    RANK.beaten -= 50
    watch.look()
    assert watch.limit == 60 and 50 <= watch.silent < 60  # it has not ended well yet
    RANK.beat()
    watch.look()
    assert 150 <= watch.limit < 170 and watch.hang() is None
    RANK.beaten -= 1000
    assert watch.hang()  # inverse


class Judge:
    answered = 7

    def waits(self) -> list[str]:
        return []


def test_an_answer_of_what_is_waited_for_is_a_beat(watch):
    judge, gone = Judge(), Judge()
    announce(judge)
    announce(gone)
    watch.look()
    RANK.beaten -= 50
    watch.look()
    assert watch.silent >= 50
    judge.answered += 1
    watch.look()
    assert watch.silent < 50
    RANK.beaten -= 50
    del gone  # what goes is no answer
    gc.collect()
    watch.look()
    assert watch.silent >= 50
    judge.answered += 1
    watch.look()
    assert watch.silent < 50


def test_what_came_before_the_watch_is_no_beat(watch):
    """A process that ran something else before: a judge of 7 answers."""
    judge = Judge()
    announce(judge)
    later = Watch(Alone(), patience=60.0)  # type: ignore[arg-type]
    try:
        RANK.beaten -= 50
        later.look()
        assert later.silent >= 50
        watch.look()  # inverse: the first one was there before it
        assert watch.silent < 50
    finally:
        later.close()


def test_only_a_rank_that_knows_the_secret_is_answered(watch):
    assert watch.server.server_address[0] == "127.0.0.1"
    assert watch.ask(0, "page")["where"] == RANK.where
    for words in (json.dumps({"secret": watch.secret[:-1], "what": "end"}), "GET / HTTP/1.1", '{"secret": 1}', "[]"):
        with socket.create_connection(watch.places[0][:2]) as stranger:
            stranger.sendall(words.encode() + b"\r\n")
            assert stranger.recv(1) == b""
    assert watch.ask(0, "page") is not None


def test_a_rank_that_cannot_be_reached_is_watched_by_nobody(capsys):
    """Else a firewall would look like a hang of all others."""

    class Two:
        rank, size, main = 0, 2, True

        def gather(self, value):
            if isinstance(value, list):
                return [value, [0]]
            (host, port, *rest), secret = value
            with socket.socket() as unused:
                unused.bind((host, 0))
                return [value, ((host, unused.getsockname()[1], *rest), secret)]

    watch = watching.watch_progress(Two(), 60.0)  # type: ignore[arg-type]
    assert not watch.threads[1].is_alive() and RANK.bereft() is False
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: no hang will be reported: rank 0, 1 cannot be reached on its own port")


def test_a_page_that_cannot_be_written_stands_on_the_console(tmp_path, monkeypatch):
    """Then nothing is said of a place, see `Watch.tell`; a disk that does not answer holds nobody."""
    assert watching.written("x") == ""
    monkeypatch.setattr(RANK, "folder", tmp_path / "gone")
    assert watching.written("x") == ""
    monkeypatch.setattr(RANK, "folder", tmp_path)
    said = watching.written("x")
    (path,) = tmp_path.iterdir()
    assert path.read_text() == "x" and said == f" ({path}); nothing was saved yet, the same command begins again"
    monkeypatch.setattr(watching, "ANSWER", 0.1)
    monkeypatch.setattr(watching, "kept", lambda folder: threading.Event().wait())
    assert watching.written("x") == ""


def test_what_is_missing_is_named():
    pending = PendingGroups([Prompt(id="p", text="", answer="")], lambda groups: None, decisive=True)
    assert pending in announced() and pending.waits() == [] and pending.answered == 0
    server = Server(hang)
    try:
        with EndpointJudge([server.url], MODEL, concurrency=1) as judge:
            questions = [judge.critique("x?", [str(n)], None) for n in range(3)]
            limit = time.monotonic() + PATIENCE  # they come to the pool one by one
            while judge.waits()[1:] != ["queued questions: 2"]:
                assert time.monotonic() < limit, judge.waits()
                time.sleep(0.01)
            assert judge.waits()[0] == f"judge {server.url}, requests under way: 1"
            assert judge.answered == 0
        assert all(question.result().reason == "closed" for question in questions) and judge.answered == 3
    finally:
        server.stop()
