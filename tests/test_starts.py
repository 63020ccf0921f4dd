"""The committed starting points: their bytes, what loads them, and the figures of their cards."""

import hashlib
import json
import sys
from dataclasses import replace
from importlib import util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from soundrl.engine.files.model_folder import cards
from soundrl.engine.recipes import RECIPES

ROOT = Path(__file__).parent.parent
STARTS = ROOT / "starts"
WHICH = ("policy", "judge")


@pytest.fixture(scope="module")
def make():
    """`starts/make.py` as a module."""
    spec = util.spec_from_file_location("make_starts", STARTS / "make.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["make_starts"] = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rollouts(make):
    """The policy's, of 60 of the card's 400 problems."""
    return make.policy_rollouts(STARTS / "policy", 60)


def card(which: str) -> dict:
    return json.loads((STARTS / which / "card.json").read_text())


@pytest.mark.parametrize("which", WHICH)
def test_the_bytes_are_those_of_the_card_and_hold_no_path_of_a_machine(which):
    files = sorted(file for file in (STARTS / which).iterdir() if file.name != "card.json")
    assert {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files} == card(which)["sha256"]
    assert sum(file.stat().st_size for file in files) <= 1.5e6
    for text in (file.read_text() for file in (STARTS / which).iterdir() if file.suffix != ".safetensors"):
        assert str(ROOT) not in text and "/home/" not in text and "/root/" not in text and "_name_or_path" not in text


@pytest.mark.parametrize("which", WHICH)
def test_plain_transformers_computes_with_it_in_float32(which):
    model = AutoModelForCausalLM.from_pretrained(STARTS / which)
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # stored in float16, by config.json computed in float32
    assert all(torch.isfinite(p).all() and torch.equal(p, p.half().float()) for p in model.parameters())


def test_the_policy_is_as_right_and_as_flawed_as_its_card_says(make, rollouts):
    """Within 4 standard errors: on another processor other tokens are sampled."""
    said, found = card("policy")["figures"], make.policy_figures(rollouts)
    assert abs(found["right"] - said["right"]) < 4 * make.error(said["right"], found["rollouts"])
    assert abs(found["flawed"] - said["flawed"]) < 4 * make.error(said["flawed"], found["rollouts"] * said["right"])


def test_the_judge_finds_of_the_policys_flaws_what_its_card_says(make, rollouts):
    said = card("judge")["figures"]
    rows = [make.as_labelled(*pair) for pair in make.right_ones(rollouts)]
    found, flawed = make.judge_figures(STARTS / "judge", rows), sum(row.label >= 0 for row in rows)
    assert flawed >= 10  # witness: there was something to find
    assert abs(found["recall"] - said["recall"]) < 4 * make.error(said["recall"], flawed)
    assert found["precision"] > 0.9 and found["coverage"] > 0.95


def test_the_default_run_starts_from_them_and_says_so(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = RECIPES["arith-genrm"]()
    assert config.warm_start.steps == 0
    lines = cards(config)
    assert [line.split(":")[0] for line in lines] == ["starts/policy", "starts/judge"]
    assert all("make starts" in line and "\n" not in line for line in lines)
    assert cards(RECIPES["arith"]()) == []


def test_a_card_of_somebody_elses_stops_nothing_and_a_damaged_one_is_named(tmp_path):
    config = replace(RECIPES["arith"](), model=replace(RECIPES["arith"]().model, path=str(tmp_path)))
    (tmp_path / "card.json").write_text('{"license": "mit"}')
    assert cards(config) == []
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(ValueError, match=r"card.json is no valid JSON"):
        cards(config)


def test_a_start_that_is_out_of_bounds_is_not_written(make, tmp_path):
    folder = tmp_path / "policy"
    folder.mkdir()
    with pytest.raises(SystemExit, match=r"policy: right is 0.100, but 0.45 to 0.6 is accepted"):
        make.accept("policy", folder, {"figures": {"right": 0.1, "flawed": 0.4}, "says": ""})
    assert not folder.exists()


def test_weights_that_do_not_fit_a_clone_are_refused(make, tmp_path):
    source = tmp_path / "large"
    source.mkdir()
    (source / "tokenizer.json").write_bytes(b" " * 1_600_000)
    make.save_file({"w": torch.ones(2)}, source / "model.safetensors")
    with pytest.raises(SystemExit, match=r"more than the 1.5 MB"):
        make.write("arith", source, tmp_path / "out", SimpleNamespace())
