"""What one test leaves in its process is seen before the next one."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from conftest import ROOT, as_it_was, process_state

BEFORE = process_state()
LEAVES: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {  # and how it is put back
    "SIGPIPE": (lambda: signal.signal(signal.SIGPIPE, signal.SIG_DFL), lambda: signal.signal(signal.SIGPIPE, BEFORE["SIGPIPE"])),
    "SOUNDRL_TOKEN": (lambda: os.environ.update(SOUNDRL_TOKEN="a"), lambda: os.environ.pop("SOUNDRL_TOKEN")),
    "working directory": (lambda: os.chdir("/"), lambda: os.chdir(BEFORE["working directory"])),
    "recursion": (lambda: sys.setrecursionlimit(100_000), lambda: sys.setrecursionlimit(BEFORE["recursion"])),
    "dtype": (lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(BEFORE["dtype"])),
    "gradients": (lambda: torch.set_grad_enabled(False), lambda: torch.set_grad_enabled(True)),
}


@pytest.mark.parametrize("name", LEAVES)
def test_what_a_test_leaves_is_its_failure(name):
    leave, put_back = LEAVES[name]
    around, quiet = as_it_was._fixture_function(), as_it_was._fixture_function()
    next(around)
    next(quiet)
    leave()
    try:
        with pytest.raises(AssertionError, match=f"the test leaves in its process: .*{name}"):
            next(around)
    finally:
        put_back()
    with pytest.raises(StopIteration):  # inverse
        next(quiet)


def test_a_test_process_that_dies_is_named_and_the_run_ends(tmp_path):
    """One in its place would begin with the same test again, and has been seen to hang at its start."""
    (line,) = (line for line in (ROOT / "Makefile").read_text().splitlines() if "-m pytest -n 2" in line)
    (tmp_path / "test_dies.py").write_text("import os, signal\n\ndef test_dies():\n    os.kill(os.getpid(), signal.SIGKILL)\n")
    (tmp_path / "test_lives.py").write_text("def test_lives():\n    pass\n")
    command = [sys.executable, *line.split()[1:], "-q", "--rootdir", str(tmp_path), str(tmp_path)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("node down") == 1 and "crashed while running 'test_dies.py::test_dies'" in done.stdout
