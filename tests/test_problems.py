"""The problems of a run: names of sets, what cannot be used, the same on every rank, and demonstrations."""

import json
import threading
from dataclasses import replace

import pytest
from tiny import write_tiny

from soundrl.engine.config import Config, Data, Fapo, Genrm, Model, Run, WarmStart
from soundrl.engine.encode import Encoder
from soundrl.engine.environments.environment import environment_of
from soundrl.engine.files.model_folder import load_tokenizer
from soundrl.engine.files.run_reader import RunReader
from soundrl.engine.problems import Problems, set_names
from soundrl.engine.recipes import RECIPES
from soundrl.fapo.verify.verifiers import Verifiers


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def verifier():
    with Verifiers() as made:
        yield made


class Threads:
    """`Ranks`s of threads: what the checks use of them."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier, self.parts = size, threading.Barrier(size), [None] * size

    def ranks(self, rank: int):
        threads = self

        class Ranks:
            size, main = threads.size, rank == 0

            def gather(self, value):
                threads.parts[rank] = value
                threads.barrier.wait()
                found = list(threads.parts)
                threads.barrier.wait()  # nobody writes the next before all have read
                return found

        Ranks.rank = rank
        return Ranks()


def write(path, *rows: dict) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(
    folder, train: str, *tests: str, steps: int = 0, skip: bool = False, task: str = "reasoning", form: str = "box"
) -> Config:  # fmt: skip
    return Config(
        model=Model(path="models/x", max_length=64),
        data=Data(train=(train,), test=tests, instruction="", skip_unusable=skip, form=form),
        run=Run(name="x", folder=str(folder), task=task),  # type: ignore[arg-type]
        warm_start=WarmStart(steps=steps, batch=2),
        genrm=Genrm(judge="none"),
        fapo=Fapo(lam=0.0),
        rollout=RECIPES["arith"]().rollout,
    )


def loaded(settings: Config, tokenizer=None, verifier=None) -> Problems:
    problems = Problems(settings, environment_of(settings.data.environment)(settings, tokenizer))
    problems.environment.verifiers = verifier  # type: ignore[attr-defined]
    return problems


FORMLESS = "prompts ask for no known form of answer"


def checked(settings: Config, tokenizer, verifier, size: int = 1) -> tuple[list[Problems], list[str], list[str]]:
    """The problems of each rank, what rank 0 says, and the errors."""
    threads, said, errors = Threads(size), [], []
    made = [loaded(settings, tokenizer, verifier) for _ in range(size)]

    def run(rank: int) -> None:
        try:
            made[rank].check(Encoder(tokenizer, 20), threads.ranks(rank), said.append if rank == 0 else lambda line: None)
        except ValueError as error:
            errors.append(str(error))

    running = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return made, [line for line in said if "is read as" not in line], errors


def test_prompts_that_ask_for_no_known_form_are_counted(tokenizer, verifier, tmp_path):
    asks = ("1+1?", "2+1? Answer: $Answer", "3+1? in \\boxed{}", "4+1?")
    rows = [{"prompt": [{"role": "user", "content": text}], "reward_model": {"ground_truth": "2"}} for text in asks]
    problems = loaded(config(tmp_path, path := write(tmp_path / "d.jsonl", *rows), form=""), tokenizer, verifier)
    said: list[str] = []
    problems.check(Encoder(tokenizer, 60), Threads(1).ranks(0), said.append)
    assert [prompt.form for prompt in problems.train] == [None, "answer_line", "box", None]
    assert said == [
        f"{path}: 2 of 4 {FORMLESS}; a \\boxed{{…}} is looked for there",
        f'{path}: "1+1?" (no known form, so a box): "\\boxed{{2}}" is read as "2", and the reference is "2"',
        f'{path}: "2+1? Answer: $Answer" (answer_line): "Answer: 2" is read as "2", and the reference is "2"',
        f'{path}: "3+1? in \\boxed{{}}" (box): "\\boxed{{2}}" is read as "2", and the reference is "2"',
    ]


def test_a_set_most_of_whose_prompts_ask_for_no_known_form_is_refused(tokenizer, verifier, tmp_path):
    path = write(tmp_path / "d.jsonl", GOOD, GOOD | {"problem": "2?"}, GOOD | {"problem": "Answer: $A"})
    _, _, (error,) = checked(config(tmp_path, path, form=""), tokenizer, verifier)
    assert error.startswith(f'{path}: 2 of 3 {FORMLESS}, e.g. "1+1?1"; say where answers stand by --data.form (e.g. box), or ask for it')
    made, said, errors = checked(config(tmp_path, path, form="tag"), tokenizer, verifier)
    assert (said, errors) == ([], []) and {prompt.form for prompt in made[0].train} == {"tag"}


# Names


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["test.jsonl"], ["test"]),
        (["data/gsm8k/test.jsonl"], ["test"]),
        (["aime24/test.jsonl", "math500/test.jsonl"], ["aime24/test", "math500/test"]),
        (["a/x/test.jsonl", "b/x/test.jsonl", "c/y/test.jsonl"], ["a/x/test", "b/x/test", "y/test"]),
        (["x/aime24.jsonl", "y/aime24.json"], ["x/aime24", "y/aime24"]),
        (["x/aime24.jsonl", "x/aime24.json"], ["aime24.jsonl", "aime24.json"]),
        (["test.jsonl", "a/test.jsonl"], ["test.jsonl", "a/test"]),
        (["./a/test.jsonl", "b/../c/test.jsonl"], ["a/test", "c/test"]),
        (["/data/a/test.jsonl", "data/a/test.jsonl"], ["/data/a/test", "data/a/test.jsonl"]),
        (["rg:chain_sum?seed=1"], ["rg:chain_sum"]),
        (["rg:coin?p=0.1", "rg:coin?p=0.2"], ["rg:coin?p=0.1", "rg:coin?p=0.2"]),
        (["v1.5/test.jsonl", "v1.6/test.jsonl"], ["v1.5/test", "v1.6/test"]),
        (["a.b.jsonl", "a.c.jsonl"], ["a.b", "a.c"]),
        (["train-00000-of-00001.parquet", "x/train-00000-of-00001.parquet"], ["train-00000-of-00001.parquet", "x/train-00000-of-00001"]),
        (["ab/test.jsonl", "b/test.jsonl"], ["ab/test", "b/test"]),
        (["arith", "arith.jsonl"], ["arith", "arith.jsonl"]),
    ],
)
def test_sets_have_the_shortest_names_that_differ(paths, names):
    assert set_names(paths) == names and len(set(names)) == len(paths)
    assert set_names(paths[::-1]) == names[::-1]


def test_one_set_named_twice_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", {"problem": "1", "answer": "1"})
    (tmp_path / "b.jsonl").symlink_to("a.jsonl")
    for paths in (["a.jsonl"] * 2, ["a.jsonl", "./a.jsonl"], ["a.jsonl", str(tmp_path / "a.jsonl")], ["b.jsonl", "a.jsonl"], ["arith"] * 2):
        with pytest.raises(ValueError, match=f"data.test names one set twice, as {paths[0]} and {paths[1]}; name it once"):
            set_names(paths)
    with pytest.raises(ValueError, match="twice"):
        set_names(["rg:coin?p=0.1&seed=1", "rg:coin?seed=1&p=0.1"])


def test_files_of_one_name_are_sets_of_their_own(tmp_path):
    """Train and test of one name have other ids, so neither seeds nor tokens are shared."""
    train = write(tmp_path / "deepmath/train.jsonl", {"problem": "1+1?", "answer": "2"})
    tests = [write(tmp_path / f"{name}/train.jsonl", {"problem": f"{i}*8?", "answer": str(8 * i)}) for i, name in enumerate("ab", 6)]
    problems = loaded(config(tmp_path, train, *tests))
    source, sets = problems.train, problems.tests
    assert {name: [(p.text, p.answer) for p in rows] for name, rows in sets.items()} == {
        "a/train": [("6*8?", "48")],
        "b/train": [("7*8?", "56")],
    }
    assert isinstance(source, list)
    ids = [prompt.id for rows in (source, *sets.values()) for prompt in rows]
    assert ids == [f"{tmp_path}/{name}/train.jsonl:1" for name in ("deepmath", "a", "b")]


def test_critic_sets_of_one_name_are_sets_of_their_own(tmp_path):
    row = {"id": "gsm8k-0", "problem": "1+1?", "steps": ["a"], "final_answer_correct": True, "label": 0}
    paths = [write(tmp_path / f"{name}/pb.json{'l' * (name == 'a')}", row | {"problem": name}) for name in "abc"]
    problems = loaded(config(tmp_path, paths[0], *paths[1:], task="critic", form=""))
    source, sets = problems.train, problems.tests
    assert list(sets) == ["b/pb", "c/pb"] and isinstance(source, list)
    assert len({prompt.id for rows in (source, *sets.values()) for prompt in rows}) == 3


def test_the_embedded_sets_keep_their_names(tmp_path):
    row = {"problem": "1+1?", "answer": "2"}
    path = write(tmp_path / "arith-test.jsonl", row)
    for tests in (("arith", path), (path, "arith")):
        sets = loaded(replace(RECIPES["arith"](), data=Data(train=("arith",), test=tests))).tests
        assert {name: len(rows) for name, rows in sets.items()} == {"arith-test": 400, "arith-test-p2": 400, path: 1}


# What cannot be used

GOOD = {"problem": "1+1?1", "answer": "2", "solution": "1+1=2"}
ROWS = [
    GOOD,
    GOOD | {"problem": "1" * 40},  # too long for 20 tokens
    GOOD | {"problem": "2+2?1", "answer": r"\frac{1}{"},
    {"problem": "3?"},
    GOOD | {"problem": "4?", "solution": "1+1=<<2"},
    GOOD | {"problem": "5?", "solution": "1+1=2\n" * 30},
    {"problem": "6?", "answer": '["1", "2"]'},
    GOOD | {"problem": "7?"},
]
FAULTS = [(2, "prompt"), (3, "answer"), (4, "answer"), (5, "solution"), (6, "solution"), (7, "answer")]


@pytest.mark.parametrize("size", [1, 3])
def test_all_unusable_rows_are_named_at_once_on_every_rank(tokenizer, verifier, tmp_path, size):
    path = write(tmp_path / "d.jsonl", *ROWS)
    _, _, errors = checked(config(tmp_path, path, steps=3), tokenizer, verifier, size)
    assert len(errors) == size and len(set(errors)) == 1
    assert errors[0].startswith(f"6 of 8 rows cannot be used: {path}:2: prompt: 42 tokens, but model.max_length")
    assert f" | {path}:3: answer: " in errors[0] and f" | {path}:4: answer: missing; every row needs it | and 3 more" in errors[0]
    assert errors[0].endswith(
        f" | and 3 more; all are listed in {tmp_path}/x.left_out.jsonl: correct them, or go on without them by --data.skip-unusable"
    )
    listed = [json.loads(line) for line in (tmp_path / "x.left_out.jsonl").read_text().splitlines()]
    assert [(row["row"], row["field"]) for row in listed] == FAULTS and {row["file"] for row in listed} == {path}
    reasons = {row["row"]: row["reason"] for row in listed}
    assert reasons[2].startswith("42 tokens, but model.max_length") and "cannot be used: unbalanced braces" in reasons[3]
    assert reasons[5].startswith("calculation mark not closed") and reasons[6].endswith(
        " tokens with its prompt, more than model.max_length 64; raise it or remove the row"
    )


@pytest.mark.parametrize("size", [1, 3])
def test_a_run_goes_on_without_them_where_that_is_asked_for(tokenizer, verifier, tmp_path, size):
    path = write(tmp_path / "d.jsonl", *ROWS)
    test = write(tmp_path / "t.jsonl", GOOD, {"problem": "9?", "answer": None})
    settings = config(tmp_path, path, test, steps=3, skip=True)
    made, said, errors = checked(settings, tokenizer, verifier, size)
    assert not errors
    assert said == [f"{path}: left out 6 of 8 rows (prompt 1, answer 3, solution 2)", f"{test}: left out 1 of 2 rows (answer 1)"]
    for one in made:
        assert isinstance(one.train, list) and [row.id for row in one.train] == [f"{path}:{row}" for row in (1, 5, 6, 8)]
        assert [row.solution is None for row in one.train] == [False, True, True, False]
        assert [row.id for row in one.tests["t"]] == [f"{test}:1"]
    made[0].left_out.write(tmp_path / "left_out.jsonl")
    assert len((tmp_path / "left_out.jsonl").read_text().splitlines()) == 7


def test_an_earlier_run_keeps_its_folder(tokenizer, verifier, tmp_path):
    path = write(tmp_path / "d.jsonl", *ROWS)
    write(tmp_path / "x" / "metrics.jsonl", {})
    _, _, (error,) = checked(config(tmp_path, path), tokenizer, verifier)
    assert f"{tmp_path}/x.left_out.jsonl" in error and [file.name for file in (tmp_path / "x").iterdir()] == ["metrics.jsonl"]


def test_no_row_left_is_an_error_also_where_rows_may_be_left_out(tokenizer, verifier, tmp_path):
    path, bad = write(tmp_path / "d.jsonl", GOOD), write(tmp_path / "t.jsonl", *[{"problem": "?"}] * 1500)
    _, _, (error,) = checked(config(tmp_path, path, bad, skip=True), tokenizer, verifier)
    assert error.startswith("t: no row is left that can be used: 1,000 of 1,001 rows cannot be used: ")
    assert f"{bad}:1: answer: missing" in error


def test_nothing_left_out_leaves_no_file(tokenizer, verifier, tmp_path):
    made, said, errors = checked(config(tmp_path, write(tmp_path / "d.jsonl", GOOD)), tokenizer, verifier)
    (tmp_path / "left_out.jsonl").write_text("of an earlier start")
    made[0].left_out.write(tmp_path / "left_out.jsonl")
    assert (said, errors) == ([], []) and not (tmp_path / "left_out.jsonl").exists()


def test_duplicates_are_counted_and_checked_once(tokenizer, verifier, tmp_path, monkeypatch):
    rows = [{"prompt": [{"role": "user", "content": f"{i}+1?"}], "reward_model": {"ground_truth": str(i + 1)}} for i in range(17)]
    path = write(tmp_path / "dapo.jsonl", *rows * 100)
    asked, golds = [], []
    call = Encoder.__call__
    monkeypatch.setattr(Encoder, "__call__", lambda self, prompt: asked.append(prompt.text) or call(self, prompt))
    monkeypatch.setattr(verifier, "unusable", lambda part: golds.extend(row.answer for row in part) or [None] * len(part))
    problems, said, errors = checked(config(tmp_path, path), tokenizer, verifier, 2)
    assert (said, errors) == ([f"{path}: 1,700 rows, 17 distinct problems; one of each is kept"], [])
    assert [prompt.id for prompt in problems[0].train] == [f"{path}:{row}" for row in range(1, 18)]
    assert len(asked) == 17 == len(set(asked)) and sorted(golds, key=int) == [str(i + 1) for i in range(17)]


def test_references_are_compared_with_themselves(verifier):
    said = verifier.math.check_golds(["72", r"\frac{1}{2}", r"\frac{1}{", "x^2+1", r"\mathbb{Z}/2\mathbb{Z}"])
    assert [why is None for why in said] == [True, True, False, True, False]


# Demonstrations


def test_demonstrations_end_in_the_end_token_and_come_once_an_epoch(tokenizer, tmp_path):
    path = write(tmp_path / "d.jsonl", *({"problem": f"{i}+1?1\n", "answer": "2", "solution": f"{i}+1={i + 1}"} for i in range(4)))
    settings = config(tmp_path, path, steps=3)
    demonstrations = loaded(settings).demonstrations(Encoder(tokenizer, 20))
    batches = [demonstrations(step, 2) for step in range(2)]
    assert len({tuple(s.tokens) for batch in batches for s in batch}) == 4
    assert all(s.tokens[-1] == tokenizer.eos_token_id and s.advantage == 1.0 for batch in batches for s in batch)


def test_no_solutions_at_all_is_a_conflict_of_settings(tokenizer, tmp_path):
    path = write(tmp_path / "d.jsonl", {"problem": "1+1?1\n", "answer": "2"})
    settings = config(tmp_path, path, steps=3)
    with pytest.raises(ValueError, match=r"warm_start.steps is 3, but no row of .*d.jsonl has a solution; set --warm-start.steps 0"):
        loaded(settings).demonstrations(Encoder(tokenizer, 20))


def test_the_main_job_evaluates_every_set_and_lists_what_it_leaves_out(forked_train, tmp_path):
    """Two sets called test.jsonl, and a train file of that name: each is sampled and reported as its own."""
    tiny = write_tiny(tmp_path / "tiny", "llama")
    files = [write(tmp_path / f"{name}/test.jsonl", GOOD, {"problem": "?"}) for name in ("gsm8k", "aime24", "math500")]
    settings = f"--model.path {tiny} --model.dtype float32 --model.max-length 64 --rollout.max-new-tokens 8 --rollout.engine torch"
    settings += " --rollout.prompts 1 --optim.minibatch-prompts 1 --optim.microbatch-tokens 128 --warm-start.steps 0 --run.steps 0"
    (sheet := tmp_path / "sheet.csv").write_text("Problem,Answer\n2+2?1,4\n")
    settings += f" --run.name x --run.folder {tmp_path}/runs --data.train {files[0]}:2 {sheet} --data.test {files[1]} {files[2]}"
    arguments = ["smollm2-gsm8k", *settings.split(), "--data.instruction", "", "--data.form", "box"]
    statuses, said = forked_train(*arguments)
    assert statuses == [2] and "3 of 7 rows cannot be used: " in said and "Traceback" not in said
    assert len((tmp_path / "runs/x.left_out.jsonl").read_text().splitlines()) == 3
    statuses, said = forked_train(*arguments, "--data.skip-unusable")
    assert statuses == [0], said
    assert f"{files[1]}: left out 1 of 2 rows (answer 1)" in said
    assert f'{sheet}: "2+2?1" (box): "\\boxed{{4}}" is read as "4", and the reference is "4"' in said
    assert f"data.train: of each step's prompts {files[0]} 66.7%, {sheet} 33.3%" in said
    logged = RunReader(tmp_path / "runs/x").metrics()[0]
    assert {"eval/aime24/test/accuracy", "eval/math500/test/accuracy"} <= set(logged)
    listed = [json.loads(line)["file"] for line in (tmp_path / "runs/x/left_out.jsonl").read_text().splitlines()]
    assert listed == files
