"""How a row of logits becomes a distribution: softmax(u / temperature) with u = softcap · tanh((logits + bias) / softcap).

Shapes: T rows, V vocabulary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from soundrl.kernels.backend import check_device, check_softcap, local, reads_values, require, schema_of, wide

# Of a row that has no target; PyTorch's `ignore_index`.
IGNORED = -100


class Softmax(NamedTuple):
    """The same four arguments of every operator and kernel."""

    temperature: float
    """Of all rows, unless `temperature_T` [T] holds each row's own."""
    temperature_T: Tensor | None
    bias_V: Tensor | None
    softcap: float
    """0 = none."""

    def of_rows(self, rows: slice | Tensor) -> Softmax:
        return self if self.temperature_T is None else self._replace(temperature_T=self.temperature_T[rows])

    def divisor(self, like: Tensor) -> Tensor | float:
        """What u [T, anything] is divided by, in the type of `like`."""
        return self.temperature if self.temperature_T is None else self.temperature_T[:, None].to(like.dtype)

    def log_sum_exp(self, m_T: Tensor, log_sum_T: Tensor) -> Tensor:
        """log Σ exp(u / temperature) from m = max u and log S = log Σ exp((u − m) / temperature)."""
        return m_T / (self.temperature if self.temperature_T is None else self.temperature_T.to(m_T.dtype)) + log_sum_T

    def dense(self) -> Softmax:
        """As kernels read it: temperatures and biases one after the other in memory, whatever their strides were."""
        return self._replace(**{n: x.contiguous() for n, x in self._asdict().items() if isinstance(x, Tensor)})


SOFTMAX = schema_of(Softmax)


def bounded(logits: Tensor, softmax: Softmax, at: Tensor | slice = slice(None)) -> Tensor:
    """u of logits, in fp32 (fp64 for fp64); `at`: which entries of the vocabulary these are, by default all of them."""
    x, softcap = logits.to(wide(logits)), softmax.softcap
    if softmax.bias_V is not None:
        x = x + softmax.bias_V[at].to(x.dtype)
    return softcap * torch.tanh(x / softcap) if softcap else x


def softmax_of(temperature: float | Tensor, bias_V: Tensor | None, softcap: float | None) -> Softmax:
    """From what public functions are given, before `flat`; ValueError for a softcap that is none."""
    check_softcap(softcap)
    if isinstance(temperature, Tensor):
        return Softmax(1.0, temperature, bias_V, softcap or 0.0)
    return Softmax(float(temperature), None, bias_V, softcap or 0.0)


def flat(
    softmax: Softmax, targets: Tensor, rows: tuple[str, Tensor], matrix: tuple[str, Tensor], vocabulary: int
) -> tuple[Softmax, Tensor]:
    """The softmax with temperatures [T] and the targets [T] (or [T, K]) int64 of T rows one below the other.

    `rows` is the argument […, width] that has a row for each target, `matrix` the one that has the vocabulary, each with its name.

    ValueError unless targets are int32 or int64 of the rows' shape, or that and K ids a row, within the vocabulary or −100; temperatures
    are finite, above 0 and one number or one for each row; and the bias is [V].
    """
    name, like = rows
    shape, targets = like.shape[:-1], local("targets", targets)
    require(
        targets.shape == shape or (targets.shape[:-1] == shape and targets.shape[-1] > 0),
        lambda: (
            f"targets has shape {tuple(targets.shape)}, {name} has {tuple(like.shape)}: give targets one id a row, shape {tuple(shape)}, "
            "or K of them in one more dimension"
        ),
    )
    require(targets.dtype in (torch.int64, torch.int32), lambda: f"targets is {targets.dtype}: give int64 or int32, e.g. targets.long()")
    check_device("targets", targets, name, like)
    if reads_values(targets):
        outside = targets[((targets < 0) | (targets >= vocabulary)) & (targets != IGNORED)]
        require(
            not len(outside),
            lambda: (
                f"targets lie in {int(outside.min())} … {int(outside.max())}, the vocabulary has {vocabulary} entries: "
                f"give rows without a target {IGNORED}"
            ),
        )
    require(
        0 < softmax.temperature < math.inf,
        lambda: f"temperature={softmax.temperature} must be finite and > 0: greedy sampling has no log-probability; use 1.0",
    )
    if softmax.temperature_T is not None:
        softmax = softmax._replace(temperature_T=_one_a_row(softmax.temperature_T, name, like))
    bias_V = softmax.bias_V
    if bias_V is not None:
        name, like = matrix
        require(
            bias_V.shape == (vocabulary,) and bias_V.device == like.device and bias_V.dtype.is_floating_point,
            lambda: (
                f"bias has shape {tuple(bias_V.shape)} on {bias_V.device}, {name} {tuple(like.shape)} on {like.device}: give floating "
                f"point [V] (it is {bias_V.dtype})"
            ),
        )
    return softmax, targets.reshape(-1, *targets.shape[len(shape) :]).long()


def _one_a_row(temperature: Tensor, name: str, like: Tensor) -> Tensor:
    """[T] in fp32 (fp64 for fp64) of a tensor with one entry, one for each row, or some dimensions of 1, e.g. [B, 1] for rows [B, L]."""
    shape, given = like.shape[:-1], tuple(temperature.shape)
    temperature = local("temperature", temperature)
    require(
        temperature.dtype.is_floating_point, lambda: f"temperature is {temperature.dtype}: give floating point, e.g. temperature.float()"
    )
    check_device("temperature", temperature, name, like)
    require(
        not (temperature.requires_grad and torch.is_grad_enabled()),
        lambda: "temperature requires a gradient, which is not computed: pass temperature.detach()",
    )
    if temperature.numel() == 1:
        temperature = temperature.reshape([1] * len(shape))
    elif temperature.shape == (*shape, 1):
        temperature = temperature.squeeze(-1)
    require(
        temperature.ndim == len(shape) and all(a in (1, b) for a, b in zip(temperature.shape, shape, strict=True)),
        lambda: (
            f"temperature has shape {given}, {name} has {tuple(like.shape)}: give one number, or one for each row, shape {tuple(shape)}"
        ),
    )
    require(
        not reads_values(temperature) or bool((torch.isfinite(temperature) & (temperature > 0)).all()),
        lambda: "temperature holds values that are not finite or not > 0: greedy rows have no log-probability; use 1.0 there",
    )
    return temperature.to(wide(like)).expand(shape).reshape(-1)
