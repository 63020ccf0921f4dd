"""Is a run disturbed by a page that looks at it, and how late is the page? The default recipe, with and without an open page, in turns.

    python bench/view_live.py            # 3 pairs of 16 steps, about seven minutes; wants Debian's Chromium and the extra `dev`

Two ranks, the judge's server, the inspector and Chromium share the machine. Kept in bench/results/view.jsonl: seconds a step (the first
two left out), paired by turn, and the seconds from a step's line in metrics.jsonl to the page that shows it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import tyro
from playwright.sync_api import sync_playwright

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "tests")]
from browser.chromium import CURE, FLAGS, chromium  # noqa: E402

from bench.record import ROOT, machine  # noqa: E402

SEEN = """() => { window.seen = {}; const look = () => { const found = document.body.innerText.match(/(\\d+) of \\d+/);
  if (found && !(found[1] in window.seen)) window.seen[found[1]] = Date.now() / 1000; };
  new MutationObserver(look).observe(document.body, {subtree: true, childList: true, characterData: true}); look(); }"""


@dataclass(frozen=True)
class Arguments:
    pairs: int = 3
    steps: int = 16
    out: Path = ROOT / "bench" / "results" / "view.jsonl"


def written(file: Path, ended: threading.Event) -> dict[int, float]:
    """When each step's line came."""
    times: dict[int, float] = {}
    while not ended.wait(0.02):
        if file.is_file():
            for line in file.read_text().splitlines(keepends=True)[len(times) :]:
                if line.endswith("\n"):
                    row = json.loads(line)
                    times.setdefault(row["step"] if "time/step" in row else -row["step"] - 1, time.time())
    return times


def trained(folder: Path, steps: int, page: bool, path: str) -> dict[str, Any]:
    """One run, looked at or not."""
    command = [sys.executable, "engine/train.py", "arith-genrm", "--run.folder", str(folder), "--run.name", "run", "--data.test"]
    ended, times = threading.Event(), dict[int, float]()
    watcher = threading.Thread(target=lambda: times.update(written(folder / "run" / "metrics.jsonl", ended)))
    with subprocess.Popen([*command, "--run.steps", str(steps)], cwd=ROOT, stdout=subprocess.DEVNULL) as run:
        watcher.start()
        late = looked(folder, run, path) if page else {}
        run.wait()
        ended.set()
        watcher.join()
    assert run.returncode == 0, f"the run ended with {run.returncode}"
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    seconds = [row["time/step"] for row in rows if "time/step" in row][2:]
    return {"seconds": fmean(seconds), "late": [late[n] - times[n] for n in times if n in late and n > 0]}


def looked(folder: Path, run: subprocess.Popen[bytes], path: str) -> dict[int, float]:
    """When the run's page first showed each step."""
    while not (folder / "run" / "config.json").is_file() and run.poll() is None:
        time.sleep(0.1)
    command = [sys.executable, "-m", "soundrl.view", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as driver:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        page = browser.new_page()
        page.goto(address)
        page.goto(address.partition("/?")[0] + "/#/run/run")
        page.wait_for_selector("h1")
        page.evaluate(SEEN)
        run.wait()
        page.wait_for_timeout(5000)
        found = page.evaluate("() => window.seen")
        browser.close()
        server.terminate()
    return {int(step): at for step, at in found.items()}


def main(arguments: Arguments) -> None:
    path = chromium()
    if path is None:
        raise SystemExit(f"error: {CURE}")
    pairs, late = [], []
    for turn in range(arguments.pairs):
        found = {}
        for page in (False, True) if turn % 2 == 0 else (True, False):
            with tempfile.TemporaryDirectory() as folder:
                found[page] = trained(Path(folder), arguments.steps, page, path)
        pairs.append((found[False]["seconds"], found[True]["seconds"]))
        late += found[True]["late"]
        print(f"{pairs[-1][0]:.3f} s a step without, {pairs[-1][1]:.3f} s with a page; seen after {median(late):.1f} s", flush=True)
    row = {"bench": "view-live", "steps": arguments.steps, "pairs": pairs, "ratio": fmean(b / a for a, b in pairs)}
    row |= {"late": {"n": len(late), "median": median(late), "worst": max(late)}, "stamp": machine("cpu")}
    with arguments.out.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
