"""Safetensors files written tensor by tensor, hashed as they are written: no second copy in memory, and no second reading for the digest.

The library's own `save_file` turns every tensor into bytes first, which doubles the memory of a checkpoint's rows; it reads what is written
here.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from soundrl.engine.launch.last_words import RANK

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16"}
PIECE = 1 << 24  # bytes written at once


class Seal(NamedTuple):
    """What a file is known by."""

    sha256: str
    size: int


class Layout(NamedTuple):
    """A tensor's type and shape, known before its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def write_tensors(path: Path, layouts: Mapping[str, Layout], tensors: Iterable[Tensor], about: Mapping[str, str]) -> Seal:
    """Write `tensors`, which come in the order of `layouts`, to `path`, and force them to the disk. OSError where it is full."""
    header: dict[str, object] = {"__metadata__": dict(about)}
    end = 0
    for name, layout in layouts.items():
        header[name] = {"dtype": NAMES[layout.dtype], "shape": list(layout.shape), "data_offsets": [end, end + layout.size]}
        end += layout.size
    said = json.dumps(header).encode()
    said += b" " * (-len(said) % 8)  # values begin aligned

    def pieces() -> Iterator[bytes | memoryview]:
        yield struct.pack("<Q", len(said)) + said
        for layout, tensor in zip(layouts.values(), tensors, strict=True):
            assert tensor.dtype is layout.dtype and tuple(tensor.shape) == layout.shape
            data = memoryview(cast(Any, tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()))
            yield from (data[start : start + PIECE] for start in range(0, len(data), PIECE))

    return _write(path, pieces())


def write_bytes(path: Path, content: bytes) -> Seal:
    """The same for a small file, whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return _write(path, [content])


def _write(path: Path, pieces: Iterable[bytes | memoryview]) -> Seal:
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            size += len(piece)
            RANK.beat()
        file.flush()
        os.fsync(file.fileno())
    return Seal(digest.hexdigest(), size)


def sealed(path: Path) -> Seal:
    """Of a file that stands there; it is read whole."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            size += len(piece)
            RANK.beat()
    return Seal(digest.hexdigest(), size)


def sync_folder(path: Path) -> None:
    """Force a folder's names to the disk: a renamed file is not safe before."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
