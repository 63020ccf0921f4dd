"""The committed certificate is that of the present kernels and holds its bars; each rule finds a kernel that breaks it.

Nothing is compiled in this process, where Triton interprets: a command does it, for a few cases chosen by hash. `make certificate` for all.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import pytest
import triton
from conftest import ROOT

from soundrl.kernels.certificate.case import Case, all_cases, sources
from soundrl.kernels.certificate.committed import CURE, load, load_predictions, save, short, some, stale, worse
from soundrl.kernels.certificate.compiled import by_rows
from soundrl.kernels.certificate.machine import MACHINES
from soundrl.kernels.certificate.measured import account
from soundrl.kernels.certificate.model import Prediction
from soundrl.kernels.certificate.row import Row, table
from soundrl.kernels.certificate.sass import Loop, innermost, loops, parse, rarely_run

FILE = ROOT / "bench" / "results" / "certificate.json"
COMPILING = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
FRESH = 3


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, env=COMPILING, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def committed() -> dict[tuple, Row]:
    return {row.key: row for row in load(FILE)}


def test_the_file_is_of_the_present_code(committed, tmp_path):
    """Every case by its fingerprint; three are compiled anew and give the same row, to the last instruction."""
    done = run("-m", "soundrl.kernels.certificate", "--against", FILE, "--fresh", FRESH, "--json", tmp_path / "rows.json", "--jobs", 1)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    fresh = [Row(**row) for row in json.loads((tmp_path / "rows.json").read_text())]
    assert len(fresh) == FRESH and all(row == committed[row.key] for row in fresh), table([*fresh, *(committed[r.key] for r in fresh)])


def test_committed_rows_hold_the_bars(committed):
    """For the Triton of this environment. What others spill or serialise stands in the file, under `faults`."""
    versions = {version for _, _, version in committed}
    assert versions >= {triton.__version__, "3.6.0", "3.8.0", "3.9.0"}, CURE
    cases = [(case, arch) for case in all_cases() for arch in case.architectures]
    rows = [(case, committed[case.name, arch, triton.__version__]) for case, arch in cases]
    faults = [f"{row.name} sm_{row.arch}: {fault}" for case, row in rows for fault in row.faults(case)]
    assert not faults, "\n".join(faults)


def test_predictions_hold_their_bars():
    missed = [
        f"{p.name}: {p.value} {p.unit}, bar {p.bar}: {p.arithmetic}" for p in load_predictions(FILE, triton.__version__) if not p.holds
    ]
    assert not missed, "\n".join(missed)


def test_every_kernel_has_a_case():
    """A `@triton.jit` function that is launched (its name ends in `_kernel`) and has no case would never be compiled before a user does."""
    written = {
        line.split("def ")[1].split("(")[0]
        for path in (ROOT / "kernels").glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith("def ") and line.split("(")[0].endswith("_kernel")
    }
    assert written and written == {case.kernel.__name__ for case in all_cases()}


def test_each_rule_finds_a_kernel_that_breaks_it():
    done = run("tests/kernels/bad_kernels.py")
    assert done.returncode == 0, done.stderr[-4000:]
    rows = {row["label"]: Row(**row) for row in json.loads(done.stdout)}
    case = Case(kernel=None, label="", signature={}, constexprs={})
    of = lambda label, **given: " · ".join(rows[label].faults(dataclasses.replace(case, **given)))  # noqa: E731
    assert "bytes, 0 accepted" in of("spill") and of("spill", spill=10_000) == ""
    assert "fp64 instructions" in of("fp64")
    assert of("serialised", wgmma=True) == "products are serialised: C7514" and rows["serialised"].share < 0.9
    assert "bytes of shared memory, sm_120 has 101376" in of("too large", spill=10_000)
    assert "does not compile: ValueError" in of("unknown argument") and "unknown ['y']" in of("unknown argument")


GOOD = Row(kernel="k", label="x", arch=90, triton="3.6.0", registers=128, shared=1000, products="HGMMA", turn=100, outside=50, share=0.9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spill": 8}, "spill 8, was 0"),
        ({"spills_in_loop": 2}, "spills_in_loop 2, was 0"),
        ({"serialised": "C7515"}, "products are serialised: C7515"),
        ({"turn": 103}, "turn 103 instructions, was 100"),
        ({"outside": 52}, "outside 52 instructions, was 50"),
        ({"share": 0.8}, "predicted share 0.800, was 0.900"),
        ({"shared": 300_000}, "does not fit: 300000 bytes of shared memory of 232448"),
        ({"failed": "PTXASError"}, "does not compile: PTXASError"),
        ({"early_releases": 1}, "early_releases 1, was 0"),
        ({"fp64": 1}, "fp64 1, was 0"),
        ({"quiet_minmax": 1}, "quiet_minmax 1, was 0"),
        ({"turn": 102, "share": 0.885, "registers": 168}, None),  # within the 2 %; registers alone are no fault
    ],
)
def test_what_counts_as_worse(change, message):
    row = dataclasses.replace(GOOD, **change)
    found = worse([row], [GOOD])
    assert (f"k x sm_90: {message}" in found) if message else not found, found
    assert not worse([dataclasses.replace(row, triton="3.7.0")], [GOOD])  # held to rows of its own Triton alone


def test_the_other_bars():
    case = Case(kernel=None, label="", signature={}, constexprs={}, wgmma=True, instructions=11.0)
    assert dataclasses.replace(GOOD, products="HMMA").faults(case) == ["no WGMMA"]
    assert dataclasses.replace(GOOD, early_releases=2).faults(case) == ["gives shared memory back 2 times before its products are done"]
    assert dataclasses.replace(GOOD, per_element=12.3).faults(case) == ["12.3 instructions an element, at most 11"]
    assert not GOOD.faults(case)


SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
.L_x_2:
        /*0018*/              @!P1 BRA `(.L_x_3) ;
.L_x_4:
        /*0020*/                   HGMMA.64x256x16.F32.BF16 R24, gdesc[UR12], R24 ;
        /*0030*/                   HGMMA.64x256x16.F32.BF16 R24, gdesc[UR12], R24, gsb0 ;
        /*0040*/              @!P2 SYNCS.ARRIVE.TRANS64.ART0 RZ, [UR31+0x24260], R205 ;
        /*0050*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0060*/              @!P2 SYNCS.ARRIVE.TRANS64.ART0 RZ, [UR31+0x24260], R205 ;
        /*0070*/               @P3 BRA `(.L_x_2) ;
        /*0080*/                   MUFU.EX2 R1, R2 ;
        /*0090*/                   STG.E.U16 desc[UR4][R2.64], R4 ;
        /*00a0*/               @P3 BRA `(.L_x_1) ;
        /*00b0*/                   EXIT ;
.L_x_3:
        /*00c0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR31+0x24240], R205 ;
        /*00d0*/              @!P1 BRA `(.L_x_3) ;
        /*00e0*/                   BRA `(.L_x_4) ;
"""


