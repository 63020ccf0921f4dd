"""From a configuration to parts: prompts, demonstrations, reference answers."""

import json

import pytest
from tiny import write_tiny

from soundrl.engine import build
from soundrl.engine.config import Config, Data, Fapo, Genrm, Model, Run, WarmStart
from soundrl.engine.recipes import RECIPES
from soundrl.fapo.data import load_prompts
from soundrl.fapo.records import Prompt
from soundrl.fapo.verify.verifier import Verifier


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build.load_tokenizer(write_tiny(tmp_path_factory.mktemp("tiny")))


def config(train: str, steps: int = 3, batch: int = 2) -> Config:
    return Config(
        model=Model(path="models/x", max_length=64),
        data=Data(train=train),
        run=Run(name="x"),
        warm_start=WarmStart(steps=steps, batch=batch),
        genrm=Genrm(judge="none"),
        fapo=Fapo(lam=0.0),
        rollout=RECIPES["arith"]().rollout,
    )


def rows(path, *lines: dict):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return load_prompts(str(path), instruction="")


def test_demonstrations_end_in_the_end_token_and_come_once_an_epoch(tokenizer, tmp_path):
    source = rows(tmp_path / "d.jsonl", *({"problem": f"{i}+1?1\n", "answer": "2", "solution": f"{i}+1={i + 1}"} for i in range(4)))
    demonstrations = build.build_demonstrations(config("d.jsonl"), source, build.Encoder(tokenizer, 20))
    batches = [demonstrations(step, 2) for step in range(2)]
    assert len({tuple(s.tokens) for batch in batches for s in batch}) == 4
    assert all(s.tokens[-1] == tokenizer.eos_token_id and s.advantage == 1.0 for batch in batches for s in batch)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"solution": "1+1=<<2"}, r"d.jsonl:2: solution: calculation mark not closed"),
        ({"solution": "1+1=2\n" * 30}, r"d.jsonl:2: prompt and solution have \d+ tokens, more than model.max_length 64"),
    ],
)
def test_a_solution_that_cannot_be_used_names_its_row(tokenizer, tmp_path, row, message):
    good = {"problem": "1+1?1\n", "answer": "2", "solution": "1+1=2"}
    source = rows(tmp_path / "d.jsonl", good, good | row)
    with pytest.raises(ValueError, match=message):
        build.build_demonstrations(config("d.jsonl"), source, build.Encoder(tokenizer, 20))


def test_no_solutions_at_all_is_a_conflict_of_settings(tokenizer, tmp_path):
    source = rows(tmp_path / "d.jsonl", {"problem": "1+1?1\n", "answer": "2"})
    with pytest.raises(ValueError, match=r"warm_start.steps is 3, but no row of d.jsonl has a solution; set --warm-start.steps 0"):
        build.build_demonstrations(config("d.jsonl"), source, build.Encoder(tokenizer, 20))


def test_reference_answers_are_checked_once_each():
    prompts = [Prompt(id=f"x:{i}", text="?", answer=answer) for i, answer in enumerate(["72", r"\frac{1}{2}", r"\frac{1}{", r"\frac{1}{"])]
    with Verifier() as verifier:
        build.check_answers(prompts[:2], verifier)
        with pytest.raises(ValueError, match=r"x:\d: the reference answer .* correct the answer or remove the row$"):
            build.check_answers(prompts, verifier)


def test_prompts_are_rendered_by_the_template_or_plainly(tokenizer):
    encode = build.Encoder(tokenizer, 20)
    chat = Prompt(id="a", text="1+1", answer="2", messages=({"role": "user", "content": "1+1"},))
    assert tokenizer.chat_template is None and encode.render(chat) == "1+1\n\n"
    tokenizer.chat_template = "{% for m in messages %}?{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
    assert encode.render(chat) == "?1+1="
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="b: the prompt has 21 tokens"):
        encode(Prompt(id="b", text="1" * 21, answer="2"))


def test_the_embedded_world_has_its_tens_digit_set():
    source, tests = build.build_sources(RECIPES["arith"]())
    assert not isinstance(source, list)
    assert list(tests) == ["arith-test", "arith-test-p2"] and all(len(prompts) == 400 for prompts in tests.values())
    assert all("?2" in prompt.text for prompt in tests["arith-test-p2"])
