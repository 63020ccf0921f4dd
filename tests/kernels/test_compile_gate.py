"""Every kernel × configuration compiles for sm_80 and sm_90, fits, does not spill, and holds no fp64 (the table is printed with -s)."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from gate import SHARED_LIMIT, Row, table

WITHOUT_INTERPRETER = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    command = [sys.executable, "tests/kernels/gate.py"]
    running = {
        arch: subprocess.Popen(
            [*command, str(arch)], cwd=ROOT, env=WITHOUT_INTERPRETER, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for arch in SHARED_LIMIT
    }
    out = []
    for arch, process in running.items():
        stdout, stderr = process.communicate(timeout=1200)
        assert process.returncode == 0, f"sm_{arch}: {stderr[-4000:]}"
        out += [Row(**row) for row in json.loads(stdout)]
    print("\n" + table(out))
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "compile_gate.txt").write_text(table(out) + "\n")
    return out


def test_all_kernels_pass_the_gate(rows):
    faults = [f"{row.kernel} {row.label} sm_{row.arch}: {fault}" for row in rows for fault in row.faults()]
    assert not faults, "\n".join(faults) + "\n" + table(rows)


def test_every_kernel_is_in_the_gate(rows):
    """A `@triton.jit` function that is launched (its name ends in `_kernel`) and has no case would never be compiled before a user does."""
    written = {
        line.split("def ")[1].split("(")[0]
        for path in (ROOT / "kernels").glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith("def ") and line.split("(")[0].endswith("_kernel")
    }
    assert written and written == {row.kernel for row in rows}


def test_the_gate_catches_spills_fp64_and_missing_wgmma():
    bad = Row("k", "x", 90, 255, 64, 300_000, 0, 3, 0.1, True, 0)
    assert bad.faults() == [
        "spills 64 bytes, 0 accepted",
        "needs 300000 bytes of shared memory, sm_90 has 232448",
        "3 fp64 instructions",
        "no WGMMA",
    ]
