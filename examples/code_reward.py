"""A reward for code: the share of a row's cases in which the function that a response defines gives the right value.

    torchrun engine/train.py grpo-7b --data.verifier examples/code_reward.py:score

A row has `entry`, the function's name, and `cases`, a list of `[arguments, value]`. The last fenced block of a response is run once a case,
in a process of its own that gets the arguments alone: what it should give never stands where the code could read it. A case in which it
takes more than 2 CPU seconds or ends by itself is lost; code that sleeps for a minute is not scored.

What this is to be trusted with: the pool limits CPU time, memory and processes, and ends whatever the code leaves behind. It is no sandbox.
The code runs with your rights: it may read and write your files and use the network. A policy in training tries much by accident and
exploits what pays; where more than your time is at stake run the training as a user without rights, in a container, or put `bwrap` or
`nsjail` in front of the command below.
"""

import json
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

CPU_SECONDS, WALL_SECONDS = 2, 60
CALL = "\nimport json as _json, sys as _sys\n_sys.__stdout__.write('\\n' + _json.dumps({entry}(*_json.loads(_sys.argv[1]))) + '\\n')\n"


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


def score(response: str, answer: str, prompt: dict) -> float | None:
    blocks = re.findall(r"```(?:python)?[ \t]*\n(.*?)```", response, re.DOTALL)
    row = prompt["row"]
    if not blocks or not re.fullmatch(r"[A-Za-z_]\w*", row["entry"]):
        return 0.0
    passed = 0
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "answer.py").write_text(blocks[-1] + CALL.format(entry=row["entry"]), encoding="utf-8", errors="replace")
        for arguments, value in row["cases"]:
            command = [sys.executable, "-I", "answer.py", json.dumps(arguments)]
            pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            try:
                done = subprocess.run(command, cwd=folder, timeout=WALL_SECONDS, preexec_fn=limit, **pipes)  # noqa: PLW1509
            except subprocess.TimeoutExpired:
                return None
            lines = done.stdout.decode("utf-8", "replace").splitlines() or [""]
            try:
                passed += done.returncode == 0 and json.loads(lines[-1]) == value
            except (ValueError, RecursionError):
                pass  # it gave no value
    return passed / len(row["cases"])
