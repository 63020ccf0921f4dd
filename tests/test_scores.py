"""What verdicts are worth: scripted judges, an independent formula, intervals, and the files that hold labelled solutions."""

import json
import random

import numpy as np
import pytest
from fake_judge import MODEL, Server, find_flaw

from soundrl.engine.recipes import ARITH_SOLUTIONS
from soundrl.fapo.data.rows import DataError
from soundrl.fapo.records import Verdict
from soundrl.genrm.critic_data.labelled import Labelled, load_critic, load_labelled, with_references, write_rows
from soundrl.genrm.pool.judge import EndpointJudge
from soundrl.genrm.scores import difference, flags, measures, sampled, score


def made_up(count: int, rng: random.Random) -> list[Labelled]:
    rows = []
    for i in range(count):
        steps, label = rng.randint(1, 9), -1
        if rng.random() < 0.6:
            label = rng.randrange(steps)
        rows.append(Labelled(id=str(i), problem="?", steps=("s",) * steps, label=label, right=label < 0 or rng.random() < 0.4))
    return rows


def as_verdict(index: int) -> Verdict:
    return Verdict.sound() if index < 0 else Verdict.flawed(index)


JUDGES = {
    "oracle": lambda row, rng: as_verdict(row.label),
    "never answers": lambda row, rng: Verdict.unknown("no_box"),
    "always -1": lambda row, rng: Verdict.sound(),
    "always 0": lambda row, rng: Verdict.flawed(0),
    "uniform": lambda row, rng: as_verdict(rng.randrange(-1, len(row.steps))),
    "half coin": lambda row, rng: Verdict.flawed(0) if rng.random() < 0.5 else Verdict.sound(),
}


def judged(name: str, rows: list[Labelled]) -> dict[str, float]:
    rng = random.Random(1)
    return {key: s.value for key, s in score(rows, [JUDGES[name](row, rng) for row in rows], resamples=10).items()}


def test_scripted_judges():
    rows = made_up(3000, random.Random(0))
    assert set(judged("oracle", rows).values()) == {1.0, 0.0} and judged("oracle", rows)["over_critic"] == 0.0
    silent = judged("never answers", rows)
    assert all(value == 0.0 for value in silent.values())  # the released metric says F1 46.9 here
    blind = judged("always -1", rows)
    assert (blind["correct_accuracy"], blind["error_accuracy"], blind["f1"], blind["precision"], blind["coverage"]) == (1, 0, 0, 0, 1)
    zero = judged("always 0", rows)
    share = sum(row.label == 0 for row in rows) / sum(row.label >= 0 for row in rows)
    assert (zero["correct_accuracy"], zero["recall"], zero["over_critic"], zero["f1"]) == (0.0, 1.0, 1.0, 0.0)
    assert zero["error_accuracy"] == pytest.approx(share)
    right = [row for row in rows if row.right]
    assert zero["precision"] == pytest.approx(sum(row.label >= 0 for row in right) / len(right))
    assert 0.1 < judged("uniform", rows)["f1"] < 0.35 and 0.4 < judged("half coin", rows)["recall"] < 0.6


def independent(rows: list[Labelled], verdicts: list[Verdict]) -> tuple[float, float]:
    """ProcessBench's F1 and FlawedPositiveBench's, as their papers put it."""
    wrong = [v == Verdict.flawed(r.label) for r, v in zip(rows, verdicts, strict=True) if r.label != -1]
    fine = [v.kind == "sound" for r, v in zip(rows, verdicts, strict=True) if r.label == -1]
    a, b = (sum(part) / len(part) if part else 0.0 for part in (wrong, fine))
    pairs = [(r.label != -1, v.kind == "flawed") for r, v in zip(rows, verdicts, strict=True) if r.right]
    tp, fp, fn = pairs.count((True, True)), pairs.count((False, True)), pairs.count((True, False))
    return 2 * a * b / (a + b) if a + b else 0.0, 2 * tp / (2 * tp + fp + fn) if tp else 0.0


