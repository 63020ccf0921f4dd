"""A run that makes no progress names who waits for what, ends with a status that restarts, and leaves nobody behind; one that is slow runs on.

Two gloo ranks with the timeline, watch, judge and verifier of the main job (`workers/steps.py`). Every fault has its witness, every cause its
inverse.
"""

import os
import re
import socket
import stat
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import start
from fake_judge import Server, find_flaw, hang
from test_stops import ended, pids_in

from soundrl.engine.launch import hang as hang_module
from soundrl.engine.launch.hang import Watch
from soundrl.engine.launch.hang_report import cause, report
from soundrl.engine.launch.last_words import RANK, RESTART
from soundrl.fapo.records import Prompt
from soundrl.fapo.pending import PendingGroups
from soundrl.fapo.waiting import announced

HOST = socket.gethostname()
PATIENCE = 2.0


def steps(folder: Path, fault: str, **environment: str):
    command = [sys.executable, "tests/workers/steps.py", "--run.folder", str(folder)]
    return start(command, FAULT=fault, NPROC="2", PATIENCE=str(PATIENCE), **environment)
