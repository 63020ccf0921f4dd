"""Log-probability of given tokens, and entropy, from logits. Shapes: T tokens (rows), V vocabulary."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from soundrl.kernels import rows_cpu
from soundrl.kernels.backend import columns, launch, local, operator, require, runs_triton, wide
from soundrl.kernels.gathered import coefficients, entries, gather_logprobs, row_targets, scatter_gradient
from soundrl.kernels.logprob_triton import logprob_backward_kernel, logprob_forward_kernel, row_options
from soundrl.kernels.softmax import IGNORED, SOFTMAX, Softmax, bounded, flat, softmax_of


class Logprobs(NamedTuple):
    """Of softmax(z) in each row; fp32 (fp64 for fp64). A row whose targets all are −100 has zeros and False throughout."""

    logprob: Tensor
    """log p of the targets, in their shape: 0 for −100, NaN for any other id outside the vocabulary."""
    entropy: Tensor
    """−Σ p log p in nats, in the rows' shape."""
    lse: Tensor
    """log Σ exp(z), in the rows' shape."""
    greedy: Tensor
    """bool, in the targets' shape: the target is a largest entry; z within a millionth of the largest counts as equal to it."""


def logprobs(logprob: Tensor, entropy_T: Tensor, lse_T: Tensor, log_sum_T: Tensor, targets: Tensor) -> Logprobs:
    """From results of an operator, [T] or [T, K], in the shape of the targets. The largest entry has log p = −log S, up to rounding."""
    shape = targets.shape if logprob.ndim == 1 else targets.shape[:-1]
    least_T = -log_sum_T - 1e-6 * (1 + lse_T.detach().abs())
    greedy = logprob.detach() >= (least_T if logprob.ndim == 1 else least_T[:, None])
    greedy = greedy.view(targets.shape) & (targets != IGNORED)
    return Logprobs(logprob.view(targets.shape), entropy_T.view(shape), lse_T.view(shape), greedy)


def selective_logprob(
    logits: Tensor,
    targets: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    inplace_backward: bool = False,
) -> Logprobs:
    """log p_target and more of p = softmax(z), z = softcap · tanh((logits + bias) / softcap) / temperature.

    logits       […, V] fp32, bf16, fp16 (fp64: plain torch), any number of dimensions before the last; rows [B, L, V] that do not lie
                 evenly in memory, such as `logits[:, :-1]`, are copied
    targets      […] int64 or int32, or […, K]: K ids a row, which may repeat. −100 is no target (PyTorch's `ignore_index`): log-prob 0
                 and no gradient; a row without any target has entropy and lse 0 too, whatever its logits are
    temperature  one number, or one for each row ([B, 1] for [B, L] too); carries no gradient
    bias         [V] added to each row; softcap: tanh bound on the logits before the temperature (Gemma 2); None = none

    Returns `Logprobs`, fp32 (fp64 for fp64 logits); log-prob, entropy and lse are differentiable by logits and bias. Statistics are fp32
    whatever the logits' type, as a bf16 log-sum-exp over 100k entries loses the third digit. A row of −inf has NaN, as in torch.

    `inplace_backward` writes the gradient over the logits' own memory, which halves the peak; allowed where nobody reads the logits
    after this call (a later use in the graph then fails in autograd's version check). Where rows share memory it has no effect.

    Raises ValueError for wrong shapes, types, devices, sharded DTensors, temperatures, and targets outside the vocabulary (on a GPU the
    last two checks of values are made only after `backend.check_values(True)`; such a target's log-prob is NaN there).

    >>> selective_logprob(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))[:2]
    (tensor([-0.6931]), tensor([0.6931]))
    """
    logits, targets = local("logits", logits), local("targets", targets)
    require(
        logits.ndim >= 1 and logits.dtype.is_floating_point and logits.shape[-1] > 0,
        lambda: f"logits have shape {tuple(logits.shape)} and type {logits.dtype}: give floating point […, V]",
    )
    bias, named = None if bias is None else local("bias", bias), ("logits", logits)
    softmax, ids = flat(softmax_of(temperature, bias, softcap), targets, named, named, logits.shape[-1])
    logprob, entropy_T, lse_T, _, log_sum_T = _logprob(logits.reshape(-1, logits.shape[-1]), ids, *softmax, inplace_backward)
    return logprobs(logprob, entropy_T, lse_T, log_sum_T, targets)


