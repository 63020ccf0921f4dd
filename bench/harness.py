"""Microbenchmarks: several providers of one computation, checked against a reference, timed in turn, a JSON line each.

A bench lists its cases and hands them over:

    def case(plan: Plan) -> Case:
        x = torch.randn(1024, 1024, device=plan.device)
        return Case(
            mode="softmax", shape={"T": 1024, "V": 1024}, dtype=x.dtype,
            reference=lambda: {"y": x.double().softmax(-1)}, tolerance=1e-5, moved=2 * x.nbytes,
            providers=[Provider("torch", lambda: Work(lambda _: {"y": x.softmax(-1)})), copy_ceiling(plan.device)])

    if __name__ == "__main__":
        run("softmax", [case], arguments(__doc__))

What is timed is right: each provider's results are compared with the reference at the very shape that is timed, and one that is wrong,
cannot be imported or fails gives a row with `error` and no time, while the others go on. What is compared is timed alike: providers take
turns, and their order rotates from round to round, so that none always runs first or on the hottest chip. What is possible is measured:
`ceiling` providers (bare matrix products, a copy) run among the others, and every row has its time over theirs (`x_floor`).

Needs torch and triton alone; argparse instead of tyro for that reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from record import ROOT, Row, clocks, machine, table
from torch import Tensor

L2_BYTES = 256 * 2**20  # what a cold run writes in between: five times the L2 of an H100
MIB = 2**20
# What times a CPU. A bench of one thread may put time.process_time here: other processes on the machine then do not count.
CPU_CLOCK: list[Callable[[], float]] = [time.perf_counter]

Results = dict[str, Tensor]


@dataclass(frozen=True)
class Work:
    """A provider made ready: `step(before())` is one repetition, of which `step` alone is timed."""

    step: Callable[[Any], Results]
    before: Callable[[], Any] = lambda: None
    calls: int = 1
    """Computations in one `step`; times are divided by it."""


@dataclass(frozen=True)
class Provider:
    name: str
    build: Callable[[], Work]
    """Imports and prepares; whatever it raises becomes the row's `error`."""
    omits: tuple[str, ...] = ()
    """Results of the reference that this provider cannot compute; all others it must return."""
    ceiling: tuple[str, float] | None = None
    """("FLOP" or "bytes", how many one computation does): a bare operation whose rate bounds the others; its results are not checked."""


@dataclass(frozen=True, kw_only=True)
class Case:
    mode: str
    """What is computed, e.g. `grpo forward+backward`."""
    shape: dict[str, int | float]
    dtype: torch.dtype
    reference: Callable[[], Results]
    """The right results in fp64 or fp32, by name."""
    tolerance: float
    """Accepted ‖out − reference‖ / ‖reference‖ of each result."""
    providers: Sequence[Provider]
    flop: float = 0.0
    """Floating-point operations the computation cannot do without."""
    moved: float = 0.0
    """Bytes it cannot do without: each input read once, each output written once."""
    graph: bool = False
    """Time replays of a CUDA graph, which leaves the gaps between small launches out (a GPU only)."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to measure; made by `arguments`."""

    device: str
    small: bool = False
    """Shapes that take milliseconds on a CPU, to show that the script works."""
    cold: bool = False
    """Empty the L2 cache before each repetition."""
    rounds: int = 5
    per_round: int = 5
    """Timed repetitions of a provider in a round, after an untimed one; rounds · per_round of them in all."""
    only: tuple[str, ...] = ()
    """Names of shapes or modes to run; empty = all."""
    skip: tuple[str, ...] = ()
    """Providers to leave out."""
    out: Path = ROOT / "bench" / "results"

    def wants(self, *names: str) -> bool:
        return not self.only or any(name in self.only for name in names)


def relative_error(out: Tensor, reference: Tensor) -> float:
    """‖out − reference‖ / ‖reference‖ in fp64, in pieces; NaN where `out` holds one. Shapes must agree.

    Worked example: out [3, 5], reference [3, 4] → 0.2.
    """
    if out.shape != reference.shape:
        raise ValueError(f"result has shape {tuple(out.shape)}, the reference {tuple(reference.shape)}: a provider must return the same")
    far = near = torch.zeros((), dtype=torch.float64, device=reference.device)
    for a, b in zip(out.detach().reshape(-1).split(2**26), reference.reshape(-1).split(2**26), strict=True):
        far = far + (a.double() - b.double()).square().sum()
        near = near + b.double().square().sum()
    return float((far / near.clamp(min=1e-300)).sqrt())


