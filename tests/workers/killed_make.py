"""`python -m soundrl.genrm.make` with a SIGKILL of its whole process group at a named moment: KILL="point,nth", WITNESS=<folder>.

The `nth` pass through the point kills, and makes the witness folder first.
"""

import functools
import os
import signal
import threading
import time
from pathlib import Path

from points import found

from soundrl.genrm.make import make, training

POINTS = {  # point: stage, and what is killed before it is called (after it, where the name ends in +)
    "sampling": ("sampled", "journal:Journal.add"),
    "sampled": ("sampled", "make.rows:sampled+"),
    "labelling": ("labelled", "make.rows:write_rows"),
    "labelled": ("labelled", "make.rows:write_rows+"),
    "splitting": ("split", "make.rows:write_rows"),
    "training": ("trained", "make.training:guarded"),
    "exporting": ("trained", "make.training:guarded+"),
    "exported": ("trained", "make.training:exported+"),
    "benchmarking": ("benchmarked", "journal:Journal.add"),
    "one measured": ("benchmarked", "selection:measure+"),
    "choosing": ("selected", "selection:choose"),
    "reporting": ("selected", "journal:Journal.add"),
    "writing": ("written", "make.card:shutil.copytree+"),
    "card": ("written", "make.card:write_json+"),
    "written": ("written", "make.card:write+"),
}


def kill() -> None:
    Path(os.environ["WITNESS"]).mkdir()
    os.killpg(0, signal.SIGKILL)


def kill_when(file: Path) -> None:
    """While a process of ours is at work."""
    while not file.exists():
        time.sleep(0.01)
    kill()


def arm(point: str, nth: int) -> None:
    owner, name = found(f"genrm.{POINTS[point][1]}")
    real, passed, after = getattr(owner, name), 0, POINTS[point][1].endswith("+")

    @functools.wraps(real)
    def counted(*arguments, **options):
        nonlocal passed
        passed += 1
        if point == "training":  # its first checkpoint is there
            watch = threading.Thread(target=kill_when, args=(Path("genrm.work/trained/run/checkpoints/step-000001/manifest.json"),))
            watch.daemon = True
            watch.start()
        elif passed == nth and not after:
            kill()
        value = real(*arguments, **options)
        if passed == nth and after:
            kill()
        return value

    setattr(owner, name, counted)
    for user in (make, training):  # who has imported it by its name
        if getattr(user, name, None) is real:
            setattr(user, name, counted)


if __name__ == "__main__":
    if "KILL" in os.environ:
        point, nth = os.environ["KILL"].split(",")
        arm(point, int(nth))
    make.command()
