"""Look at runs in the browser, while they go on or after.

python -m soundrl.view runs/                          # prints an address with a token; ctrl-c ends it
python -m soundrl.view runs/arith-genrm --open
python -m soundrl.view runs/ --bundle 1-8 out/        # a folder of files for any web server
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
import uvicorn

from soundrl.view.bundle import bundle
from soundrl.view.guard import LOOPBACK, Guard
from soundrl.view.runs import Runs
from soundrl.view.server import App

TOKEN = "SOUNDRL_VIEW_TOKEN"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m soundrl.view`."""

    runs: Annotated[Path, tyro.conf.Positional] = Path("runs")
    """A folder of runs, or one run."""
    port: int = 0
    """0 = a free one."""
    host: str = "127.0.0.1"
    """Another address than loopback needs a token of your own in SOUNDRL_VIEW_TOKEN."""
    open: bool = False
    """Open it in the browser."""
    bundle: tuple[str, Path] | None = None
    """Steps, as 1-8 or 1,4,8, and a folder to write instead of serving."""
    labels: bool = True
    """Whether the page may write labels.jsonl into a run's folder."""


def guard_of(host: str, port: int, labels: bool) -> Guard:
    """With the user's token where there is one. ValueError where the address can be reached by others and there is none."""
    token = os.environ.get(TOKEN, "")
    if host not in LOOPBACK:
        if not token:
            raise ValueError(f"--host {host} can be reached by others; set {TOKEN} to a token of your own, or leave --host out")
        if host in ("0.0.0.0", "::"):
            raise ValueError(f"--host {host} has no name to check requests by; give the address that the browser will use")
    return Guard(host, port, labels=labels, **({"token": token} if token else {}))


def listening(host: str, port: int) -> socket.socket:
    """ValueError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
        taken.listen(128)  # whoever reads the address may ask at once
    except (OSError, OverflowError) as error:
        taken.close()
        raise ValueError(f"{host}:{port} cannot be had ({error}); choose another --port") from None
    return taken


def serve(arguments: Arguments, runs: Runs) -> None:
    with listening(arguments.host, arguments.port) as taken:
        guard = guard_of(arguments.host, taken.getsockname()[1], arguments.labels)
        settings = uvicorn.Config(
            App(runs, guard), http="h11", ws="none", log_level="warning", access_log=False, proxy_headers=False, server_header=False,
            limit_concurrency=64, timeout_keep_alive=20, timeout_graceful_shutdown=2,
        )  # fmt: skip
        print(guard.address(), flush=True)
        if arguments.open:
            webbrowser.open(guard.address())
        uvicorn.Server(settings).run(sockets=[taken])


def main(argv: list[str] | None = None) -> None:
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        runs = Runs(arguments.runs)
        if arguments.bundle is not None:
            print(bundle(runs, *arguments.bundle))
        else:
            serve(arguments, runs)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
