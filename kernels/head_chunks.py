"""The LM head in chunks of tokens: logits of a chunk at a time, turned into their own gradient in place.

Shapes: T tokens, H hidden, V vocabulary (of this rank's slice), R rank of an adapter, c rows of a chunk, n of them with a gradient.
Three matrix products a chunk, 6·c·H·V FLOP.
"""

# pyright: reportCallIssue=false
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from soundrl.kernels import cpu_product
from soundrl.kernels.backend import schema_of, wide
from soundrl.kernels.logprob import ids_backward, ids_forward
from soundrl.kernels.softmax import Softmax
from soundrl.kernels.vocab_parallel import add_over, merged, own_targets

# Bytes of one chunk's logits. The gradient of the weight is read and written once a chunk, 8·V·H bytes in fp32: at V = 151,936 and
# H = 4,096, 4,096 tokens a chunk (1.2 GiB of bf16 logits) cost 7 % of the whole, 1,024 tokens 25 % (by bytes, not measured). On CPU
# chunks serve memory alone.
CUDA_BUDGET = int(1.2 * 2**30)
CPU_BUDGET = 32 * 2**20
USUAL = -1
"""`memory_budget` None, as operators take it."""


def chunk_rows(tokens: int, vocabulary: int, bytes_per_logit: int, budget: int, on_gpu: bool) -> int:
    """Rows of a chunk: as many as `budget` bytes of logits hold, then evened out over the chunks, in multiples of 128 or at least 16.

    Multiples of 16 where there are as many: a chunk's first row then lies as aligned as the whole, and Triton compiles nothing anew.
    Worked example: 10,000 tokens, 4,500 fit → 3 chunks of 3,334 → 3,456 (27 · 128).
    """
    if budget <= 0:
        budget = CUDA_BUDGET if on_gpu else CPU_BUDGET
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


class HeadMemory(NamedTuple):
    """What a pass with gradients of hidden states and weight holds beside its arguments."""

    rows: int
    """Of a chunk."""
    peak: int
    """Bytes, up to and with the backward pass, without what is [T] or [c, H]."""


def head_memory(tokens: int, width: int, vocabulary: int, element_size: int, fp32_logits: bool, budget: int, on_gpu: bool) -> HeadMemory:
    """Chunks sum the gradient of a 16-bit weight in fp32, 4·V·H bytes and 2·V·H more for the result; a single one needs no sum. With b
    bytes a logit, one chunk of all T rows holds b·T·V + 2·V·H, chunks of c rows 4·V·H + max(b·c·V, 2·V·H): one it is wherever that is no
    more than what chunks of the whole usual budget hold, T ≤ max(c + H, 2·H) in bf16. In 32 bits the sum is the result and costs nothing.

    Worked example: V = 151,936, H = 4,096, bf16: the budget holds c = 4,240 rows, so 8,192 tokens are one chunk of 3.7 GB.
    """
    logit, weight, hidden = bytes_per_logit(element_size, fp32_logits), element_size * vocabulary * width, element_size * tokens * width
    summed = max(4, element_size) * vocabulary * width
    rounded = weight if summed > weight else 0
    rows = chunk_rows(tokens, vocabulary, logit, budget, on_gpu)
    single = logit * tokens * vocabulary + weight
    if rows >= tokens or (budget == USUAL and single <= summed + max(CUDA_BUDGET if on_gpu else CPU_BUDGET, rounded)):
        rows, peak = max(1, tokens), single
    else:
        peak = summed + max(logit * rows * vocabulary, rounded)
    return HeadMemory(rows, hidden + max(peak, 2 * weight + hidden))  # backward scales both into fresh memory


