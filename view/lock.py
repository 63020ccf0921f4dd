"""Whether a process writes to a run's folder, told without touching its lock: to try the lock, even shared, could make a run that begins in
that moment fail. The kernel lists who holds which lock."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

LISTED = Path("/proc/locks")
LINE = re.compile(r"FLOCK\s+\S+\s+WRITE\s+(\d+)\s+([0-9a-f]+):([0-9a-f]+):(\d+)\s")
SAID = re.compile(r"process (\d+) on (.*)")


def holder(folder: Path) -> str:
    """`held`, `free`, or `elsewhere`: another machine was the last to write, whose locks are not seen from here."""
    file = folder / ".lock"
    try:
        node, said = file.stat(), SAID.match(file.read_text("utf-8", "replace")[:300])
    except OSError:
        return "free"
    device = (os.major(node.st_dev), os.minor(node.st_dev))
    try:
        locks = LISTED.read_text()
    except OSError:
        return "elsewhere"
    for pid, major, minor, inode in LINE.findall(locks):
        # Layered file systems name another device than `stat` does: then the process that the file names must be the one that holds it.
        same = (int(major, 16), int(minor, 16)) == device or (said is not None and pid == said[1])
        if int(inode) == node.st_ino and same:
            return "held"
    return "free" if said is None or said[2].strip() == socket.gethostname() else "elsewhere"
