"""From a `Case` to a `Row`: compiled by Triton and ptxas for a GPU that need not be there, and read."""

from __future__ import annotations

import contextlib
import io
import math
import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from soundrl.kernels.certificate.case import Case, source_of
from soundrl.kernels.certificate.machine import MACHINES
from soundrl.kernels.certificate.row import Row
from soundrl.kernels.certificate.sass import LOAD, PRODUCT, SPECIAL, Loop, innermost, loops, parse, rarely_run


def compile_case(case: Case, arch: int) -> Row:
    """Compile for `sm_<arch>` and read what can be read. Only where Triton does not interpret."""
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas

    ptxas, log = get_ptxas(arch), io.StringIO()
    knobs.nvidia.dump_ptxas_log = knobs.compilation.always_compile = True  # a cached kernel has no log
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    with contextlib.redirect_stdout(log):
        compiled = triton.compile(source_of(case), target=GPUTarget("cuda", arch, 32), options=options)
    ptx, shared = compiled.asm["ptx"], compiled.metadata.shared
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        tools = Path(ptxas.path).parent
        usage = run(tools / "cuobjdump", "-res-usage", cubin)
        code = run(tools / "nvdisasm", "-c", "-ndf", cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return Row(
        kernel=case.kernel.__name__,
        label=case.label,
        arch=arch,
        triton=triton.__version__,
        ptxas=ptxas.version,
        fingerprint=case.fingerprint(),
        registers=int(found[1]),
        spill=int(found[2]),
        shared=shared,
        fp64=len(re.findall(r"\.f64\b", ptx)),
        quiet_minmax=len(re.findall(r"\b(?:min|max)(?:\.ftz)?\.f32\b", ptx)),
        **read(code, log.getvalue(), case, arch, threads_of(ptx), tcgen05_products(compiled.asm["ttgir"])),
    )


def run(tool: Path, *arguments: Any) -> str:
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def threads_of(ptx: str) -> int:
    found = re.search(r"\.(?:reqntid|maxntid) (\d+)", ptx)
    return int(found[1]) if found else 0


def tcgen05_products(ttgir: str) -> int:
    """Multiply-accumulates of one UTCHMMA, which names no shape: 16 deep, at most 128 × 256; 0 where several shapes are mixed."""
    found = set(re.findall(r"tc_gen5_mma .*: !ttg\.memdesc<(?:\d+x)?(\d+)x\d+xb?f\d+.*?, !ttg\.memdesc<(?:\d+x)?\d+x(\d+)xb?f\d+", ttgir))
    shapes = {(min(int(m), 128), min(int(n), 256)) for m, n in found}
    return 16 * math.prod(shapes.pop()) if len(shapes) == 1 else 0


def read(text: str, log: str, case: Case, arch: int, threads: int, tcgen05: int) -> dict[str, Any]:
    """Fields of a `Row` that the disassembly and ptxas' log show."""
    code, labels = parse(text)
    whole = Loop(tuple(code))
    product = next((found[1] for i in code if (found := PRODUCT.match(i.op))), "")
    all_loops = loops(code, labels)
    multiplying = innermost(all_loops, lambda loop: loop.count(PRODUCT.pattern) > 0)
    out: dict[str, Any] = {
        "products": product,
        "loads": {"tma": whole.count("UTMALDG"), "async": whole.count("LDGSTS"), "plain": whole.count(r"LDG\b")},
        "early_releases": sum(loop.early_releases for loop in multiplying),
    }
    if product:
        specialised = threads > 32 * case.num_warps
        groups = threads // 128 - 1 if specialised else 1  # of warps that multiply, each with loops of its own; the last only loads
        # Of a group's loops the leanest: others do the same with a mask.
        main = sorted(multiplying, key=lambda x: len(x.body) / x.count(PRODUCT.pattern))[:groups]
        around = [min((x for x in all_loops if x.holds(loop)), key=lambda x: len(x.body), default=loop) for loop in main]
        seldom = rarely_run(code, labels).union(*({i.address for i in loop.body} for loop in main))
        outside = Loop(tuple(i for loop in around for i in loop.body if i.address not in seldom))
        alone = [x for x in multiplying if x.count("HGMMA") > 1 and x.count(r"WARPGROUP\.DEPBAR") >= x.count("HGMMA")]
        warning = re.search(r"\((C75\d+)\)", log)
        serialised = warning[1] if warning else "each waits alone" if alone else ""
        return out | {
            "serialised": serialised,
            "turn": sum(len(loop.body) for loop in main),
            "outside": len(outside.body),
            "spills_in_loop": sum(loop.count("LDL|STL") for loop in main),
            **by_tensor_cores(main, outside, 4 if specialised else case.num_warps, arch, specialised, serialised, tcgen05),
        }
    if case.element_bytes:
        rows = innermost(all_loops, lambda loop: loop.count(LOAD.pattern) > 0)
        if rows:
            loop = max(rows, key=lambda loop: loop.moved(LOAD.pattern))
            seldom = rarely_run(loop.body, labels)
            return out | by_rows(Loop(tuple(i for i in loop.body if i.address not in seldom)), case, arch)
    return out


def by_tensor_cores(
    main: list[Loop], outside: Loop, warps: int, arch: int, specialised: bool, serialised: str, tcgen05: int
) -> dict[str, Any]:
    """clocks, bound and share of a loop around products; `warps` run each of the loops.

    A turn takes as long as the longest of: its products on the tensor cores, its instructions (4 a clock), its special functions. Where a
    group of warps waits for its own products in each turn, these and the rest come one after the other: with one group both count in full;
    with two, one runs its instructions beside the other's products, and only a group's own chain is added up.
    """
    gpu, whole = MACHINES[arch], Loop(tuple(i for loop in main for i in loop.body))
    products = whole.products * warps + whole.count("UTCHMMA") * tcgen05  # the latter is the whole program's, not a warp's
    clocks = {"tensor": products / gpu.products, **busy(whole, warps, arch)}
    beside = max(clocks["issue"], clocks["special"])
    if outside.body:
        clocks["outside"] = max(busy(outside, warps, arch).values())
    out = {"clocks": {name: round(value, 1) for name, value in clocks.items()}}
    if not products:
        return out
    bounds = {name: clocks[name] for name in ("tensor", "issue", "special")}
    if serialised or any(loop.waits_for_all for loop in main):
        bounds["chain"] = (clocks["tensor"] + beside) / (len(main) if specialised else 1)
    bound = max(bounds, key=lambda name: bounds[name])
    return out | {"bound": bound, "share": round(clocks["tensor"] / bounds[bound], 4)}


def busy(loop: Loop, warps: int, arch: int) -> dict[str, float]:
    """Clocks of one multiprocessor for the instructions of so many warps, and for those that its few special-function lanes run."""
    gpu = MACHINES[arch]
    return {"issue": len(loop.body) * warps / gpu.issue, "special": loop.count(SPECIAL) * warps * 32 / gpu.special}


def by_rows(loop: Loop, case: Case, arch: int) -> dict[str, Any]:
    """The same of a loop over a row: an element takes the longest of its bytes, its instructions (128 lanes) and its exponentials."""
    gpu, elements = MACHINES[arch], loop.moved(LOAD.pattern) / case.element_bytes
    moved = (loop.moved(LOAD.pattern) + loop.moved("STG")) / elements
    clocks = {
        "bytes": moved / gpu.memory_clock,
        "issue": len(loop.body) / elements / (32 * gpu.issue),
        "special": loop.count(SPECIAL) / elements / gpu.special,
    }
    bound = max(clocks, key=lambda name: clocks[name])
    return {
        "turn": len(loop.body),
        "per_element": round(len(loop.body) / elements, 2),
        "spills_in_loop": loop.count("LDL|STL"),
        "clocks": {name: round(value, 4) for name, value in clocks.items()},
        "bound": bound,
        "share": round(clocks["bytes"] / clocks[bound], 4),
    }


def compile_all(work: list[tuple[Case, int]], jobs: int) -> Iterator[Row]:
    """Each in a process of its own, `jobs` at a time: some kernels take the compiler down with them. In the order they are done."""
    fork, waiting, running = multiprocessing.get_context("fork"), list(reversed(work)), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            case, arch = waiting.pop()
            ours, theirs = fork.Pipe(duplex=False)
            process = fork.Process(target=send, args=(theirs, case, arch))
            process.start()
            theirs.close()
            running[ours] = process, case, arch
        for ours in wait(list(running)):
            process, case, arch = running.pop(ours)  # type: ignore[arg-type]
            try:
                row = ours.recv()  # type: ignore[union-attr]
            except EOFError:
                row = None
            process.join()
            yield row or failed(case, arch, f"the compiler ended with status {process.exitcode}")


def send(to: Connection, case: Case, arch: int) -> None:
    try:
        to.send(compile_case(case, arch))
    except Exception as error:  # noqa: BLE001 - whatever a compiler raises is a row of the table
        cause = str(error.__cause__ or error).strip().splitlines()
        to.send(failed(case, arch, f"{type(error).__name__}: {cause[-1] if cause else ''}"[:200]))


def failed(case: Case, arch: int, reason: str) -> Row:
    import triton

    given = {"kernel": case.kernel.__name__, "label": case.label, "arch": arch, "triton": triton.__version__}
    return Row(**given, fingerprint=case.fingerprint(), failed=reason)
