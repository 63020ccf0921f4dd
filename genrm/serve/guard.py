"""Runs a command until it ends, or until whoever started us does: our standard input ends then, and the whole process group is killed.

    python guard.py command argument …

A server must not outlive a trainer that was killed: it would hold its GPU for ever. Needs the standard library alone.
"""

import os
import signal
import subprocess
import sys
import threading


def _when_orphaned() -> None:
    while os.read(0, 4096):  # not sys.stdin, whose lock the interpreter wants when it ends
        pass
    os.killpg(0, signal.SIGKILL)


def main(command: list[str]) -> int:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_when_orphaned, daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
