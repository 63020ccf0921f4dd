"""A Hugging Face model folder, read one way by everybody: configuration, tokenizer, which files hold the weights, and the weights.

Whatever is wrong with it is a ValueError in one line, with the file and the cure. What cannot be known from a folder: weights that are
finite and of the right shape, and yet not those of this configuration (another number of heads, half a tensor overwritten with zeros).
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from soundrl.engine.config import Config
from soundrl.engine.environments.environment import environment_of, own_world, trained_prompt
from soundrl.engine.planning.known import download
from soundrl.engine.ranks import Ranks

LFS = b"version https://git-lfs"
FLOATS = ("F64", "F32", "F16", "BF16")
BUFFERS = re.compile(
    r"(^|\.)((rotary_emb|rotary_pos_emb|rotary)\.(inv_freq|(cos|sin)_cached)|inv_freq|(attn|attention|self_attention)\.(masked_)?bias|masked_bias"
    r"|position_ids)$"
)
"""Tensors that older libraries stored and that no model reads any more."""
KEPT = re.compile(r"(?!((adapter_)?config|card)\.json$)(?!.*\.index\.json$).*\.(json|jinja|model|txt|tiktoken|bpe)$|LICENSE.*|NOTICE.*")
"""Files that an export takes over: tokenizer, chat template, generation defaults; not what a card says of other weights."""


def policy_folder(config: Config, ranks: Ranks) -> Path:
    """The folder the policy starts from, checked; where an environment is named, one with fresh weights, which rank 0 writes."""
    name = config.model.path
    if not own_world(name):
        return check_folder(name)
    what = "" if not config.run.critic else "critic-" if (asked := trained_prompt(config)) == "own" else f"critic-{asked}-"
    folder = Path(config.run.folder) / "fresh" / f"{name}-{what}seed{config.run.seed}"
    if ranks.main:
        folder.mkdir(parents=True, exist_ok=True)
        # Runs of one seed share it, and one may begin while another reads: each file is there whole or not at all, with the same bytes.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as made:
            environment_of(name).write_model(config, Path(made))
            for file in Path(made).iterdir():
                file.replace(folder / file.name)
    ranks.barrier()
    return folder


def check_folder(path: str | Path, setting: str = "model.path", trains: bool = True) -> Path:
    """The folder, or ValueError that names `setting`: configuration and headers of the weights are read, no weights. A model that is not
    trained here (a judge) may be quantized, and its architecture is its server's affair."""
    folder = Path(path)
    if not folder.is_dir():
        if words := download(str(path), setting):
            raise ValueError(f"{setting} {path} is no folder; {words}")
        raise ValueError(f"{setting} {path} is no folder; name a Hugging Face folder, or make one: python -m soundrl.engine.tools.convert")
    try:
        config = read_config(folder, trains)
        for file in weight_files(folder):
            with opened(file):
                pass
        if trains:
            load_config(folder, config)
    except ValueError as error:
        raise ValueError(f"{setting} {error}") from None
    return folder


