"""The certificate as it is committed: rows and predictions by Triton version, and whether they are those of the present code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from soundrl.kernels.certificate.case import Case
from soundrl.kernels.certificate.model import Prediction, predictions
from soundrl.kernels.certificate.row import Row

CURE = "run `make certificate`"
Work = list[tuple[Case, int]]


def load(path: Path) -> list[Row]:
    return [Row(**row) for row in json.loads(path.read_text())["rows"]] if path.exists() else []


def short(row: Row) -> dict:
    """Fields that differ from their default, those that must be given among them."""
    return {f.name: value for f in dataclasses.fields(Row) if (value := getattr(row, f.name)) or f.default is dataclasses.MISSING}


def save(path: Path, rows: list[Row], cases: list[Case], version: str) -> None:
    """Write these rows of one Triton over its own of the same cases; those of cases that are no more go, other versions stay as they are
    (their cases may be others). A line a row, and by version what they predict and what is wrong with them."""
    by_name = {(case.name, arch): case for case in cases for arch in case.architectures}
    before = json.loads(path.read_text()) if path.exists() else {"rows": [], "faults": {}, "predictions": {}}
    old = [Row(**row) for row in before["rows"]]
    own = {row.key: row for row in [*old, *rows] if row.triton == version and (row.name, row.arch) in by_name}
    faults = [f"{row.name} sm_{row.arch}: {fault}" for row in own.values() for fault in row.faults(by_name[row.name, row.arch])]
    expected = [dataclasses.asdict(p) | {"holds": p.holds} for p in predictions(list(own.values()))]
    kept = [*(row for row in old if row.triton != version), *own.values()]
    kept.sort(key=lambda row: (row.triton, row.kernel, row.arch, row.label))
    told = {"faults": before["faults"] | {version: sorted(faults)}, "predictions": before["predictions"] | {version: expected}}
    lines = ",\n".join("  " + json.dumps(short(row), ensure_ascii=False) for row in kept)
    parts = [f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False, indent=1)}" for name, value in told.items()]
    path.write_text("{" + ",\n".join([*parts, f'"rows": [\n{lines}\n]']) + "}\n")


def load_predictions(path: Path, version: str) -> list[Prediction]:
    found = json.loads(path.read_text())["predictions"][version]
    return [Prediction(**{name: value for name, value in p.items() if name != "holds"}) for p in found]


def stale(work: Work, rows: list[Row], version: str) -> list[str]:
    """Cases without a row of the same source, types and constants, for this Triton."""
    known = {row.key: row.fingerprint for row in rows}
    out = []
    for case, arch in work:
        found = known.get((case.name, arch, version))
        if found != case.fingerprint():
            out.append(f"{case.name} sm_{arch} Triton {version}: {'not in the file' if found is None else 'made from other code'}: {CURE}")
    return out


def some(work: Work, number: int) -> Work:
    """As many of them, chosen by hash: others whenever the code changes, the same for everyone until then."""
    return sorted(work, key=lambda w: hashlib.sha256(f"{w[0].name} {w[1]} {w[0].fingerprint()}".encode()).digest())[:number]


def worse(new: list[Row], rows: list[Row]) -> list[str]:
    """In what new rows are worse than those of the file; rows that the file has not are held to nothing."""
    known = {row.key: row for row in rows}
    return [f"{row.name} sm_{row.arch}: {what}" for row in new if row.key in known for what in row.worse_than(known[row.key])]
