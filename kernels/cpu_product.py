"""Matrix products of 16-bit operands on a CPU. Shapes: [m, k] · [k, n], of which one side is the vocabulary.

torch multiplies them by oneDNN where the processor has the instructions (AVX-512 and wider, AMX, Arm bf16), and anywhere else a hundred
times slower than fp32 (AVX2, 128 × 49,152 by 49,152 × 576: 9.1 s against .09 s).
"""

from __future__ import annotations

import torch
from torch import Tensor

SLICE = 2**20  # entries of an operand that are fp32 at a time


def multiplies(dtype: torch.dtype) -> bool:
    """Whether torch's products of this type run at this processor's speed."""
    known = {torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported, torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported}
    return torch.backends.mkldnn.is_available() and known[dtype]() if dtype in known else True


def widened_product(a_mk: Tensor, b_kn: Tensor, out_mn: Tensor, add: bool = False) -> None:
    """out = a · b, or `add` to it, in fp32 whatever the types, a slice of the longest side at a time: no operand is copied whole."""
    (m, k), n = a_mk.shape, b_kn.shape[1]
    if m > max(k, n):
        widened_product(b_kn.t(), a_mk.t(), out_mn.t(), add)
        return
    if k > n:  # sums over slices
        whole_mn = out_mn if out_mn.dtype == torch.float32 and add else torch.zeros(m, n, device=out_mn.device)
        for s in _slices(k, max(m, n)):
            whole_mn.addmm_(a_mk[:, s].float(), b_kn[s].float())
        if whole_mn is not out_mn:
            out_mn.copy_(out_mn + whole_mn if add else whole_mn)
        return
    a_mk = a_mk.float()
    for s in _slices(n, max(m, k)):
        part_ms = a_mk @ b_kn[:, s].float()
        out_mn[:, s].add_(part_ms) if add else out_mn[:, s].copy_(part_ms)


def _slices(length: int, across: int) -> list[slice]:
    step = max(64, SLICE // max(across, 1))
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]
