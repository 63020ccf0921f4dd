"""Log-probability of given tokens, and entropy, from logits. Shapes: T tokens (rows), V vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from soundrl.kernels.backend import columns, launch, operator, require, runs_triton, wide
from soundrl.kernels.logprob_triton import logprob_backward_kernel, logprob_forward_kernel, row_options
from soundrl.kernels.softmax import SOFTMAX, Softmax, check_softmax, softmax_of


def selective_logprob(
    logits_TV: Tensor,
    targets_T: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
    inplace_backward: bool = False,
) -> tuple[Tensor, Tensor]:
    """log p_target and the entropy −Σ p log p (nats) of p = softmax(z), z = softcap · tanh((logits + bias) / softcap) / temperature.

    logits_TV    [T, V] fp32, bf16, fp16 (fp64: plain torch); the entries of a row must be adjacent
    targets_T    [T] int64
    temperature  one number, or [T] one for each row
    bias_V       [V] added to each row; softcap: tanh bound on the logits before the temperature (Gemma 2); None = none

    Returns two fp32 tensors [T] (fp64 for fp64 logits), both differentiable by logits and bias; statistics are fp32 whatever the logits'
    type, as a bf16 log-sum-exp over 100k entries loses the third digit. Temperature carries no gradient.

    `inplace_backward` writes the gradient over the logits' own memory, which halves the peak; allowed where nobody reads the logits
    after this call (a later use in the graph then fails in autograd's version check).

    Raises ValueError for wrong shapes, types, devices, temperatures, and targets outside the vocabulary (on a GPU the last two checks of
    values are made only after `backend.check_values(True)`).

    >>> selective_logprob(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    (tensor([-0.6931]), tensor([0.6931]))
    """
    require(
        logits_TV.ndim == 2 and logits_TV.dtype.is_floating_point and logits_TV.shape[1] > 0,
        lambda: f"logits have shape {tuple(logits_TV.shape)} and type {logits_TV.dtype}: give floating point [T, V], packed rows",
    )
    softmax, named = softmax_of(temperature, bias_V, softcap), ("logits", logits_TV)
    check_softmax(softmax, targets_T, named, named, logits_TV.shape[1])
    logprob_T, entropy_T, _, _ = _logprob(logits_TV, targets_T, *softmax, inplace_backward)
    return logprob_T, entropy_T


def selective_logprob_reference(
    logits_TV: Tensor, targets_T: Tensor, temperature: float | Tensor = 1.0, *, bias_V: Tensor | None = None, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """The same by torch's own operators and autograd, in the logits' precision or fp32."""
    softmax = softmax_of(temperature, bias_V, softcap)
    u_TV = _bounded(logits_TV, softmax)
    logp_TV = torch.log_softmax(u_TV / _divisor(softmax, u_TV), dim=-1)
    entropy_T = -(logp_TV.exp() * logp_TV.masked_fill(logp_TV == -torch.inf, 0.0)).sum(-1)
    return logp_TV.gather(-1, targets_T[:, None]).squeeze(-1), entropy_T


def _bounded(logits_TV: Tensor, softmax: Softmax) -> Tensor:
    """u in fp32 (fp64 for fp64)."""
    x_TV, softcap = logits_TV.to(wide(logits_TV)), softmax.softcap
    if softmax.bias_V is not None:
        x_TV = x_TV + softmax.bias_V.to(x_TV.dtype)
    return softcap * torch.tanh(x_TV / softcap) if softcap else x_TV


def _divisor(softmax: Softmax, like: Tensor) -> Tensor | float:
    temperature_T = softmax.temperature_T
    return softmax.temperature if temperature_T is None else temperature_T[:, None].to(like.dtype)


def row_forward(logits_TV: Tensor, targets_T: Tensor, softmax: Softmax) -> tuple[Tensor, ...]:
    """log-prob, entropy, m = max u, log S = log Σ exp((u − m) / temperature) of each row (names: `logprob_triton`), outside autograd.

    Rows may be strided, entries of a row are adjacent.
    """
    if runs_triton(logits_TV):
        (rows, vocabulary), out = logits_TV.shape, columns(logits_TV, 4)
        given = (logits_TV, targets_T, softmax, out, vocabulary, logits_TV.stride(0))
        launch(logprob_forward_kernel, rows, logits_TV, *given, **row_options(vocabulary, softmax.softcap))
        return out
    u_TV = _bounded(logits_TV, softmax)
    m_T = u_TV.amax(-1)
    d_TV = (u_TV - m_T[:, None]) / _divisor(softmax, u_TV)
    e_TV = d_TV.exp()
    sum_T = e_TV.sum(-1)
    logprob_T = d_TV.gather(-1, targets_T[:, None]).squeeze(-1) - sum_T.log()
    w_T = (e_TV * d_TV.masked_fill_(e_TV == 0, 0.0)).sum(-1)
    return logprob_T, sum_T.log() - w_T / sum_T, m_T, sum_T.log()


def row_backward(
    dlogits: Tensor,
    logits_TV: Tensor,
    targets_T: Tensor,
    softmax: Softmax,
    statistics: tuple[Tensor, ...],
    grads: tuple[Tensor, ...],
    order: Tensor | None = None,
) -> None:
    """Write dlogits [n, V] of rows order[0 … n−1] (default: all, in order); `dlogits` may be the first n rows of `logits_TV`.

    In place, row j may be overwritten only if it is order[j] itself or in nobody's `order` (see `head_chunks.compaction`).
    statistics = (m, log S, entropy) from `row_forward`; grads = (of the log-probabilities, of the entropies).
    """
    if runs_triton(logits_TV):
        vocabulary = logits_TV.shape[1]
        given = (logits_TV, dlogits, targets_T, softmax, statistics, grads, order, vocabulary, logits_TV.stride(0), dlogits.stride(0))
        launch(logprob_backward_kernel, len(dlogits), logits_TV, *given, **row_options(vocabulary, softmax.softcap))
        return
    if order is not None:
        logits_TV, targets_T, *taken = (x[order] for x in (logits_TV, targets_T, *statistics, *grads))
        softmax, statistics, grads = softmax.of_rows(order), tuple(taken[:3]), tuple(taken[3:])
    (m_T, log_sum_T, entropy_T), (grad_logprob_T, grad_entropy_T) = statistics, grads
    u_TV = _bounded(logits_TV, softmax)
    divisor = _divisor(softmax, u_TV)
    logp_TV = (u_TV - m_T[:, None]) / divisor - log_sum_T[:, None]
    p_TV = logp_TV.exp()
    onehot_less_p_TV = (-p_TV).scatter_add_(-1, targets_T[:, None], torch.ones_like(p_TV[:, :1]))
    dz_TV = grad_logprob_T[:, None] * onehot_less_p_TV
    if bool(grad_entropy_T.any()):
        dz_TV -= grad_entropy_T[:, None] * p_TV * (logp_TV + entropy_T[:, None]).masked_fill_(p_TV == 0, 0.0)
    dz_TV /= divisor
    if softmax.softcap:
        dz_TV *= 1 - (u_TV / softmax.softcap) ** 2
    live_T = (grad_logprob_T != 0) | (grad_entropy_T != 0)
    dlogits.copy_(dz_TV.masked_fill_(~live_T[:, None], 0.0))


@operator(f"logprob(Tensor logits_TV, Tensor targets_T, {SOFTMAX}, bool inplace_backward) -> (Tensor, Tensor, Tensor, Tensor)")
def _logprob(logits_TV: Tensor, targets_T: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return row_forward(_adjacent(logits_TV), targets_T, Softmax(*rest[:4]))


BACKWARD = f"Tensor targets_T, {SOFTMAX}, Tensor[] statistics, Tensor grad_logprob_T, Tensor grad_entropy_T"


@operator(f"logprob_backward(Tensor logits_TV, {BACKWARD}) -> Tensor")
def _logprob_backward(logits_TV: Tensor, *rest: Any) -> Tensor:
    out = torch.empty(logits_TV.shape, dtype=logits_TV.dtype, device=logits_TV.device)
    _write(out, _adjacent(logits_TV), *rest)
    return out


@operator(f"logprob_backward_(Tensor(a!) logits_TV, {BACKWARD}) -> ()")
def _logprob_backward_(logits_TV: Tensor, *rest: Any) -> None:
    _write(logits_TV, logits_TV, *rest)


def _write(out: Tensor, logits_TV: Tensor, targets_T: Tensor, *rest: Any) -> None:
    *softmax, statistics, grad_logprob_T, grad_entropy_T = rest
    grads = grad_logprob_T.contiguous(), grad_entropy_T.contiguous()
    row_backward(out, logits_TV, targets_T, Softmax(*softmax), tuple(statistics), grads)


def _adjacent(x_TV: Tensor) -> Tensor:
    return x_TV if x_TV.stride(-1) == 1 else x_TV.contiguous()


@_logprob.register_fake
def _(logits_TV: Tensor, *_: object) -> tuple[Tensor, ...]:
    return columns(logits_TV, 4)


@_logprob_backward.register_fake
def _(logits_TV: Tensor, *_: object) -> Tensor:
    return torch.empty(logits_TV.shape, dtype=logits_TV.dtype, device=logits_TV.device)


def _keep(ctx, inputs: tuple, output: tuple) -> None:
    logits_TV, targets_T, temperature, temperature_T, bias_V, softcap, inplace_backward = inputs
    _, entropy_T, m_T, log_sum_T = output
    ctx.mark_non_differentiable(m_T, log_sum_T)
    ctx.save_for_backward(logits_TV, targets_T, temperature_T, bias_V, m_T, log_sum_T, entropy_T)
    ctx.numbers = temperature, softcap, inplace_backward and logits_TV.stride(-1) == 1
    ctx.set_materialize_grads(True)


def _backward(ctx, grad_logprob_T: Tensor, grad_entropy_T: Tensor, *_: object) -> tuple:
    logits_TV, targets_T, temperature_T, bias_V, *statistics = ctx.saved_tensors
    temperature, softcap, in_place = ctx.numbers
    arguments = (targets_T, temperature, temperature_T, bias_V, softcap, statistics, grad_logprob_T, grad_entropy_T)
    if in_place:
        dlogits_TV = logits_TV.detach()
        _logprob_backward_(dlogits_TV, *arguments)
    else:
        dlogits_TV = _logprob_backward(logits_TV, *arguments)
    of_bias = None
    if bias_V is not None and ctx.needs_input_grad[4]:
        of_bias = dlogits_TV.sum(0, dtype=wide(logits_TV)).to(bias_V.dtype)
    return dlogits_TV, None, None, None, of_bias, None, None


_logprob.register_autograd(_backward, setup_context=_keep)
