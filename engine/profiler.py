"""`--profile STEP`: torch's profiler around one step, on every rank. It looks and changes nothing: results are the same to the bit.

Each rank leaves `runs/<name>/profile/step-000012-rank-0.json.gz`, a Chrome trace of operators and, on a GPU, kernels (Perfetto opens it);
of rank 0 the heaviest operators are told. A long step of decoding is millions of events: choose small `rollout.prompts` to look at one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundrl.engine.launch.launch import PROFILED
from soundrl.engine.timeline import TIMELINE

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
        run.say(f"profile of step {step}: {target.parent}\n{heaviest(seen, on_gpu)}")


def trace_of(folder: Path, step: int, rank: int) -> Path:
    return folder / "profile" / f"step-{step:06d}-rank-{rank}.json.gz"


def heaviest(seen: Any, on_gpu: bool) -> str:
    """Operators by the time that they take themselves, on the GPU where there is one."""
    time = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows = sorted(seen.key_averages(), key=lambda row: -getattr(row, time))
    whole = sum(getattr(row, time) for row in rows) or 1.0
    lines = [f"  {'operator':<60} {'calls':>9} {'ms':>10}   share"]
    for row in rows[:HEAVIEST]:
        took = getattr(row, time)
        lines.append(f"  {row.key[:60]:<60} {row.count:>9} {took / 1e3:>10.1f}  {took / whole:>5.1%}")
    return "\n".join(lines)
