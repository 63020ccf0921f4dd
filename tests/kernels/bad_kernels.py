"""Kernels that each break one rule of the certificate. As a program, where Triton does not interpret: prints their rows as JSON."""

from __future__ import annotations

import dataclasses
import json

import torch

import soundrl.kernels.linear_logprob_triton as streaming_module
from soundrl.kernels.certificate.case import Case
from soundrl.kernels.certificate.cases_streaming import case as streaming_case
from soundrl.kernels.certificate.compiled import compile_all
from soundrl.kernels.language import tl, triton
from soundrl.kernels.linear_logprob_triton import WIDE

MANY = tl.constexpr(16384)


@triton.jit
def spilling_kernel(x, out):
    """512 numbers a thread, all of them needed until the last is read."""
    i = tl.arange(0, MANY)
    y = tl.load(x + i)
    tl.store(out + i, y / tl.sum(y))


@triton.jit
def fp64_kernel(x, out):
    i = tl.arange(0, 32)
    y = tl.load(x + i).to(tl.float64)
    tl.store(out + i, (y * y + 1e-9).to(tl.float32))


@triton.jit
def naively_rounded(u, C: tl.constexpr):
    """As one would write it: of fp16, ptxas then reads products before it has waited for them, and lets none overlap another."""
    return u.to(C.ROUND).to(tl.float32)


def streaming(label: str, config: streaming_module.Config, arch: int) -> Case:
    return dataclasses.replace(streaming_case(torch.float16, False, True, config, (arch,)), label=label)


streaming_module.rounded = naively_rounded
VECTOR = {"signature": {"x": "*fp32", "out": "*fp32"}, "constexprs": {}, "architectures": (80,)}
CASES = [
    Case(kernel=spilling_kernel, label="spill", num_warps=1, **VECTOR),
    Case(kernel=fp64_kernel, label="fp64", num_warps=1, **VECTOR),
    Case(kernel=fp64_kernel, label="unknown argument", num_warps=1, **VECTOR | {"constexprs": {"y": 1}}),
    streaming("serialised", WIDE, 90),
    streaming("too large", dataclasses.replace(WIDE, stages=4), 120),
]

if __name__ == "__main__":
    print(json.dumps([dataclasses.asdict(row) for row in compile_all([(case, case.architectures[0]) for case in CASES], 2)]))