def test_loops_products_and_early_releases_are_read():
    code, labels = parse(SASS)
    found = loops(code, labels)
    # The wait that is spun out of line, and jumps back into the middle, is a loop of its own and in no other.
    assert [(loop.body[0].address, loop.body[-1].address) for loop in found] == [(0x10, 0xA0), (0x18, 0x70), (0xC0, 0xD0)]
    assert found[0].holds(found[1]) and not found[0].holds(found[2]) and not found[1].holds(found[0])
    (inner,) = innermost(found, lambda loop: loop.count("HGMMA") > 0)
    assert inner == found[1] and inner.products * 4 == 2 * 64 * 256 * 16
    assert inner.early_releases == 1 and inner.waits_for_all
    assert found[0].moved("LDG") == 16 and found[0].moved("STG") == 2 and found[0].count("MUFU") == 1
    shares = by_rows(found[0], Case(kernel=None, label="", signature={}, constexprs={}, element_bytes=2), 90)
    assert shares["per_element"] == round(11 / 8, 2) and shares["bound"] == "bytes" and shares["share"] == 1.0


def test_what_a_branch_steps_over_is_rarely_run():
    long = "\n".join(f"        /*{0x20 + 16 * i:04x}*/                   FSEL R1, R2, R3, P0 ;" for i in range(40))
    text = f"        /*0010*/               @P0 BRA `(.L_x_9) ;\n{long}\n.L_x_9:\n        /*1000*/                   EXIT ;\n"
    code, labels = parse(text)
    assert len(rarely_run(code, labels)) == 40 and not rarely_run(*parse(text.replace("FSEL", "HGMMA.64x256x16")))
    assert Loop(tuple(code)).count("FSEL") == 40


