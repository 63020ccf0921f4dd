"""Public data sets as they are found: small files with their documented columns, loaded by the documented settings; wrong ones too."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_data import write_parquet

from soundrl.engine.config import Config, Data, Fapo, Genrm, Model, Run
from soundrl.engine.environments.environment import environment_of
from soundrl.engine.launch.launch import parse_arguments
from soundrl.engine.problems import Problems, set_names
from soundrl.engine.recipes import RECIPES
from soundrl.fapo.data.columns import Columns
from soundrl.fapo.data.examples import EXAMPLES, example, examples, formless
from soundrl.fapo.data.files import INSTRUCTION, Reading, load_prompts
from soundrl.fapo.data.left_out import LeftOut
from soundrl.fapo.data.options import shuffled_options
from soundrl.fapo.data.rows import DataError
from soundrl.fapo.records import Prompt
from soundrl.fapo.verify.answer import final_answer, written

NAN = float("nan")
MESSAGE = "Solve it. The last line of your response should be of the form Answer: $Answer.\n\nWhat is 17*2?"
DAPO = {
    "data_source": "math_dapo",
    "prompt": [{"content": MESSAGE, "role": "user"}],
    "ability": "MATH",
    "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
    "extra_info": {"index": "9a9b6eb4"},
}
SOLVED = "The bags hold 3*4 = <<3*4=12>>12 nuts.\n#### 12"
MATH = {"problem": "1+1?", "level": "Level 5", "type": "Algebra", "solution": "We add. So it is $\\boxed{2}$."}
NUMINA = MATH | {"problem_type": "Algebra", "question_type": None, "problem_is_valid": "Yes", "source": "olympiads", "synthetic": False}
BIG = {"problem": "1+1?", "answer": "2", "source": "big_math", "domain": ["Algebra"], "llama8b_solve_rate": NAN}
BROAD = {"is_reasoning_complete": [True], "generations": ["x" * 300_000] * 4, "correctness_math_verify": [True], "uuid": "u"}
GPQA = {"Record ID": "rec1", "Question": "Which is a planet?\n", "Correct Answer": "Mars", "Incorrect Answer 1": "Io, a moon\n"}
GPQA |= {"Incorrect Answer 2": '"Sol"', "Incorrect Answer 3": "Ceres", "Pre-Revision Question": "?", "Explanation": "It\nis."}
OLYMPIAD = {"id": 1606, "question": "1+1?", "solution": ["One and one."], "final_answer": ["$2$"], "context": None, "unit": None}
OLYMPIAD |= {"image_1": b"\x89PNG", "modality": "Text-only", "is_multiple_answer": False, "error": None, "answer_type": "Numerical"}

ARC = {"id": "M1", "question": "1+1?", "choices": {"text": ["1", "2"], "label": ["1", "2"]}, "answerKey": "2"}
Files = dict[str, list[dict[str, Any]]]


def each(path: str, names: str, *table: dict[str, Any]) -> Files:
    """The same rows in a file of each name."""
    return {path.format(name): list(table) for name in names.split()}


# Name → files, arguments after `grpo-7b`, and what is expected of each row: reference, form, and whether a worked solution is kept.
PUBLIC: dict[str, tuple[Files, str, list[tuple[str, str, bool]]]] = {
    "openai/gsm8k": (
        each("gsm8k/{}-00000-of-00001.parquet", "main/train main/test socratic/train", {"question": "Ana?", "answer": SOLVED}),
        "--data.train data/gsm8k/main#train",
        [("12", "box", True)],
    ),
    "HuggingFaceH4/MATH-500": (
        {"MATH-500/test.jsonl": [MATH | {"answer": "2", "subject": "Algebra", "unique_id": "test/algebra/1.json"}]},
        "--data.train data/MATH-500#test",
        [("2", "box", True)],
    ),
    "EleutherAI/hendrycks_math": (
        each("math/{}-00000-of-00001.parquet", "algebra/train algebra/test geometry/train", MATH),
        "--data.train data/math/algebra#train",
        [("2", "box", True)],
    ),
    "open-r1/DAPO-Math-17k-Processed": (
        each("DAPO-Processed/{}/train-00000-of-00001.parquet", "all cn en", {**DAPO, "prompt": "17*2?", "solution": "34"}),
        "--data.train data/DAPO-Processed/en",
        [("34", "box", False)],
    ),
    "BytedTsinghua-SIA/DAPO-Math-17k": (
        {"dapo-math-17k.parquet": [DAPO] * 5},
        "--data.train data/dapo-math-17k.parquet",
        [("34", "answer_line", False)],
    ),
    "agentica-org/DeepScaleR-Preview-Dataset": (
        {"deepscaler.json": [{"problem": "1+1?", "answer": "2", "solution": ""}, {"problem": "1+2?", "answer": "3", "solution": "Add."}]},
        "--data.train data/deepscaler.json",
        [("2", "box", False), ("3", "box", True)],
    ),
    "SynthLabsAI/Big-Math-RL-Verified": (
        {"Big-Math/data/train-00000-of-00001.parquet": [BIG]},
        "--data.train data/Big-Math",
        [("2", "box", False)],
    ),
    "AI-MO/NuminaMath-1.5": (
        {
            "NuminaMath-1.5/data/train-00000-of-00002.parquet": [NUMINA | {"answer": "2"}, NUMINA | {"answer": "proof"}],
            "NuminaMath-1.5/data/train-00001-of-00002.parquet": [NUMINA | {"answer": "notfound"}, NUMINA | {"answer": "3"}],
        },
        "--data.train data/NuminaMath-1.5#train --data.skip-unusable",
        [("2", "box", True), ("3", "box", True)],
    ),
    "AI-MO/NuminaMath-CoT": (
        each("NuminaMath-CoT/data/{}-00000-of-00001.parquet", "train test", MATH | {"messages": DAPO["prompt"]}),
        "--data.train data/NuminaMath-CoT#train --data.skip-unusable",
        [("2", "box", True)],
    ),
    "open-r1/OpenR1-Math-220k": (
        each("OpenR1/{}-00000-of-00001.parquet", "data/train all/default extended/train", NUMINA | BROAD | {"answer": "2"}),
        "--data.train data/OpenR1#train",
        [("2", "box", True)],
    ),
    "Idavidrein/gpqa": ({"gpqa/gpqa_diamond.csv": [GPQA]}, "--data.train data/gpqa/gpqa_diamond.csv", [("B", "choice", False)]),
    "Maxwell-Jia/AIME_2024": (
        {"AIME_2024/aime_2024_problems.parquet": [{"ID": "2024-II-4", "Problem": "1+1?", "Solution": "Add.", "Answer": 33}]},
        "--data.train data/AIME_2024",
        [("33", "box", True)],
    ),
    "opencompass/AIME2025": (
        {f"AIME2025/aime2025-{part}.jsonl": [{"question": "1+1?", "answer": str(len(part))}] for part in ("I", "II")},
        "--data.train data/AIME2025",
        [("1", "box", False), ("2", "box", False)],
    ),
    "MathArena/hmmt_feb_2025": (
        each("hmmt/data/{}-00000-of-00001.parquet", "train", {"problem_idx": 1, "problem": "1+1?", "answer": "\\frac{1}{2}"}),
        "--data.train data/hmmt",
        [("\\frac{1}{2}", "box", False)],
    ),
    "AI-MO/aimo-validation-amc": (
        {"amc/data/train-00000-of-00001.parquet": [{"id": 0, "problem": "1+1?", "answer": 142.0, "url": "https://x"}]},
        "--data.train data/amc",
        [("142", "box", False)],
    ),
    "Hothan/OlympiadBench": (
        {"OlympiadBench/OE_TO_maths_en_COMP/OE_TO_maths_en_COMP.parquet": [OLYMPIAD]},
        "--data.train data/OlympiadBench/OE_TO_maths_en_COMP",
        [("2", "box", True)],
    ),
    "math-ai/minervamath": (
        {"minerva/test.jsonl": [{"question": "1+1?", "answer": "2e33"}]},
        "--data.train data/minerva#test",
        [("2e33", "box", False)],
    ),
    "Qwen2.5-Math": ({"minerva_math/test.jsonl": [MATH | {"idx": 0}]}, "--data.train data/minerva_math#test", [("2", "box", True)]),
    "cais/mmlu": (
        each("mmlu/abstract_algebra/{}-00000-of-00001.parquet", "test dev", {"question": "1+1?", "choices": ["0", "1", "2"], "answer": 2}),
        "--data.train data/mmlu/abstract_algebra#test",
        [("C", "choice", False)],
    ),
    "allenai/ai2_arc": (
        each("arc/{}-00000-of-00001.parquet", "ARC-Easy/test", ARC),
        "--data.train data/arc/ARC-Easy#test",
        [("B", "choice", False)],
    ),
    "a set of one's own": (
        {"own.jsonl": [{"task": {"text": "1+1?"}, "Target": 2, "prompt": "unread"}]},
        "--data.train data/own.jsonl --data.columns question=task.text answer=Target",
        [("2", "box", False)],
    ),
}  # fmt: skip


def write(path: Path, table: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        write_parquet(path, table)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    else:
        path.write_text(json.dumps(table) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in table))


def config(*train: str, **data: Any) -> Config:
    return Config(
        model=Model(path="models/x"), data=Data(train=train, **data), run=Run(name="x"), genrm=Genrm(judge="none"), fapo=Fapo(lam=0.0),
        rollout=RECIPES["arith"]().rollout,
    )  # fmt: skip


def loaded(settings: Config) -> Problems:
    return Problems(settings, environment_of(settings.data.environment)(settings, None))


def settings_of(arguments: str) -> Config:
    """What a command line sets, without the second that parsing all settings takes."""
    words = arguments.split()
    data: dict[str, Any] = {}
    name = ""
    for word in words:
        if word.startswith("--data."):
            name = word.removeprefix("--data.").replace("-", "_")
            data[name] = True if name == "skip_unusable" else ()
        else:
            data[name] = (*data[name], word)
    return config(*data.pop("train"), **data)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_set_loads_by_its_command(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files, arguments, expected = PUBLIC[name]
    for path, table in files.items():
        write(tmp_path / "data" / path, table)
    problems = loaded(settings_of(arguments))
    assert [(prompt.answer, prompt.form, prompt.solution is not None) for prompt in problems.train] == expected
    for prompt in problems.train:
        assert prompt.messages and prompt.messages[-1]["content"].endswith(INSTRUCTION) == (prompt.form == "box")
        assert "1+1?" in prompt.text or prompt.text in ("Ana?", "1+2?", "17*2?", MESSAGE) or "planet" in prompt.text
    assert problems.left_out.rows.keys() == (
        {f"data/NuminaMath-1.5/data/train-0000{n}-of-00002.parquet:{2 - n}" for n in (0, 1)} if "1.5" in name else set()
    )
    assert problems.left_out.repeated.total() == (4 if name.startswith("Byted") else 0)
    assert formless(name, problems.train) is None and len(examples(name, problems.train)) == len(expected)
    for prompt in problems.train:
        found = final_answer(written(prompt.answer, prompt.form), form=prompt.form)
        assert found is not None and found.text == prompt.answer, "what is read of a reply in the form asked for"


def test_the_command_line_is_read_as_here(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "grpo-7b --data.train a.parquet:0.7 b.jsonl:0.3 --data.columns question=problem answer=target --data.skip-unusable"
    made = parse_arguments(line.split())
    assert made.data == replace(settings_of(line.removeprefix("grpo-7b ")).data, test=made.data.test)


QA = {"query": "1+1?", "response": "2"}
WRONG: dict[str, tuple[Files, str, str]] = {
    "other names": (
        {"a.jsonl": [QA]},
        "--data.train data/a.jsonl",
        "data/a.jsonl: no column called problem, question, prompt (its columns: 'query', 'response'); name it: --data.columns problem=…",
    ),
    "in Parquet": (
        {"a.parquet": [QA]},
        "--data.train data/a.parquet",
        "data/a.parquet: no column called problem, question, prompt (its columns: 'query', 'response'); name it: --data.columns problem=…",
    ),
    "a column that the file lacks": (
        {"a.parquet": [QA]},
        "--data.train data/a.parquet --data.columns problem=query answer=target",
        "data/a.parquet: data.columns answer=target: no such column (its columns: 'query', 'response'); name one of these",
    ),
    "a column that a test set lacks": (
        {"a.jsonl": [QA], "b.csv": [{"Problem": "1+1?", "Answer": "2"}]},
        "--data.train data/a.jsonl --data.test data/b.csv --data.columns problem=query answer=response",
        "data/b.csv: data.columns problem=query: no such column (its columns: 'Problem', 'Answer'); name one of these",
    ),
    "several subsets": (
        {f"g/{subset}/train-00000-of-00001.parquet": [QA] for subset in ("main", "socratic")},
        "--data.train data/g#train",
        "data/g: has the subsets main, socratic; name one, e.g. data/g/main#train",
    ),
    "several splits": (
        {f"g/data/{split}-00000-of-00001.parquet": [QA] for split in ("train", "test")},
        "--data.train data/g",
        "data/g: has the splits test, train; name one: data/g#test",
    ),
    "another split": (
        {f"g/{split}.jsonl": [QA] for split in ("train", "test")},
        "--data.train data/g#validation",
        "data/g: no split is called 'validation'; it has the splits test, train",
    ),
    "a split without a name": (
        {"g/a.jsonl": [QA]},
        "--data.train data/g#train",
        "data/g: no split is called 'train'; it has files that name no split; leave #train out",
    ),
    "a split of a file": (
        {"a.jsonl": [QA]},
        "--data.train data/a.jsonl#train",
        "data/a.jsonl#train: data/a.jsonl is a file, which has no splits; leave #train out",
    ),
    "several formats": (
        {"g/train.jsonl": [QA], "g/train.parquet": [QA]},
        "--data.train data/g",
        "data/g: the same split in .jsonl, .parquet files; name the files that you mean, one by one",
    ),
    "nothing in it": ({"g/x.txt.csv": [QA]}, "--data.train data", "data/g/x.txt.csv: no column called"),
    "no folder": (
        {"a.jsonl": [QA]},
        "--data.train data/gsm8k#train",
        "data/gsm8k#train: not on disk; check the path, or, if it is a data set's name: pip install datasets, or: hf download",
    ),
    "options without an answer": (
        {"a.jsonl": [{"question": "1+1?", "choices": ["1", "2"]}]},
        "--data.train data/a.jsonl",
        "data/a.jsonl:1: answer: missing; every row needs it",
    ),
    "an answer that is no option": (
        {"a.jsonl": [{"question": "1+1?", "choices": ["1", "2"], "answer": 2}]},
        "--data.train data/a.jsonl",
        "data/a.jsonl:1: answer: 2 names none of the 2 options; write its letter, its number from 0 or its text",
    ),
    "no options": (
        {"a.jsonl": [{"question": "1+1?", "options": "A) 1", "answer": "A"}]},
        "--data.train data/a.jsonl",
        "data/a.jsonl:1: options: 'A) 1' where a list of 2 to 10 texts is expected; write one",
    ),
    "GPQA with an option twice": (
        {"a.csv": [GPQA | {"Incorrect Answer 3": " Mars"}]},
        "--data.train data/a.csv",
        "data/a.csv:1: options: 'Mars' is two of its options; write different ones",
    ),
    "a proof": (
        {"a.jsonl": [NUMINA | {"answer": "proof"}]},
        "--data.train data/a.jsonl",
        "data/a.jsonl:1: answer: 'proof', so there is none to compare with; go on without such rows by --data.skip-unusable",
    ),
    "columns by case alone": (
        {"a.jsonl": [{"Problem": "1+1?", "PROBLEM": "2+2?", "answer": "2"}]},
        "--data.train data/a.jsonl",
        "data/a.jsonl:1: problem: two columns are called so but for their case; say which by --data.columns problem=…",
    ),
    "no number": (
        {"a.jsonl": [MATH]},
        "--data.train data/a.jsonl --data.difficulty type 0",
        "data/a.jsonl: data.difficulty type: no row has a number there; name another column",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_one_gets_one_line_with_the_cure(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    files, arguments, message = WRONG[name]
    for path, table in files.items():
        write(tmp_path / "data" / path, table)
    settings = settings_of(arguments.replace(" --data.difficulty type 0", ""))
    if "difficulty" in arguments:
        settings = replace(settings, data=replace(settings.data, difficulty=("type", 0)))
    try:
        said = str(loaded(settings).left_out)
    except DataError as error:
        said = str(error)
    assert said.startswith(message) and said.isprintable()


CONFLICTS = {
    ("a.jsonl:0",): "data.train a.jsonl:0: a weight of 0 takes nothing; leave the source out, or use a weight above 0",
    ("arith:2",): "data.train names the environment arith:2 beside others or with a weight; an environment stands alone",
    ("arith", "a.jsonl"): "data.train names the environment arith beside others",
    ("a.jsonl:1", "./a.jsonl:2"): "data.train names a.jsonl twice; name it once, where it shall come more often with a weight: a.jsonl:2",
    ("a.jsonl", "--data.test", "b.jsonl:0.5"): "data.test b.jsonl:0.5 has a weight, but all of an evaluation set is asked; write b.jsonl",
    ("a.jsonl", "--data.columns", "question"): "data.columns 'question': write ours=theirs, e.g. question=problem; ours are id, problem",
    ("a.jsonl", "--data.columns", "task=problem"): "data.columns 'task=problem': write ours=theirs",
    ("a.jsonl", "--data.columns", "answer=a..b"): "data.columns 'answer=a..b': write ours=theirs",
    ("a.jsonl", "--data.columns", "answer=a", "answer=b"): "data.columns names answer twice; write answer=a,b where files differ",
    ("a.jsonl", "--data.columns", "problem=a", "question=b"): "data.columns names problem and question, which are one; keep one",
    ("rg:chain_sum", "--data.columns", "answer=a"): "data.columns is answer=a, but no file is read; leave it empty",
}


@pytest.mark.parametrize("words", CONFLICTS, ids=" ".join)
def test_settings_that_contradict_themselves(words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        settings_of(" ".join(("--data.train", *words)))
    assert str(caught.value).startswith(CONFLICTS[words])


def test_what_is_on_disk_is_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose name ends like a weight, a folder called like a data set of the Hub, and one with the sign of a split."""
    monkeypatch.chdir(tmp_path)
    row = {"problem": "1+1?", "answer": "2"}
    for path in ("a.jsonl:1/train.jsonl", "openai/gsm8k/train.jsonl", "x#1/test.jsonl"):
        write(tmp_path / path, [row])
    problems = loaded(config("a.jsonl:1", "openai/gsm8k#train", test=("x#1",)))
    assert [prompt.id for prompt in problems.train] == ["a.jsonl:1/train.jsonl:1", "openai/gsm8k/train.jsonl:1"]
    assert [prompt.id for prompt in problems.tests["x#1"]] == ["x#1/test.jsonl:1"] and problems.train.weights is None


