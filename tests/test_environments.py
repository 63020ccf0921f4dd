"""What a run is about: which environment a name stands for, what it checks and knows, and that nobody else names it."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import write_tiny

from soundrl.engine.environments.arithmetic.arithmetic import Arithmetic
from soundrl.engine.environments.environment import NAMED, environment_of
from soundrl.engine.environments.files import ProblemFiles
from soundrl.engine.files.model_folder import load_tokenizer, policy_folder
from soundrl.engine.recipes import RECIPES
from soundrl.fapo.data.rows import DataError
from soundrl.fapo.named import is_named, named
from soundrl.fapo.records import Outcome, Prompt, Rollout, Turn, Verdict

ROOT = Path(__file__).resolve().parent.parent


def rollout(text: str, finish: str = "stop", tokens: tuple[int, ...] = (1, 2)) -> Rollout:
    return Rollout(
        prompt_id="a", sample=0, prompt_tokens=(7,), tokens=tokens, logprobs=(), text=text, finish_reason=finish, policy_version=0
    )


def test_a_name_stands_for_its_environment_and_everything_else_for_files():
    assert environment_of("arith") is Arithmetic
    assert all(environment_of(name) is ProblemFiles for name in ("a.jsonl", "rg:chain_sum", "arith.jsonl", "models/x"))


def test_arithmetic_checks_knows_and_splits():
    about = Arithmetic(RECIPES["arith"](), None)
    prompt = Prompt(id="a", text="58+7-2+3?1\n", answer="6")
    flawed = rollout("58+7=55\n55-2=53\n53+3=56\n#6\n")
    assert (
        about.check(prompt, flawed).outcome is Outcome.CORRECT
        and about.check(prompt, rollout(flawed.text, "length")).outcome is Outcome.NO_ANSWER
    )
    assert type(about).oracle is not None and type(about).oracle(prompt, flawed) == Verdict.flawed(0, "false")
    assert about.split(flawed.text) == ("58+7=55", "55-2=53", "53+3=56", "#6") and about.unusable([prompt, prompt]) == [None, None]
    assert ProblemFiles.oracle is None and ProblemFiles(RECIPES["smollm2-gsm8k"](), None).split("a\n\nb") == ["a", "b"]


def test_files_are_checked_by_the_verifier_without_what_was_thought(tmp_path):
    """The verifiers get the text with its thinking, and whether the prompt has begun it; of several turns the last."""
    about = ProblemFiles(RECIPES["smollm2-gsm8k"](), load_tokenizer(write_tiny(tmp_path / "tiny")))
    asked: list[tuple] = []
    about.__dict__["verifiers"] = SimpleNamespace(submit=lambda *given: asked.append(given) or "later", close=lambda: asked.append(()))
    prompt, one, more = Prompt(id="a", text="1+1?", answer="2", form="answer_line"), rollout("Answer: 2"), rollout("Ask.\n2\nAnswer: 2")
    more.turns = tuple(Turn(text=text, own=text != "2") for text in ("Ask.", "2", "Answer: 2"))
    assert about.check(prompt, one) == about.check(prompt, more) == "later"  # type: ignore[comparison-overlap]
    about.close()
    assert asked == [(prompt, one, "Answer: 2", False), (prompt, more, "Answer: 2", False), ()]


@pytest.mark.parametrize(("recipe", "folder", "tokens"), [("arith", "arith-seed5", 19), ("genrm-arith", "arith-critic-seed5", 100)])
def test_a_named_environment_writes_the_fresh_model_once(tmp_path, recipe, folder, tokens):
    config = RECIPES[recipe]()
    config = replace(config, run=replace(config.run, folder=str(tmp_path), seed=5))
    waits: list[str] = []
    for main in (True, False):
        found = policy_folder(config, SimpleNamespace(main=main, barrier=lambda: waits.append("barrier")))  # type: ignore[arg-type]
        assert found == tmp_path / "fresh" / folder
        if main:
            first = (found / "model.safetensors").stat().st_mtime_ns
    assert waits == ["barrier"] * 2 and (found / "model.safetensors").stat().st_mtime_ns == first
    assert len(load_tokenizer(found)) >= tokens


@pytest.mark.parametrize("protected", [True, False])
def test_a_run_may_begin_while_another_reads_the_same_fresh_model(tmp_path, monkeypatch, protected):
    """Arms of a seed share it. Inverse: written where it is read, its files are there in halves meanwhile."""
    config = RECIPES["arith"]()
    config = replace(config, run=replace(config.run, folder=str(tmp_path), seed=5))
    alone = SimpleNamespace(main=True, barrier=lambda: None)
    folder = policy_folder(config, alone)  # type: ignore[arg-type]
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    writes, seen = Arithmetic.write_model, []

    def half(config, into: Path) -> None:
        into = into if protected else folder
        (into / "config.json").write_text("{")
        seen.append((folder / "config.json").read_bytes())  # as the other run would
        writes(config, into)

    monkeypatch.setattr(Arithmetic, "write_model", staticmethod(half))
    if protected:
        policy_folder(config, alone)  # type: ignore[arg-type]
    else:
        half(config, folder)
    assert seen == [files["config.json"] if protected else b"{"]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == files
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("text", "is_path"),
    [
        ("soundrl.engine.recipes:ARITH_SOLUTIONS", True),
        ("mine:rows", True),
        ("rg:chain_sum", False),
        ("rg:chain_sum?seed=1", False),
        ("data/rows.jsonl", False),
        ("mine.py", False),
        ("a b:c", False),
        (".mine:rows", False),
    ],
)
def test_what_is_an_import_path(text, is_path):
    assert is_named(text) is is_path


def test_what_cannot_be_imported_is_named_in_one_line():
    assert named("soundrl.engine.recipes:RECIPES") is RECIPES
    cure = "write package.module:name, or file.py:name, of something that Python can import"
    for path in ("no_such_module.x:rows", "soundrl.engine.recipes:nothing"):
        with pytest.raises(DataError, match=rf"^{path}: .*; {cure}$"):
            named(path)


def test_nobody_else_names_an_environment():
    """Its name stands in its own folder, in the table of names, and in recipes; whoever compares with it asks the environment instead."""
    name = re.compile(rf"\b({'|'.join(NAMED)})\b|environments\.(?!environment\b|files\b)\w")
    where = {
        str(path.relative_to(ROOT))
        for folder in ("kernels", "fapo", "genrm", "engine")
        for path in (ROOT / folder).rglob("*.py")
        if name.search(path.read_text())
    }
    own = {path for path in where if path.startswith("engine/environments/arithmetic/")}
    assert own  # witness: the pattern finds it there
    assert where - own == {"engine/environments/environment.py", "engine/recipes.py"}