def copy_ceiling(device: str, size: int = 2**29) -> Provider:
    """Copy `size` bytes of random data: the memory bandwidth, read and write counted."""
    size = size if device == "cuda" else 2**22

    def build() -> Work:
        source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        return Work(lambda _: {"copy": target.copy_(source)})

    return Provider("copy", build, ceiling=("bytes", 2.0 * size))


def compiled(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """torch.compile for one shape, what was compiled before forgotten; on CPU without Inductor, which would build C++ for a minute."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False, backend="inductor" if device == "cuda" else "aot_eager")


def in_graph(work: Work, calls: int = 20) -> Work:
    """The same as replays of a CUDA graph that holds `calls` computations. `before` runs once, so `step` must not spoil what it made."""
    state = work.before()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # lazy initialisation is not allowed while capturing
        for _ in range(3):
            work.step(state)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    results: Results = {}
    with torch.cuda.graph(graph):
        for _ in range(calls):
            results = work.step(state)

    def replay(_: Any) -> Results:
        graph.replay()
        return results

    return Work(replay, calls=calls)


def measure(case: Case, plan: Plan, bench: str = "") -> list[Row]:
    """Check every provider of `case`, then time those that are right, and relate times to ceilings; a row each, in the providers' order."""
    on_gpu = plan.device == "cuda"
    reference = case.reference()
    rows: dict[str, Row] = {}
    ready: dict[str, Work] = {}
    providers = [p for p in case.providers if p.name not in plan.skip]
    for provider in providers:
        row = Row(bench=bench, mode=case.mode, provider=provider.name, shape=case.shape, dtype=str(case.dtype).removeprefix("torch."))
        rows[provider.name] = row
        row.l2 = "cold" if plan.cold else "hot"
        try:
            work = provider.build()
            check(work, provider, reference, row, case.tolerance, on_gpu)
            # The graph is captured after the check: an eager run says more about what went wrong.
            if case.graph and on_gpu and row.error is None:
                work = in_graph(work)
            if row.error is None:
                ready[provider.name] = work
                row.timing = ("graph" if case.graph else "events") if on_gpu else CPU_CLOCK[0].__name__
        except Exception as error:  # noqa: BLE001 - other libraries raise what they like; the row carries it, and the others go on
            row.error = f"{type(error).__name__}: {error}".strip()[:500]
        release(on_gpu)
    del reference
    times = take_turns(ready, plan, rows)
    for name, ms in times.items():
        if rows[name].error is None:
            quantiles = torch.tensor(ms, dtype=torch.float64).quantile(torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64))
            rows[name].ms, rows[name].p20, rows[name].p80 = (round(x, 6) for x in quantiles.tolist())
            rows[name].repeats = len(ms)
    relate_to_ceilings(case, providers, rows)
    return list(rows.values())


def check(work: Work, provider: Provider, reference: Results, row: Row, tolerance: float, on_gpu: bool) -> None:
    """Run once; fill in memory and errors, and `error` where a result is missing or further from the reference than `tolerance`."""
    state = work.before()
    if on_gpu:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    results = work.step(state)
    if on_gpu:
        torch.cuda.synchronize()
        row.peak_mib = round((torch.cuda.max_memory_allocated() - before) / MIB, 3)
    row.result_mib = round(sum(x.nbytes for x in results.values()) / MIB, 3)
    if provider.ceiling:
        return
    expected = set(reference) - set(provider.omits)
    if set(results) != expected:
        row.error = f"wrong: returned {sorted(results)}, the reference has {sorted(expected)}"
        return
    row.errors = {name: relative_error(results[name], reference[name]) for name in sorted(expected)}
    wrong = [f"{name} is off by {error:.2e}" for name, error in row.errors.items() if not error <= tolerance]  # NaN is wrong
    if wrong:
        row.error = f"wrong: {', '.join(wrong)}; {tolerance:.0e} accepted"


def take_turns(ready: dict[str, Work], plan: Plan, rows: dict[str, Row]) -> dict[str, list[float]]:
    """Milliseconds of every repetition; a provider that fails on the way gets an `error` and drops out."""
    times: dict[str, list[float]] = {name: [] for name in ready}
    flush = torch.empty(L2_BYTES, dtype=torch.uint8, device=plan.device) if plan.cold and plan.device == "cuda" else None
    for turn in range(plan.rounds):
        names = list(ready)
        shift = turn % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            try:
                time_runs(ready[name], 1, plan.device, flush)  # warms caches and the allocator up after the others
                times[name] += time_runs(ready[name], plan.per_round, plan.device, flush)
            except Exception as error:  # noqa: BLE001 - as above
                rows[name].error = f"while timed: {type(error).__name__}: {error}".strip()[:500]
                del ready[name]
            release(plan.device == "cuda")
    return times


