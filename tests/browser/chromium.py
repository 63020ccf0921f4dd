"""Debian's Chromium for the browser's tests: where it is, how it is started, and what to do where there is none."""

import os
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
CURE = "no Chromium here: apt-get install chromium, or name one in CHROMIUM"


def chromium() -> str | None:
    """Path of the one to use; `CHROMIUM` goes first."""
    own = os.environ.get("CHROMIUM")
    return own or next((path for name in NAMES if (path := shutil.which(name))), None)


def must() -> bool:
    """Whether the tests may not be skipped: in CI, where apt could have installed it."""
    return os.environ.get("CI", "") == "true" and shutil.which("apt-get") is not None