def test_names_of_splits() -> None:
    paths = ["data/aime24#test", "data/math.v1.5#test", "other/aime24#test", "openai/gsm8k@main#test"]
    assert set_names(paths) == ["data/aime24#test", "math.v1.5#test", "other/aime24#test", "gsm8k@main#test"]


def test_a_folder_of_many_files_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soundrl.fapo.data.sources.MAX_ENTRIES", 5)
    for index in range(6):
        write(tmp_path / f"{index}.jsonl", [QA])
    with pytest.raises(DataError, match="more than 5 files; name the folder of one data set"):
        load_prompts(tmp_path)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "data-00000-of-00001.arrow").touch()
    with pytest.raises(DataError, match="written by save_to_disk; write it by to_parquet instead"):
        load_prompts(tmp_path / "saved")


def test_files_beside_the_rows_are_not_rows(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [{"problem": "1+1?", "answer": "2"}])
    for name in ("README.md", "dataset_infos.json", ".cache/x/train.jsonl", ".gitattributes", ".hidden.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert [prompt.id for prompt in load_prompts(tmp_path)] == [f"{tmp_path}/train.jsonl:1"]
    (tmp_path / "x.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(DataError, match=r"x\.parquet: a pointer of Git LFS, and not the file itself; git lfs pull, or download it again"):
        load_prompts(tmp_path / "x.parquet")


# Names on the Hub: a stand-in for the package, which is not one of ours


class Table:
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.column_names = rows, list(rows[0])
        self.features = {name: {key: "string" for key in value} if isinstance(value, dict) else "string" for name, value in rows[0].items()}

    def select_columns(self, names: list[str]) -> Table:
        return Table([{name: row[name] for name in names} for row in self.rows])

    def __iter__(self):
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def hub(monkeypatch: pytest.MonkeyPatch, version: str = "4.4.1", **sets: Any) -> list[tuple[Any, ...]]:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, subset: str | None, split: str | None) -> Any:
        asked.append((name, subset, split))
        if isinstance(found := sets["found"], Exception):
            raise found
        return found[split] if split else found

    module = ModuleType("datasets")
    module.__dict__.update(__version__=version, load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


def test_a_name_on_the_hub_is_loaded_by_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[list[str]] = []
    table = Table([{"question": "Ana?", "answer": SOLVED, "image": b"\x00", "extra_info": {"question": None, "index": "7"}}] * 2)
    monkeypatch.setattr(Table, "select_columns", lambda self, names: read.append(names) or self)
    asked = hub(monkeypatch, found={"train": table})
    prompts = load_prompts("openai/gsm8k@main#train")
    assert asked == [("openai/gsm8k", "main", "train")] and read == [["question", "answer", "extra_info"]]
    assert [(p.id, p.answer) for p in prompts] == [("openai/gsm8k@main#train:1", "12"), ("openai/gsm8k@main#train:2", "12")]
    hub(monkeypatch, found={"test": table})
    assert len(load_prompts("openai/gsm8k")) == 2, "the only split needs no name"


@pytest.mark.parametrize(
    ("found", "version", "message"),
    [
        ({"train": Table([QA]), "test": Table([QA])}, "4.0.0", "a/b: has the splits test, train; name one: a/b#test"),
        ({"train": Table([QA])}, "4.0.0", "a/b: no column called problem, question, prompt (its columns: 'query', 'response'); name it"),
        ({}, "3.6.0", "a/b: datasets 3.6.0 runs code of data sets; pip install 'datasets>=4'"),
        (ConnectionError("no\nnet"), "4.0.0", "a/b: not on disk, and datasets cannot load it ('ConnectionError: no\\nnet'); check name"),
    ],
)
def test_names_that_cannot_be_loaded(found: Any, version: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, version, found=found)
    with pytest.raises(DataError) as caught:
        load_prompts("a/b")
    assert str(caught.value).startswith(message) and str(caught.value).isprintable()


# CSV


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'problem,answer\n"1,\n1?",2\n1+1?,\n', ":2: answer: missing; every row needs it"),
        (b"problem,answer\n1+1?,2,3\n", ":1: 3 fields, but 2 in the header; write a header and a record a line, and quote"),
        (b"problem,answer\n\n", ":1: empty line; delete it"),
        (b"problem,answer\n", ": no rows; it needs at least one"),
        (b"problem,answer,answer\n1,2,2\n", ": two columns are named 'answer'; rename one"),
        (b"problem;answer\n1;2\n", ": no column called problem, question, prompt (its columns: 'problem;answer'); name it"),
        (b'problem,answer\n"1+1?,2\n', ":1: no valid CSV (unexpected end of data); write a header"),
        (b'problem,answer\n"1"+1?,2\n', ":1: no valid CSV ("),
        (b"problem,answer\n1+1?,\xff\n", ":1: no valid UTF-8 (byte b'\\xff' at 5); save as UTF-8"),
    ],
)
def test_bad_csv(text: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(text)
    with pytest.raises(DataError) as caught:
        load_prompts(path)
    assert str(caught.value).startswith(f"{path}{message}") and str(caught.value).isprintable()


def test_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeffProblem,Answer,Notes\r\n"Say ""1, 1""\nhere",2,\r\n1+1?,"1,400",x\r\n'.encode())
    one, two = load_prompts(path)
    assert (one.id, one.text, one.answer) == (f"{path}:1", 'Say "1, 1"\nhere', "2") and (two.id, two.answer) == (f"{path}:2", "1,400")
    path.write_bytes(b"problem,answer\n" + b"x" * (1 << 24) + b",1\n")
    with pytest.raises(DataError, match=":1: line longer than 16777216 bytes"):
        load_prompts(path)


# Columns


def test_columns_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, [{"meta": {"q": "1+1?", "n": 7}, "problem": "unread", "target": None, "label": 2, "answer": "unread", "solution": "Add."}])
    (prompt,) = load_prompts(path, reading=Reading(columns=("problem=meta.q", "answer=other,label", "id=meta.n")))
    assert (prompt.text, prompt.answer, prompt.solution) == ("1+1?", "2", "Add.")
    write(path.with_suffix(".parquet"), [{"meta": {"q": "1+1?", "n": 7, "bad": NAN}, "label": 2, "image": b"\x00", "problem": "unread"}])
    (packed,) = load_prompts(path.with_suffix(".parquet"), reading=Reading(columns=("question=meta.q", "answer=label")))
    assert (packed.text, packed.answer) == ("1+1?", "2")
    leaves = ["meta.q", "meta.n", "meta.bad", "label", "image", "problem", "Answer", "prompt.list.element.role", "answers"]
    assert Columns.of(("question=meta.q", "answer=label")).leaves(leaves) == ["meta.q", "label", "problem", "Answer", "prompt"]
    (chat,) = load_prompts(
        [write(path, [{"messages": [{"role": "user", "content": "1+1?"}], "gold": "2"}]), path][1],
        reading=Reading(columns=("prompt=messages", "answer=gold")),
    )
    assert chat.messages == ({"role": "user", "content": "1+1?"},) and chat.answer == "2"


