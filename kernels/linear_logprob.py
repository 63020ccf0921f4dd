"""Log-probabilities straight from hidden states and LM head, without [T, V] logits.

Shapes: T tokens (rows), H hidden, V vocabulary, K ids a row. Forward: a chunk of logits at a time and the row kernel over it, 2·T·H·V FLOP;
or streaming (`linear_logprob_triton`), with no logits in memory at all. Backward: the chunks once more and the two products of the
gradient (`head_chunks`), 6·T·H·V FLOP for the rows that have one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from soundrl.kernels.backend import columns, operator, require, runs_triton, wide
from soundrl.kernels.gathered import row_targets
from soundrl.kernels.head_chunks import (
    GRADIENTS,
    HEAD,
    LEAVES,
    HeadGradient,
    Projection,
    by_name,
    full_sums,
    gradients_like,
    indices,
)
from soundrl.kernels.linear_logprob_triton import launch_streaming
from soundrl.kernels.lm_head import LMHead, projection
from soundrl.kernels.logprob import Logprobs, logprobs
from soundrl.kernels.softmax import IGNORED


def linear_logprob(
    hidden: Tensor,
    head: Tensor | LMHead,
    targets: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    fp32_logits: bool = False,
    memory_budget: int | None = None,
) -> Logprobs:
    """log p_target and more of softmax(logits / temperature), with the logits of `head`.

    hidden       […, H] fp32, bf16, fp16 (fp64: plain torch), any number of dimensions before the last
    head         the weight [V, H], or an `LMHead`: bias, softcap, scale, adapter, a slice of the vocabulary. Of hidden's type, except
                 within torch.autocast, which decides the type of both
    targets      […] int64 or int32, or […, K]: K ids a row, which may repeat, e.g. the kept set of a sampler or the top k of a teacher.
                 −100 is no target: log-prob 0 and no gradient; the logits of a row without any target are never made
    temperature  one number, or one for each row; carries no gradient

    Returns `Logprobs`; log-prob, entropy and lse are differentiable by hidden, weight, bias and adapter. The gradient of a 16-bit weight is
    summed over chunks in fp32 and rounded once.

    fp32_logits    keep the logits in fp32. By default they are rounded to hidden's type, as samplers do (vLLM): one unit of bf16 at a logit
                   of 16 is 0.125 nats, and two products of different sizes may round differently. Set it where log-probabilities of
                   different calls are compared
    memory_budget  bytes of logits alive at once (None: 1.2 GiB on a GPU, 32 MiB on CPU, or more where that costs no memory in all). 0 on a
                   GPU: none in the forward pass, by the streaming kernel; then a row's bits do not depend on the other rows, which in
                   chunks they may by cuBLAS' choice of a kernel. fp32 products of chunks follow torch.set_float32_matmul_precision

    Waits for the GPU once to learn how many rows have a target, and in the backward pass how many have a gradient (not with a budget of 0).
    Raises ValueError for shapes, types, devices, temperatures, and targets outside the vocabulary (values on a GPU only after
    `backend.check_values(True)`; such a target's log-prob is NaN there).

    >>> linear_logprob(torch.zeros(1, 4), torch.ones(2, 4), torch.tensor([1])).logprob
    tensor([-0.6931])
    """
    whole = projection(hidden, head, targets, temperature, fp32_logits, memory_budget)
    require(
        memory_budget != 0 or (whole.targets.ndim == 1 and whole.lora_a_RH is None),
        lambda: "memory_budget=0 streams the logits of a plain weight for one target a row: leave it out for K ids or an adapter",
    )
    logprob, entropy_T, lse_T, _, log_sum_T = head_forward(*whole)
    return logprobs(logprob, entropy_T, lse_T, log_sum_T, whole.targets.view(targets.shape))


@operator(f"linear_logprob({HEAD}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)", waits=True)
@full_sums()
def head_forward(*given: Any) -> tuple[Tensor, ...]:
    """log-prob [T] or [T, K], entropy, log-sum-exp, m, log S (names: `logprob_triton`)."""
    head = Projection(*given)
    if head.memory_budget == 0 and runs_triton(head.hidden_TH):
        logprob, entropy_T, m_T, log_sum_T = head.whole_statistics(_streamed(head))
    else:
        live_T = row_targets(head.targets) != IGNORED
        rows = indices(live_T, int(live_T.sum()))
        parts = statistics(head if rows is None else head.at(rows))
        logprob, entropy_T, m_T, log_sum_T = (spread(x, rows, len(live_T)) for x in parts)
    return logprob, entropy_T, head.softmax.log_sum_exp(m_T, log_sum_T), m_T, log_sum_T


def _streamed(head: Projection) -> tuple[Tensor, ...]:
    rounds = head.hidden_TH.dtype != torch.float32 and not head.fp32_logits
    return launch_streaming(head.hidden_TH, head.weight_VH, head.own_targets, head.softmax, rounds)


def statistics(head: Projection) -> tuple[Tensor, ...]:
    """log-prob, entropy, m, log S of every row, chunk by chunk."""
    out = empty_statistics(head)
    for rows, chunk, logits_cV in head.chunks(head.rows_of_a_chunk(of_weight=False)):
        for whole, part in zip(out, chunk.own_statistics(logits_cV), strict=True):
            whole[rows] = part
    return head.whole_statistics(out)


def empty_statistics(head: Projection) -> tuple[Tensor, ...]:
    return torch.empty(head.targets.shape, dtype=wide(head.hidden_TH), device=head.hidden_TH.device), *columns(head.hidden_TH, 3)


def spread(x: Tensor, rows: Tensor | None, total: int) -> Tensor:
    """`x` of these of so many rows, 0 elsewhere."""
    return x if rows is None else x.new_zeros(total, *x.shape[1:]).index_copy_(0, rows, x)


GRADS = "Tensor[] statistics, Tensor of_logprob, Tensor? of_entropy_T, Tensor? of_lse_T, bool[] wanted"


@operator(f"linear_logprob_backward({HEAD}, {GRADS}) -> ({GRADIENTS})", waits=True)
@full_sums()
def head_backward(*given: Any) -> tuple[Tensor, ...]:
    """Gradients of `LEAVES`, from (m, log S, entropy) and the gradients of log-probs, entropies and log-sum-exps. Coefficients are known
    before any product: rows without one are not even multiplied out."""
    *fields, of_rows, of_logprob, of_entropy_T, of_lse_T, wanted = given
    head, grads = Projection(*fields), (of_logprob, of_entropy_T, of_lse_T)
    live_T = of_logprob.ne(0) if of_logprob.ndim == 1 else of_logprob.ne(0).any(-1)
    for g_T in grads[1:]:
        live_T = live_T if g_T is None else live_T | (g_T != 0)
    live_T = live_T & (row_targets(head.targets) != IGNORED)
    rows = indices(live_T, int(live_T.sum()))
    if rows is None:
        return _gradients(head, of_rows, grads, wanted)
    grads = tuple(None if g is None else g[rows] for g in grads)
    of_hidden, *rest = _gradients(head.at(rows), [x_T[rows] for x_T in of_rows], grads, wanted)
    return spread(of_hidden, rows, len(live_T)) if wanted[0] else of_hidden, *rest


def _gradients(head: Projection, of_rows: list[Tensor], grads: tuple[Tensor | None, ...], wanted: list[bool]) -> tuple[Tensor, ...]:
    size = head.rows_of_a_chunk(of_weight=wanted[1])
    gradient = HeadGradient(head, wanted, single=size >= len(head.targets))
    for rows, chunk, logits_cV in head.chunks(size):
        of_chunk, given = tuple(x_T[rows] for x_T in of_rows), tuple(None if g is None else g[rows] for g in grads)
        gradient.add(rows, chunk, chunk.turn(logits_cV, of_chunk, given))
        del logits_cV  # the buffer goes before the sums are rounded
    return gradient.total()


@head_forward.register_fake
def _(*given: Any) -> tuple[Tensor, ...]:
    head = Projection(*given)
    return empty_statistics(head)[0], *columns(head.hidden_TH, 4)


@head_backward.register_fake
def _(*given: Any) -> tuple[Tensor, ...]:
    return gradients_like(Projection(*given[: len(Projection._fields)]), given[-1])


def _keep(ctx, inputs: tuple, output: tuple) -> None:
    _, entropy_T, _, m_T, log_sum_T = output
    ctx.mark_non_differentiable(m_T, log_sum_T)
    ctx.save_for_backward(m_T, log_sum_T, entropy_T, *(x if isinstance(x, Tensor) else None for x in inputs))
    ctx.numbers = [None if isinstance(x, Tensor) else x for x in inputs]
    ctx.set_materialize_grads(False)  # what is not there costs less than zeros


def _backward(ctx, of_logprob: Tensor | None, of_entropy_T: Tensor | None, of_lse_T: Tensor | None, *_: object) -> tuple:
    m_T, log_sum_T, entropy_T, *tensors = ctx.saved_tensors
    head = Projection(*(number if x is None else x for x, number in zip(tensors, ctx.numbers, strict=True)))
    if of_logprob is None:
        of_logprob = torch.zeros(head.targets.shape, dtype=m_T.dtype, device=m_T.device)
    wanted = [ctx.needs_input_grad[Projection._fields.index(name)] for name in LEAVES]
    given = ([m_T, log_sum_T, entropy_T], of_logprob, of_entropy_T, of_lse_T, wanted)
    return by_name(head_backward(*head, *given), wanted, 0)


head_forward.register_autograd(_backward, setup_context=_keep)
