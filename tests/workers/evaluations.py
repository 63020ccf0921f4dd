"""Evaluations by a real engine in forks of the process that has started it: whole, killed in mid sampling, and gone on."""

from __future__ import annotations

import json
import os
import signal
import traceback
from pathlib import Path
from typing import Any

from soundrl.engine import evaluate
from soundrl.engine.evaluation.arguments import Arguments
from soundrl.engine.evaluation.local import Local
from soundrl.engine.files.underway import Underway
from soundrl.engine.ranks import Ranks
from soundrl.engine.samplers.sampler import Sampler

ROWS, SAMPLES, KILLED_AFTER = 8, 4, 24


def evaluation(sampler: Sampler, folder: Path, out: Path, dies: bool) -> list[list[Any]]:
    """The requests that were sampled. It dies after so many rollouts of the first set."""
    sample, add = Local.sample, Underway.add
    asked, kept = list[list[Any]](), []

    def sampling(self, part, config, requests):
        asked.extend([r.prompt_id, r.sample] for r in requests)
        return sample(self, part, config, requests)

    def adding(self, rollout):
        add(self, rollout)
        kept.append(rollout)
        if dies and len(kept) == KILLED_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)

    Local._started, Local.sample, Underway.add = lambda *_: sampler, sampling, adding  # type: ignore[method-assign]
    # A fork has no threads: neither the engine nor the process group can end in it.
    Local.close = Ranks.stop = lambda self: None  # type: ignore[method-assign]
    where: dict[str, Any] = {"model": str(folder), "data": ("arith",), "rows": ROWS, "samples": SAMPLES, "max_new_tokens": 40}
    evaluate.main(Arguments(**where, judge="oracle", out=out))
    return asked


def forked(sampler: Sampler, folder: Path, out: Path, dies: bool = False) -> dict[str, Any]:
    """How a fork ends, what it samples, and the files of rollouts that it leaves."""
    read, write = os.pipe()
    if not (child := os.fork()):
        status = 1
        try:
            os.write(write, json.dumps(evaluation(sampler, folder, out, dies)).encode())
            status = 0
        except Exception:  # noqa: BLE001 — whatever it is, it is this fork's
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write)
    with open(read) as pipe:
        asked = json.loads(pipe.read() or "null")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"status": status, "asked": asked, "files": [str(file.relative_to(out)) for file in sorted(out.rglob("*.arrows*"))]}


def three(sampler: Sampler, folder: Path, into: Path) -> dict[str, Any]:
    sampler.version = 0  # as an engine that has just read its folder
    said = {"whole": forked(sampler, folder, into / "whole")}
    return said | {"killed": forked(sampler, folder, into / "again", dies=True), "gone on": forked(sampler, folder, into / "again")}
