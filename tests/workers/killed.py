"""The main job with a SIGKILL at a named moment: KILL="point,which,nth", WITNESS=<folder>. Which: 0 or 1, a rank; all; launcher; a signal,
which the launcher gets; or full, which fills the disk of the run folder instead.

The `nth` pass of this process through a point kills; who kills makes the witness folder first: it exists once, and a restart goes on.
"""

import contextlib
import functools
import os
import signal
import time
from pathlib import Path

from points import found

from soundrl.engine.launch import launch
from soundrl.engine.launch.last_words import RANK

if __name__ == "__main__":
    launch.leave_to_ranks()

POINTS = {  # point: what is killed before it is called (after it, where the name ends in +)
    "start": "engine.problems:Problems.check",
    "warm start": "engine.trainer:Trainer.supervised_step",
    "start sampler": "engine.run:build_sampler",
    "sampling": "engine.files.underway:Underway.add",
    "sampled": "fapo.pending:PendingGroups.outcomes",
    "verifying": "engine.environments.arithmetic.arithmetic:Arithmetic.check",
    "judging": "fapo.task:OracleJudge.submit",
    "exchange": "engine.train:exchange",
    "training": "engine.trainer:Trainer.backward",
    "optimizer step": "engine.trainer:Trainer.update",
    "after an optimizer step": "engine.trainer:Trainer.update+",
    "sync": "engine.weight_sync:WeightSync.__call__",
    "gate": "engine.weight_sync:WeightSync.gate",
    "metrics written": "engine.files.run_folder:RunFolder.log+",
    "writing rollouts": "engine.files.rollout_file:RolloutWriter.add",
    "rollouts written": "engine.files.run_folder:RunFolder.save_rollouts+",
    "trace": "engine.files.run_folder:RunFolder.save_trace",
    "evaluation": "engine.rollouts:Rollouts.evaluate",
    "evaluated": "engine.recorder:Recorder.evaluation",
    "step ended": "engine.run:Run.ended",
    "checkpoint: weights": "engine.checkpoints:write_tensors",
    "checkpoint: state": "engine.checkpoints:write_bytes",
    "checkpoint: manifest": "engine.checkpoints:write_manifest",
    "checkpoint: manifest written": "engine.checkpoints:write_manifest+",
    "checkpoint: renamed": "engine.checkpoints:superseded",
    "checkpoint: old one half removed": "engine.checkpoints:half",
    "export": "engine.run:export_live",
    "export: weights": "engine.tools.export:write_tensors",
    "end": "engine.recorder:Recorder.end",
}


def kill(which: str, witness: Path) -> None:
    try:
        witness.mkdir()
    except FileExistsError:
        return
    launcher = os.getppid()
    if which == "full":  # not a byte is left on the disk of the run folder
        assert RANK.folder is not None
        with contextlib.suppress(OSError), (RANK.folder.parent / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 12))
        return
    if which.startswith("SIG"):  # a planned stop: the launcher is told, or where there is none of ours this rank
        os.kill(os.getpid() if RANK.launcher is None else launcher, getattr(signal, which))
        while RANK.asked is None:
            time.sleep(0.01)
        return
    if which == "launcher":
        os.kill(launcher, signal.SIGKILL)
        return
    if which == "all":
        for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
            if int(pid) != os.getpid():
                os.kill(int(pid), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str, which: str, nth: int, witness: Path) -> None:
    from soundrl.engine import checkpoints

    def half(folder: Path, real=checkpoints.shutil.rmtree) -> None:
        next(iter(folder.glob("weights-*"))).unlink()
        checkpoints.half()
        real(folder)

    checkpoints.half = lambda: None  # type: ignore[attr-defined]
    if point == "checkpoint: old one half removed":

        class Shutil:
            rmtree, disk_usage = staticmethod(half), staticmethod(checkpoints.shutil.disk_usage)

        checkpoints.shutil = Shutil  # type: ignore[assignment]
    owner, name = found(POINTS[point])
    real, passed, after = getattr(owner, name), 0, POINTS[point].endswith("+")

    @functools.wraps(real)
    def counted(*arguments, **options):
        nonlocal passed
        passed += 1
        if passed == nth and not after:
            kill(which, witness)
        value = real(*arguments, **options)
        if passed == nth and after:
            kill(which, witness)
        return value

    setattr(owner, name, counted)


from soundrl.engine import train  # noqa: E402


def main(config) -> None:
    train.main(config)


if __name__ == "__main__":
    point, which, nth = os.environ.get("KILL", "start,0,0").split(",")
    if which == os.environ["RANK"] or not which.isdecimal():
        arm(point, which, int(nth), Path(os.environ.get("WITNESS", "/nowhere")))
    launch.run(main)
