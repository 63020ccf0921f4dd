"""A stop that was asked for: the run saves within its grace, says one line, and ends with status 0; a second signal and a grace that runs
out end it at once. Nothing of ours runs on. `workers/faulty.py` has no torch, `workers/steps.py` real ranks, judge and verifier."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PATIENCE, QUIET, ROOT, start

from soundrl.engine.launch.last_words import RESTART

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
AWAY = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TRITON_INTERPRET")


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def family(pid: int) -> list[int]:
    """A process and all that it has started, in whatever group and session."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents.setdefault(int(entry.read_text().rsplit(")", 1)[1].split()[1]), []).append(int(entry.parent.name))
    out = [pid]
    for each in out:
        out += parents.get(each, [])
    return out


def listening(pids: list[int]) -> set[str]:
    """The sockets on which these listen, by inode."""
    held = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    held.add(os.readlink(descriptor))
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in held}


def await_end(pids: list[int]) -> None:
    limit = time.monotonic() + PATIENCE  # who closes its files goes a moment later
    while left := [pid for pid in pids if running(pid)]:
        assert time.monotonic() < limit, f"{left} run on"
        time.sleep(0.05)


class Started:
    """A worker under way; what it says, on both channels, is read line by line."""

    def __init__(self, arguments: list[str], folder: Path, terminal: bool = False, **environment: str) -> None:
        self.said: list[str] = []
        environment = {k: v for k, v in os.environ.items() if k not in AWAY} | QUIET | {"NPROC": "2"} | environment
        command = [sys.executable, *arguments, "--run.folder", str(folder)]
        if terminal:
            pid, self.terminal = pty.fork()
            if pid == 0:
                os.chdir(ROOT)
                os.execve(command[0], command, environment)
            self.pid, self.out = pid, open(self.terminal, errors="replace", closefd=False)
        else:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            assert self.process.stdout is not None
            self.pid, self.out = self.process.pid, self.process.stdout

    def lines(self) -> Iterator[str]:
        with contextlib.suppress(OSError):  # a terminal without anybody behind it
            for line in self.out:
                self.said.append(line.rstrip("\r\n").replace("^C", ""))  # a terminal's echo, wherever it comes
                yield self.said[-1]

    def until(self, words: str) -> str:
        return next(line for line in self.lines() if words in line)

    def end(self) -> int:
        """The status, when all that was said has been read."""
        for _ in self.lines():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def of_stops(self) -> list[str]:
        """What was said but for the steps."""
        return [line for line in self.said if not line.startswith(("ready", "step", "saving"))]


def saved(folder: Path) -> list[Path]:
    return sorted((folder / "arith" / "checkpoints").glob("step-*/manifest.json"))


