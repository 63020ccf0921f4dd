"""The LM head in chunks of tokens: logits of a chunk at a time, turned into their own gradient in place.

Shapes: T tokens, H hidden, V vocabulary, c rows of a chunk, n of them with a gradient. Three matrix products a chunk, 6·c·H·V FLOP.
"""

# pyright: reportCallIssue=false
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from soundrl.kernels.backend import wide
from soundrl.kernels.logprob import row_backward
from soundrl.kernels.softmax import SOFTMAX, Softmax

HEAD = f"Tensor hidden_TH, Tensor weight_VH, Tensor targets_T, {SOFTMAX}, bool fp32_logits, SymInt memory_budget"
"""What operators of a head begin with; a budget of 0 is the usual one."""

# Bytes of one chunk's logits. The gradient of the weight is read and written once a chunk, 8·V·H bytes in fp32: at V = 151,936 and
# H = 4,096, 4,096 tokens a chunk (1.2 GiB of bf16 logits) cost 7 % of the whole, 1,024 tokens 25 %. On CPU chunks serve memory alone.
CUDA_BUDGET = int(1.2 * 2**30)
CPU_BUDGET = 32 * 2**20


def chunk_rows(tokens: int, vocabulary: int, bytes_per_logit: int, budget: int | None, on_gpu: bool) -> int:
    """Rows of a chunk: as many as `budget` bytes of logits hold, then evened out over the chunks, in multiples of 128 or at least 16.

    Multiples of 16 where there are as many: a chunk's first row then lies as aligned as the whole, and Triton compiles nothing anew.
    Worked example: 10,000 tokens, 4,500 fit → 3 chunks of 3,334 → 3,456 (27 · 128).
    """
    budget = budget or (CUDA_BUDGET if on_gpu else CPU_BUDGET)
    most = max(1, budget // (vocabulary * bytes_per_logit))
    if tokens <= most:
        return max(1, tokens)
    if most < 16:
        return most
    most -= most % 16
    even = -(-tokens // -(-tokens // most))
    return next(rounded for step in (128, 16) if (rounded := -(-even // step) * step) <= most)


def bytes_per_logit(element_size: int, fp32_logits: bool) -> int:
    """What a logit of a chunk costs, in hidden states of `element_size` bytes: the gradient is written over it. Only logits wider than
    the type of the products need a second buffer for their gradient: fp32 of 16-bit states, 4 + 2."""
    return 4 + element_size if fp32_logits and element_size < 4 else element_size


def compaction(live_T: Tensor) -> Tensor | None:
    """Which row goes where so that the `n` live rows become the first n, with as few moves as possible; None where all are live.

    Live rows among the first n stay; the others fill the holes. No row is both overwritten and read by another, so that rows can be
    rewritten in place in any order. Waits for the GPU once (n decides shapes).

    Worked example: live [1, 0, 0, 1, 1] → n = 3, order [0, 3, 4].
    """
    count = int(live_T.sum())
    if count == len(live_T):
        return None
    order = torch.arange(count, device=live_T.device)
    holes = (~live_T[:count]).nonzero().squeeze(-1)
    order[holes] = live_T[count:].nonzero().squeeze(-1) + count
    return order


class LinearHead:
    """logits = hidden · weightᵀ, chunk by chunk, and the gradients that come back. Outside autograd."""

    def __init__(self, hidden_TH: Tensor, weight_VH: Tensor, *rest: Any) -> None:
        """`rest`: what stands behind the targets in `HEAD`."""
        *softmax, fp32_logits, memory_budget = rest
        self.hidden, self.weight, self.softmax = hidden_TH, weight_VH, Softmax(*softmax)
        narrow = hidden_TH.dtype in (torch.bfloat16, torch.float16)
        self.fp32_logits, self.widen = fp32_logits, fp32_logits and narrow
        size = bytes_per_logit(hidden_TH.element_size(), fp32_logits)
        self.rows = chunk_rows(len(hidden_TH), len(weight_VH), size, memory_budget, hidden_TH.is_cuda)
        self.wide = wide(hidden_TH)

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """(rows, logits [c, V]) one after the other, in one buffer: a chunk's logits are gone when the next is asked for."""
        tokens, vocabulary = len(self.hidden), len(self.weight)
        dtype = torch.float32 if self.widen else self.hidden.dtype
        buffer = torch.empty(min(self.rows, tokens), vocabulary, dtype=dtype, device=self.hidden.device)
        for start in range(0, tokens, self.rows):
            rows = slice(start, min(start + self.rows, tokens))
            out = buffer[: rows.stop - rows.start]
            product(self.hidden[rows], self.weight.t(), out)
            yield rows, out


class HeadGradient:
    """Accumulates dhidden, dweight and dbias of a `LinearHead` from the rows' coefficients; dweight and dbias in fp32."""

    def __init__(self, head: LinearHead, of_hidden: bool, of_weight: bool, of_bias: bool) -> None:
        self.head = head
        self.hidden = torch.zeros_like(head.hidden) if of_hidden else head.hidden.new_empty(0)
        self.weight = torch.zeros(head.weight.shape if of_weight else 0, dtype=head.wide, device=head.weight.device)
        self.bias = torch.zeros(len(head.weight) if of_bias else 0, dtype=head.wide, device=head.weight.device)
        self.wanted = of_hidden, of_weight, of_bias

    def add(
        self, rows: slice, logits_cV: Tensor, targets_T: Tensor, statistics: tuple[Tensor, ...], grads: tuple[Tensor, ...], compact: bool
    ) -> None:
        """Turn `logits_cV` of these rows into its gradient, in place, and multiply it into the accumulators; `compact` leaves out rows that
        have none. `statistics` [T] as in `row_backward`; `grads` [c] of log-probabilities and entropies."""
        head, (of_hidden, of_weight, of_bias) = self.head, self.wanted
        order = compaction((grads[0] != 0) | (grads[1] != 0)) if compact else None
        count = len(logits_cV) if order is None else len(order)
        if count == 0:
            return
        dlogits_nV = torch.empty_like(logits_cV[:count], dtype=head.hidden.dtype) if head.widen else logits_cV[:count]
        statistics_c = tuple(x[rows] for x in statistics)
        row_backward(dlogits_nV, logits_cV, targets_T[rows], head.softmax.of_rows(rows), statistics_c, (grads[0], *grads), order)
        hidden_cH = head.hidden[rows]
        if of_hidden:
            if order is None:
                torch.mm(dlogits_nV, head.weight, out=self.hidden[rows])
            else:
                self.hidden[rows][order] = torch.mm(dlogits_nV, head.weight)
        if of_weight:
            product(dlogits_nV.t(), hidden_cH if order is None else hidden_cH[order], self.weight, add=True)
        if of_bias:
            self.bias += dlogits_nV.sum(0, dtype=head.wide)


def product(a: Tensor, b: Tensor, out: Tensor, add: bool = False) -> None:
    """out = a · b, or `add` to it, with the sum in out's type: 16-bit operands on the tensor cores, no rounding to 16 bits."""
    if not out.is_cuda:  # torch's CPU products have no out_dtype
        a, b = a.to(out.dtype), b.to(out.dtype)
    wider: dict[str, Any] = {} if a.dtype == out.dtype else {"out_dtype": out.dtype}
    torch.addmm(out, a, b, out=out, **wider) if add else torch.mm(a, b, out=out, **wider)
