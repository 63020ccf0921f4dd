"""The launcher and its ranks with no training between them: a rank enters phases and meets the fault that its environment names.

FAULT="1:exit 7" python tests/workers/faulty.py …      # rank 1; other ranks wait, or lose their neighbour as gloo says it
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace

from soundrl.engine.launch import launch
from soundrl.engine.launch.last_words import RANK, ComeAgain, PlannedStop, UserError, undone
from soundrl.engine.launch.words import kept, named

# Without tyro and the settings, which take a second of every process.
launch.read_arguments = lambda: SimpleNamespace(run=SimpleNamespace(folder=sys.argv[2], name="arith"))  # type: ignore[assignment]

if __name__ == "__main__":
    launch.leave_to_ranks()

GLOO = "[pair.cc:538] Connection closed by peer [127.0.0.1]:4242. This may indicate a remote peer process has died unexpectedly (GLHF!)"


def meet(fault: str) -> None:
    what, _, how = fault.partition(" ")
    if what == "raise":
        raise {"memory": MemoryError, "value": ValueError, "runtime": RuntimeError}[how]("of the test\nand more")
    if what == "again":
        raise ComeAgain("the judge has gone")
    if what == "user":
        raise UserError(how)
    if what == "full":
        raise OSError(28, "No space left on device", "rollouts/step-000003/rank-0.arrows.part")
    if what == "full-safetensors":
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    if what == "leave":
        sys.exit(int(how))
    if what == "exit":
        os._exit(int(how))
    if what == "kill":
        os.kill(os.getpid(), getattr(signal, how))
        time.sleep(120)
    if what == "fork":  # a child of a rank that keeps everything open and hears of no signal
        if os.fork() == 0:
            os.closerange(0, 3)  # whoever reads what the rank says need not wait
            time.sleep(5)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)


def wait_for(holds: Callable[[], bool]) -> None:
    while not holds():
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def work(folder: Path) -> None:
    """Steps without end, that honour a stop: rank 0 saves, for $SAVES seconds."""
    RANK.grace = float(os.environ.get("GRACE", "25"))
    RANK.stops = True
    for step in count(1):
        RANK.enter(f"step {step}, train")
        sys.stdout.write(f"step {step} of rank {RANK.number}\n")  # in one piece
        time.sleep(0.05)
        if RANK.asked is not None:
            RANK.enter("save")
            if RANK.number == 0:
                sys.stdout.write("saving\n")
                time.sleep(float(os.environ.get("SAVES", "0")))
                (folder / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
                (folder / "checkpoints" / f"step-{step:06d}" / "manifest.json").write_text("{}")
            raise PlannedStop(f"stopped by {named(RANK.asked)} after step {step}: saved{kept(folder)}")


def main(config) -> None:
    folder = RANK.home = RANK.folder = Path(config.run.folder) / config.run.name
    RANK.tell("folder", str(folder))
    part = folder / "rollouts" / f"rank-{RANK.number}.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    with undone(lambda: part.unlink(missing_ok=True)):
        part.write_text("half")
        RANK.enter("step 3, train")
        os.write(1, f"ready {RANK.number} {os.getpid()}\n".encode())  # at once, so that two ranks' lines do not mix
        faults = dict(item.split(":", 1) for item in os.environ.get("FAULT", "").split(";") if item)
        (folder / f"being-{RANK.number}").write_text(str(os.getpid()))
        (folder / f"being-{RANK.number}").rename(folder / f"ready-{RANK.number}")  # never seen empty
        wait_for(lambda: len(list(folder.glob("ready-*"))) == 2)
        fault = faults.pop(str(RANK.number), "")
        if "WORKS" in os.environ:
            work(folder)
        if fault:
            meet(fault)
        elif os.environ.get("OTHERS") == "lose":
            for number in faults:
                pid = int((folder / f"ready-{number}").read_text()) if number in "01" else 0
                wait_for(lambda pid=pid: not pid or gone(pid))
            raise RuntimeError(GLOO)
        elif faults or "WAIT" in os.environ:
            time.sleep(120)
        part.unlink()


if __name__ == "__main__":
    launch.run(main)
