"""Debian's Chromium for the browser's tests: where it is, how it is started, and what to do where there is none.

As a script, before the tests: installs it where none is found, apt is here and this is root.
"""

import os
import shutil
import subprocess

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-smooth-scrolling",
    "--force-prefers-reduced-motion",
)
CURE = "no Chromium here: apt-get install chromium, or name one in CHROMIUM"


def chromium() -> str | None:
    """Path of the one to use; `CHROMIUM` goes first."""
    own = os.environ.get("CHROMIUM")
    return own or next((path for name in NAMES if (path := shutil.which(name))), None)


def must() -> bool:
    """Whether the tests may not be skipped: in CI, where apt could have installed it."""
    return os.environ.get("CI", "") == "true" and shutil.which("apt-get") is not None


def install() -> str:
    """What was done, in a line; empty: it was there. A machine that cannot install it goes without these tests."""
    if chromium() is not None:
        return ""
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        return f"the browser's tests will be skipped: {CURE}"
    settings = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]):
        done = subprocess.run(command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            return f"{' '.join(command)} failed ({(done.stderr.strip().splitlines() or [done.returncode])[-1]}); {CURE}"
    return "installed Debian's Chromium for the browser's tests"


if __name__ == "__main__":
    if said := install():
        print(said, flush=True)
