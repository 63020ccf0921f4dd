"""Model folders as people have them: each damage is one line with the file and the cure; an export keeps what the folder said."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import write_tiny
from transformers import AutoModelForCausalLM

from soundrl.engine.files.model_folder import BUFFERS, check_folder, companions, end_tokens, load_tokenizer, read_tensors, weight_files
from soundrl.engine.tools.convert import convert

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
WEIGHT = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("healthy") / "tiny", "llama")


@pytest.fixture
def folder(healthy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(healthy, tmp_path / "tiny"))


def change(name: str, update: Callable[[dict], object]) -> Callable[[Path], None]:
    """Damage to a JSON file: `update` changes its object, or returns another value."""

    def damage(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        other = update(value)
        (folder / name).write_text(json.dumps(value if other is None else other))

    return damage


def tensors(update: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        update(state)
        save_file(state, folder / "model.safetensors", {"format": "pt"})

    return damage


def content(name: str, new: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(new((folder / name).read_bytes())) and None


def put(value: float) -> Callable[[dict], object]:
    return lambda state: state[WEIGHT].view(-1)[3:5].fill_(value)


def second_file(name: str) -> Callable[[Path], None]:
    return lambda folder: save_file({WEIGHT: torch.zeros(96, 64)}, folder / name) and None


def index(names: dict[str, str] | list) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names})) and None


S, C, TOK = "model.safetensors", "config.json", "tokenizer.json"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (content(S, lambda b: b[: len(b) // 2]), r"model\.safetensors is no whole safetensors file .*; download it again"),
    "one byte short": (content(S, lambda b: b[:-1]), r"model\.safetensors is no whole safetensors file"),
    "empty": (content(S, lambda b: b""), r"model\.safetensors is no whole safetensors file"),
    "garbage": (content(S, lambda b: b"\xff" * 4096), r"model\.safetensors is no whole safetensors file"),
    "zeros": (content(S, lambda b: bytes(4096)), r"model\.safetensors is no whole safetensors file"),
    "pointer": (content(S, lambda b: POINTER.encode()), r"model\.safetensors is a Git LFS pointer.*run git lfs pull"),
    "pointer of the tokenizer": (content(TOK, lambda b: POINTER.encode()), r"tokenizer\.json is a Git LFS pointer.*run git lfs pull"),
    "NaN": (tensors(put(float("nan"))), rf"model\.safetensors: {re.escape(WEIGHT)} holds 2 values that are NaN or infinite"),
    "infinity": (tensors(put(float("-inf"))), rf"model\.safetensors: {re.escape(WEIGHT)} holds 2 values that are NaN or infinite"),
    "int8": (tensors(lambda s: s.update({WEIGHT: s[WEIGHT].to(torch.int8)})), rf"{re.escape(WEIGHT)} is stored as I8, .*unquantized"),
    "float8": (tensors(lambda s: s.update({WEIGHT: s[WEIGHT].to(torch.float8_e4m3fn)})), r"is stored as F8_E4M3, which is no plain"),
    "a tensor missing": (tensors(lambda s: s.pop(WEIGHT)), rf"1 tensors (are )?missing \(first: {re.escape(WEIGHT)}\)"),
    "a tensor too many": (
        tensors(lambda s: s.update({"model.odd": torch.zeros(2)})),
        r"1 tensors (are )?un(known|expected) \(first: model\.odd\)",
    ),
    "an old shard": (second_file("model-00001-of-00002.safetensors"), r"both hold .*up_proj\.weight; remove the one that is out of date"),
    "index without its shard": (index({WEIGHT: "gone.safetensors"}), r"index\.json names gone\.safetensors, which is missing"),
    "index that is a list": (index([]), r"index\.json names no files"),
    "index that leaves the folder": (index({WEIGHT: "../other/model.safetensors"}), r"index\.json names no files"),
    "pickles alone": (
        lambda f: (f / S).rename(f / "pytorch_model.bin"),
        r"only pickled weights \(pytorch_model\.bin\), which can run code",
    ),
    "config is a list": (change(C, lambda c: [c]), r"config\.json holds a list where an object is expected"),
    "config cut": (content(C, lambda b: b[:40]), r"config\.json is no valid JSON"),
    "config is binary": (content(C, lambda b: b"\xff\xfe\x00"), r"config\.json is no valid JSON"),
    "unknown model_type": (
        change(C, lambda c: c.update(model_type="llama9")),
        r"config\.json: model_type 'llama9' is no causal language model",
    ),
    "no model_type": (change(C, lambda c: c.pop("model_type") and None), r"config\.json: model_type None is no causal language model"),
    "odd field": (change(C, lambda c: c.update(hidden_size="wide")), r"config\.json describes no model"),
    "own code": (change(C, lambda c: c.update(auto_map={"AutoModel": "x.Y"})), r"asks for code of its own"),
    "quantized": (change(C, lambda c: c.update(quantization_config={"quant_method": "awq"})), r"the weights are quantized"),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("tokenizer*")], r"has no tokenizer \(tokenizer\.json\)"),
    "tokenizer cut": (content(TOK, lambda b: b[: len(b) // 2]), r"tokenizer\.json is no valid JSON"),
    "tokenizer of something else": (content(TOK, lambda b: b'{"version": "1.0"}'), r"the tokenizer cannot be loaded"),
    "tokenizer too large": (change(C, lambda c: c.update(vocab_size=9)), r"the tokenizer knows \d+ tokens, the embedding has 9 rows"),
}


def read(folder: Path) -> None:
    """As a run reads it: checks, tokenizer, then every tensor."""
    own = check_folder(folder)
    load_tokenizer(own)
    model = AutoModelForCausalLM.from_config(__import__("transformers").AutoConfig.from_pretrained(own))
    names = dict(model.named_parameters())
    seen = {name for name, _ in read_tensors(own, names.__contains__)}
    missing = sorted(set(names) - seen)
    if missing:
        raise ValueError(f"{len(missing)} tensors missing (first: {missing[0]})")


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_line_for_a_run_and_for_convert(name: str, folder: Path, tmp_path: Path) -> None:
    read(folder)  # witness: without the damage the folder is read
    damage, expected = DAMAGES[name]
    damage(folder)
    with pytest.raises(ValueError, match=expected) as of_run:
        read(folder)
    with pytest.raises(ValueError, match=expected) as of_convert:
        convert(str(folder), tmp_path / "out", torch.float32)
    assert "\n" not in str(of_run.value) + str(of_convert.value) and not (tmp_path / "out").exists()


def test_the_index_decides_which_files_are_read(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / S)
    first = dict(list(state.items())[:5])
    save_file(first, folder / "model-00001-of-00002.safetensors")
    save_file({k: v for k, v in state.items() if k not in first}, folder / "model-00002-of-00002.safetensors")
    index({k: f"model-0000{1 if k in first else 2}-of-00002.safetensors" for k in state})(folder)
    save_file({k: torch.zeros_like(v) for k, v in state.items()}, folder / S)  # stale, and first in transformers' own order
    second_file("model-00001-of-00009.safetensors")(folder)
    second_file("consolidated.safetensors")(folder)
    (folder / "original").mkdir()
    second_file("original/model.safetensors")(folder)
    assert [file.name for file in weight_files(folder)] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    check_folder(folder)
    found = dict(read_tensors(folder, lambda name: True))
    assert found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)
    converted = load_file(convert(str(folder), tmp_path / "out", torch.float32) / S)
    assert all(torch.equal(converted[k], state[k]) for k in converted) and WEIGHT in converted


def test_a_duplicate_in_another_layout_is_not_read(folder: Path) -> None:
    second_file("consolidated.safetensors")(folder)
    assert [file.name for file in weight_files(folder)] == [S]


def test_stored_buffers_are_left_out_by_name(folder: Path, tmp_path: Path) -> None:
    stored = [
        "model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.cos_cached",
        "transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias", "gpt_neox.layers.0.attention.bias",
        "model.embeddings.position_ids",
    ]  # fmt: skip
    tensors(lambda state: state.update({name: torch.ones(2, dtype=torch.int64) for name in stored}))(folder)
    read(folder)
    assert all(BUFFERS.search(name) for name in stored)
    assert not [name for name in (WEIGHT, "h.0.attn.c_attn.bias", "model.layers.0.self_attn.q_proj.bias") if BUFFERS.search(name)]
    assert not set(stored) & set(load_file(convert(str(folder), tmp_path / "out", torch.float32) / S))


@pytest.mark.parametrize(
    ("given", "kept", "said"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, {"do_sample": True, "temperature": 0.9, "top_p": 0.6}, "do_sample is True, as temperature"),
        ({"temperature": 0.0}, {"do_sample": False}, "do_sample is False, as temperature"),
        ({"do_sample": False, "temperature": 1e-6, "top_k": 1}, {"do_sample": False}, "temperature, top_k dropped"),
        ({"do_sample": False, "temperature": 0.7, "min_p": 0.1}, {"do_sample": False}, "temperature, min_p dropped"),
        ({"num_beams": 1, "early_stopping": True, "length_penalty": 0.9}, {"num_beams": 1}, "early_stopping, length_penalty dropped"),
        ({"early_stopping": True}, {}, "early_stopping dropped"),
        ({"do_sample": True, "temperature": 0.6}, {"do_sample": True, "temperature": 0.6}, ""),
    ],
)
def test_generation_configs_that_contradict_themselves_are_mended(given, kept, said, folder: Path, tmp_path: Path, capsys) -> None:
    change("generation_config.json", lambda g: g.update(given, eos_token_id=[17, 7]))(folder)
    written = json.loads((convert(str(folder), tmp_path / "out", torch.float32) / "generation_config.json").read_text())
    names = {*given, *kept}
    assert {name: written[name] for name in names if name in written} == kept and written["eos_token_id"] == [17, 7]
    error = capsys.readouterr().err
    assert said in error if said else "generation_config" not in error


def test_end_tokens_are_those_of_all_three_files(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    own = tokenizer.eos_token_id
    change(C, lambda c: c.update(eos_token_id=[3, own]))(folder)
    change("generation_config.json", lambda g: g.update(eos_token_id=[own, 7, -1]))(folder)
    assert end_tokens(folder, tokenizer) == sorted({3, 7, own})
    (folder / "generation_config.json").unlink()
    assert end_tokens(folder, tokenizer) == sorted({3, own})
    (folder / "generation_config.json").write_text("[]")
    with pytest.raises(ValueError, match="generation_config.json holds a list"):
        end_tokens(folder, tokenizer)


def test_what_an_export_takes_over(folder: Path) -> None:
    for name in (
        "chat_template.jinja",
        "merges.txt",
        "tokenizer.model",
        "LICENSE",
        "model.py",
        "model.safetensors.index.json",
        "x.bin",
        "card.json",
    ):
        (folder / name).write_text("text")
    assert set(companions(folder)) == {
        "chat_template.jinja", "merges.txt", "tokenizer.model", "LICENSE", "generation_config.json", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