def test_rows_for_a_verifier_of_ones_own(tmp_path: Path) -> None:
    path, own = tmp_path / "a.jsonl", Reading(rows=True)
    write(
        path,
        [
            {"prompt": "Write a sonnet.", "lines": 14, "rate": NAN, "tests": [{"in": [1], "out": 0.5}]},
            {"prompt": "b", "answer": ["x", "y"]},
        ],
    )
    one, two = load_prompts(path, reading=own)
    assert one.row == {"prompt": "Write a sonnet.", "lines": 14, "rate": None, "tests": [{"in": [1], "out": 0.5}]} and one.answer == ""
    assert two.answer == '["x", "y"]' and load_prompts(path, reading=replace(own, columns=("lines=", "tests=")))[0].row.keys() == {
        "prompt",
        "rate",
    }
    write(path, [{"problem": "1+1?", "answer": SOLVED, "log": "x" * 70_000}])
    with pytest.raises(DataError, match=r"a.jsonl:1: log: 70,\d{3} characters of row, .* leave it out by --data.columns log="):
        load_prompts(path, reading=own)
    (kept,) = load_prompts(path, reading=replace(own, columns=("log=",)))
    assert kept.answer == "12" and kept.row == {"problem": "1+1?", "answer": SOLVED}
    assert load_prompts(path)[0].row == {}, "nothing is kept where nobody asks"
    write(path.with_suffix(".parquet"), [{"problem": "1+1?", "answer": "2", "image": b"\x00\xff"}])
    with pytest.raises(DataError, match=r"1: image: b'\\x00\\xff', which is no JSON; leave it out by --data.columns image="):
        load_prompts(path.with_suffix(".parquet"), reading=own)
    assert load_prompts(path.with_suffix(".parquet"), reading=replace(own, columns=("image=",)))[0].row == {
        "problem": "1+1?",
        "answer": "2",
    }


