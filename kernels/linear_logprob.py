"""Log-probabilities straight from hidden states and LM head, without [T, V] logits. Shapes: T tokens, H hidden, V vocabulary.

Forward: streaming on a GPU (`linear_logprob_triton`, memory flat in V), in chunks elsewhere; 2·T·H·V FLOP. Backward: in chunks
(`head_chunks`), logits once more and the two products of the gradient, 6·T·H·V FLOP for the rows that have one.
"""

# pyright: reportOptionalMemberAccess=false
from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from soundrl.kernels.backend import KERNEL_DTYPES, columns, operator, require, runs_triton, wide
from soundrl.kernels.head_chunks import HEAD, HeadGradient, LinearHead
from soundrl.kernels.linear_logprob_triton import launch_streaming
from soundrl.kernels.lm_head import LMHead, lm_head
from soundrl.kernels.logprob import row_forward
from soundrl.kernels.softmax import Softmax, check_softmax, softmax_of


class Logprobs(NamedTuple):
    """Of each row: log-probability of its target, entropy, log-sum-exp; whether the target is a largest entry."""

    logprob: Tensor
    entropy: Tensor
    lse: Tensor
    greedy: Tensor


def linear_logprob(
    hidden_TH: Tensor,
    head: Tensor | LMHead,
    targets_T: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    fp32_logits: bool = False,
    memory_budget: int | None = None,
) -> Logprobs:
    """log p_target, entropy (nats) and log-sum-exp of softmax(z), z = logits / temperature, `LMHead` says which logits.

    hidden_TH    [T, H] fp32, bf16, fp16 (fp64: plain torch)
    head         weight [V, H] of the same type, or an `LMHead`; a tied or frozen one is fine, as is frozen hidden
    targets_T    [T] int64; temperature: one number, or [T]

    Log-probability and entropy are differentiable by hidden, weight and bias; the log-sum-exp is not.
    The weight's gradient is summed in fp32 over all rows and rounded to the weight's type once.

    fp32_logits    keep the logits in fp32. By default they are rounded to hidden's type, as samplers do (vLLM)
    memory_budget  bytes of logits alive at once in the backward pass (None: 1.2 GiB on a GPU, 32 MiB on CPU)

    Raises ValueError for shapes, types, devices, temperatures, targets outside the vocabulary (values on a GPU only after
    `backend.check_values(True)`), and a sharded weight.

    >>> linear_logprob(torch.zeros(1, 4), torch.ones(2, 4), torch.tensor([1])).logprob
    tensor([-0.6931])
    """
    head = lm_head(head)
    weight_VH = head.weight_VH
    softmax = checked_head(hidden_TH, weight_VH, targets_T, head_softmax(head, temperature))
    logprob_T, entropy_T, m_T, log_sum_T = head_forward(hidden_TH, weight_VH, targets_T, *softmax, fp32_logits, memory_budget or 0)
    lse_T = (m_T / (softmax.temperature if softmax.temperature_T is None else softmax.temperature_T) + log_sum_T).detach()
    return Logprobs(logprob_T, entropy_T, lse_T, logprob_T.detach() == -log_sum_T)


def head_softmax(head: LMHead, temperature: float | Tensor) -> Softmax:
    """A scale is a temperature, and a softcap, that much lower: c tanh(s x / c) = s · (c/s) tanh(x / (c/s))."""
    require(head.lora is None and head.group is None, lambda: "LMHead.lora and LMHead.group are not computed yet")
    return softmax_of(temperature / head.scale, head.bias_V, head.softcap and head.softcap / head.scale)


def checked_head(hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor, softmax: Softmax) -> Softmax:
    require(
        not isinstance(weight_VH, DTensor),  # an FSDP2 parameter; gathering it here would bypass FSDP2's hooks and gradient reduction
        lambda: (
            "weight is a sharded DTensor: call the kernel inside the forward of the module that owns it, where FSDP2 has gathered it "
            "(engine/head.py shows how), or pass full_tensor() for a pass without gradient"
        ),
    )
    require(
        hidden_TH.ndim == 2 and hidden_TH.dtype in (*KERNEL_DTYPES, torch.float64),
        lambda: f"hidden has shape {tuple(hidden_TH.shape)} and type {hidden_TH.dtype}: give floating point [T, H], packed rows",
    )
    require(
        weight_VH.ndim == 2 and weight_VH.shape[1] == hidden_TH.shape[1] and len(weight_VH) > 0,
        lambda: f"weight has shape {tuple(weight_VH.shape)}, hidden {tuple(hidden_TH.shape)}: weight must be [V, H] with hidden's H",
    )
    require(
        weight_VH.dtype == hidden_TH.dtype and weight_VH.device == hidden_TH.device,
        lambda: f"weight is {weight_VH.dtype} on {weight_VH.device}, hidden {hidden_TH.dtype} on {hidden_TH.device}: make them alike",
    )
    check_softmax(softmax, targets_T, ("hidden", hidden_TH), ("weight", weight_VH), len(weight_VH))
    return softmax


