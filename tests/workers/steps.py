"""A run of small steps that stops and hangs as the main job does: real ranks, timeline, watch, judge and verifier; no model.

FAULT="3 1 stop" python tests/workers/steps.py --run.folder …      # in step 3 rank 1 meets this fault
"""

import os
import signal
import sys
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from soundrl.engine.launch import launch
from soundrl.engine.launch.last_words import RANK, PlannedStop, kept

if __name__ == "__main__":
    # Without tyro and the settings, which take a second of every process.
    launch.read_arguments = lambda: SimpleNamespace(run=SimpleNamespace(folder=sys.argv[2], name="arith"))  # type: ignore[assignment]
    launch.leave_to_ranks()

import torch
import torch.distributed as dist
from fake_judge import MODEL, SERVED

from soundrl.engine.launch.hang import watch_progress
from soundrl.engine.ranks import Ranks
from soundrl.engine.telemetry.timeline import TIMELINE
from soundrl.fapo.pending import PendingGroups
from soundrl.fapo.records import Prompt, Rollout
from soundrl.fapo.rewards import RewardSettings
from soundrl.fapo.task import ReasoningTask
from soundrl.fapo.verify.verifier import Verifier
from soundrl.genrm.pool.judge import EndpointJudge
from soundrl.genrm.serve.servers import JudgeServers, Serving, Worker

REWARDS = RewardSettings(lam=1.0, normalize_std=True, max_new_tokens=40, overlong_buffer=0, overlong_factor=1.0, drop_unknown=True)
PROMPT = Prompt(id="p\x1b[31m-7", text="x?", answer="x + 1")


def rollouts(words: str) -> list[Rollout]:
    """Four right ones, which math-verify must compare."""
    same = {"prompt_id": PROMPT.id, "prompt_tokens": (1,), "tokens": (2,), "logprobs": (0.0,), "finish_reason": "stop", "policy_version": 0}
    return [Rollout(sample=sample, text=f"{words} {sample}: \\boxed{{1 + x}}", **same) for sample in range(4)]


class Work:
    """What a rank waits for: a verifier, and the judge at $JUDGE."""

    def __init__(self) -> None:
        self.verifier = Verifier(workers=1)
        self.judge = EndpointJudge([os.environ["JUDGE"]], MODEL) if "JUDGE" in os.environ else None
        self.task = ReasoningTask(lambda p, r: self.verifier.submit(r.text, p.answer), self.judge, REWARDS)

    def collect(self, words: str) -> PendingGroups:
        return self.task.collect([PROMPT], iter(rollouts(words)))

    def meet(self, what: str) -> None:
        if what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "skip":  # the others' sum has nobody to add to it
            dist.recv(torch.zeros(1), src=0)
        elif what == "verdict":
            pending = self.collect("never")
            pending.outcomes()
            with TIMELINE("wait"):
                pending.groups()
        elif what == "verifier":
            process = self.verifier.pool.workers[0].process
            assert process is not None
            os.killpg(process.pid, signal.SIGSTOP)
            with TIMELINE("wait"):
                self.collect("stopped").outcomes()


def save(folder: Path, step: int) -> None:
    time.sleep(float(os.environ.get("SAVES", "0")))
    (folder / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    (folder / "checkpoints" / f"step-{step:06d}" / "manifest.json").write_text("{}")


def served(folder: Path) -> JudgeServers:
    Worker.command = lambda self: [sys.executable, "-c", SERVED, str(Path(__file__).resolve().parents[1]), str(self.port)]  # type: ignore[method-assign]
    (folder / "config.json").write_text("{}")
    servers = JudgeServers(Serving(model=folder, name=MODEL), logs=folder)
    servers.wait()
    return servers


def main(config) -> None:
    folder = RANK.home = Path(config.run.folder) / config.run.name
    (folder / "rollouts").mkdir(parents=True, exist_ok=True)
    if "DEAF" in os.environ:
        os.write(1, f"ready {RANK.number} {os.getpid()}\n".encode())
        time.sleep(600)
    ranks = Ranks.start(600.0)
    RANK.folder = folder
    RANK.tell("folder", str(folder))
    TIMELINE.begin(ranks.rank)
    with TIMELINE("prepare"):
        work = Work()
        if str(ranks.rank) in os.environ.get("VERIFIES", ""):
            work.verifier.verify("\\boxed{1 + x}", PROMPT.answer)  # its process takes seconds to start
        servers = served(folder) if ranks.main and "SERVE" in os.environ else None
    watch = watch_progress(ranks, float(os.environ.get("PATIENCE", "60")))  # late: a busy machine may prepare for very long
    faults = {tuple(map(int, item.split()[:2])): item.split()[2] for item in os.environ.get("FAULT", "").split(";") if item}
    RANK.grace = float(os.environ.get("GRACE", "25"))
    RANK.stops = True
    os.write(1, f"ready {ranks.rank} {os.getpid()}\n".encode())
    for step in count(1):
        with TIMELINE("step"):
            with TIMELINE("generate"):
                time.sleep(float(os.environ.get("SLEEPS", "0.05")) * ranks.rank)  # the other one stands in a collective
                if str(ranks.rank) in os.environ.get("VERIFIES", ""):
                    pending = work.collect(f"step {step} of rank {ranks.rank}")
                    with TIMELINE("verify"):
                        pending.outcomes()
                    with TIMELINE("judge_wait"):
                        pending.groups()
                with TIMELINE("wait"):
                    pass  # seen, and never long, however busy the machine is: the fault's phase
                if what := faults.get((step, ranks.rank)):
                    work.meet(what)
            with TIMELINE("train"):
                ranks.sum([1.0])
                asked = ranks.max(float(RANK.asked or 0))
        if ranks.main:
            print(f"step {step}", flush=True)
        if asked:
            with TIMELINE("save"):
                if ranks.main:
                    save(folder, step)
                ranks.barrier()
            raise PlannedStop(f"stopped by {signal.Signals(int(asked)).name} after step {step}: saved{kept(folder)}")
        if step == int(os.environ.get("STEPS", "1000")):
            break
    watch.close()
    if servers is not None:
        servers.close()
    work.verifier.close()
    ranks.stop()


if __name__ == "__main__":
    launch.run(main)