def test_difficulty_is_a_number_of_a_column(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, [BIG, BIG | {"llama8b_solve_rate": 0.25}, MATH | {"answer": "2", "llama8b_solve_rate": None}])
    assert [p.difficulty for p in load_prompts(path, reading=Reading(difficulty="-llama8b_solve_rate"))] == [None, -0.25, None]
    assert [p.difficulty for p in load_prompts(path, reading=Reading(difficulty="level"))] == [None, None, 5.0]
    assert [p.difficulty for p in load_prompts(path)] == [None] * 3
    write(path, [BIG | {"llama8b_solve_rate": [1]}])
    with pytest.raises(DataError, match="llama8b_solve_rate: a list where a number is expected; name another column by data.difficulty"):
        load_prompts(path, reading=Reading(difficulty="-llama8b_solve_rate"))


# The same problem many times


def test_rows_of_chat_messages_that_say_the_same_are_one(tmp_path: Path) -> None:
    rows = [
        {**DAPO, "prompt": [{"role": "user", "content": f"{i}+1? Answer: $A"}], "extra_info": {"index": f"{i}-{copy}"}}
        for copy in range(100)
        for i in range(17)
    ]
    other = {**rows[0], "reward_model": {"ground_truth": "35", "style": "rule"}}
    bad = {**rows[1], "reward_model": {"ground_truth": None}}
    left_out = LeftOut()
    write(path := tmp_path / "dapo.parquet", [*rows, other, bad, bad])
    prompts = load_prompts(path, left_out=left_out)
    assert [int(prompt.id.rpartition(":")[2]) for prompt in prompts] == [*range(1, 18), 1701]
    assert left_out.read.total() == 1703 and left_out.repeated == {str(path): 1684} and [*left_out.rows] == [f"{path}:1702"]
    assert len(load_prompts(path, max_rows=17)) == 17 and len({p.text for p in load_prompts(path, max_rows=18)}) == 17
    own = load_prompts(path, max_rows=1800, reading=Reading(rows=True))
    assert len(own) == 1702, "what a verifier of one's own sees of them differs"