@operator(f"linear_logprob({HEAD}) -> (Tensor, Tensor, Tensor, Tensor)")
def head_forward(hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """log-prob, entropy, m, log S [T] (names: `logprob_triton`)."""
    head = LinearHead(hidden_TH, weight_VH, *rest)
    if runs_triton(hidden_TH):
        rounds = hidden_TH.dtype != torch.float32 and not head.fp32_logits
        hidden_TH, weight_VH = (x if x.stride(-1) == 1 else x.contiguous() for x in (hidden_TH, weight_VH))
        return launch_streaming(hidden_TH, weight_VH, targets_T, head.softmax, rounds)
    out = columns(hidden_TH, 4)
    for rows, logits_cV in head.chunks():
        for whole, part in zip(out, row_forward(logits_cV, targets_T[rows], head.softmax.of_rows(rows)), strict=True):
            whole[rows] = part
    return out


GRADIENT = "Tensor[] statistics, Tensor grad_logprob_T, Tensor grad_entropy_T, bool[] wanted, bool compact"


@operator(f"linear_logprob_backward({HEAD}, {GRADIENT}) -> (Tensor, Tensor, Tensor)")
def gradient_of_rows(hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """dhidden [T, H], dweight [V, H] and dbias [V] in fp32; those not `wanted` are empty.

    The coefficients are known before any product, so with `compact` rows without one are not even multiplied out.
    """
    *settings, statistics, grad_logprob_T, grad_entropy_T, wanted, compact = rest
    live_T = ((grad_logprob_T != 0) | (grad_entropy_T != 0)).nonzero().squeeze(-1) if compact else None
    if live_T is not None and len(live_T) == len(hidden_TH):
        live_T = None
    given = (hidden_TH, targets_T, *statistics, grad_logprob_T, grad_entropy_T)
    hidden_nH, targets_n, *taken = given if live_T is None else (x[live_T] for x in given)
    head = LinearHead(hidden_nH, weight_VH, *settings)
    head.softmax = head.softmax if live_T is None else head.softmax.of_rows(live_T)
    gradient = HeadGradient(head, *wanted)
    for rows, logits_cV in head.chunks():
        grads_c = tuple(x[rows].contiguous() for x in taken[3:])
        gradient.add(rows, logits_cV, targets_n, tuple(taken[:3]), grads_c, compact=False)
    dhidden_TH = gradient.hidden
    if live_T is not None and wanted[0]:
        dhidden_TH = torch.zeros_like(hidden_TH)
        dhidden_TH[live_T] = gradient.hidden
    return dhidden_TH, gradient.weight, gradient.bias


@head_forward.register_fake
def _(hidden_TH: Tensor, *_: object) -> tuple[Tensor, ...]:
    return columns(hidden_TH, 4)


@gradient_of_rows.register_fake
def gradients_like(hidden_TH: Tensor, weight_VH: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    of_hidden, of_weight, of_bias = rest[-2]
    return (
        torch.empty_like(hidden_TH) if of_hidden else hidden_TH.new_empty(0),
        weight_VH.new_empty(weight_VH.shape if of_weight else 0, dtype=wide(hidden_TH)),
        weight_VH.new_empty(weight_VH.shape[0] if of_bias else 0, dtype=wide(hidden_TH)),
    )


def _keep(ctx, inputs: tuple, output: tuple) -> None:
    hidden_TH, weight_VH, targets_T, temperature, temperature_T, bias_V, *numbers = inputs
    _, entropy_T, m_T, log_sum_T = output
    ctx.mark_non_differentiable(m_T, log_sum_T)
    ctx.save_for_backward(hidden_TH, weight_VH, targets_T, temperature_T, bias_V, m_T, log_sum_T, entropy_T)
    ctx.temperature, ctx.numbers = temperature, numbers


def _backward(ctx, grad_logprob_T: Tensor, grad_entropy_T: Tensor, *_: object) -> tuple:
    hidden_TH, weight_VH, targets_T, temperature_T, bias_V, *statistics = ctx.saved_tensors
    wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], bias_V is not None and ctx.needs_input_grad[5]]
    settings = (ctx.temperature, temperature_T, bias_V, *ctx.numbers)
    grads = (statistics, grad_logprob_T, grad_entropy_T)
    dhidden_TH, dweight_VH, dbias_V = gradient_of_rows(hidden_TH, weight_VH, targets_T, *settings, *grads, wanted, True)
    of_hidden = dhidden_TH if wanted[0] else None
    of_weight = dweight_VH.to(weight_VH.dtype) if wanted[1] else None
    of_bias = dbias_V.to(bias_V.dtype) if wanted[2] else None
    return of_hidden, of_weight, None, None, None, of_bias, None, None, None


head_forward.register_autograd(_backward, setup_context=_keep)
