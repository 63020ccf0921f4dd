"""Packed attention against its peers: forward, backward and both, on four mixes of sequence lengths.

    python bench/varlen_attention.py                       on a GPU: 16,384 tokens, 32 query and 8 key heads of 128, bfloat16
    python bench/varlen_attention.py --tokens 256 --heads 2 --kv-heads 1 --dim 32 --rounds 2      on a CPU: that it runs, not how fast
    python bench/varlen_attention.py --tune                times other blocks for this head dimension, type and GPU

All providers get the same packed inputs and upstream gradient and are timed in turn, `--rounds` times, each after a flush of L2; the
median counts. A row: ms, TFLOP/s (causal products alone: 4·D·Hq·Σ l(l+1)/2 forward, 2.5 times that backward), GB/s (inputs and outputs
once), peak memory beyond the inputs, share of a bare 8192³ matrix product timed in the same run. Providers that are not installed, or
that cannot do the shape, are listed with their reason. Shapes: T tokens, Hq query heads, D head dimension.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import itertools
import json
import random
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import triton
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from soundrl.engine.attention import FLASH
from soundrl.kernels import varlen_launch
from soundrl.kernels.varlen_attention import varlen_attention
from soundrl.kernels.varlen_tiles import sequence_tiles

Run = Callable[[Tensor, Tensor, Tensor], Tensor]


def cut(lengths: list[int], tokens: int) -> list[int]:
    """The first lengths that fit into `tokens`, the last one shortened. Worked example: cut([3, 3, 3], 7) → [3, 3, 1]."""
    out, used = [], 0
    for length in lengths:
        length = min(length, tokens - used)
        if length > 0:
            out.append(length)
            used += length
    return out


def mixes(tokens: int, gsm8k: Path) -> dict[str, list[int]]:
    rng = random.Random(0)
    out = {
        "8 equal": [tokens // 8] * 8,
        "geometric": cut([max(1, int(rng.expovariate(8 / tokens))) for _ in range(200)], tokens),
        "1 long + short": cut([tokens // 2, *(tokens // 128 for _ in range(64))], tokens),
    }
    if gsm8k.is_file():
        rows = [json.loads(line) for line in gsm8k.read_text().splitlines()[:2000]]
        # Words, single digits and signs: within a tenth of what a tokenizer with single digits counts.
        out["gsm8k"] = cut([len(re.findall(r"[A-Za-z]+|\d|\S", " ".join(map(str, row.values())))) for row in rows], tokens)
    return out


def providers(cu_seqlens: Tensor, q_THD: Tensor, lengths: list[int]) -> dict[str, Run | str]:
    """Name → function of (q, k, v), or the reason why it is missing."""
    tokens, longest, device = len(q_THD), max(lengths), q_THD.device
    cu_32 = cu_seqlens.int()
    tiles = sequence_tiles(cu_seqlens, tokens)
    real = torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]

    def per_sequence(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
        return torch.cat(
            [sdpa(*(x.transpose(0, 1)[None] for x in part), is_causal=True, enable_gqa=True)[0].transpose(0, 1) for part in parts]
        )

    def padded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = [x.new_zeros(*real.shape, *x.shape[1:]).masked_scatter(real[..., None, None], x).transpose(1, 2) for x in (q, k, v)]
        return sdpa(rows[0], rows[1], rows[2], is_causal=True, enable_gqa=True).transpose(1, 2)[real]

    served = varlen_launch.INTERPRETING or device.type == "cuda"
    out: dict[str, Run | str] = {
        "soundrl" if served else "soundrl (reference)": lambda q, k, v: varlen_attention(
            q, k, v, cu_seqlens, tiles_N4=tiles if served else None
        ),
        "sdpa per sequence": per_sequence,
        "sdpa padded": padded,
    }
    if device.type != "cuda":
        return out | dict.fromkeys(("flex", "torch varlen_attn", "flash", "vllm flash"), "needs a GPU")

    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    owner = torch.repeat_interleave(torch.arange(len(lengths), device=device), torch.tensor(lengths, device=device))
    compiled = torch.compile(flex_attention)
    mask = torch.compile(create_block_mask)(
        lambda b, h, i, j: (owner[i] == owner[j]) & (i >= j), None, None, tokens, tokens, device=str(device)
    )

    def flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return compiled(*(x.transpose(0, 1)[None] for x in (q, k, v)), block_mask=mask, enable_gqa=True)[0].transpose(0, 1)  # type: ignore[index]

    out["flex"] = flex
    try:
        from torch.nn.attention.varlen import varlen_attn

        takes = inspect.signature(varlen_attn).parameters  # torch 2.10 says is_causal; 2.12 window_size, and asks for enable_gqa
        causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in takes else {"is_causal": True}
        causal |= {"enable_gqa": True} if "enable_gqa" in takes else {}
        out["torch varlen_attn"] = lambda q, k, v: cast(Tensor, varlen_attn(q, k, v, cu_32, cu_32, longest, longest, **causal))
    except ImportError as error:
        out["torch varlen_attn"] = str(error)
    for module in (*(name for name, _, _ in FLASH), "vllm.vllm_flash_attn"):
        try:
            function = importlib.import_module(module).flash_attn_varlen_func
        except (ImportError, AttributeError) as error:
            out[module] = str(error)
            continue
        for deterministic in (False,) if module.startswith("vllm") else (False, True):
            out[module + " deterministic" * deterministic] = flash(function, cu_32, longest, deterministic)
    return out


def flash(function: Callable[..., Any], cu_seqlens: Tensor, longest: int, deterministic: bool) -> Run:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bounds = {"cu_seqlens_q": cu_seqlens, "cu_seqlens_k": cu_seqlens, "max_seqlen_q": longest, "max_seqlen_k": longest}
        out = function(q, k, v, **bounds, causal=True, **({"deterministic": True} if deterministic else {}))
        return out[0] if isinstance(out, tuple) else out

    return run


def milliseconds(work: Callable[[], object], flush: Tensor) -> float:
    flush.zero_()
    if flush.is_cuda:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end)
    started = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - started)


def phases(run: Run, inputs: list[Tensor], upstream: Tensor) -> dict[str, Callable[[], object]]:
    """The three things that are timed; the backward pass alone reuses one graph."""
    out = run(*inputs)

    def forward() -> Tensor:
        with torch.no_grad():
            return run(*inputs)

    if not out.requires_grad:
        return {"forward": forward}
    return {
        "forward": forward,
        "backward": lambda: torch.autograd.grad(out, inputs, upstream, retain_graph=True),
        "both": lambda: torch.autograd.grad(run(*inputs), inputs, upstream),
    }


def interleaved(work: dict[Any, Callable[[], object]], rounds: int, flush: Tensor) -> dict[Any, float]:
    """Median milliseconds of each, all in turn in every round, after two rounds that do not count."""
    times: dict[Any, list[float]] = {name: [] for name in work}
    for turn in range(2 + rounds):
        for name, f in work.items():
            ms = milliseconds(f, flush)
            times[name] += [ms] if turn >= 2 else []
    return {name: statistics.median(values) for name, values in times.items()}


def peak_bytes(work: Callable[[], object]) -> int:
    if not torch.cuda.is_available():
        return 0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def compare(a: argparse.Namespace, device: torch.device, flush: Tensor) -> None:
    dtype = getattr(torch, a.dtype)
    size = 8192 if device.type == "cuda" else 256
    square = torch.randn(size, size, device=device, dtype=dtype)
    gemm = 2 * size**3 / interleaved({"gemm": lambda: square @ square}, a.rounds, flush)["gemm"] / 1e9
    versions = {"torch": torch.__version__, "triton": triton.__version__, "device": device_name(device)}
    for mix, lengths in mixes(a.tokens, a.gsm8k).items():
        shapes = [(sum(lengths), h, a.dim) for h in (a.heads, a.kv_heads, a.kv_heads, a.heads)]
        *inputs, upstream = (torch.randn(shape, device=device, dtype=dtype) for shape in shapes)
        cu_seqlens = torch.tensor([0, *lengths], device=device).cumsum(0)
        found = providers(cu_seqlens, inputs[0], lengths)
        inputs = [x.requires_grad_() for x in inputs]
        work: dict[tuple[str, str], Callable[[], object]] = {}
        for name, run in found.items():
            if isinstance(run, str):
                print(f"{mix}: {name}: {run}")
                continue
            try:
                for phase, f in phases(run, inputs, upstream).items():
                    f()
                    work[name, phase] = f
            except (RuntimeError, TypeError, ValueError) as error:  # a peer that cannot do this shape is a finding, not a failure
                print(f"{mix}: {name}: {str(error).splitlines()[0]}")
        times = interleaved(work, a.rounds, flush)
        products = 2 * a.dim * a.heads * sum(length * (length + 1) for length in lengths)
        moved = {"forward": sum(x.nbytes for x in inputs) + upstream.nbytes}
        moved["backward"] = 2 * moved["forward"] + upstream.nbytes
        for (name, phase), ms in times.items():
            flop = products * {"forward": 1.0, "backward": 2.5, "both": 3.5}[phase]
            row = {"mix": mix, "sequences": len(lengths), "provider": name, "phase": phase, "ms": round(ms, 4)}
            row |= {"tflops": round(flop / ms / 1e9, 2), "gb_s": round(moved.get(phase, sum(moved.values())) / ms / 1e6, 1)}
            row |= {"of_gemm": round(flop / ms / 1e9 / gemm, 3), "peak_mib": peak_bytes(work[name, phase]) >> 20}
            print(f"{mix:15} {name:30} {phase:9} " + " ".join(f"{k} {v:>9}" for k, v in list(row.items())[4:]))
            if a.out:
                with a.out.open("a") as file:
                    file.write(json.dumps(row | vars_of(a) | versions) + "\n")


def tune(a: argparse.Namespace, device: torch.device, flush: Tensor) -> None:
    """Milliseconds of other blocks for the table of `kernels/varlen_launch.py`; only the entry that fits this run is tried."""
    dtype = getattr(torch, a.dtype)
    key = varlen_launch.gpu_kind(device), dtype.itemsize, varlen_launch.block_d(a.dim)
    shapes = [(a.tokens, h, a.dim) for h in (a.heads, a.kv_heads, a.kv_heads, a.heads)]
    *inputs, upstream = (torch.randn(shape, device=device, dtype=dtype).requires_grad_() for shape in shapes)
    cu_seqlens = torch.arange(0, a.tokens + 1, a.tokens // 8, device=device)
    kept = varlen_launch.CONFIGS[key]
    timed: dict[varlen_launch.Pass, str] = {"forward": "forward", "dq": "backward", "dkv": "backward"}
    for which, phase in timed.items():
        for own, step, warps, stages in itertools.product((64, 128), (32, 64, 128), (4, 8), (1, 2, 3, 4)):
            config = varlen_launch.Config(own, step, warps, stages)
            varlen_launch.CONFIGS[key] = {**kept, which: config}
            try:
                work = phases(lambda q, k, v: varlen_attention(q, k, v, cu_seqlens), inputs, upstream)[phase]
                ms = interleaved({which: work}, a.rounds, flush)[which]
                print(f"{which:8} {own:4} {step:4} {warps} {stages}  {ms:9.4f} ms{'  (now)' * (config == kept[which])}", flush=True)
            except triton.runtime.errors.OutOfResources as error:
                print(f"{which:8} {own:4} {step:4} {warps} {stages}  {error}")
    varlen_launch.CONFIGS[key] = kept


def vars_of(a: argparse.Namespace) -> dict:
    return {name: getattr(a, name) for name in ("tokens", "heads", "kv_heads", "dim", "dtype", "rounds")}


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tokens", 16384), ("heads", 32), ("kv-heads", 8), ("dim", 128), ("rounds", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument(
        "--gsm8k", type=Path, default=Path("../shared/data/gsm8k-train.jsonl"), help="problems for the fourth mix, if there"
    )
    parser.add_argument("--out", type=Path, help="append rows to this .jsonl")
    parser.add_argument("--tune", action="store_true")
    a = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if a.tune and device.type != "cuda":
        parser.error("--tune times compiled kernels and needs a GPU")
    flush = torch.empty(256 << 20 if device.type == "cuda" else 1, dtype=torch.int8, device=device)
    torch.manual_seed(0)
    (tune if a.tune else compare)(a, device, flush)


if __name__ == "__main__":
    main()