# Options


def test_the_letters_of_shuffled_options_are_uniform() -> None:
    """Chi-square of 2,000 questions over the four letters, and over the places of each option: 99.9 % lies below 16.3 with 3 degrees."""
    questions = [(f"Question {i}?", f"right {i}", [f"wrong {i}{j}" for j in "abc"]) for i in range(2000)]
    made = {question: shuffled_options(question, right, wrong) for question, right, wrong in questions}
    for option in range(4):
        places = Counter("ABCD"[made[q][0].index([right, *wrong][option])] for q, right, wrong in questions)
        assert sum((places[letter] - 500) ** 2 / 500 for letter in "ABCD") < 16.3
    for question, right, wrong in questions[::-1]:
        options, letter = made[question]
        assert options["ABCD".index(letter)] == right and sorted(options) == sorted([right, *wrong])
        assert shuffled_options(question, right, wrong[::-1]) == (options, letter), "whatever the order of the file"
    moved = sum(shuffled_options(q, right, wrong, seed=1) != made[q] for q, right, wrong in questions)
    assert moved > 1800 and sum(made[q][1] == "A" for q, *_ in questions) != sum(
        shuffled_options(*rest, seed=1)[1] == "A" for rest in questions
    )


def test_the_order_of_options_is_the_same_everywhere(tmp_path: Path) -> None:
    """In a process of another hash seed, and of other rows before."""
    write(tmp_path / "a.csv", [GPQA | {"Question": f"Which {i}?"} for i in range(9)])
    write(tmp_path / "b.csv", [GPQA | {"Question": f"Which {i}?"} for i in (7, 3)])
    program = f"from soundrl.fapo.data.files import load_prompts as l; print([p.answer + p.text for p in l({str(tmp_path / 'b.csv')!r})])"
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True, text=True)
    prompts = load_prompts(tmp_path / "a.csv")
    assert done.stdout.strip() == str([prompts[i].answer + prompts[i].text for i in (7, 3)]) and len({p.answer for p in prompts}) > 2


