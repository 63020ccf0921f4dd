"""Evaluations by real vLLM: whole in this process, and in two forks of it, of which one is killed in mid sampling and the other goes on."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import soundrl.engine.evaluate as evaluate
from soundrl.engine.evaluation.arguments import Arguments
from soundrl.engine.evaluation.local import Local
from soundrl.engine.files.underway import Underway
from soundrl.engine.launch.launch import be_quiet
from soundrl.engine.samplers.sampler import Sampler

KILLED_AFTER = 40  # rollouts
STARTED: list[Sampler] = []
"""vLLM starts once; forks have it, too"""


def evaluation(out: Path, dies: bool = False) -> list[list[Any]]:
    """The requests that were sampled."""
    start, sample, add = Local._started, Local.sample, Underway.add
    asked, kept = list[list[Any]](), []

    def started(self, config):
        if not STARTED:
            STARTED.append(start(self, config))
        return STARTED[0]

    def sampling(self, part, config, requests):
        asked.extend([r.prompt_id, r.sample] for r in requests)
        return sample(self, part, config, requests)

    def adding(self, rollout):
        add(self, rollout)
        kept.append(rollout)
        if dies and len(kept) == KILLED_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)

    Local._started, Local.sample, Local.close, Underway.add = started, sampling, lambda self: None, adding  # type: ignore[method-assign]
    where: dict[str, Any] = {"model": "starts/policy", "data": ("arith",), "rows": 12, "samples": 6, "max_new_tokens": 60}
    try:
        evaluate.main(Arguments(**where, judge="oracle", memory=0.3, out=out))
    finally:
        Local._started, Local.sample, Underway.add = start, sample, add  # type: ignore[method-assign]
    return asked


def forked(out: Path, dies: bool = False) -> dict[str, Any]:
    """How a fork ends, what it samples, and the files that it leaves."""
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, json.dumps(evaluation(out, dies)).encode())
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        asked = json.loads(pipe.read() or "null")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"status": status, "asked": asked, "files": [str(file.relative_to(out)) for file in sorted(out.rglob("*.arrows*"))]}


if __name__ == "__main__":
    into = Path(json.loads(sys.argv[1])["into"])
    be_quiet()
    print("imported", time.process_time())
    found: dict[str, Any] = {"whole": evaluation(into / "whole")}
    print("whole", time.process_time())
    found |= {"killed": forked(into / "again", dies=True), "gone on": forked(into / "again")}
    Path(sys.argv[2]).write_text(json.dumps(found))
    os._exit(0)