def time_runs(work: Work, runs: int, device: str, flush: Tensor | None) -> list[float]:
    """Milliseconds a computation. On a GPU the runs are queued one behind the other and waited for together."""
    if device != "cuda":
        seconds, clock = [], CPU_CLOCK[0]
        for _ in range(runs):
            state = work.before()
            start = clock()
            work.step(state)
            seconds.append(clock() - start)
        return [1e3 * s / work.calls for s in seconds]
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(runs)]
    for start, end in pairs:
        state = work.before()
        if flush is not None:
            flush.zero_()
        start.record()
        work.step(state)
        end.record()
        del state  # before the next one is made
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / work.calls for start, end in pairs]


def relate_to_ceilings(case: Case, providers: Sequence[Provider], rows: dict[str, Row]) -> None:
    """floor_ms, floor_by and x_floor of each timed row, from the ceilings timed in the same run."""
    floors = []
    for provider in providers:
        ms = rows[provider.name].ms
        if provider.ceiling and ms:
            unit, amount = provider.ceiling
            needed = case.flop if unit == "FLOP" else case.moved
            floors.append((ms * needed / amount, provider.name))
    if floors and max(floors)[0] > 0:
        for provider in providers:
            row = rows[provider.name]
            if row.ms and not provider.ceiling:
                row.floor_ms, row.floor_by = round(max(floors)[0], 6), max(floors)[1]
                row.x_floor = round(row.ms / max(floors)[0], 4)


def release(on_gpu: bool) -> None:
    """Give cached memory back, so that one provider's pool does not starve the next."""
    if on_gpu:
        torch.cuda.empty_cache()


def run(bench: str, cases: Sequence[Callable[[Plan], Case | None]], plan: Plan) -> list[Row]:
    """Measure case after case; print a table and append the rows to `<plan.out>/<bench>.jsonl` as each is done.

    A case is made when its turn comes, so that its inputs do not lie beside another's; one that makes None is not wanted.
    """
    plan.out.mkdir(parents=True, exist_ok=True)
    stamp = machine(plan.device)
    print(f"{bench} on {stamp['device']}, torch {stamp['torch']}, triton {stamp['triton']}, commit {stamp['commit']}", flush=True)
    done: list[Row] = []
    for make in cases:
        case = make(plan)
        if case is None:
            continue
        before = clocks(plan.device)
        rows = measure(case, plan, bench)
        stamp |= {"small": plan.small, "clocks_before": before, "clocks_after": clocks(plan.device)}
        del case
        with (plan.out / f"{bench}.jsonl").open("a") as file:
            for row in rows:
                row.stamp = dict(stamp)
                file.write(json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n")
        print(table(rows), flush=True)
        done += rows
        release(plan.device == "cuda")
    print(f"{len(done)} rows, {sum(row.error is not None for row in done)} with an error, in {plan.out / bench}.jsonl")
    return done


def arguments(description: str | None, given: Sequence[str] | None = None) -> Plan:
    """The plan from the command line. Results go to $OUT, else to bench/results; those of small shapes to out/, which git ignores."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="shapes of milliseconds on a CPU (the default without a GPU)")
    parser.add_argument("--cold", action="store_true", help="empty the L2 cache before each repetition")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each provider")
    parser.add_argument("--per-round", type=int, default=5, help="timed repetitions a turn")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="shapes or modes to run, e.g. S1 S5")
    parser.add_argument("--skip", nargs="*", default=[], metavar="PROVIDER", help="providers to leave out")
    chosen = parser.parse_args(given)
    if chosen.rounds < 1 or chosen.per_round < 1:
        parser.error(f"--rounds {chosen.rounds} and --per-round {chosen.per_round} must be at least 1")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    small = chosen.small or device == "cpu"
    out = Path(os.environ["OUT"]) if "OUT" in os.environ else ROOT / ("out" if small else "bench/results")
    numbers = {"rounds": chosen.rounds, "per_round": chosen.per_round}
    return Plan(device=device, small=small, cold=chosen.cold, only=tuple(chosen.only), skip=tuple(chosen.skip), out=out, **numbers)
