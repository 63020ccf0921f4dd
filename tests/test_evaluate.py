"""The command that judges the judge, against a scripted endpoint: scores, resumption, refusals."""

import json
from concurrent.futures import Future

import pytest
from fake_judge import MODEL, Server, find_flaw, hang, said

from soundrl.engine.recipes import ARITH_SOLUTIONS
from soundrl.fapo.pending import done
from soundrl.fapo.records import Verdict
from soundrl.genrm import evaluate
from soundrl.genrm.evaluate import Arguments, command, main
from soundrl.genrm.pool import scorer
from soundrl.genrm.pool.judge import EndpointJudge


def bench(path, count: int = 12) -> str:
    rows = [
        {
            "id": f"r-{i}",
            "problem": f"Sum {i}?",
            "steps": ["Start.", "So 2+2=5." if i % 3 else "So 2+2=4.", "Done."],
            "final_answer_correct": i % 2 == 0,
            "label": 1 if i % 3 else -1,
        }
        for i in range(count)
    ]
    path.write_text(json.dumps(rows))
    return str(path)


@pytest.fixture
def judge():
    servers: list[Server] = []

    def start(script=find_flaw):
        servers.append(Server(script))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def test_a_perfect_judge_and_what_is_written(judge, tmp_path, capsys):
    server = judge(lambda handler, number: find_flaw(handler, number))
    arguments = Arguments(
        data=(bench(tmp_path / "gsm8k.json"), ARITH_SOLUTIONS), rows=12, urls=(server.url,), model=MODEL, out=tmp_path / "out"
    )
    scores = main(arguments)
    assert scores["gsm8k"]["f1"]["value"] == scores["gsm8k"]["flawed_f1"]["value"] == scores["gsm8k"]["coverage"]["value"] == 1.0
    assert scores["arith"]["f1"]["value"] == 0.0 and scores["arith"]["correct_accuracy"]["value"] == 1.0  # it finds 2+2=5 only
    assert scores["all"]["average_f1"] == 0.5
    written = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert written["scores"] == scores and {"data_sha256", "prompt_sha256", "votes", "model"} <= written["made_from"].keys()
    assert "coverage" in capsys.readouterr().out
    # Nothing is asked twice, and the table is the same.
    asked = len(server.bodies)
    assert main(arguments) == scores and len(server.bodies) == asked + 1  # the check before the evaluation


DOWN = {
    "503": lambda handler: handler.send(503, {}),
    "429": lambda handler: handler.send(429, {}),
    "401": lambda handler: handler.send(401, {}),
    "no JSON": lambda handler: handler.send(200, b"<html>"),
    "reset": lambda handler: handler.reset(),
    "another model": lambda handler: handler.send(200, said("\\boxed{-1}", model="other")),
    "hang": lambda handler: hang(handler, 0),
}


