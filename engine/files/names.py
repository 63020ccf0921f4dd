"""A model folder's tensor names ↔ the model's parameters, by transformers' own table of conversions.

transformers 5 holds the experts of a layer as one tensor, `mlp.experts.gate_up_proj` [E, 2I, H] and `….down_proj` [E, H, I]; folders, vLLM
and everybody else have a tensor an expert, `mlp.experts.3.gate_proj.weight` [I, H]. Its table (`transformers.conversion_mapping`) says
which belong together; the names are turned by its own functions, the tensors by views, so that nothing is copied. What is understood of
the table: renamings, and tensors of experts that are stacked, after that put side by side. Whatever else it asks for is refused at load,
as is a name that does not come back when it is turned both ways. Shapes: E experts, H hidden, I an expert's width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    rename_source_key,
)

from soundrl.engine.files.model_folder import load_config
from soundrl.engine.files.tensor_file import Layout


@dataclass(frozen=True)
class Piece:
    """One tensor of a folder, as a part of a parameter."""

    parameter: str
    shape: tuple[int, ...]
    expert: int | None = None
    """Its row of the parameter's first dimension; None = it is the parameter, whole"""
    inside: tuple[slice, ...] = ()
    """Where it stands in that row"""

    def of(self, full: Tensor) -> Tensor:
        """A view of the whole parameter."""
        return full if self.expert is None else full[(self.expert, *self.inside)]

    def rows(self, first: int, count: int) -> slice:
        """Which rows of the folder's tensor hold the parameter's rows `first` … `first + count`; an expert's are all or none."""
        if self.expert is None:
            return slice(first, first + count)
        return slice(None) if first <= self.expert < first + count else slice(0)

    def fill(self, own: Tensor, first: int, part: Tensor) -> None:
        """Copy `part`, which `rows` has asked for, to its place in `own`, the parameter's rows from `first` on."""
        if self.expert is None:
            own.copy_(part)
        elif first <= self.expert < first + len(own):
            own[(self.expert - first, *self.inside)].copy_(part)