def read_json(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds."""
    try:
        text = file.read_bytes()
        refuse_pointer(file, text[: len(LFS)])
        value = json.loads(text.decode("utf-8"))
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); check the path") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no valid JSON ({error}); download it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds a {type(value).__name__} where an object is expected; download it again")
    return value


def refuse_pointer(file: Path, start: bytes) -> None:
    if start == LFS:
        raise ValueError(f"{file} is a Git LFS pointer, not the file itself; run git lfs pull in its folder")


def read_config(folder: Path, trains: bool = True) -> dict[str, Any]:
    """config.json as it stands there; of a model that can be trained, if it `trains`."""
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no config.json; name a Hugging Face folder (or convert the .gguf file itself)")
    config = read_json(file)
    if "auto_map" in config:
        raise ValueError(f"{file} asks for code of its own (auto_map), which is never run; use a model that transformers knows")
    if trains and config.get("quantization_config"):
        raise ValueError(f"{file}: the weights are quantized; get the unquantized model")
    return config


def load_config(folder: Path, raw: dict[str, Any] | None = None) -> Any:
    """The configuration as transformers understands it."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    file, kind = folder / "config.json", (raw or read_config(folder)).get("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(f"{file}: model_type {kind!r} is no causal language model that this transformers knows; update it, or use another")
    with in_one_line(f"{file} describes no model", "download it again"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


@contextmanager
def in_one_line(what: str, cure: str) -> Iterator[None]:
    """Errors of a library that reads a user's file become one line: their types are its own, and many."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"{what} ({type(error).__name__}: {' '.join(lines)[:200]}); {cure}") from error


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer; it must not know more tokens than the model has rows in its embedding."""
    from transformers import AutoTokenizer

    for file in (folder / "tokenizer.json", folder / "tokenizer_config.json"):
        if file.is_file():
            read_json(file)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")):
        raise ValueError(f"{folder} has no tokenizer (tokenizer.json); copy the tokenizer's files from where the model came from")
    with in_one_line(f"{folder}: the tokenizer cannot be loaded", "copy its files anew from where the model came from"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    config = read_json(folder / "config.json")
    rows = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    special = set(tokenizer.all_special_ids)  # of these a library adds some by itself, which no text holds
    if rows is not None and any(number >= rows and number not in special for number in tokenizer.get_vocab().values()):
        raise ValueError(
            f"{folder}: the tokenizer knows {len(tokenizer)} tokens, the embedding has {rows} rows (vocab_size in config.json); copy the "
            "model's own tokenizer"
        )
    return tokenizer


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model: those that the index names, else model.safetensors, else all of the folder."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not named or not all(isinstance(name, str) and "/" not in name for name in named.values()):
            raise ValueError(f"{index} names no files (weight_map); download it again")
        files = sorted({folder / name for name in named.values()})
        for file in files:
            if not file.is_file():
                raise ValueError(f"{index} names {file.name}, which is missing; download it again")
        return files
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        found = f", only pickled weights ({', '.join(pickled[:3])}), which can run code when loaded" if pickled else ""
        raise ValueError(
            f"{folder} has no .safetensors file{found}; get the model's safetensors files, or convert its .gguf: "
            "python -m soundrl.engine.tools.convert"
        )
    own = [file for file in files if not file.name.startswith("consolidated")]
    return own or files


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    try:
        with file.open("rb") as raw:
            refuse_pointer(file, raw.read(len(LFS)))
        with safe_open(file, framework="pt") as reader:
            yield reader
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no whole safetensors file ({error}); download it again") from None


def read_tensors(
    folder: Path, wanted: Callable[[str], bool], rows: Callable[[str, Sequence[int]], slice] = lambda name, shape: slice(None)
) -> Iterator[tuple[str, Tensor]]:
    """Every `wanted` tensor of the folder, once, as stored: of a floating type and finite. The others are counted in one line of the log
    where they are stored buffers, else refused; what is missing is for the caller to say. `rows(name, shape)` of it alone are read."""
    where: dict[str, Path] = {}
    for file in weight_files(folder):
        with opened(file) as reader:
            for name in reader.keys():
                if name in where:
                    raise ValueError(f"{file.name} and {where[name].name} in {folder} both hold {name}; remove the one that is out of date")
                where[name] = file
    buffers = [name for name in where if not wanted(name) and BUFFERS.search(name)]
    if unknown := [name for name in where if not wanted(name) and not BUFFERS.search(name)]:
        raise ValueError(
            f"{folder}: {len(unknown)} tensors unknown (first: {unknown[0]}); they do not belong to config.json: download both again"
        )
    if buffers:
        logging.getLogger(__name__).info("%s: %d stored buffers are not read (first: %s)", folder, len(buffers), buffers[0])
    for file in dict.fromkeys(where.values()):
        with opened(file) as reader:
            for name in filter(wanted, reader.keys()):
                stored = reader.get_slice(name)
                if (kind := stored.get_dtype()) not in FLOATS:
                    raise ValueError(f"{file}: {name} is stored as {kind}, which is no plain floating type; get the unquantized model")
                part = rows(name, shape := stored.get_shape())
                tensor = stored[part] if shape else reader.get_tensor(name)
                if broken := int((~tensor.isfinite()).sum()):
                    raise ValueError(
                        f"{file}: {name} holds {broken} values that are NaN or infinite; download it again, or take an earlier export"
                    )
                yield name, tensor


def companions(folder: Path) -> dict[str, bytes]:
    """What stands beside config and weights and belongs to the model, by file name."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and KEPT.fullmatch(file.name)]
    files += sorted(folder.glob("additional_chat_templates/*.jinja"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def cards(config: Config) -> list[str]:
    """What the folders of policy and judge say of how they were made, in `says` of their `card.json` (`starts/` has some)."""
    folders = [config.model.path] + [config.genrm.model] * (config.genrm.judge == "serve")
    found = [read_json(card) | {"folder": folder} for folder in folders if (card := Path(folder) / "card.json").is_file()]
    return [f"{card['folder']}: {card['says']}" for card in found if "says" in card]  # other cards are not ours


def end_tokens(folder: Path, tokenizer: Any) -> list[int]:
    """Token ids that end a response: those of generation_config.json, config.json and the tokenizer together."""
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            eos = read_json(folder / name).get("eos_token_id")
            ids |= {id_ for id_ in (eos if isinstance(eos, list) else [eos]) if isinstance(id_, int) and id_ >= 0}
    ids |= {tokenizer.eos_token_id} - {None}
    if not ids:
        raise ValueError(
            f"{folder} names no end-of-sequence token, in neither generation_config.json, config.json nor the tokenizer; add eos_token_id"
        )
    return sorted(ids)
