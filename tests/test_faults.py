"""How a run ends before its time: which rank failed, of what and in which phase, is what a user reads last; nobody of ours runs on, nothing
half written stays. Most faults are met by a worker without training (`workers/faulty.py`), two by the main job itself."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PATIENCE, QUIET, ROOT, Alone, start
from transformers import AutoConfig

from soundrl.engine.config import Config, Run
from soundrl.engine.files.run_folder import RunFolder, locked
from soundrl.engine.files.run_reader import RunReader
from soundrl.engine.files.whole import whole
from soundrl.engine.launch import last_words
from soundrl.engine.launch.last_words import RANK, RESTART, ComeAgain, PlannedStop, Rank, UserError, explained, undone
from soundrl.engine.launch.launch import parse_arguments, users_mistakes
from soundrl.engine.launch.launcher import Child, report
from soundrl.engine.launch.words import kept
from soundrl.fapo.printable import one_line

HOST = socket.gethostname()
ONE, ZERO = f"error: [rank 1, {HOST}] ", f"error: [rank 0, {HOST}] "
IN = " in step 3, train"


def checkpoint(folder: Path, step: int) -> Path:
    """A whole one, as far as `kept` looks."""
    path = folder / "checkpoints" / f"step-{step:06d}"
    path.mkdir(parents=True)
    (path / "manifest.json").write_text("{}")
    return path


def faulty(folder: Path, fault: str, **environment: str) -> subprocess.CompletedProcess[str]:
    checkpoint(folder / "arith", 2)
    command = [sys.executable, "tests/workers/faulty.py", "--run.folder", str(folder)]
    return start(command, timeout=1200, FAULT=fault, NPROC="2", **environment)


FAULTS = {  # fault: (status, begin of the last line, in it as well, last but one lines hold)
    "1:raise memory": (1, ONE + "MemoryError: of the test and more" + IN, "error-rank1.txt", "Traceback (most recent call last)"),
    "0:raise runtime": (1, ZERO + "RuntimeError: of the test and more" + IN, "error-rank0.txt", "Traceback (most recent call last)"),
    "1:exit 0": (1, ONE + "ended with status 0" + IN, "kept: ", ""),
    "1:exit 7": (7, ONE + "ended with status 7" + IN, "kept: ", ""),
    "1:leave 0": (1, ONE + "left by sys.exit(0)" + IN, "error-rank1.txt", "SystemExit"),
    "0:kill SIGABRT": (134, ZERO + "died of SIGABRT" + IN, "kept: ", ""),
    "1:kill SIGSEGV": (139, ONE + "died of SIGSEGV" + IN, "kept: ", ""),
    "1:kill SIGKILL": (137, ONE + "died of SIGKILL (out of memory? `dmesg` says so)" + IN, "kept: ", ""),
    "0:kill SIGTERM": (143, ZERO + "died of SIGTERM" + IN, "kept: ", ""),
    "1:fork": (137, ONE + "died of SIGKILL", "kept: ", ""),
    "1:user data.train: no such file": (2, ONE + "data.train: no such file\n", "", ""),
    "0:again": (75, ZERO + "the judge has gone; kept: ", "; the same command goes on: python ", ""),
    "0:full": (1, ZERO + "no space left on device, or no inodes (rollouts/step-000003/rank-0.arrows.part); ", "kept: ", ""),
    "0:full-safetensors": (1, ZERO + "no space left on device, or no inodes; ", "kept: ", ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_failing_ranks_own_words_come_last(fault, tmp_path):
    """The other rank loses its neighbour, as gloo says it, and is silent about that."""
    status, begins, holds, before = FAULTS[fault]
    done = faulty(tmp_path, fault, OTHERS="lose")
    assert sorted(line.split()[1] for line in done.stdout.splitlines()) == ["0", "1"]  # witness: both ranks were there
    assert done.returncode == status, done.stderr
    last = done.stderr.splitlines(keepends=True)[-1]
    assert last.startswith(begins) and holds in last, done.stderr
    if holds == "kept: ":
        goes_on = "the same command goes on: python tests/workers/faulty.py --run.folder"
        assert f"kept: {tmp_path}/arith/checkpoints/step-000002; {goes_on}" in last
    assert done.stderr.count("Traceback") == bool(before) and before in done.stderr
    assert done.stderr.count("error: ") == 1 and "GLHF" not in done.stderr and "SignalException" not in done.stderr
    if "error-rank" in holds:
        (file,) = (tmp_path / "arith").glob("error-rank*.txt")
        assert "of the test" in file.read_text() or "SystemExit: 0" in file.read_text()
    assert not list((tmp_path / "arith").rglob("*.part"))


def test_where_all_lost_each_other_one_line_says_so(tmp_path):
    """A broken network, or a rank on another machine: its launcher says what happened there."""
    done = faulty(tmp_path, "9:none", OTHERS="lose")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: [rank 0, 1, {HOST}] lost the connection to another rank: ") and IN in last, done.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)])
def test_a_signal_to_the_launcher_ends_all_in_one_line(number, status, tmp_path):
    checkpoint(tmp_path / "arith", 2)
    command = [sys.executable, "tests/workers/faulty.py", "--run.folder", str(tmp_path)]
    away = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment = away | QUIET | {"NPROC": "2", "WAIT": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        pids = [int(process.stdout.readline().split()[2]) for _ in range(2)]
        process.send_signal(number)
        # Ends only when the ranks have closed it as well: a rank that stayed would hold the test here.
        _, said = process.communicate(timeout=1200)
    assert process.returncode == status
    if number == signal.SIGKILL:
        lines = sorted(said.splitlines())
        assert lines == [f"error: [rank {r}, {HOST}] the launcher has gone; ended{IN}" for r in (0, 1)]
    else:
        key = " (Ctrl-C)" if number == signal.SIGINT else ""
        (line,) = said.splitlines()
        assert line.startswith(f"stopped by {number.name}{key}{IN}; kept: {tmp_path}/arith/checkpoints/step-000002; the same command ")
    end = time.monotonic() + PATIENCE  # it closes its files a moment before it has gone
    while left := [pid for pid in pids if running(pid)]:
        assert time.monotonic() < end, f"{left} run on"
        time.sleep(0.05)
    assert not list(tmp_path.rglob("*.part"))


def test_ranks_end_though_nobody_reads_what_they_say(tmp_path):
    """The terminal was closed with the launcher in it."""
    command = [sys.executable, "tests/workers/faulty.py", "--run.folder", str(tmp_path)]
    environment = {key: value for key, value in os.environ.items() if key != "RANK"} | QUIET | {"NPROC": "2", "WAIT": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    pids = [int(process.stdout.readline().split()[2]) for _ in range(2)]
    process.stdout.close()
    process.stderr.close()
    process.kill()
    process.wait()
    limit = time.monotonic() + 60  # far: the worker itself would stay for two minutes
    while any(running(pid) for pid in pids) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not any(running(pid) for pid in pids)
    assert not list(tmp_path.rglob("*.part"))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_rank_that_is_stopped_is_ended_all_the_same(tmp_path):
    """It cannot hear anything but SIGKILL."""
    done = faulty(tmp_path, "0:kill SIGSTOP;1:exit 3")
    assert done.returncode == 3 and done.stderr.splitlines()[-1].startswith(ONE + "ended with status 3"), done.stderr


def test_without_a_loopback_interface_one_line_says_so():
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no right to make a network namespace")
    done = start(["unshare", "-n", sys.executable, "engine/train.py", "arith"], timeout=1200)
    assert done.returncode == 1
    assert done.stderr == "error: this machine has no loopback interface (Network is unreachable); try `ip link set lo up`\n"


def test_under_torchrun_a_rank_speaks_for_itself_and_torchrun_quotes_it(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    fault = {"FAULT": "1:user data.train: no such file", "OTHERS": "lose"}
    done = start([*launcher, "tests/workers/faulty.py", "--run.folder", str(tmp_path)], **fault)
    words = f"[rank 1, {HOST}] data.train: no such file"
    assert done.returncode != 0 and f"error: {words}\n" in done.stderr and "GLHF" not in done.stderr, done.stderr
    assert words in done.stderr[done.stderr.index("Root Cause") :]


def test_the_main_job_names_the_rank_the_step_and_the_phase(tmp_path):
    """With a real process group, whose other rank stands in a collective."""
    small = ("--warm-start.steps", "1", "--run.steps", "2", "--rollout.engine", "torch", "--rollout.prompts", "4", "--data.test")
    small += ("--optim.minibatch-prompts", "4", "--rollout.samples", "2", "--run.folder", str(tmp_path))
    done = start([sys.executable, "tests/workers/broken_train.py", "arith", *small], NPROC="2", FAULT="1 Trainer.count 2")
    assert done.returncode == 1 and "step    1/2" in done.stdout, done.stdout[-1000:] + done.stderr[-3000:]
    last = done.stderr.splitlines()[-1]
    assert last.startswith(ONE + "RuntimeError: a fault of the test in step 2, train (traceback in "), done.stderr[-3000:]
    assert f"; kept: {tmp_path}/arith/checkpoints/step-000000; the same command goes on: python tests/workers/broken_train.py arith" in last
    assert "GLHF" not in done.stderr and done.stderr.count("Traceback") == 1
    assert "in broken" in (tmp_path / "arith" / "error-rank1.txt").read_text()
    run = RunReader(tmp_path / "arith")
    assert run.steps() == [1] and len(run.rollouts(1)) == 8  # what was done is whole


def test_a_run_goes_on_from_its_own_export_under_the_same_name(torchrun, tmp_path):
    """The earlier run moves aside, and with it the policy that the new one starts from; where a file is missing it moves back."""
    small = ["arith", "--run.steps", "1", "--rollout.engine", "torch", "--rollout.prompts", "4", "--optim.minibatch-prompts", "4"]
    small += ["--rollout.samples", "2", "--data.test", "--run.folder", str(tmp_path), "--warm-start.steps"]
    export = tmp_path / "arith" / "policy" / "step-000001"
    again = [*small, "0", "--model.path", str(export), "--run.no-resume"]
    said = torchrun("runs", 2, runs=[[*small, "1"], [*again, "--data.test", "missing.jsonl"], again])
    assert said[0] is None and "missing.jsonl" in said[1] and said[2] is None
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("arith")) == ["arith", "arith.1"]
    assert json.loads((tmp_path / "arith" / "config.json").read_text())["model"]["path"] == str(tmp_path / "arith.1/policy/step-000001")
    assert (tmp_path / "arith.1" / "policy" / "step-000000").exists() and not (tmp_path / "arith" / "policy" / "step-000000").exists()


BAD_NAMES = ["", ".", "..", "../escaped", "/absolute", "sub/dir", "a\nb", "a\rb", "\x1b[31mred", "-x", " a", "a ", "[red]x[/red]", "\udc80"]
BAD_NAMES += ["fresh", "logs", ".hidden", "x.", "\x00", "\u202ereversed", "x" * 201, "ä" * 101]
GOOD_NAMES = ["arith", "two words", "Übung-3", "$HOME", "a.b_c+d=e", "[red]x", "{0}", "名前", "~", "*", "a\\b", "x" * 200]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_a_name_that_is_no_folders_name_is_refused(name):
    with pytest.raises(UserError, match=r"^(Error parsing Config: )?run\.name is ") as caught:
        parse_arguments(["arith", f"--run.name={name}"])
    assert one_line(str(caught.value)) == str(caught.value)


def test_a_long_path_is_not_broken_in_two():
    path = "/data/" + 60 * "long/" + "labelled.jsonl"
    with pytest.raises(UserError, match=f"^genrm.probe is {path} 3, but"):
        parse_arguments(["arith", "--genrm.probe", path, "3", "0"])


@pytest.mark.parametrize("name", GOOD_NAMES, ids=ascii)
def test_any_other_name_is_taken_as_it_stands(name):
    assert parse_arguments(["arith", f"--run.name={name}"]).run.name == name


def config_in(folder: Path, *arguments: str) -> Config:
    return parse_arguments(["arith", "--run.folder", str(folder), "--run.name", "x", *arguments])


def begun(folder: Path, *arguments: str) -> RunFolder:
    run = RunFolder(config_in(folder, *arguments), Alone())  # type: ignore[arg-type]
    with run.claimed():
        pass
    return run


@pytest.fixture(autouse=True)
def no_rank_is_left():
    yield
    RANK.home = RANK.folder = None
    assert not RANK.unfinished


def test_two_runs_never_write_to_one_folder(tmp_path):
    first = begun(tmp_path)
    with pytest.raises(ValueError, match=f"x is being written by process {os.getpid()} on {HOST}; wait for it, end it, or choose"):
        begun(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and (tmp_path / "x" / "metrics.jsonl").exists()
    first.close()
    begun(tmp_path).close()  # inverse: it has ended
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x", "x.1"]


def test_a_lock_of_a_process_that_died_is_taken_over(tmp_path):
    script = "import os, sys, pathlib; from soundrl.engine.files.run_folder import locked; "
    script += "locked(pathlib.Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    done = start([sys.executable, "-c", script, str(tmp_path)])
    assert done.returncode == -9 and "process" in (tmp_path / ".lock").read_text()  # witness: it held the lock
    locked(tmp_path).close()
    assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()


def test_a_preparation_that_fails_leaves_the_earlier_run_where_it_was(tmp_path):
    begun(tmp_path).close()
    (tmp_path / "x" / "metrics.jsonl").write_text("earlier")
    model = str(tmp_path / "x" / "policy" / "step-000001")
    run = RunFolder(config_in(tmp_path, "--model.path", model, "--genrm.model", "elsewhere"), Alone())  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError), run.claimed() as config:
        assert config.model.path == str(tmp_path / "x.1" / "policy" / "step-000001")
        assert config.genrm.model == "elsewhere" and config.data.train == ("arith",)
        assert (tmp_path / "x.1" / "metrics.jsonl").read_text() == "earlier"
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and (tmp_path / "x" / "metrics.jsonl").read_text() == "earlier"


@pytest.mark.parametrize("place", ["file/runs", "/proc/nowhere", "/sys/nowhere"])
def test_a_folder_that_cannot_be_made_is_named(place, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^run\.folder: cannot write .*; choose another one$"):
        begun(tmp_path / place)


def test_what_is_half_written_does_not_stay_nor_fill_up(tmp_path):
    target = tmp_path / "step-000001"
    (tmp_path / "step-000001.part").mkdir()
    (tmp_path / "step-000001.part" / "old-shard").write_text("of a killed run")
    with pytest.raises(OSError), whole(target) as beside:
        beside.mkdir()
        (beside / "new").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())
    with whole(target) as beside:
        beside.mkdir()
        (beside / "new").write_text("whole")
    assert [p.name for p in target.iterdir()] == ["new"] and not beside.exists()


def test_errors_of_the_machine_are_one_line_each(tmp_path, monkeypatch):
    monkeypatch.setattr(RANK, "home", tmp_path / "x")
    monkeypatch.setattr(RANK, "folder", tmp_path / "x")
    gone = FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "x" / "rollouts" / "step-000002" / "rank-0.arrows.part"))
    assert explained(gone, RANK)[2].startswith(f"{tmp_path}/x was deleted or moved while the run wrote to it")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text("{}")
    readonly = OSError(errno.EROFS, "Read-only file system", str(tmp_path / "x" / "metrics.jsonl"))
    assert explained(readonly, RANK)[:2] == ("user", 1) and "cannot write" in explained(readonly, RANK)[2]
    for error in (OSError(errno.ENOSPC, "x"), OSError(errno.EDQUOT, "x"), RuntimeError("I/O error: Disk quota exceeded (os error 122)")):
        assert explained(error, RANK)[:2] == ("user", 1) and "no space left on device" in explained(error, RANK)[2]
    # Inverse: an error that has nothing to do with the run's folder keeps its traceback.
    for error in (FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere"), KeyError("x"), RuntimeError("size mismatch")):
        assert explained(error, RANK)[0] == "failed"


def test_a_librarys_own_error_keeps_its_place():
    """A ValueError of torch or transformers in the preparation is one line to a user, and a traceback in a file to whoever mends it."""

    def mistake(cause: Exception | None) -> UserError:
        error = UserError("x")
        error.__cause__ = cause
        return error

    with pytest.raises(ValueError) as theirs:
        AutoConfig.for_model("no such type")
    with pytest.raises(ValueError) as ours:
        Run(name="x").name.index("y")
    assert last_words.foreign(mistake(theirs.value))
    assert not last_words.foreign(mistake(ours.value)) and not last_words.foreign(mistake(None))


def test_a_file_that_cannot_be_read_is_the_users_to_mend():
    for error, text in (
        (PermissionError(errno.EACCES, "Permission denied", "data.jsonl"), "data.jsonl: Permission denied"),
        (OSError("Can't load the tokenizer.\n\nMake sure"), "Can't load the tokenizer.\n\nMake sure"),
        (json.JSONDecodeError("no JSON", "", 0), "no JSON: line 1 column 1 (char 0)"),
    ):
        with pytest.raises(UserError) as caught, users_mistakes():
            raise error
        assert str(caught.value) == text and caught.value.__cause__ is error
    for error in (OSError(errno.ENOSPC, "full"), KeyError("x"), RuntimeError("x")):  # inverse
        with pytest.raises(type(error)) as caught, users_mistakes():
            raise error
        assert caught.value is error


def test_the_command_that_goes_on_begins_nothing_anew(tmp_path, monkeypatch):
    whole = checkpoint(tmp_path, 10)
    (tmp_path / "checkpoints" / "step-000012").mkdir()  # without its manifest
    checkpoint(tmp_path, 14).rename(tmp_path / "checkpoints" / "step-000014.part")
    monkeypatch.setattr(sys, "argv", ["engine/train.py", "arith", "--run.no-resume", "--no-run.resume", "--run.name", "two words"])
    command = "python engine/train.py arith --run.name 'two words'"
    assert kept(tmp_path) == f"; kept: {whole}; the same command goes on: {command}"
    assert kept(tmp_path / "none") == kept(None) == "; nothing was saved yet, the same command begins again"


def test_text_of_others_cannot_steer_the_terminal(capsys):
    assert one_line("a\n  b\x1b[2J\u202e\t[red]c") == "a b\\x1b[2J\\u202e [red]c"
    from soundrl.engine.telemetry.console import Progress

    name = "eval/[red]set[/red]/accuracy"
    Progress(True, 1).summary({name: 0.5}, {name: 0.5}, {}, "runs/[bold]x")
    shown = capsys.readouterr().out
    assert "[red]set[/red]: right" in shown and "runs/[bold]x" in shown


def test_undone_runs_once_and_only_where_the_block_does_not_end():
    ran: list[int] = []
    with undone(lambda: ran.append(1)):
        pass
    with pytest.raises(KeyError), undone(lambda: ran.append(2)):
        raise KeyError
    assert ran == [2] and not RANK.unfinished


class Ended:
    def __init__(self, returncode: int) -> None:
        self.returncode = returncode


def ended(rank: int, status: int, *words: str, at: float = 0.0, told: bool = False, done: bool = False) -> Child:
    child = Child.__new__(Child)
    child.rank, child.where, child.words, child.ended_at, child.folder = rank, "step 3, train", words or ("", "", ""), at, None  # type: ignore[assignment]
    child.process, child.done, child.told = Ended(status), done, told  # type: ignore[assignment]
    return child


AGAIN = ("again", "the judge has gone; kept: x", "")
PLANNED = ("stop", "stopped after step 3: saved", "")
LOST = ("lost", "lost the connection to another rank: closed in step 3, train", "")
NOTHING = "nothing was saved yet, the same command begins again"
REPORTS = {  # ranks: (status, lines)
    "all went through": ([ended(0, 0, done=True), ended(1, 0, done=True)], 0, []),
    "the same mistake": ([ended(r, 2, "user", "a file", "") for r in range(3)], 2, ["error: a file"]),
    "on two of three": (
        [*(ended(r, 2, "user", "a file", "") for r in (2, 1)), ended(0, 143, told=True)],
        2,
        [f"error: [rank 1, 2, {HOST}] a file"],
    ),
    "two mistakes": (
        [ended(0, 2, "user", "a", "", at=2), ended(1, 2, "user", "b", "", at=1)],
        2,
        [f"error: [rank 0, {HOST}] a", f"error: [rank 1, {HOST}] b"],
    ),
    "neighbour first": (
        [ended(0, 1, *LOST, at=1), ended(1, 1, "failed", "KeyError", "Traceback\n", at=2)],
        1,
        ["Traceback", f"error: [rank 1, {HOST}] KeyError; nothing was saved yet, the same command begins again"],
    ),
    "a fault that a restart mends": ([ended(r, 75, *AGAIN) for r in (0, 1)], 75, ["error: the judge has gone; kept: x"]),
    "who hangs is killed by who says so": (
        [ended(0, -9, at=1), ended(1, 75, *AGAIN, at=2), ended(2, 75, "lost", "", "", at=1)],
        75,
        [f"error: [rank 1, {HOST}] the judge has gone; kept: x"],
    ),
    "a fault beside it": (
        [ended(0, 7, "failed", "KeyError", "", at=1), ended(1, 75, *AGAIN, at=2)],
        7,
        [f"error: [rank 1, {HOST}] the judge has gone; kept: x", f"error: [rank 0, {HOST}] KeyError; {NOTHING}"],
    ),
    "a planned stop": ([ended(r, 0, *PLANNED, done=True) for r in (0, 1)], 0, [PLANNED[1]]),
    "NCCL aborts a neighbour later": (
        [ended(0, -6, at=9), ended(1, 7, at=2)],
        7,
        [
            f"error: [rank 0, {HOST}] died of SIGABRT in step 3, train; nothing was saved yet, the same command begins again",
            f"error: [rank 1, {HOST}] ended with status 7 in step 3, train; nothing was saved yet, the same command begins again",
        ],
    ),
}


@pytest.mark.parametrize("case", REPORTS)
def test_a_report_says_each_fault_once_and_the_first_last(case, capsys):
    children, status, lines = REPORTS[case]
    assert report(children) == status and capsys.readouterr().err.splitlines() == lines


STOPPED = f"stopped by SIGTERM in step 3, train; {NOTHING}"
STOPS = {  # ranks after a SIGTERM to the launcher: (status, line)
    "saved": ([ended(r, 0, *PLANNED, done=True) for r in (0, 1)], 0, PLANNED[1]),
    "done before": ([ended(r, 0, done=True) for r in (0, 1)], 0, None),
    "one has not ended": (
        [ended(0, 0, *PLANNED, done=True), ended(1, -9, told=True)],
        143,
        STOPPED,
    ),
    "at once": ([ended(r, 143, "signal", "", "") for r in (0, 1)], 143, STOPPED),
    "too late": (
        [ended(0, 143, "signal", "late; ", ""), ended(1, -9, told=True)],
        143,
        "late; " + STOPPED,
    ),
    "a fault on the way": ([ended(0, 7, "failed", "KeyError", ""), ended(1, 1, *LOST)], 7, f"error: [rank 0, {HOST}] KeyError; {NOTHING}"),
}


@pytest.mark.parametrize("case", STOPS)
def test_a_stop_is_one_line(case, capsys):
    children, status, line = STOPS[case]
    assert report(children, signal.SIGTERM) == status
    assert capsys.readouterr().err.splitlines() == [line] * (line is not None)


def test_a_fault_that_a_restart_mends_has_a_status_of_its_own():
    assert explained(ComeAgain("the judge has gone"), RANK) == ("again", RESTART, f"the judge has gone; {NOTHING}")
    assert RESTART == os.EX_TEMPFAIL and not issubclass(PlannedStop, ValueError)  # no user's mistake, see `users_mistakes`


def test_the_grace_counts_from_the_first_signal():
    rank = Rank()
    assert rank.left() == float("inf") and not rank.stops
    rank.grace, rank.stops = 600.0, True
    rank._ask(signal.SIGTERM)
    first = rank.asked_at
    rank._ask(signal.SIGINT)
    assert rank.asked == signal.SIGTERM and rank.asked_at == first and 0 < rank.left() <= 600
