"""A checkpoint on disk: what a run needs to go on as if nothing had interrupted it. An interface, of format 1:

    checkpoints/step-000040/state.json                               step, settings, counters, cursor of the prompts, …
                            weights-00003-of-00008.safetensors       rank 3's rows of every parameter, float32
                            moments-00003-of-00008.safetensors       AdamW's, as exp_avg/<name> and exp_avg_sq/<name>
                            old_logprobs.safetensors                 in the middle of a step alone
                            model/                                   config.json, tokenizer, …: a Hugging Face folder's, but for weights
                            manifest.json                            SHA-256 and size of every other file, and its own; written last
    checkpoints/step-000040+2/                                       the same after two optimizer steps of step 41

A folder is written as `….part` and renamed at once, so under its final name it is whole. Nothing is ever unpickled. Each rank writes the
rows that are its own; the first row of each tensor stands in the file's header, so any number of ranks reads what any number wrote.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from soundrl.engine.files.tensor_file import Seal, sealed, write_bytes

FORMAT = 1
WEIGHTS, MOMENTS = "weights", "moments"
NAME = re.compile(r"step-(\d{6,})(?:\+(\d+))?")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; one line that names the file."""


class Place(NamedTuple):
    """Where a run stands: steps that are whole, and optimizer steps of the next one."""

    step: int
    within: int = 0

    @property
    def name(self) -> str:
        """
        >>> Place(40).name, Place(40, 2).name
        ('step-000040', 'step-000040+2')
        """
        return f"step-{self.step:06d}" + (f"+{self.within}" if self.within else "")


def place_of(folder: Path) -> Place | None:
    match = NAME.fullmatch(folder.name)
    return Place(int(match[1]), int(match[2] or 0)) if match else None


def checkpoints(folder: Path) -> list[Path]:
    """Those of a run's `checkpoints/`, the newest first; what is half written is none."""
    found = [(place, path) for path in folder.glob("step-*") if path.is_dir() and (place := place_of(path))]
    return [path for _, path in sorted(found, reverse=True)]


def rows_file(part: str, rank: int, ranks: int) -> str:
    return f"{part}-{rank:05d}-of-{ranks:05d}.safetensors"


def write_manifest(folder: Path, seals: dict[str, Seal]) -> None:
    """The last file."""
    files = {name: {"sha256": seal.sha256, "bytes": seal.size} for name, seal in sorted(seals.items())}
    content = {"format": FORMAT, "files": files}
    write_bytes(folder / "manifest.json", (json.dumps(content | {"own": _own(content)}, indent=1) + "\n").encode())


def read_manifest(folder: Path) -> dict[str, Seal]:
    """The files of a checkpoint; CheckpointError where the manifest is missing, damaged, or of a later format."""
    file = folder / "manifest.json"
    try:
        content = json.loads(file.read_bytes())
        own, number = content.pop("own"), content["format"]
        seals = {name: Seal(seal["sha256"], seal["bytes"]) for name, seal in content["files"].items()}
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read ({type(error).__name__})") from None
    if number != FORMAT:
        raise CheckpointError(f"{file}: format {number!r} is none that this version reads ({FORMAT}); update soundrl")
    if own != _own(content):
        raise CheckpointError(f"{file} is damaged (SHA-256)")
    return seals


def faults(folder: Path, seals: dict[str, Seal], names: Sequence[str]) -> Iterator[str]:
    """What is wrong with these files of a checkpoint; each is read whole."""
    for name in names:
        path = folder / name
        if not path.is_file():
            yield f"{path} is missing"
        elif (size := path.stat().st_size) != seals[name].size:
            yield f"{path} has {size} bytes where {seals[name].size} were written"
        elif (found := sealed(path)) != seals[name]:
            yield f"{path} is damaged (SHA-256 {found.sha256[:12]}…, written was {seals[name].sha256[:12]}…)"


def read_state(folder: Path) -> dict[str, Any]:
    """state.json, which has been checked."""
    try:
        state = json.loads((folder / "state.json").read_bytes())
        return dict(state)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / 'state.json'} cannot be read ({error})") from None


class Rows:
    """The tensors of one part (`weights`, `moments`) of a checkpoint, whoever wrote their rows. Context manager."""

    def __init__(self, folder: Path, part: str) -> None:
        self.folder, self.part, self.stack = folder, part, ExitStack()

    def __enter__(self) -> Rows:
        self.pieces: dict[str, list[tuple[int, Any]]] = {}
        """By name: first row and slice of each file that has rows of it"""
        self.steps: dict[str, float] = {}
        files = sorted(self.folder.glob(f"{self.part}-*-of-*.safetensors"))
        try:
            for file in files:
                reader = self.stack.enter_context(safe_open(file, framework="pt"))
                about = reader.metadata()
                first = json.loads(about["first_row"])
                self.steps |= json.loads(about.get("steps", "{}"))
                for name in reader.keys():
                    self.pieces.setdefault(name, []).append((first[name], reader.get_slice(name)))
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            self.stack.close()
            raise CheckpointError(f"{file} is no file of a checkpoint ({error})") from None
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        last = max(first + piece.get_shape()[0] for first, piece in self.pieces[name])
        return (last, *self.pieces[name][0][1].get_shape()[1:])

    def read(self, name: str, first: int, into: Tensor) -> None:
        """Fill `into` with the tensor's rows from `first` on; CheckpointError where they are not all there."""
        last, found = first + len(into), 0
        for start, piece in self.pieces.get(name, ()):
            low, high = max(first, start), min(last, start + piece.get_shape()[0])
            if low < high:
                into[low - first : high - first].copy_(piece[low - start : high - start])
                found += high - low
        if found != len(into):
            raise CheckpointError(f"{self.folder} holds {found} of {len(into)} rows of {name} ({self.part}); it is of another model")

    def whole(self, name: str) -> Tensor:
        """float32"""
        out = torch.empty(self.shape(name))
        self.read(name, 0, out)
        return out


def _own(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
