"""Shared helpers: worker processes under torchrun with gloo, tiny models, and uninitialised memory filled with NaN."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# Before the first import of triton, which decides then: kernels run interpreted in this process unless told otherwise (tests/gpu/run.sh);
# child processes choose for themselves.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Two test processes on two cores: a second OpenMP thread each would only wait for the other's.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
from fork_server import fork

from soundrl.engine.ranks import Ranks

# The same examples everywhere and every time, and no deadline: a loaded machine is no fault. `--hypothesis-profile default` searches anew.
hypothesis.settings.register_profile("everywhere", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("everywhere")

ROOT = Path(__file__).resolve().parent.parent
torch.utils.deterministic.fill_uninitialized_memory = True  # with deterministic algorithms torch.empty is NaN, so a read of it shows

# Whatever started us (a script's `make test &` ignores Ctrl-C, nohup ignores SIGHUP), processes that tests start see their signals: an
# ignored signal is inherited, and a run rightly leaves it ignored.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())

QUIET = {
    "OMP_NUM_THREADS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore",
}


# The longest files first, so that no single one is left for the end while the other process has nothing to do (--no-loadscope-reorder).
LONGEST = (
    "train",
    "lora",
    "resume",
    "faults",
    "verifier",
    "serve",
    "save_memory",
    "moe",
    "bench",
    "view_browser",
    "varlen_attention",
    "view_attacks",
    "packaging",
    "certificate",
    "selection",
    "weight_sync",
    "export",
    "schedule",
    "scorer",
    "replicas",
    "nodes",
    "memory_plan",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONGEST)))


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """What a test leaves in its process reaches every later one, and so the result would follow from the order of the files: a token for
    which two nodes would each draw one, another machine's address; a broken connection that ends the process."""
    before = process_state()
    yield
    after = process_state()
    assert after == before, "the test leaves in its process: " + ", ".join(sorted(f"{k} {v}" for k, v in after.items() ^ before.items()))


def process_state() -> dict[str, Any]:
    """What this process has for all that runs in it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME", "COLUMNS")
    state = {name: value for name, value in os.environ.items() if name.startswith("SOUNDRL_") or name in names}
    state |= {signal.Signals(number).name: signal.getsignal(number) for number in (*range(1, 16), signal.SIGPROF)}
    return state | {
        "working directory": os.getcwd(),
        "wakeup": _wakeup(),
        "recursion": sys.getrecursionlimit(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
    }


def _wakeup() -> int:
    """The descriptor that signals are written to."""
    found = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(found)
    return found


PATIENCE = 1200
"""Seconds until a process that hangs is given up. No test waits for less: how long a step takes says how busy the machine is."""


def start(command: list[str], timeout: float = PATIENCE, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository's root, away from any torchrun environment and from the interpreter of the test process."""
    return subprocess.run(command, cwd=ROOT, env=apart() | environment, capture_output=True, text=True, timeout=timeout)


def apart() -> dict[str, str]:
    """The environment of such a process."""
    away = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TRITON_INTERPRET")
    return {k: v for k, v in os.environ.items() if k not in away} | QUIET


@pytest.fixture
def train() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`train("arith", "--run.steps", "2")` runs the main job as a user does."""
    return lambda *arguments, **kw: start([sys.executable, "engine/train.py", *map(str, arguments)], **kw)


class Alone:
    """A world of one, as `Ranks`."""

    rank, size, main, device = 0, 1, True, torch.device("cpu")
    shard, shards, first_copy = 0, 1, True
    first_said, first_row = Ranks.first_said, Ranks.first_row

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def barrier(self) -> None:
        pass


def run_worker(into: Path, worker: str, ranks: int, timeout: float = PATIENCE, forked: bool = True, **arguments: Any) -> Any:
    """Run tests/workers/<worker>.py on `ranks` gloo ranks and return what rank 0 wrote as JSON. Without torchrun, which imports torch once
    more; that starts ranks in test_faults.py and test_stops.py. Not `forked`: for a worker that wants other imports than the rest."""
    out, log = into / f"{worker}-{ranks}.json", into / f"{worker}-{ranks}.log"
    out.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    script, given = ROOT / "tests" / "workers" / f"{worker}.py", [json.dumps(arguments), str(out)]
    with socket.socket() as held, log.open("ab") as said:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))  # as the launcher holds it: the kernel gives it to nobody but rank 0
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(held.getsockname()[1]), "LOCAL_WORLD_SIZE": str(ranks)}
        where |= apart() | {"GROUP_RANK": "0", "WORLD_SIZE": str(ranks)}
        started: list[BaseProcess | subprocess.Popen] = []
        for environment in (where | {"RANK": str(n), "LOCAL_RANK": str(n)} for n in range(ranks)):
            if forked:
                started.append(fork(script, given, environment, log))
            else:
                started.append(subprocess.Popen([sys.executable, script, *given], cwd=ROOT, env=environment, stdout=said, stderr=said))
        end = time.monotonic() + timeout
        while None in (over := [ended(process) for process in started]) and not any(over):
            assert time.monotonic() < end, f"{worker} hangs"
            time.sleep(0.05)
        time.sleep(1.0 if any(over) else 0.0)  # until the others have said of what
        for process in started:
            process.kill()
            process.wait() if isinstance(process, subprocess.Popen) else process.join()
    assert over == [0] * ranks, log.read_text()[-8000:]
    return json.loads(out.read_text())


def ended(process: BaseProcess | subprocess.Popen) -> int | None:
    """Its status; None while it runs."""
    return process.poll() if isinstance(process, subprocess.Popen) else process.exitcode


@pytest.fixture
def torchrun(tmp_path: Path) -> Callable[..., Any]:
    """`torchrun("gradients", ranks, **arguments)`, see `run_worker`."""
    return lambda *arguments, **settings: run_worker(tmp_path, *arguments, **settings)


@pytest.fixture
def forked_train(torchrun, tmp_path: Path) -> Callable[..., tuple[list[int], str]]:
    """`train` without the launcher and the imports, which cost a core ten seconds a rank: statuses of the ranks, and all that they say."""

    def run(*arguments: Any, ranks: int = 1) -> tuple[list[int], str]:
        (ended,) = torchrun("forked_runs", 1, runs=[{"ranks": ranks, "line": [*map(str, arguments)], "kill": ""}])
        return ended["statuses"], (tmp_path / "forked_runs-1.log").read_text()

    return run


@pytest.fixture(scope="module")
def torchrun_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """The same for fixtures that serve a whole module."""
    folder = tmp_path_factory.mktemp("torchrun")
    return lambda *arguments, **settings: run_worker(folder, *arguments, **settings)


@pytest.fixture
def shared_data() -> Path:
    """The public data beside the checkout, where there is any."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no public data at {folder}")
    return folder
