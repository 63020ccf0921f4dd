"""Predictions held to account: what a bench measured beside what the certificate said.

As a program, with the JSON lines of any number of benches:

    python -m soundrl.kernels.certificate.measured CERTIFICATE BENCH.jsonl …
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from soundrl.kernels.certificate.committed import load_predictions
from soundrl.kernels.certificate.model import Prediction


def fits(prediction: Prediction, row: dict[str, Any]) -> bool:
    """Whether the row measures it. `shape` is compared by its numbers, as benches name them differently; a cold L2 is another thing."""
    wanted = {name: value for name, value in (prediction.bench or {}).items() if name not in ("of", "shape")}
    shape = (prediction.bench or {}).get("shape")
    same = shape is None or set(row.get("shape", {}).values()) == set(shape)
    return bool(wanted) and same and row.get("l2", "hot") == "hot" and all(row.get(name) == value for name, value in wanted.items())


def account(predicted: list[Prediction], measured: list[dict[str, Any]]) -> str:
    """A line a prediction: measured over predicted, or that nothing measured it. The last measurement counts; rows with an error do not."""
    lines = [f"{'prediction':66} {'predicted':>9} {'measured':>9} {'ratio':>6}  {'bar':>5}"]
    for p in predicted:
        found = [row[p.bench["of"]] for row in measured if p.bench and fits(p, row) and row.get(p.bench["of"]) is not None]
        told = f"{found[-1]:9.3f} {found[-1] / p.value:6.2f}" if found else f"{'none':>9} {'':6}"
        held = "" if p.bar is None or not found else "held" if (found[-1] >= p.bar if p.at_least else found[-1] <= p.bar) else "MISSED"
        lines.append(f"{p.name:66} {p.value:9.3f} {told}  {p.bar or '':>5} {p.unit} {held}")
    return "\n".join(lines)


def main(certificate: Path, benches: list[Path]) -> None:
    """Of the Triton that measured, or the nearest older that the certificate has."""
    measured = [json.loads(line) for path in benches if path.exists() for line in path.read_text().splitlines()]
    versions = sorted(json.loads(certificate.read_text())["predictions"], key=numbers)
    used = next((row["stamp"]["triton"] for row in measured if "triton" in row.get("stamp", {})), versions[0])
    version = max((v for v in versions if numbers(v) <= numbers(used)), default=versions[0], key=numbers)
    print(f"predictions of Triton {version}, measured with {used}")
    print(account(load_predictions(certificate, version), measured))


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.split("+")[0].split(".") if part.isdigit()]


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
