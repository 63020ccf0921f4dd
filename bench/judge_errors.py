"""Does the corrected flawed share hold the oracle's truth? The default run with 20 evaluations, corrected in three ways.

    python bench/judge_errors.py

`raw` is what the judge says; `probe` corrects by its errors on planted flaws; `fresh` by its errors on a twentieth of the rollouts of the
same set, of which a second opinion (here the oracle) is asked: what the run reports. Of each: how often the 95 % interval holds the
oracle's share of these very rollouts, and how far the share is off. Appends a JSON line to bench/results/judge_errors.jsonl.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from record import ROOT, machine

from soundrl.engine.files.run_reader import RunReader
from soundrl.fapo.corrected import Errors, corrected
from soundrl.genrm.watch.probe import PROBED


@dataclass(frozen=True)
class Arguments:
    steps: int = 38
    """RL steps; an evaluation before the first and after every second one."""
    seed: int = 0
    folder: Path = Path("runs/judge_errors")


def evaluated(run: RunReader) -> list[dict[str, Any]]:
    """An evaluation of a set each: shares by the judge, corrected in both ways, and by the oracle."""
    rows, probe = [], None
    for metrics in run.metrics():
        if PROBED[0] in metrics:
            probe = Errors(*(int(metrics[name]) for name in PROBED))
        for set in sorted({name.split("/", 1)[1].rsplit("/", 1)[0] for name in metrics if name.startswith("eval/")}):
            said = {name: metrics.get(f"eval/{set}/{name}") for name in ("flawed_ratio", "true_flawed_ratio", "told")}
            found = {"step": metrics["step"], "set": set, "raw": said["flawed_ratio"], "true": said["true_flawed_ratio"]}
            if probe is not None and said["told"]:
                by_probe = corrected(said["flawed_ratio"] * said["told"], said["told"], probe)
                found["probe"] = by_probe and list(by_probe)
            if f"eval/{set}/flawed_corrected" in metrics:
                found["fresh"] = [metrics[f"eval/{set}/flawed_corrected{end}"] for end in ("", "_low", "_high")]
            rows.append(found)
    return rows


def main(arguments: Arguments) -> None:
    name = f"seed-{arguments.seed}"
    command = [sys.executable, "engine/train.py", "arith-genrm", "--run.folder", str(arguments.folder), "--run.name", name]
    command += ["--run.steps", str(arguments.steps), "--run.eval-every", "2", "--run.seed", str(arguments.seed), "--run.no-resume"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ.copy(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the run failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    run = RunReader(arguments.folder / name)
    rows = evaluated(run)
    record: dict[str, Any] = {"steps": arguments.steps, "seed": arguments.seed, "evaluations": len(rows) // 2, "sets": 2}
    record["off, raw"] = round(statistics.mean(abs(row["raw"] - row["true"]) for row in rows), 4)
    for way in ("probe", "fresh"):
        own = [row for row in rows if row.get(way)]
        record[f"held, {way}"] = [sum(row[way][1] <= row["true"] <= row[way][2] for row in own), len(own)]
        record[f"off, {way}"] = round(statistics.mean(abs(row[way][0] - row["true"]) for row in own), 4)
        record[f"width, {way}"] = round(statistics.mean(row[way][2] - row[way][1] for row in own), 4)
        held, off = record[f"held, {way}"][0], record[f"off, {way}"]
        print(f"{way}: the interval holds the truth in {held} of {len(own)}; the share is off by {off:.3f} in the mean")
    print(f"raw: off by {record['off, raw']:.3f}")
    with (ROOT / "bench" / "results" / "judge_errors.jsonl").open("a") as file:
        file.write(json.dumps(machine("cpu") | {"load": round(os.getloadavg()[0], 1)} | record | {"rows": rows}) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
