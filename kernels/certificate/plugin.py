"""pytest plug-in: one more test, which fails when a kernel's machine code is worse than a committed certificate.

    pytest -p soundrl.kernels.certificate.plugin --certificate certificate.json [--certificate-fresh 8] [--certificate-kernel varlen]

For stacks that embed the kernels: it compiles with their Triton. The file is bench/results/certificate.json of the kernels' release, or one
that `python -m soundrl.kernels.certificate --write` made from what they ship.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


class Certificate(pytest.Item):
    """The command in a process of its own: where a test suite interprets its kernels, nothing can be compiled."""

    def runtest(self) -> None:
        option = self.config.getoption
        command = [sys.executable, "-m", "soundrl.kernels.certificate", "--against", option("--certificate")]
        command += ["--fresh", str(fresh)] if (fresh := option("--certificate-fresh")) is not None else []
        command += ["--kernel", kernel] if (kernel := option("--certificate-kernel")) else []
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise AssertionError(f"{' '.join(command)}: status {done.returncode}\n{done.stdout[-8000:]}\n{done.stderr[-4000:]}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo, style: object = None) -> str:  # noqa: ARG002
        return str(excinfo.value)

    def reportinfo(self) -> tuple[str, None, str]:
        return __file__, None, "certificate"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("soundrl")
    group.addoption("--certificate", metavar="FILE", help="machine code of soundrl's kernels: fail where it is worse than in this file")
    group.addoption("--certificate-fresh", type=int, metavar="N", help="compile so many cases, chosen by hash (default: all)")
    group.addoption("--certificate-kernel", metavar="NAME", help="only cases whose name holds this")


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--certificate"):
        items.append(Certificate.from_parent(session, name="certificate", nodeid="certificate"))
