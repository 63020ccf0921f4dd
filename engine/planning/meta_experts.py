"""Grouped products of experts on torch's meta device: its own know shapes of bfloat16 alone; transformers' stand-in knows all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.integrations import moe


@contextmanager
def grouped_on_meta() -> Iterator[None]:
    """Within, experts compute with the stand-in, which keeps the same two tensors for the backward pass."""
    real = moe._can_use_grouped_mm
    moe._can_use_grouped_mm = lambda *given: False
    try:
        yield
    finally:
        moe._can_use_grouped_mm = real