def test_a_fingerprint_is_of_what_decides_the_code(tmp_path):
    """Not of comments, docstrings or lines; of everything that is called, and of constants."""
    text = "from soundrl.kernels.language import tl, triton\nN = tl.constexpr(4)\n@triton.jit\ndef twice(x):\n    return x * 2\n"
    text += '@triton.jit\ndef f_kernel(x):\n    """Doc."""\n    tl.store(x + N, twice(tl.load(x)))  # why\n'
    seen = {}
    for name, change in {
        "same": ("# why", "# because\n"),
        "doc": ('"""Doc."""', '"""Other.\n    """'),
        "lines": ("", ""),
        "callee": ("x * 2", "x * 3"),
        "constant": ("(4)", "(5)"),
        "body": ("tl.load(x)", "tl.load(x + 1)"),
    }.items():
        path = tmp_path / f"{name}.py"
        path.write_text(text.replace(*change) if name != "lines" else "\n\n" + text)
        spec = importlib.util.spec_from_file_location("kernels_of_a_test", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        seen[name] = sources(module.f_kernel)
    assert seen["same"] == seen["doc"] == seen["lines"]
    assert len(set(seen.values())) == 4
    case = Case(kernel=module.f_kernel, label="x", signature={"x": "*fp32"}, constexprs={})
    others = [dataclasses.replace(case, **change) for change in ({"num_warps": 8}, {"num_stages": 1}, {"signature": {"x": "*bf16"}})]
    assert len({c.fingerprint() for c in (case, *others)}) == 4
    assert dataclasses.replace(case, label="y", spill=8).fingerprint() == case.fingerprint()


def test_a_file_of_other_code_is_stale(tmp_path):
    cases = [case for case in all_cases() if case.kernel.__name__ == "sum_rows_kernel"]
    (case,) = cases
    row = dataclasses.replace(GOOD, kernel=case.kernel.__name__, label=case.label, fingerprint=case.fingerprint())
    save(tmp_path / "c.json", [row, GOOD], cases, "3.6.0")  # a row without a case is left out
    rows = load(tmp_path / "c.json")
    assert rows == [row] and "spill" not in short(row) and short(row)["turn"] == 100
    newer = dataclasses.replace(row, triton="3.9.0", spill=64)
    save(tmp_path / "c.json", [newer], cases, "3.9.0")
    save(tmp_path / "c.json", [], [], "3.6.0")  # of this version alone: another one's cases may be others
    assert load(tmp_path / "c.json") == [newer]
    assert json.loads((tmp_path / "c.json").read_text())["faults"] == {
        "3.6.0": [],
        "3.9.0": [f"{row.name} sm_90: spills 64 bytes, 0 accepted"],
    }
    work = [(case, 90)]
    assert stale(work, rows, "3.6.0") == []
    assert stale(work, rows, "3.7.0") == [f"{case.name} sm_90 Triton 3.7.0: not in the file: {CURE}"]
    other = [dataclasses.replace(row, fingerprint="0")]
    assert stale(work, other, "3.6.0") == [f"{case.name} sm_90 Triton 3.6.0: made from other code: {CURE}"]
    many = [(case, arch) for case in all_cases() for arch in case.architectures]
    assert some(many, 5) == some(list(reversed(many)), 5) and len({id(c) for c, _ in some(many, 5)}) > 1


def test_the_plug_in_fails_on_a_worse_kernel(committed, tmp_path):
    """As an embedder calls it, on one kernel: the file says that it once took fewer instructions and had a wider share."""
    rows = [dataclasses.replace(row, share=1.0, spill=-1) if row.kernel == "sum_rows_kernel" else row for row in committed.values()]
    save(tmp_path / "c.json", rows, all_cases(), triton.__version__)
    command = ["-m", "pytest", "-p", "soundrl.kernels.certificate.plugin", "--certificate", tmp_path / "c.json", "--rootdir", tmp_path]
    command += ["--certificate-kernel", "sum_rows", "--certificate-fresh", 1, "-q", "-p", "no:cacheprovider", tmp_path]
    done = run(*command)
    assert done.returncode == 1 and "1 failed" in done.stdout, done.stdout + done.stderr
    assert "spill 0, was -1" in done.stdout and "predicted share 0.000, was 1.000" in done.stdout, done.stdout


def test_predicted_beside_measured():
    bench = {"bench": "linear_logprob", "mode": "forward", "provider": "ours", "shape": [8192, 4096, 151_936], "of": "x_floor"}
    predicted = [
        Prediction("streaming", 1.07, 1.12, "× one product", "", bench=bench),
        Prediction("attention", 0.9, 0.75, "× FA3", "", at_least=True),
        Prediction("rows", 0.83, 0.9, "ms", "", bench={"bench": "logprob", "mode": "forward", "provider": "ours", "of": "ms"}),
    ]
    row = {"bench": "linear_logprob", "mode": "forward", "provider": "ours", "shape": {"T": 8192, "H": 4096, "V": 151_936}, "l2": "hot"}
    measured = [
        row | {"x_floor": 1.5},
        row | {"x_floor": 1.19},
        row | {"x_floor": 9.0, "l2": "cold"},
        row | {"x_floor": 9.0, "shape": {"T": 8192, "H": 1024, "V": 151_936}},
        row | {"x_floor": 9.0, "provider": "torch"},
        row | {"x_floor": None, "error": "out of memory"},
        {"bench": "logprob", "mode": "forward", "provider": "ours", "shape": {"T": 8192, "V": 151_936}, "l2": "hot", "ms": 0.85},
    ]
    lines = [" ".join(line.split()) for line in account(predicted, measured).splitlines()]
    assert lines[1:] == [
        "streaming 1.070 1.190 1.11 1.12 × one product MISSED",
        "attention 0.900 none 0.75 × FA3",
        "rows 0.830 0.850 1.02 0.9 ms held",
    ]


def test_the_machines_are_their_data_sheets():
    """TFLOP/s of dense bf16 as the sheets have them, within 2 % (H100's at its boost clock of 1.83 GHz)."""
    for arch, sheet in {80: 312, 86: 125, 89: 362, 90: 989 * 1.755 / 1.83, 100: 2250, 120: 209.5}.items():
        gpu = MACHINES[arch]
        assert 2 * gpu.products * gpu.multiprocessors * gpu.clock / 1e12 == pytest.approx(sheet, rel=0.02), gpu.name