class Projection(NamedTuple):
    """Rows of hidden states, what makes logits of them, and their targets: what every operator of a head begins with."""

    hidden_TH: Tensor
    weight_VH: Tensor
    targets: Tensor
    """[T], or [T, K], ids of the whole vocabulary."""
    temperature: float
    temperature_T: Tensor | None
    bias_V: Tensor | None
    softcap: float
    lora_a_RH: Tensor | None
    lora_b_VR: Tensor | None
    lora_scale: float
    fp32_logits: bool
    memory_budget: int
    group: str
    """Name of the process group over which the vocabulary is cut; empty = it is whole."""
    first: int
    """Id of the first entry of this rank's slice …"""
    largest: int
    """… and how many the largest slice has."""

    @property
    def softmax(self) -> Softmax:
        return Softmax(self.temperature, self.temperature_T, self.bias_V, self.softcap)

    @property
    def own_targets(self) -> Tensor:
        return own_targets(self.targets, self.first, len(self.weight_VH)) if self.group else self.targets

    def at(self, rows: slice | Tensor) -> Projection:
        """The same for some of the rows."""
        temperature_T = self.softmax.of_rows(rows).temperature_T
        return self._replace(hidden_TH=self.hidden_TH[rows], targets=self.targets[rows], temperature_T=temperature_T)

    def rows_of_a_chunk(self, of_weight: bool) -> int:
        """The same on all ranks of a group."""
        (tokens, width), size = self.hidden_TH.shape, self.hidden_TH.element_size()
        numbers, on_gpu = (size, self.fp32_logits, self.memory_budget), self.hidden_TH.is_cuda
        if of_weight:
            return head_memory(tokens, width, self.largest, *numbers, on_gpu).rows
        return chunk_rows(tokens, self.largest, bytes_per_logit(*numbers[:2]), self.memory_budget, on_gpu)

    def chunks(self, size: int) -> Iterator[tuple[slice, Projection, Tensor]]:
        """(rows, this projection at these rows, logits [c, V]) one after the other, in one buffer: a chunk's logits are gone when the next
        is asked for."""
        tokens, vocabulary = len(self.hidden_TH), len(self.weight_VH)
        narrow = self.hidden_TH.element_size() < 4
        dtype = torch.float32 if self.fp32_logits and narrow else self.hidden_TH.dtype
        buffer = torch.empty(min(size, tokens), vocabulary, dtype=dtype, device=self.hidden_TH.device)
        for start in range(0, tokens, size):
            rows = slice(start, min(start + size, tokens))
            chunk, logits_cV = self.at(rows), buffer[: min(size, tokens - start)]
            product(chunk.hidden_TH, self.weight_VH.t(), logits_cV)
            if self.lora_b_VR is not None:
                product(chunk.adapted(), self.lora_b_VR.t(), logits_cV, add=True)
            yield rows, chunk, logits_cV

    def adapted(self) -> Tensor:
        """s · hidden · Aᵀ [T, R]."""
        assert self.lora_a_RH is not None
        return (self.hidden_TH @ self.lora_a_RH.t()).mul_(self.lora_scale)

    def own_statistics(self, logits_cV: Tensor) -> tuple[Tensor, ...]:
        """log-prob ([c] or [c, K]), entropy, m, log S (names: `logprob_triton`) of these rows over this rank's slice."""
        return ids_forward(logits_cV, self.own_targets, self.softmax)

    def whole_statistics(self, own: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return merged(own, self.softmax, self.targets, self.group) if self.group else own

    def turn(
        self, logits_cV: Tensor, statistics: tuple[Tensor, ...], grads: tuple[Tensor | None, ...], order: Tensor | None = None
    ) -> Tensor:
        """dlogits [n, V] in hidden's type, over the logits where these have it; n = rows order[0], order[1] … or all.

        statistics = (m, log S, entropy) of the whole vocabulary; grads = of log-probs, entropies and log-sum-exps (None = none).
        """
        count, dtype = len(logits_cV) if order is None else len(order), self.hidden_TH.dtype
        out = logits_cV[:count] if logits_cV.dtype == dtype else torch.empty_like(logits_cV[:count], dtype=dtype)
        ids_backward(out, logits_cV, self.own_targets, self.softmax, statistics, grads, order)
        return out


HEAD = schema_of(Projection)
LEAVES = ("hidden_TH", "weight_VH", "bias_V", "lora_a_RH", "lora_b_VR")
"""What of a projection may want a gradient: in this order stand `wanted` and the gradients."""
GRADIENTS = ", ".join(["Tensor"] * len(LEAVES))


def gradients_like(head: Projection, wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    """Uninitialised, each like what it is the gradient of; empty where not `wanted`."""
    leaves = [getattr(head, name) for name in LEAVES]
    return tuple(torch.empty_like(x) if want else head.hidden_TH.new_empty(0) for x, want in zip(leaves, wanted, strict=True))


def by_name(gradients: Sequence[Tensor], wanted: Sequence[bool], others: int) -> tuple[Tensor | None, ...]:
    """As autograd takes them: one for each field of the projection and of so many `others` behind it."""
    named = {name: x for name, x, want in zip(LEAVES, gradients, wanted, strict=True) if want}
    return *(named.get(name) for name in Projection._fields), *[None] * others


class HeadGradient:
    """Adds up the gradients of a projection from those of its logits, chunk by chunk."""

    def __init__(self, head: Projection, wanted: Sequence[bool], single: bool) -> None:
        """`single`: there is one chunk, whose products need no wider sum."""
        self.head, self.wanted, self.single, self.empty = head, wanted, single, True
        self.hidden, *rest = gradients_like(head, wanted)
        self.hidden.zero_()  # rows without a gradient
        self.weight, self.bias, self.a, self.b = (x if single else x.new_empty(x.shape, dtype=wide(x)) for x in rest)

    def add(self, rows: slice, chunk: Projection, dlogits_nV: Tensor, order: Tensor | None = None) -> None:
        """From dlogits of all rows of the chunk, or of those in `order`."""
        of_hidden, of_weight, of_bias, of_a, of_b = self.wanted
        chunk, add = (chunk if order is None else chunk.at(order)), not self.empty
        if chunk.lora_b_VR is not None and (of_a or of_hidden):
            of_adapted_nR = (dlogits_nV @ chunk.lora_b_VR).mul_(chunk.lora_scale)
        if of_hidden:
            out = self.hidden[rows] if order is None else torch.empty_like(chunk.hidden_TH)
            product(dlogits_nV, chunk.weight_VH, out)
            if chunk.lora_a_RH is not None:
                product(of_adapted_nR, chunk.lora_a_RH, out, add=True)
            if order is not None:
                self.hidden[rows][order] = out
        if of_weight:
            product(dlogits_nV.t(), chunk.hidden_TH, self.weight, add=add, sums=True)
        if of_bias:
            part_V = dlogits_nV.sum(0, dtype=wide(dlogits_nV))
            self.bias.copy_(self.bias + part_V if add else part_V)
        if of_a:
            product(of_adapted_nR.t(), chunk.hidden_TH, self.a, add=add, sums=True)
        if of_b:
            product(dlogits_nV.t(), chunk.adapted(), self.b, add=add, sums=True)
        self.empty = False

    def total(self) -> tuple[Tensor, ...]:
        """Each in the type of what it is the gradient of; empty where not wanted. Of the whole vocabulary, on each rank of a group."""
        sums = self.weight, self.bias, self.a, self.b
        if self.empty:
            for x in sums:
                x.zero_()
        if self.head.group:
            add_over(self.head.group, self.hidden, self.a)
        types = [getattr(self.head, name) for name in LEAVES[1:]]
        return self.hidden, *(x if like is None else x.to(like.dtype) for x, like in zip(sums, types, strict=True))


def indices(live_T: Tensor, count: int) -> Tensor | None:
    """Of the `count` rows that are, in order; None where all are. Does not wait for the GPU."""
    return None if count == len(live_T) else torch.argsort(~live_T, stable=True)[:count]


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


def product(a: Tensor, b: Tensor, out: Tensor, add: bool = False, sums: bool = False) -> None:
    """out = a · b, or `add` to it, with the sum in out's type: 16-bit operands on the tensor cores, no rounding to 16 bits.

    torch's CPU products have no wider result: there the operands are widened; or, where out `sums` chunks and is rounded itself in the
    end, and the processor multiplies 16 bits, it sums such products.
    """
    if out.is_cuda or a.dtype == out.dtype:
        if out.is_cuda or cpu_product.multiplies(a.dtype):
            wider: dict[str, Any] = {} if a.dtype == out.dtype else {"out_dtype": out.dtype}
            torch.addmm(out, a, b, out=out, **wider) if add else torch.mm(a, b, out=out, **wider)
            return
    elif sums and cpu_product.multiplies(a.dtype):
        part = torch.mm(a, b)
        out.add_(part) if add else out.copy_(part)
        return
    cpu_product.widened_product(a, b, out, add)


@contextlib.contextmanager
def full_sums() -> Iterator[None]:
    """Within it cuBLAS adds up 16-bit products in fp32 to the end; by default it may add parts of a long sum in 16 bits, and dhidden's has
    V terms."""
    settings, names = torch.backends.cuda.matmul, [f"allow_{kind}_reduced_precision_reduction" for kind in ("bf16", "fp16")]
    # With reduced precision off, a split of the sum may be off too.
    before = {name: (getattr(settings, name), getattr(settings, f"{name}_split_k", True)) for name in names}
    for name, (_, split) in before.items():
        setattr(settings, name, False if split else (False, False))
    try:
        yield
    finally:
        for name, (reduced, split) in before.items():
            setattr(settings, name, reduced if split else (reduced, False))
