"""Packed causal attention: forward, backward and both, on four mixes of sequence lengths.

    python bench/varlen_attention.py                    16,384 tokens, 32 query and 8 key heads of 128, bfloat16
    python bench/varlen_attention.py --only equal       8 sequences of 2,048: the goals F12 and F13; F14 is `flex`, forward and backward
    python bench/varlen_attention.py --only tune        other blocks for the table of kernels/varlen_launch.py
    python bench/varlen_attention.py --only drawn --shape 4096,716,9,3,64    tokens, longest sequence, heads and their dimension, in
                                                        float32 and bfloat16; OMP_NUM_THREADS=1 counts the processor's time

Counted are the causal products alone, 4·D·Hq·Σ l(l+1)/2 FLOP forward and 2.5 times that backward, so x floor over `multiply` is the
inverse of the share of a bare matrix product's rate. `ours, descriptors` are the kernels that no GPU has proved yet, where the table has
them. On a CPU SDPA and FlexAttention (forward alone is all it has there) run beside `ours`. Shapes: T tokens, D head dimension.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import itertools
import json
import random
import re
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from harness import CPU_CLOCK, Case, Plan, Provider, Results, Work, arguments, copy_ceiling, run
from record import ROOT
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from soundrl.engine.attention import FLASH
from soundrl.kernels import varlen_launch
from soundrl.kernels.backend import runs_triton
from soundrl.kernels.varlen_attention import varlen_attention
from soundrl.kernels.varlen_launch import sequence_tiles

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
FLOP = {"forward": 1.0, "backward": 2.5, "both": 3.5}  # in forward passes
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k-train.jsonl"


def cut(lengths: list[int], tokens: int) -> list[int]:
    """The first lengths that fit into `tokens`, the last one shortened. Worked example: cut([3, 3, 3], 7) → [3, 3, 1]."""
    ends = [min(end, tokens) for end in itertools.accumulate(lengths)]
    return [b - a for a, b in itertools.pairwise([0, *ends]) if b > a]


def mixes(tokens: int) -> dict[str, list[int]]:
    rng = random.Random(0)
    out = {
        "equal": [tokens // 8] * 8,
        "geometric": cut([max(1, int(rng.expovariate(8 / tokens))) for _ in range(200)], tokens),
        "one long": cut([tokens // 2, *[max(1, tokens // 128)] * 128], tokens),
    }
    if GSM8K.is_file():
        rows = [json.loads(line) for line in GSM8K.read_text().splitlines()[:2000]]
        # Words, single digits and signs, as a count of tokens.
        out["gsm8k"] = cut([len(re.findall(r"[A-Za-z]+|\d|\S", " ".join(map(str, row.values())))) for row in rows], tokens)
    return out


def drawn(tokens: int, longest: int) -> list[int]:
    rng = random.Random(0)
    return cut([rng.randint(1, longest) for _ in range(tokens)], tokens)


class Packed:
    """Inputs of one mix, the same for every provider."""

    def __init__(self, plan: Plan, lengths: list[int], heads: tuple[int, int, int] | None = None, dtype: torch.dtype | None = None) -> None:
        self.device, self.lengths, self.tokens = torch.device(plan.device), lengths, sum(lengths)
        self.heads, self.kv_heads, self.dim = heads or ((4, 1, 32) if plan.small else (32, 8, 128))
        self.dtype = dtype or (torch.float32 if plan.small else torch.bfloat16)
        rng = torch.Generator(plan.device).manual_seed(0)
        sizes = [(self.tokens, h, self.dim) for h in (self.heads, self.kv_heads, self.kv_heads, self.heads)]
        draw = [torch.randn(size, generator=rng, device=self.device).to(self.dtype) for size in sizes]
        self.inputs, self.upstream = [x.requires_grad_() for x in draw[:3]], draw[3]
        self.cu_seqlens = torch.tensor([0, *lengths], device=self.device).cumsum(0)

    def per_sequence(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(*(x.split(self.lengths) for x in (q, k, v)), strict=True)
        heads = [[x.transpose(0, 1)[None] for x in part] for part in parts]
        return torch.cat([sdpa(a, b, c, is_causal=True, enable_gqa=True)[0].transpose(0, 1) for a, b, c in heads])

    def padded(self) -> Attention:
        longest = max(self.lengths)
        fold = longest * len(self.lengths) / self.tokens
        if fold > 8:
            raise ValueError(f"would pad the tokens {fold:.0f}-fold")
        real = torch.arange(longest, device=self.device) < torch.tensor(self.lengths, device=self.device)[:, None]

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            a, b, c = (x.new_zeros(*real.shape, *x.shape[1:]).masked_scatter(real[..., None, None], x).transpose(1, 2) for x in (q, k, v))
            return sdpa(a, b, c, is_causal=True, enable_gqa=True).transpose(1, 2)[real]

        return attend

    def ours(self, descriptors: bool = False) -> Attention:
        tiles = sequence_tiles(self.cu_seqlens, self.tokens) if runs_triton(self.upstream) else None

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            varlen_launch.ASKED = "1" if descriptors else "0"  # stays so for the backward pass that follows
            return varlen_attention(q, k, v, self.cu_seqlens, tiles_N4=tiles)

        return attend

    def block_mask(self) -> Attention:
        owner = torch.repeat_interleave(torch.arange(len(self.lengths), device=self.device), self.cu_seqlens.diff())
        seen = (owner[:, None] == owner) & torch.ones(self.tokens, self.tokens, dtype=torch.bool, device=self.device).tril()

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            a, b, c = (x.transpose(0, 1)[None] for x in (q, k, v))
            return sdpa(a, b, c, attn_mask=seen, enable_gqa=True)[0].transpose(0, 1)

        return attend

    def flex(self) -> Attention:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        owner = torch.repeat_interleave(torch.arange(len(self.lengths), device=self.device), self.cu_seqlens.diff())
        same = lambda b, h, i, j: (owner[i] == owner[j]) & (i >= j)  # noqa: E731
        mask = create_block_mask(same, None, None, self.tokens, self.tokens, device=str(self.device))
        attend = torch.compile(flex_attention, dynamic=False)

        def run_flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if q.is_cpu:  # where it has no backward pass it refuses whatever asks for one
                q, k, v = (x.detach() for x in (q, k, v))
            a, b, c = (x.transpose(0, 1)[None] for x in (q, k, v))
            return cast(Tensor, attend(a, b, c, block_mask=mask, enable_gqa=True))[0].transpose(0, 1)

        return run_flex

    def torch_varlen(self) -> Attention:
        from torch.nn.attention.varlen import varlen_attn

        takes = inspect.signature(varlen_attn).parameters  # torch 2.10 says is_causal; 2.12 window_size, and asks for enable_gqa
        causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in takes else {"is_causal": True}
        causal |= {"enable_gqa": True} if "enable_gqa" in takes else {}
        cu, longest = self.cu_seqlens.int(), max(self.lengths)
        return lambda q, k, v: cast(Tensor, varlen_attn(q, k, v, cu, cu, longest, longest, **causal))

    def flash(self, module: str, deterministic: bool) -> Attention:
        function = importlib.import_module(module).flash_attn_varlen_func
        cu, longest = self.cu_seqlens.int(), max(self.lengths)
        bounds = {"cu_seqlens_q": cu, "cu_seqlens_k": cu, "max_seqlen_q": longest, "max_seqlen_k": longest}
        extra = {"deterministic": True} if deterministic else {}

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = function(q, k, v, **bounds, causal=True, **extra)
            return out[0] if isinstance(out, tuple) else out

        return attend

    def work(self, attend: Attention, phase: str) -> Work:
        def gradients(out: Tensor) -> Results:
            return dict(zip(("dq", "dk", "dv"), torch.autograd.grad(out, self.inputs, self.upstream), strict=True))

        def forward(_: Any) -> Results:
            with torch.no_grad():
                return {"out": attend(*self.inputs)}

        def both(_: Any) -> Results:
            out = attend(*self.inputs)
            return {"out": out.detach(), **gradients(out)}

        if phase == "backward":
            return Work(gradients, lambda: attend(*self.inputs))
        return Work(forward if phase == "forward" else both)

    def reference(self, phase: str) -> Results:
        """float32 (fp64 at small shapes), each key head repeated, so that SDPA need not write scores down."""
        kind = torch.float64 if self.dtype == torch.float32 else torch.float32
        leaves = [x.detach().to(kind).requires_grad_() for x in self.inputs]
        group = self.heads // self.kv_heads
        out = self.per_sequence(leaves[0], *(x.repeat_interleave(group, dim=1) for x in leaves[1:]))
        results = {"out": out.detach()} if phase != "backward" else {}
        if phase != "forward":
            results |= dict(zip(("dq", "dk", "dv"), torch.autograd.grad(out, leaves, self.upstream.to(kind)), strict=True))
        return results

    def case(self, mode: str, phase: str, providers: list[Provider]) -> Case:
        side = 256 if self.dtype == torch.float32 else 8192
        square = torch.randn(side, side, device=self.device, dtype=self.dtype)
        multiply = Provider("multiply", lambda: Work(lambda _: {"product": square @ square}), ceiling=("FLOP", 2.0 * side**3))
        read = sum(x.nbytes for x in self.inputs)
        moved = {"forward": read + self.upstream.nbytes, "backward": 2 * (read + self.upstream.nbytes)}
        return Case(
            mode=f"{mode} {phase}",
            shape={
                "T": self.tokens,
                "B": len(self.lengths),
                "longest": max(self.lengths),
                "Hq": self.heads,
                "Hkv": self.kv_heads,
                "D": self.dim,
            },
            dtype=self.dtype,
            reference=lambda: self.reference(phase),
            tolerance=TOLERANCE[self.dtype],
            providers=[*providers, multiply, copy_ceiling(self.device.type)],
            flop=FLOP[phase] * 2 * self.dim * self.heads * sum(length * (length + 1) for length in self.lengths),
            moved=float(moved.get(phase, sum(moved.values()))),
        )


def drawn_case(shape: tuple[int, int, int, int, int], dtype: torch.dtype, phase: str) -> Callable[[Plan], Case | None]:
    def case(plan: Plan) -> Case | None:
        if not plan.wants("drawn", phase):
            return None
        tokens, longest, heads, kv_heads, dim = shape
        packed = Packed(plan, drawn(tokens, longest), (heads, kv_heads, dim), dtype)
        builds: dict[str, Callable[[], Attention]] = {
            "ours": packed.ours,
            "sdpa per sequence": lambda: packed.per_sequence,
            "sdpa padded": packed.padded,
            "sdpa, block mask": packed.block_mask,
        }
        if phase == "forward" or plan.device == "cuda":
            builds["flex"] = packed.flex
        return packed.case(
            "drawn", phase, [Provider(name, lambda build=build: packed.work(build(), phase)) for name, build in builds.items()]
        )

    return case


def mix_case(mix: str, phase: str) -> Callable[[Plan], Case | None]:
    def case(plan: Plan) -> Case | None:
        found = mixes(256 if plan.small else 16384)
        if mix not in found or not plan.wants(mix, phase):
            return None
        packed = Packed(plan, found[mix])
        builds: dict[str, Callable[[], Attention]] = {
            "ours": packed.ours,
            "sdpa per sequence": lambda: packed.per_sequence,
            "sdpa padded": packed.padded,
        }
        if plan.device == "cuda":
            builds |= {
                "ours, descriptors": lambda: packed.ours(descriptors=True),
                "flex": packed.flex,
                "torch varlen_attn": packed.torch_varlen,
            }
            for module in (name for name, _, _ in FLASH):
                builds[module] = lambda module=module: packed.flash(module, False)
                if phase != "forward":
                    builds[f"{module} deterministic"] = lambda module=module: packed.flash(module, True)
            if phase == "forward":  # vLLM bundles no backward pass
                builds["vllm"] = lambda: packed.flash("vllm.vllm_flash_attn", False)
        return packed.case(mix, phase, [Provider(name, lambda build=build: packed.work(build(), phase)) for name, build in builds.items()])

    return case


def tune_case(which: varlen_launch.Pass) -> Callable[[Plan], Case | None]:
    """Other blocks for one kernel, as providers; the table's other two stay."""

    def case(plan: Plan) -> Case | None:
        if "tune" not in plan.only or plan.device != "cuda":
            return None
        packed, phase = Packed(plan, mixes(16384)["equal"]), "forward" if which == "forward" else "backward"
        key = varlen_launch.gpu_kind(packed.device), packed.dtype.itemsize, varlen_launch.block_d(packed.dim)
        kept = varlen_launch.CONFIGS[key]

        def with_blocks(config: varlen_launch.Config) -> Work:
            work = packed.work(packed.ours(), phase)

            def step(state: Any) -> Results:
                varlen_launch.CONFIGS[key] = {**kept, which: config}
                varlen_launch.configs.cache_clear()
                try:
                    return work.step(state)
                finally:
                    varlen_launch.CONFIGS[key] = kept
                    varlen_launch.configs.cache_clear()

            return Work(step, work.before)

        blocks = [varlen_launch.Config(*c) for c in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3))]
        name = lambda c: f"{c.own} x {c.step}, {c.warps} warps, {c.stages} stages{' (now)' * (c == kept[which])}"  # noqa: E731
        return packed.case(f"tune {which}", phase, [Provider(name(c), lambda c=c: with_blocks(c)) for c in blocks])

    return case


TUNED: tuple[varlen_launch.Pass, ...] = ("forward", "dq", "dkv")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--shape", type=lambda text: tuple(map(int, text.split(","))))
    own, rest = parser.parse_known_args(sys.argv[1:])
    if own.shape and torch.get_num_threads() == 1:
        CPU_CLOCK[0] = time.process_time
    cases = [drawn_case(own.shape, dtype, phase) for dtype in (torch.float32, torch.bfloat16) for phase in FLOP] if own.shape else []
    cases += [mix_case(mix, phase) for mix in ("equal", "gsm8k", "one long", "geometric") for phase in FLOP]
    run("varlen_attention", [*cases, *(tune_case(which) for which in TUNED)], arguments(__doc__, rest))
