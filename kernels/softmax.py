"""How a row of logits becomes a distribution: softmax(u / temperature) with u = softcap · tanh((logits + bias) / softcap).

Shapes: T rows, V vocabulary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from soundrl.kernels.backend import check_rows, check_softcap, reads_values, require, schema_of


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


SOFTMAX = schema_of(Softmax)


def softmax_of(temperature: float | Tensor, bias_V: Tensor | None, softcap: float | None) -> Softmax:
    """From what public functions are given; ValueError for a softcap that is none."""
    check_softcap(softcap)
    if isinstance(temperature, Tensor):
        return Softmax(1.0, temperature, bias_V, softcap or 0.0)
    return Softmax(temperature, None, bias_V, softcap or 0.0)


def check_softmax(softmax: Softmax, targets_T: Tensor, rows: tuple[str, Tensor], matrix: tuple[str, Tensor], vocabulary: int) -> None:
    """ValueError unless targets [T] lie within the vocabulary, temperatures are finite and above 0, and the bias is [V]. `rows` is the
    argument that has a row for each target, `matrix` the one that has the vocabulary, each with its name."""
    check_rows("targets", targets_T, *rows, integer=True)
    if reads_values(targets_T) and targets_T.numel():
        low, high = int(targets_T.min()), int(targets_T.max())
        require(
            0 <= low and high < vocabulary,
            lambda: f"targets lie in {low} … {high}, the vocabulary has {vocabulary} entries: leave padding out (no index is ignored)",
        )
    temperature, temperature_T, bias_V, _ = softmax
    if temperature_T is not None:
        check_rows("temperature", temperature_T, *rows)
        require(
            not reads_values(temperature_T) or bool((torch.isfinite(temperature_T) & (temperature_T > 0)).all()),
            lambda: "temperature holds values that are not finite or not > 0: greedy rows have no log-probability; use 1.0 there",
        )
    require(
        0 < temperature < math.inf,
        lambda: f"temperature={temperature} must be finite and > 0: greedy sampling has no log-probability; use 1.0",
    )
    if bias_V is not None:
        name, like = matrix
        require(
            bias_V.shape == (vocabulary,) and bias_V.device == like.device,
            lambda: f"bias has shape {tuple(bias_V.shape)} on {bias_V.device}, {name} {tuple(like.shape)} on {like.device}: give [V]",
        )
