"""`--profile STEP`: torch's profiler around one step, on every rank. It looks and changes nothing: results are the same to the bit.

Each rank leaves `runs/<name>/profile/step-000012-rank-0.json.gz`, a Chrome trace of operators and, on a GPU, kernels (Perfetto opens it);
of rank 0 the heaviest operators are told. A long step of decoding is millions of events: choose small `rollout.prompts` to look at one.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundrl.engine.launch.launch import PROFILED
from soundrl.engine.telemetry.timeline import TIMELINE

if TYPE_CHECKING:
    from soundrl.engine.run import Run

HEAVIEST = 12  # operators in the table


@contextmanager
def profiled(run: Run, step: int) -> Iterator[None]:
    """Around the body of a step. Says so where a run goes on behind the step that is asked for."""
    if step > PROFILED.step > 0:
        run.say(f"--profile {PROFILED.step}: that step was done before, nothing is profiled")
        PROFILED.step = 0
    if step != PROFILED.step:
        yield
        return
    import torch
    from torch.profiler import ProfilerActivity, profile

    on_gpu = run.ranks.device.type == "cuda"
    seen = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])])
    seen.start()
    yield
    if on_gpu:
        torch.cuda.synchronize()
    PROFILED.step = 0
    with TIMELINE("profile"):  # a phase of its own: what was seen takes longer to sort and write than the step took
        seen.stop()
        target = trace_of(run.folder.path, step, run.ranks.rank)
        target.parent.mkdir(exist_ok=True)
        seen.export_chrome_trace(str(target))
        run.say(f"profile of step {step}: {target.parent}\n{heaviest(target, on_gpu)}")


def trace_of(folder: Path, step: int, rank: int) -> Path:
    return folder / "profile" / f"step-{step:06d}-rank-{rank}.json.gz"


def heaviest(trace: Path, on_gpu: bool) -> str:
    """From the trace, operators by the time that they take themselves; on a GPU its kernels. (torch's own sums, `key_averages`, take
    minutes of Python for a step that decodes.)"""
    kind = "kernel" if on_gpu else "cpu_op"
    with gzip.open(trace) as file:
        events = [event for event in json.load(file)["traceEvents"] if event.get("cat") == kind and "dur" in event]
    calls, own = Counter(event["name"] for event in events), self_times(events)
    whole = sum(own.values()) or 1.0
    lines = [f"  {'operator':<60} {'calls':>9} {'ms':>10}   share"]
    for name, took in own.most_common(HEAVIEST):
        lines.append(f"  {name[:60]:<60} {calls[name]:>9} {took / 1e3:>10.1f}  {took / whole:>5.1%}")
    return "\n".join(lines)


def self_times(events: list[dict[str, Any]]) -> Counter[str]:
    """Microseconds by name without what ran within, on the same thread.

    >>> self_times([{"name": "a", "tid": 1, "ts": 0, "dur": 10}, {"name": "b", "tid": 1, "ts": 2, "dur": 3}])
    Counter({'a': 7, 'b': 3})
    """
    own: Counter[str] = Counter()
    open_: dict[Any, list[tuple[str, float]]] = {}
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        stack = open_.setdefault((event.get("pid"), event["tid"]), [])
        while stack and stack[-1][1] <= event["ts"]:
            stack.pop()
        if stack:
            own[stack[-1][0]] -= event["dur"]
        own[event["name"]] += event["dur"]
        stack.append((event["name"], event["ts"] + event["dur"]))
    return own