def test_a_thousand_random_prediction_sets_equal_an_independent_formula():
    rng = random.Random(7)
    for _ in range(1000):
        rows = made_up(rng.randint(1, 40), rng)
        verdicts = [JUDGES[rng.choice(list(JUDGES))](row, rng) for row in rows]
        ours = measures(np.sum([flags(r, v) for r, v in zip(rows, verdicts, strict=True)], axis=0))
        assert (ours["f1"].item(), ours["flawed_f1"].item()) == pytest.approx(independent(rows, verdicts), abs=1e-12)


def test_intervals_cover_the_truth_and_pairing_narrows_them():
    rng = random.Random(3)
    rows = [Labelled(id=str(i), problem="?", steps=("s",), label=0) for i in range(150)]
    covered = 0
    for trial in range(200):
        verdicts = [Verdict.flawed(0) if rng.random() < 0.7 else Verdict.sound() for _ in rows]
        found = score(rows, verdicts, seed=trial, resamples=300)["error_accuracy"]
        covered += found.low <= 0.7 <= found.high
    assert 0.90 <= covered / 200 <= 0.99
    ours = [Verdict.flawed(0) if rng.random() < 0.7 else Verdict.sound() for _ in rows]
    theirs = [v if i % 10 else Verdict.sound() for i, v in enumerate(ours)]
    paired = difference(rows, ours, theirs, "error_accuracy", resamples=500)
    assert 0 < paired.low <= paired.value <= paired.high < 0.16
    first, again, other = (sampled(rows, ours, seed, 9)["error_accuracy"] for seed in (1, 1, 2))
    assert (first == again).all() and (first[1:] != other[1:]).any()


def test_a_judge_without_an_error_on_few_rows_is_not_one_without_errors():
    rows = [Labelled(id=str(i), problem="?", steps=("s",), label=i % 2 - 1) for i in range(40)]
    found = score(rows, [as_verdict(row.label) for row in rows])
    for name in ("precision", "recall", "f1", "flawed_f1"):
        assert found[name].value == 1.0 == found[name].high and 0.7 < found[name].low < 0.9
    assert found["over_critic"].low == 0.0 and 0.1 < found["over_critic"].high < 0.25
    none = score(rows, [Verdict.sound()] * 40)["precision"]  # of nothing called flawed
    assert (none.value, none.low, none.high) == (0.0, 0.0, 1.0)


def test_nothing_to_score_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        score([], [])


# Files


@pytest.mark.parametrize(("name", "rows", "wrong", "right"), [("gsm8k", 400, 207, 200), ("math", 1000, 594, 500)])
def test_processbench_loads(shared_data, name, rows, wrong, right):
    found = load_labelled(str(shared_data / "processbench" / f"{name}.json"))
    assert (len(found), sum(row.label >= 0 for row in found), sum(row.right for row in found)) == (rows, wrong, right)
    flawed_positives = {"gsm8k": 7, "math": 94}[name]  # reliability.md §6.1
    assert sum(row.right and row.label >= 0 for row in found) == flawed_positives
    assert all(row.answer is None for row in found)


def test_gsm8k_answers_are_found_by_the_problem(shared_data):
    rows = load_labelled(str(shared_data / "processbench" / "gsm8k.json"), max_rows=50)
    assert sum(row.answer is not None for row in with_references(rows, shared_data / "gsm8k-test.jsonl")) == 50


def test_a_reference_is_that_of_the_very_problem(tmp_path):
    """Of `x-1` not that of `x+1`; none where the file has two."""
    problems = {"Solve $x - 1 = 0$.": "1", "Solve $x + 1 = 0$.": "-1", "Twice?": "2", " twice? ": "3"}
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"problem": p, "answer": a}) + "\n" for p, a in problems.items()))
    rows = [Labelled(id=p, problem=p, steps=("s",), label=0, answer="old") for p in ("solve \\(x-1=0\\).", "Solve $x+1=0$.", "Twice?", "?")]
    assert [row.answer for row in with_references(rows, tmp_path / "p.jsonl")] == ["1", "-1", "old", "old"]