@pytest.mark.parametrize("name", DOWN)
def test_a_fault_of_the_way_is_no_verdict_and_is_asked_for_again(judge, tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(scorer, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(scorer, "GONE_SECONDS", 0.3)
    server = judge(lambda handler, number: find_flaw(handler, number) if number < 5 else DOWN[name](handler))
    arguments = Arguments(
        data=(bench(tmp_path / "b.json"),), urls=(server.url,), model=MODEL, out=tmp_path / "out", concurrency=8, deadline=5.0
    )
    main(arguments)
    found = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert sum(found["unfinished"].values()) == 8 and "no reply came for 8 rows" in capsys.readouterr().err
    kept = [json.loads(line) for line in (tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()[1:]]
    assert len(kept) == 4 and all(record["verdict"][0] != "unknown" for record in kept)
    server.script = find_flaw
    asked = len(server.bodies)
    scores = main(arguments)
    assert scores["b"]["f1"]["value"] == 1.0 and len(server.bodies) == asked + 1 + 8
    assert scores["all"]["errors"] == {"found": 4, "flawed": 4, "alarms": 0, "sound": 2}  # of rows with a right final answer
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["unfinished"] == {}


def test_what_the_judge_said_is_final_even_where_it_is_no_verdict(judge, tmp_path):
    server = judge(lambda handler, number: handler.send(200, said(None)))
    arguments = Arguments(data=(bench(tmp_path / "b.json"),), urls=(server.url,), model=MODEL, out=tmp_path / "out")
    assert main(arguments)["b"]["unknown"] == {"empty": 12}
    asked = len(server.bodies)
    main(arguments)
    assert len(server.bodies) == asked + 1


def test_http_to_another_machine_can_be_allowed(tmp_path, monkeypatch):
    words = ["--data", bench(tmp_path / "b.json"), "--urls", "http://192.0.2.7:8000/v1", "--model", MODEL, "--out", str(tmp_path / "out")]
    made: list[EndpointJudge] = []
    monkeypatch.setattr(EndpointJudge, "check", lambda self: made.append(self))
    monkeypatch.setattr(evaluate, "judge_all", lambda judge, subsets, *_: judge.endpoints[0].url)
    monkeypatch.setattr(evaluate, "summary", lambda *_: exit(7))  # nobody is asked
    for allowed, status in (([], 2), (["--allow-http"], 7)):
        with pytest.raises(SystemExit) as ended:
            command(main, Arguments, [*words, *allowed])
        assert ended.value.code == status
    assert [judge.endpoints[0].loopback for judge in made] == [False]


def test_an_interrupted_evaluation_goes_on(judge, tmp_path):
    server = judge()
    arguments = Arguments(data=(bench(tmp_path / "b.json"),), urls=(server.url,), model=MODEL, out=tmp_path / "out")
    whole = main(arguments)
    file = tmp_path / "out" / "verdicts.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:6]) + lines[6][:9])  # killed in mid line, five verdicts in
    asked = len(server.bodies)
    again = main(arguments)
    assert {name: again["b"][name] for name in ("f1", "coverage")} == {name: whole["b"][name] for name in ("f1", "coverage")}
    assert len(server.bodies) - asked == 12 - 5 + 1
    with pytest.raises(ValueError, match="holds verdicts of another judge, data or sampling"):
        main(Arguments(data=arguments.data, urls=(server.url,), model=MODEL, out=tmp_path / "out", rows=5))


def test_unknown_verdicts_are_counted_and_never_sound(judge, tmp_path):
    server = judge(lambda handler, number: handler.send(200, said("I see nothing wrong.")))
    scores = main(Arguments(data=(bench(tmp_path / "b.json"),), urls=(server.url,), model=MODEL, out=tmp_path / "out"))
    assert scores["b"]["unknown"] == {"no_box": 12}
    assert all(scores["b"][name]["value"] == 0.0 for name in ("f1", "flawed_f1", "correct_accuracy", "coverage"))


def test_reference_answers_are_shown_where_they_are_known(judge, tmp_path):
    server = judge()
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"problem": "Sum 3?", "answer": "42"}) + "\n")
    out = {"urls": (server.url,), "model": MODEL, "data": (bench(tmp_path / "b.json", 4),)}
    main(Arguments(**out, out=tmp_path / "standard"))
    assert not any("[Reference answer]" in body["messages"][0]["content"] for body in server.bodies)
    main(Arguments(**out, out=tmp_path / "assisted", references=str(answers)))
    assert sum("[Reference answer]\n\n42" in body["messages"][0]["content"] for body in server.bodies) == 1


def test_mistakes_end_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        command(
            main, Arguments, ["--data", str(tmp_path / "none.json"), "--urls", "http://127.0.0.1:1", "--model", "x", "--out", str(tmp_path)]
        )
    assert ended.value.code == 2 and "no such file" in capsys.readouterr().err


def test_only_so_many_questions_are_held(monkeypatch):
    """The next are asked when those before have been answered; all at once they would fill memory with their texts."""
    monkeypatch.setattr(evaluate, "AT_ONCE", 2)
    asked: list[str] = []

    class Judge:
        def critique(self, problem: str, steps: list[str], reference: str | None) -> Future:
            asked.append(problem)
            return done(Verdict.sound())

    said = evaluate.answers(Judge(), [(name, (name, ["1"], None)) for name in "abcde"])  # type: ignore[arg-type]
    first = next(said)
    assert asked == ["a", "b"] and first[1] == Verdict.sound()
    assert {first[0], *(name for name, _ in said)} == set("abcde") and asked == [*"abcde"]