WORKER = ["tests/workers/faulty.py"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_saves_and_says_one_line(number, tmp_path):
    """Ctrl-C as a terminal sends it, which hears nothing of ranks in sessions of their own."""
    run = Started(WORKER, tmp_path, terminal=number == signal.SIGINT, WORKS="1")
    run.until("step 3 of rank 1")
    pids = family(run.pid)
    if number == signal.SIGINT:
        os.write(run.terminal, b"\x03")
    else:
        os.kill(run.pid, number)
    assert run.end() == 0, run.said
    first, last = run.of_stops()
    name = "SIGINT (Ctrl-C)" if number == signal.SIGINT else number.name
    assert first == f"stopping by {name}: saves within 25 s; a second signal ends at once"
    (manifest,) = saved(tmp_path)
    assert re.fullmatch(rf"stopped by {re.escape(name)} after step \d+: saved; kept: {manifest.parent}; the same command .*", last)
    assert last.endswith(f"goes on: python tests/workers/faulty.py --run.folder {tmp_path}")
    await_end(pids)
    assert len(pids) == 3 and not list(tmp_path.rglob("*.part"))


def test_a_run_saves_though_its_terminal_has_gone(tmp_path):
    """The kernel sends SIGHUP to the launcher alone, and whoever prints to that terminal from now on fails."""
    run = Started(WORKER, tmp_path, terminal=True, WORKS="1", SAVES="1")
    run.until("step 3 of rank 1")
    pids = family(run.pid)
    os.close(run.terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(run.pid, 0)[1]) == 0
    await_end(pids)
    assert len(saved(tmp_path)) == 1 and not list((tmp_path / "arith").glob("error*"))


def test_a_run_saves_though_its_reader_heard_the_same_signal(tmp_path):
    """`python engine/train.py | tee log`, Ctrl-C."""
    run = Started(WORKER, tmp_path, WORKS="1")
    run.until("step 3 of rank 1")
    pids = family(run.pid)
    run.out.close()
    os.kill(run.pid, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(run.pid, 0)[1]) == 0
    await_end(pids)
    assert len(saved(tmp_path)) == 1


@pytest.mark.parametrize(("grace", "again"), [(600, True), (1, False)])
def test_a_second_signal_and_the_end_of_the_grace_end_at_once(grace, again, tmp_path):
    run = Started(WORKER, tmp_path, WORKS="1", SAVES="600", GRACE=str(grace))
    run.until("step 3 of rank 1")
    pids = family(run.pid)
    os.kill(run.pid, signal.SIGTERM)
    run.until("saving")
    if again:
        os.kill(run.pid, signal.SIGTERM)  # timeout(1) and srun send one twice: no second one
        time.sleep(1.0)
        os.kill(run.pid, signal.SIGTERM)
    assert run.end() == 128 + signal.SIGTERM, run.said
    why = "" if again else "the grace of 1 s ran out (run.patience); "
    assert run.of_stops()[1:] == [f"{why}stopped by SIGTERM in save; nothing was saved yet, the same command begins again"]
    await_end(pids)
    assert not saved(tmp_path) and not list(tmp_path.rglob("*.part"))


def test_nothing_of_ours_runs_on(tmp_path):
    """Judges, verifiers, sockets, temporary files; ten seconds, as `docker stop` has it. Before that the run is paused for longer than its
    patience, which is no hang."""
    (tmp_path / "tmp").mkdir()
    run = Started(
        ["tests/workers/steps.py"], tmp_path, SERVE="1", VERIFIES="0", SLEEPS="0.3", GRACE="8", PATIENCE="4", TMPDIR=str(tmp_path / "tmp")
    )
    run.until("step 2")
    pids = family(run.pid)
    ranks = [int(line.split()[2]) for line in run.said if line.startswith("ready")]
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in ranks:
            os.kill(pid, number)
        time.sleep(6.0 if number == signal.SIGSTOP else 0.0)
    at = int(run.until("step").split()[1])
    run.until(f"step {at + 3}")
    sockets = listening(pids)
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids]
    assert sum(b"soundrl.fapo.verify.worker" in command for command in commands) == 2 and len(sockets) >= 3  # witness
    assert sum(b"fake_judge" in command for command in commands) == 2, commands
    asked = time.monotonic()
    os.kill(run.pid, signal.SIGTERM)  # rank 1 sleeps, and rank 0 stands in a collective
    assert run.end() == 0 and time.monotonic() < asked + 10, run.said
    assert "after step " in run.of_stops()[-1] and len(saved(tmp_path)) == 1
    await_end(pids)
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    assert not sockets & {row[9] for row in rows}
    assert all(path.name.startswith("torchinductor") for path in (tmp_path / "tmp").iterdir())  # torch's cache, kept on purpose


def test_under_torchrun_a_stop_saves_as_well(tmp_path):
    """Its agent hands the signal on."""
    run = Started([*TORCHRUN, "tests/workers/steps.py"], tmp_path, SLEEPS="0.3")
    run.until("step 2")
    pids = family(run.pid)
    os.kill(run.pid, signal.SIGTERM)
    run.end()
    said = "\n".join(run.said)
    assert said.count("stopping by SIGTERM: saves within 25 s") == said.count("stopped by SIGTERM after step ") == 1, said
    assert len(saved(tmp_path)) == 1
    await_end(pids)


def test_under_torchrun_a_dead_rank_ends_the_others(tmp_path):
    """Though they would save on the SIGTERM that ends them: no collective comes to an end any more."""
    began = time.monotonic()
    done = start([sys.executable, *TORCHRUN, "tests/workers/steps.py", "--run.folder", str(tmp_path)], FAULT="3 1 kill", GRACE="600")
    assert done.returncode not in (0, RESTART) and "step 2\n" in done.stdout and time.monotonic() < began + 300, done.stderr
    assert "Signal 9 (SIGKILL)" in done.stderr and not saved(tmp_path)