def test_critic_rows_are_trained_on_as_the_judge_is_asked(shared_data, tmp_path):
    """The very string: of FAPO-Critic's rows, of ProcessBench's and of our own, which were rendered before."""
    path = str(shared_data / "fapo-critic-100.jsonl")
    write_rows(tmp_path / "own.jsonl", load_labelled(path), "train")
    server = Server(find_flaw)
    with EndpointJudge(server.url, MODEL) as judge:
        for file in (path, str(tmp_path / "own.jsonl"), str(shared_data / "processbench" / "gsm8k.json")):
            prompts, rows = load_critic(file, max_rows=100), load_labelled(file, max_rows=100)
            before = len(server.bodies)
            for row in rows:
                judge.critique(row.problem, row.steps, row.answer, fresh=True).result(120)
            asked = [body["messages"] for body in server.bodies[before:]]
            assert asked == [list(prompt.messages or ()) for prompt in prompts] and len(asked) == 100
            assert [prompt.text for prompt in prompts] == [messages[0]["content"] for messages in asked]
    server.stop()


def test_fapo_critic_rows_are_read(shared_data):
    path = str(shared_data / "fapo-critic-100.jsonl")
    prompts, labelled = load_critic(path), load_labelled(path)
    raw = [json.loads(line) for line in (shared_data / "fapo-critic-100.jsonl").read_text().splitlines()]
    assert [int(p.answer) for p in prompts] == [row.label for row in labelled] == [row["reward_model"]["ground_truth"] for row in raw]
    assert [p.steps for p in prompts] == [len(row.steps) for row in labelled] and sum(len(row.steps) for row in labelled) == 1019
    assert all(row.answer and row.problem and "[" not in row.problem[:1] for row in labelled)


def test_the_world_has_labelled_solutions():
    seen, unseen = load_labelled(ARITH_SOLUTIONS, max_rows=60), load_labelled(f"{ARITH_SOLUTIONS}_unseen", max_rows=60)
    assert 15 < sum(row.label >= 0 for row in seen) < 45 and not {row.problem for row in seen} & {row.problem for row in unseen}


CRITIC = {
    "prompt": [{"role": "user", "content": "[Problem]\n\n1+1?\n\n[Solution]\n\n<paragraph_0>\n2\n</paragraph_0>\n\n[Task]\n\nGo."}],
    "reward_model": {"style": "rule", "ground_truth": 0},
    "extra_info": {"total_steps": 1},
}
BENCH = {"id": "x-1", "problem": "1+1?", "steps": ["a", "b"], "final_answer_correct": True, "label": 1}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (BENCH | {"label": 2}, "label: 2 is no step of the 2; write −1"),
        (BENCH | {"label": True}, "label: true"),
        (BENCH | {"steps": []}, "steps: a list where a list of one or more texts"),
        (BENCH | {"problem": " "}, "problem"),
        (BENCH | {"final_answer_correct": "yes"}, "final_answer_correct: 'yes' where true or false"),
        (BENCH | {"answer": 3}, "answer: 3 where a text is expected"),
        (CRITIC | {"reward_model": {"ground_truth": 1}}, "reward_model.ground_truth: 1 is no step of the 1"),
        (CRITIC | {"reward_model": None}, "reward_model.ground_truth: null"),
        (CRITIC | {"extra_info": {"total_steps": 0}}, "extra_info.total_steps: 0 where a count"),
        (CRITIC | {"extra_info": {"total_steps": 3}}, "1 tagged paragraphs, but extra_info.total_steps is 3"),
        (CRITIC | {"prompt": [{"role": "system", "content": "x"}]}, "where one user message is expected"),
        (CRITIC | {"prompt": [{"role": "user", "content": ""}]}, "prompt[0].content: ''"),
        (CRITIC | {"prompt": "text"}, "where one user message is expected"),
    ],
)
@pytest.mark.parametrize("load", [load_labelled, load_critic])
def test_malformed_rows_are_named(tmp_path, row, words, load):
    good = CRITIC if "prompt" in row else BENCH
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n")
    with pytest.raises(DataError) as caught:
        load(str(path))
    assert str(caught.value).startswith(f"{path}:2: ") and words in str(caught.value) and "\n" not in str(caught.value)