def selective_logprob_reference(
    logits_TV: Tensor, targets_T: Tensor, temperature: float | Tensor = 1.0, *, bias_V: Tensor | None = None, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy by torch's own operators and autograd, in the logits' precision or fp32; every target within the vocabulary."""
    softmax = softmax_of(temperature, bias_V, softcap)
    u_TV = bounded(logits_TV, softmax)
    logp_TV = torch.log_softmax(u_TV / softmax.divisor(u_TV), dim=-1)
    entropy_T = -(logp_TV.exp() * logp_TV.masked_fill(logp_TV == -torch.inf, 0.0)).sum(-1)
    return logp_TV.gather(-1, targets_T[:, None]).squeeze(-1), entropy_T


def row_forward(logits_TV: Tensor, targets_T: Tensor, softmax: Softmax) -> tuple[Tensor, ...]:
    """log-prob, entropy, m = max u, log S = log Σ exp((u − m) / temperature) of each row (names: `logprob_triton`), outside autograd.

    Rows may be strided, entries of a row are adjacent. A target of −100 makes all four 0, without a look at the row; of another target
    outside [0, V) the log-prob is NaN and the rest is what it is.
    """
    targets_T, softmax = targets_T.contiguous(), softmax.dense()
    if runs_triton(logits_TV):
        (rows, vocabulary), out = logits_TV.shape, columns(logits_TV, 4)
        given = (logits_TV, targets_T, softmax, out, vocabulary, logits_TV.stride(0))
        each = 16 // logits_TV.element_size()
        launch(logprob_forward_kernel, rows, logits_TV, *given, **row_options(vocabulary, softmax.softcap, each, logits_TV))
        return out
    return rows_cpu.forward(logits_TV, targets_T, softmax)


def row_backward(
    dlogits: Tensor,
    logits_TV: Tensor,
    targets_T: Tensor,
    softmax: Softmax,
    statistics: tuple[Tensor, ...],
    grads: tuple[Tensor | None, ...],
    order: Tensor | None = None,
) -> None:
    """Write dlogits [n, V] of rows order[0 … n−1] (default: all, in order); `dlogits` may be the first n rows of `logits_TV`:

    dz_v = of_target · 1[v = target] − p_v · (of_mass + of_entropy · (log p_v + entropy)), then down through temperature and softcap.

    statistics = (m, log S, entropy) from `row_forward`; grads = (of_target, of_mass, of_entropy), [T] each, where the gradient g of a
    log-probability is of_target and of_mass, and the gradient l of a log-sum-exp is of_mass −l. of_entropy None = no such term, which
    is faster. A row whose three are 0, or whose target is −100, is exactly 0 whatever its logits are. A target outside [0, V) has no
    first term.

    In place, row j may be overwritten only if it is order[j] itself or in nobody's `order` (see `head_chunks.compaction`).
    """
    targets_T, softmax = targets_T.contiguous(), softmax.dense()
    statistics, grads = tuple(x_T.contiguous() for x_T in statistics), tuple(None if x_T is None else x_T.contiguous() for x_T in grads)
    if runs_triton(logits_TV):
        vocabulary, order = logits_TV.shape[1], None if order is None else order.contiguous()
        given = (logits_TV, dlogits, targets_T, softmax, statistics, grads, order, vocabulary, logits_TV.stride(0), dlogits.stride(0))
        options = row_options(vocabulary, softmax.softcap, 16, logits_TV, dlogits)
        launch(logprob_backward_kernel, len(dlogits), logits_TV, *given, ENTROPY=grads[2] is not None, **options)
        return
    if order is not None:
        targets_T, softmax = targets_T[order], softmax.of_rows(order)
        statistics, grads = tuple(x_T[order] for x_T in statistics), tuple(None if x_T is None else x_T[order] for x_T in grads)
    rows_cpu.backward(dlogits, logits_TV, targets_T, softmax, statistics, grads, order)


def ids_forward(logits_TV: Tensor, ids: Tensor, softmax: Softmax) -> tuple[Tensor, ...]:
    """`row_forward` of one target a row [T], or of K ids a row [T, K], whose log-probs come in their shape."""
    logprob, entropy_T, m_T, log_sum_T = row_forward(logits_TV, row_targets(ids), softmax)
    if ids.ndim == 2:
        logprob = gather_logprobs(logits_TV, ids, softmax, m_T, log_sum_T)
    return logprob, entropy_T, m_T, log_sum_T


def ids_backward(
    out: Tensor,
    logits_TV: Tensor,
    ids: Tensor,
    softmax: Softmax,
    statistics: tuple[Tensor, ...],
    grads: tuple[Tensor | None, ...],
    order: Tensor | None = None,
) -> None:
    """`row_backward` of the same, from grads = gradients of log-probs, entropies and log-sum-exps (None = none). K ids know no `order`."""
    of_logprob, of_entropy_T, of_lse_T = grads
    assert of_logprob is not None
    if ids.ndim == 1:
        of_mass_T = of_logprob if of_lse_T is None else of_logprob - of_lse_T
        row_backward(out, logits_TV, ids, softmax, statistics, (of_logprob, of_mass_T, of_entropy_T), order)
        return
    assert order is None
    of_logprob, three = coefficients(ids, (of_logprob, of_entropy_T, of_lse_T))
    logp_TK = entries(logits_TV, ids, softmax, *statistics[:2])
    row_backward(out, logits_TV, row_targets(ids), softmax, statistics, three)
    scatter_gradient(out, ids, logp_TK, of_logprob, softmax, statistics, three)


@operator(f"logprob(Tensor logits_TV, Tensor ids, {SOFTMAX}, bool inplace_backward) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
def _logprob(logits_TV: Tensor, ids: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """log-prob [T] or [T, K], entropy, log-sum-exp, m, log S."""
    softmax = Softmax(*rest[:4])
    logprob, entropy_T, m_T, log_sum_T = ids_forward(_adjacent(logits_TV), ids, softmax)
    return logprob, entropy_T, softmax.log_sum_exp(m_T, log_sum_T), m_T, log_sum_T


BACKWARD = f"Tensor ids, {SOFTMAX}, Tensor[] statistics, Tensor grad_logprob, Tensor? grad_entropy_T, Tensor? grad_lse_T"


@operator(f"logprob_backward(Tensor logits_TV, {BACKWARD}) -> Tensor")
def _logprob_backward(logits_TV: Tensor, *rest: Any) -> Tensor:
    out = torch.empty(logits_TV.shape, dtype=logits_TV.dtype, device=logits_TV.device)
    _write(out, _adjacent(logits_TV), *rest)
    return out


@operator(f"logprob_backward_(Tensor(a!) logits_TV, {BACKWARD}) -> ()")
def _logprob_backward_(logits_TV: Tensor, *rest: Any) -> None:
    _write(logits_TV, logits_TV, *rest)


def _write(out: Tensor, logits_TV: Tensor, ids: Tensor, *rest: Any) -> None:
    *fields, statistics, of_logprob, of_entropy_T, of_lse_T = rest
    ids_backward(out, logits_TV, ids, Softmax(*fields), tuple(statistics), (of_logprob, of_entropy_T, of_lse_T))


def _adjacent(x_TV: Tensor) -> Tensor:
    return x_TV if x_TV.stride(-1) == 1 else x_TV.contiguous()


def _may_be_overwritten(x_TV: Tensor) -> bool:
    """Entries of a row are adjacent and no two rows share memory."""
    return x_TV.stride(1) == 1 and (x_TV.shape[0] <= 1 or x_TV.stride(0) >= x_TV.shape[1])


@_logprob.register_fake
def _(logits_TV: Tensor, ids: Tensor, *_: object) -> tuple[Tensor, ...]:
    return logits_TV.new_empty(ids.shape, dtype=wide(logits_TV)), *columns(logits_TV, 4)


@_logprob_backward.register_fake
def _(logits_TV: Tensor, *_: object) -> Tensor:
    return torch.empty(logits_TV.shape, dtype=logits_TV.dtype, device=logits_TV.device)


def _keep(ctx, inputs: tuple, output: tuple) -> None:
    logits_TV, ids, temperature, temperature_T, bias_V, softcap, inplace_backward = inputs
    _, entropy_T, _, m_T, log_sum_T = output
    ctx.mark_non_differentiable(m_T, log_sum_T)
    ctx.save_for_backward(logits_TV, ids, temperature_T, bias_V, m_T, log_sum_T, entropy_T)
    ctx.numbers = temperature, softcap, inplace_backward and _may_be_overwritten(logits_TV)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_logprob: Tensor | None, grad_entropy_T: Tensor | None, grad_lse_T: Tensor | None, *_: object) -> tuple:
    logits_TV, ids, temperature_T, bias_V, *statistics = ctx.saved_tensors
    temperature, softcap, in_place = ctx.numbers
    if grad_logprob is None:
        grad_logprob = statistics[0].new_zeros(ids.shape)
    arguments = (ids, temperature, temperature_T, bias_V, softcap, statistics, grad_logprob, grad_entropy_T, grad_lse_T)
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
