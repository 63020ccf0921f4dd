"""Compiles every kernel for GPUs that need not be there, and prints what the machine code shows.

    python -m soundrl.kernels.certificate                              everything, about 5 minutes on two cores
    python -m soundrl.kernels.certificate --arch 90 --kernel varlen    some of it
    python -m soundrl.kernels.certificate --against FILE               and fail where a figure is worse than in the file
    python -m soundrl.kernels.certificate --against FILE --fresh 4     hold the code to the file by fingerprints; compile four cases only
    python -m soundrl.kernels.certificate --write FILE                 replace this Triton's rows in the file

A `!` behind the products: ptxas serialises them. Columns: `row.Row`. Status 1: a figure is worse, a row is not of this code, or a kernel
that the file does not know has a fault.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

from soundrl.kernels.certificate.case import EVERYWHERE, all_cases
from soundrl.kernels.certificate.committed import load, save, some, stale, worse
from soundrl.kernels.certificate.compiled import compile_all
from soundrl.kernels.certificate.model import predictions
from soundrl.kernels.certificate.row import table
from soundrl.kernels.language import HAS_TRITON, INTERPRETING, triton


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=EVERYWHERE, help="GPUs, 90 = sm_90")
    parser.add_argument("--kernel", default="", help="only cases whose name holds this")
    parser.add_argument("--against", type=Path, help="a certificate that nothing may be worse than")
    parser.add_argument("--fresh", type=int, help="with --against: how many cases to compile; the rest by fingerprint")
    parser.add_argument("--write", type=Path, help="the certificate to write this Triton's rows into")
    parser.add_argument("--json", type=Path, help="write the compiled rows here")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    return parser.parse_args()


def main(given: argparse.Namespace) -> int:
    if INTERPRETING or not HAS_TRITON:
        print("Triton interprets in this process, or is not installed: unset TRITON_INTERPRET, and install triton", file=sys.stderr)
        return 2
    cases = all_cases()
    work = [(case, arch) for case in cases for arch in case.architectures if arch in given.arch and given.kernel in case.name]
    by_name = {(case.name, arch): case for case, arch in work}
    known = load(given.against) if given.against else []
    wrong = []
    if any(row.triton == triton.__version__ for row in known):
        wrong += stale(work, known, triton.__version__)
        work = work if given.fresh is None else some(work, given.fresh)
    rows = []
    for row in compile_all(work, given.jobs):
        rows.append(row)
        print(f"\r{len(rows)} of {len(work)} compiled", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    rows.sort(key=lambda row: (row.kernel, row.arch, row.label))
    print(table(rows))
    keys = {row.key for row in known}
    faults = [(row, fault) for row in rows for fault in row.faults(by_name[row.name, row.arch])]
    for row, fault in faults:
        print(f"fault: {row.name} sm_{row.arch}: {fault}")
    wrong += worse(rows, known) + [f"{row.name} sm_{row.arch}: {fault}" for row, fault in faults if row.key not in keys]
    for p in predictions(rows):
        print(f"predicted: {p.name}: {p.value} {p.unit}{'' if p.bar is None else f' (bar {p.bar})'} = {p.arithmetic}")
    if given.json:
        given.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows]))
    if given.write:
        save(given.write, rows, cases, triton.__version__)
        print(f"{len(rows)} rows of Triton {triton.__version__} written to {given.write}; {len(faults)} faults")
        return 0
    for message in wrong:
        print(f"worse: {message}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(arguments()))