class Names:
    """Of one model. ValueError where the table asks for what is not understood, or cannot be turned back."""

    def __init__(self, kind: str, shapes: Mapping[str, Sequence[int]], table: Sequence[WeightTransform]) -> None:
        """`kind`: the architecture, for messages; `shapes` of the parameters by name, in model order; `table` as transformers has it."""
        self.kind, self.shapes = kind, {name: tuple(shape) for name, shape in shapes.items()}
        # Whether a prefix comes off depends on whether it was there: that cannot be turned back, and the model's own names do not need it.
        self.prefixes = [each for each in table if isinstance(each, PrefixChange)]
        self.table = [each for each in table if not isinstance(each, PrefixChange)]
        back = [each.reverse_transform() for each in self.table[::-1]]
        self._back = parted(back)
        self.outward: dict[str, dict[str, Piece]] = {name: dict(self._pieces(name)) for name in self.shapes}
        """By parameter: the folder's tensors of it, by name, in the order of experts"""
        self.pieces = {name: piece for parts in self.outward.values() for name, piece in parts.items()}
        if len(self.pieces) != sum(map(len, self.outward.values())):
            raise self._refused("gives two parameters one name")
        for parameter, shape in self.shapes.items():  # a folder may hold what the model holds, too
            self.pieces.setdefault(parameter, Piece(parameter, shape))

    @classmethod
    def of(cls, model: PreTrainedModel, shapes: Mapping[str, Sequence[int]] | None = None) -> Names:
        """Of a model whose parameters are whole still, tied ones once."""
        shapes = shapes or {name: parameter.shape for name, parameter in model.named_parameters()}
        return cls(type(model).__name__, shapes, get_model_conversion_mapping(model, add_legacy=False))

    @classmethod
    def of_folder(cls, folder: Path, shapes: Mapping[str, Sequence[int]] | None = None) -> Names:
        """Of the model that a folder's config.json describes, or of such `shapes` of it; no weight is read or made."""
        config = load_config(folder)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        model.tie_weights()
        return cls.of(model, shapes)

    def _pieces(self, name: str) -> Iterator[tuple[str, Piece]]:
        renamings, converters = self._back
        there, pattern = rename_source_key(name, renamings, converters, reverse=True)
        if pattern is None:
            found = {there: Piece(name, self.shapes[name])}
        else:
            converter = next(each for each in converters if pattern in each.source_patterns)
            found = dict(self._experts(name, there, converter))
        for folder_name in found if list(found) != [name] else ():
            if (again := self._turned(folder_name)) != name:
                raise self._refused(f"makes {folder_name} of {name}, and {again} of that")
        yield from found.items()

    def _experts(self, name: str, there: str, back: WeightConverter) -> Iterator[tuple[str, Piece]]:
        """Of a parameter that stacks the experts: `there` is its name in the folder, with a `*` for the expert and the first of the targets
        that `back` splits it into."""
        (experts, *sizes), targets = self.shapes[name], back.target_patterns
        forward = [each.reverse_op for each in back.operations[::-1]]
        stacked = bool(forward) and type(forward[0]) is MergeModulelist and forward[0].dim == 0
        beside = forward[1] if len(forward) == 2 else None
        alone = len(forward) == 1 and len(targets) == 1
        if not stacked or not (alone or (type(beside) is Concatenate and beside.num_shards_attribute is None and beside.dim > 0)):
            raise self._refused(f"makes {name} by {', '.join(map(repr, forward))}")
        dim = beside.dim - 1 if isinstance(beside, Concatenate) else 0  # in an expert's own tensor, which has lost the first
        width, rest = divmod(sizes[dim], len(targets))
        if rest or there.count("*") != 1 or targets[0] not in there:
            raise self._refused(f"cuts {name} {self.shapes[name]} into {len(targets)} named {there}")
        shape = (*sizes[:dim], width, *sizes[dim + 1 :])
        for expert in range(experts):
            for place, target in enumerate(targets):
                inside = (*(slice(None),) * dim, slice(place * width, (place + 1) * width))
                yield there.replace(targets[0], target).replace("*", str(expert)), Piece(name, shape, expert, inside)

    def _turned(self, folder_name: str) -> str:
        """The parameter that the table makes of a folder's tensor."""
        return rename_source_key(folder_name, *parted(self.table))[0]

    def _refused(self, what: str) -> ValueError:
        return ValueError(
            f"transformers' table of names for {self.kind} {what}, which cannot be turned back here: weights would come to the wrong "
            "place; use a model of another family"
        )

    def wanted(self, folder_name: str) -> bool:
        """Whether a folder's tensor belongs to a parameter. ValueError where it would under a name that cannot be turned back."""
        if folder_name in self.pieces:
            return True
        for each in self.prefixes:
            if (other := each.rename_source_key(folder_name)[0]) in self.pieces:
                raise ValueError(
                    f"{folder_name} stands for {other} in {self.kind}, and what is exported could not be named so again; save the folder "
                    "anew: from_pretrained and save_pretrained of transformers"
                )
        return False

    def missing(self, seen: set[str]) -> list[str]:
        """Of the folder's tensors, what is not among those `seen`. ValueError where a parameter is there whole and in pieces."""
        out = list[str]()
        for parameter, parts in self.outward.items():
            absent = [name for name in parts if name not in seen]
            if parameter not in seen or parameter in parts:
                out += absent
            elif len(absent) < len(parts):
                raise ValueError(f"{parameter} is there twice, whole and as {next(name for name in parts if name in seen)}; remove one")
        return out

    def out(self, parameter: str, full: Tensor) -> Iterator[tuple[str, Tensor]]:
        """A whole parameter as the folder's tensors, which are views of it. Worked example, Qwen3-MoE with two experts: `gate_up_proj`
        [2, 2I, H] gives `0.gate_proj.weight` [I, H], `0.up_proj.weight`, `1.gate_proj.weight`, `1.up_proj.weight`."""
        for name, piece in self.outward[parameter].items():
            yield name, piece.of(full)

    def layouts(self, parameters: Sequence[str], dtype: torch.dtype) -> dict[str, Layout]:
        """Of the folder's tensors of these parameters, in the order in which `out` gives them."""
        return {name: Layout(dtype, piece.shape) for each in parameters for name, piece in self.outward[each].items()}


def named_like_folder(names: Names, tensors: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    """Whole parameters by the model's names → tensors by the folder's; a parameter is let go before the next one comes."""
    for parameter, full in tensors:
        yield from names.out(parameter, full)
        del full


def parted(table: Sequence[WeightTransform]) -> tuple[list[WeightRenaming], list[WeightConverter]]:
    return [each for each in table if isinstance(each, WeightRenaming)], [each for each in table if isinstance(each, WeightConverter)]
