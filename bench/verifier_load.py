r"""Is a right answer lost because the machine is busy? 500 of them that need the parser, beside 0, 4 and 8 busy processes.

    python bench/verifier_load.py --data ../shared/data

The answers are references of MATH-500 and DeepMath, spelt anew (terms in another order, `\sqrt` as a power, or doubled
and halved), each with its reference, all left undecided by the strict rule. The old rule, 1 s of wall-clock time from the moment that a
ready worker has the pair, is taken from the same run: each comparison's wall-clock time is measured, and those above 1 s are what it
would have lost. Beside that stand the CPU seconds that comparisons took, and hostile answers, which must all end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from record import ROOT, machine

from soundrl.fapo.records import Outcome
from soundrl.fapo.verify.pool import cpu_seconds
from soundrl.fapo.verify.rule import plain_gold, rule
from soundrl.fapo.verify.value import Opaque, read, split
from soundrl.fapo.verify.verifier import Verifier

HOSTILE = [
    ("x^2+1", r"(x+y+z+w+1)^{999}"),
    (r"\sqrt{2}+\sqrt{3}", r"\Gamma(99999900)"),
    ("x^2+1", r"(\sin x+\cos y+\tan z)^{60}"),
    ("x^2+1", r"((x+1)^{99})^{99}"),
    (r"\sqrt{2}", r"(10^{9})!"),
    ("1,x", r"(x+y+z)^{200},(x+y+w)^{300}"),
]
SPIN = "while True: pass"


def respelt(gold: str) -> str | None:
    """The reference in other words, such that the parser is needed; None where none of the spellings does."""
    terms = split(gold, "+")
    spellings = [" + ".join(terms[::-1])] if len(terms) > 1 else []
    if gold.startswith(r"\sqrt{") and gold.endswith("}") and gold.count("{") == 1:
        spellings.append(f"({gold[6:-1]})^{{1/2}}")
    spellings.append(rf"\frac{{2\left({gold}\right)}}{{2}}")
    for answer in spellings:
        if rule(gold, answer).outcome is None:
            return answer
    return None


def pairs(folder: Path, count: int) -> list[tuple[str, str]]:
    """(reference, right answer): the first `count` that a verifier with twenty times the limits calls right."""
    found = {}
    for name in ("math500", "deepmath-5k"):
        for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            gold = str(json.loads(line)["answer"])
            try:
                plain_gold(gold)
            except ValueError:
                continue
            if gold not in found and isinstance(read(gold), Opaque) and "=" not in gold and (answer := respelt(gold)):
                found[gold] = answer
    right: list[tuple[str, str]] = []
    with Verifier(cpu_limit=200.0) as verifier:
        for start in range(0, len(found), 100):
            part = list(found.items())[start : start + 100]
            futures = [verifier.submit_answer(answer, gold) for gold, answer in part]
            right += [pair for pair, future in zip(part, futures, strict=True) if future.result() is Outcome.CORRECT]
            if len(right) >= count:
                break
    return right[:count]


def measure(right: list[tuple[str, str]], busy: int, hostile_limit: float) -> dict[str, Any]:
    spinners = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(busy)]
    try:
        wall, cpu = [], []
        with Verifier() as verifier:
            for worker in verifier.pool.workers:
                worker.ask(("1", "1"), 60.0, 60.0)  # starts its process

                def timed(*pair: Any, worker: Any = worker, ask: Any = worker.ask) -> str:
                    start, fork, used = time.monotonic(), worker._fork, cpu_seconds(worker._fork)
                    result = ask(*pair)
                    wall.append(time.monotonic() - start)
                    if worker._fork == fork:
                        cpu.append(cpu_seconds(fork) - used)
                    return result

                worker.ask = timed  # type: ignore[assignment]
            futures = [verifier.submit_answer(answer, gold) for gold, answer in right]
            outcomes = Counter(future.result().value for future in futures)
        with Verifier(cpu_limit=hostile_limit) as verifier:
            hostile = Counter(future.result().value for future in [verifier.submit_answer(answer, gold) for gold, answer in HOSTILE])
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
    return {
        "busy": busy,
        "answers": len(right),
        "lost": len(right) - outcomes["correct"],
        "outcomes": dict(outcomes),
        "lost_by_1s_of_wall_clock": sum(seconds > 1.0 for seconds in wall),
        "wall_p50_max": [round(sorted(wall)[len(wall) // 2], 4), round(max(wall), 3)],
        "cpu_p50_max": [round(sorted(cpu)[len(cpu) // 2], 4), round(max(cpu), 3)],
        "hostile": dict(hostile),
        "hostile_cpu_limit": hostile_limit,
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / ".." / "shared" / "data")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--busy", type=int, nargs="*", default=[0, 4, 8])
    parser.add_argument("--hostile-limit", type=float, default=1.0, help="CPU seconds for each hostile answer")
    arguments = parser.parse_args()
    right = pairs(arguments.data, arguments.count)
    for busy in arguments.busy:
        row = {"bench": "verifier_load"} | measure(right, busy, arguments.hostile_limit) | {"stamp": machine("cpu")}
        print(json.dumps(row), flush=True)
        with (ROOT / "bench" / "results" / "verifier_load.jsonl").open("a") as out:
            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