def test_a_question_with_options_as_it_is_asked(tmp_path: Path) -> None:
    write(tmp_path / "gpqa.csv", [GPQA])
    (prompt,) = load_prompts(tmp_path / "gpqa.csv")
    assert prompt.messages is not None and len(prompt.messages) == 1
    head, question, options = prompt.messages[0]["content"].split("\n\n")
    assert head.startswith(
        "Answer the following multiple choice question. The last line of your response should be of the following format: "
    )
    assert "'Answer: $LETTER' (without quotes) where LETTER is one of ABCD. Think step by step" in head and question == "Which is a planet?"
    assert prompt.text == f"{question}\n\n{options}" and sorted(line[3:] for line in options.split("\n")) == [
        '"Sol"',
        "Ceres",
        "Io, a moon",
        "Mars",
    ]
    assert options.split("\n")["ABCD".index(prompt.answer)] == f"{prompt.answer}) Mars"
    assert (prompt.form, prompt.verifier) == ("choice", "choice") and prompt.row["options"]["ABCD".index(prompt.answer)] == "Mars"


# Forms


def test_what_is_said_of_forms() -> None:
    asks = [Prompt(id=str(i), text=f"{i}? " + "x" * 200 + " End in Answer: $A\x1b", answer="2", form="answer_line") for i in range(5)]
    asks += [Prompt(id="b", text="Box it.", answer="\\frac12"), Prompt(id="own", text="p", answer="3", verifier="reasoning-gym", form=None)]
    lines = examples("sums", asks)
    assert len(lines) == EXAMPLES and all(line.isprintable() for line in lines)
    assert lines[0].startswith('sums: "…xxx') and lines[0].endswith('(answer_line): "Answer: 2" is read as "2", and the reference is "2"')
    assert lines[1] == 'sums: "Box it." (box): "\\boxed{\\frac12}" is read as "\\frac12", and the reference is "\\frac12"'
    assert lines[2] == 'sums: "p": reasoning-gym reads the whole response; the reference is "3"'
    assert example(asks[0], "my.py:score").endswith('": my.py:score reads the whole response; the reference is "2"')
    none = [replace(asks[5], form=None)] * 2
    assert formless("s", [*none, *asks]) == "s: 2 of 9 prompts ask for no known form of answer; a \\boxed{…} is looked for there"
    assert formless("s", none, "my.py:score") is None and formless("s", asks[-1:]) is None
    with pytest.raises(
        DataError, match='s: 2 of 2 prompts ask for no known form of answer, e.g. "Box it."; say where answers stand by --data.form'
    ):
        formless("s", none)


def test_the_sets_at_hand_load_as_they_did(shared_data: Path) -> None:
    train = tuple(str(shared_data / f"{name}.jsonl") for name in ("gsm8k-train", "deepmath-5k"))
    problems = loaded(config(*train, test=tuple(str(shared_data / f"{name}.jsonl") for name in ("aime24", "aime25", "math500"))))
    assert [len(part) for part in problems.train.parts] == [7473, 4994] and {name: len(part) for name, part in problems.tests.items()} == {
        "aime24": 30, "aime25": 30, "math500": 500,
    }  # fmt: skip
    assert not problems.left_out.rows and {prompt.form for prompt in problems.train} == {"box"}
