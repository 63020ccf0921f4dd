"""Fixtures: one browser, one server over the committed runs and a hostile one, a bundle behind a plain web server."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from browser import hostile
from browser.chromium import CURE, FLAGS, chromium, must
from browser.watched import RUNS, TOKEN, Watched
from conftest import ROOT, apart


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = chromium()
    if path is None and not must():
        pytest.skip(CURE)
    assert path is not None, CURE
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The committed runs, of which one may be written to, and a hostile one."""
    root = tmp_path_factory.mktemp("runs")
    shutil.copytree(RUNS, root, dirs_exist_ok=True)
    hostile.write(root, json.loads((RUNS / "small" / "config.json").read_text("utf-8")))
    return root


@pytest.fixture(scope="module")
def server(root) -> Iterator[str]:
    command = [sys.executable, "-m", "soundrl.view", str(root)]
    settings = apart() | {"SOUNDRL_VIEW_TOKEN": TOKEN}
    with subprocess.Popen(command, env=settings, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), line
        yield line.partition("/?")[0]
        process.terminate()


@pytest.fixture(scope="module")
def opened(browser, server) -> Iterator[Watched]:
    """One page for many tests: a process of its own for each costs more than most of them."""
    with Watched(browser, server, TOKEN) as opened:
        yield opened


@pytest.fixture
def watched(opened) -> Iterator[Watched]:
    """That page, without a fault at the test's end."""
    opened.forget()
    yield opened
    opened.check()


@pytest.fixture(scope="module")
def bundle(root, tmp_path_factory) -> Iterator[str]:
    out = tmp_path_factory.mktemp("bundle") / "out"
    command = [sys.executable, "-m", "soundrl.view", str(root), "--bundle", "7-8", str(out)]
    subprocess.run(command, env=apart(), cwd=ROOT, check=True, capture_output=True)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(out))
    handler.func.log_message = lambda *_: None  # type: ignore[method-assign]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
