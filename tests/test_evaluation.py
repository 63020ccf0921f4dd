"""The command that evaluates a policy: a folder by the torch sampler, endpoints and judges by scripted servers on loopback, and refusals.
What is killed in mid sampling and goes on is in tests/test_weight_sync.py, where vLLM runs already."""

import json
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, apart
from fake_judge import MODEL, Server, find_flaw, hang, said
from fork_server import fork

from soundrl.engine.evaluate import Evaluation, main
from soundrl.engine.evaluation import sets
from soundrl.engine.evaluation.again import agreement
from soundrl.engine.evaluation.arguments import Arguments
from soundrl.engine.evaluation.kept import lacking
from soundrl.engine.evaluation.local import Local
from soundrl.engine.evaluation.protocol import settled
from soundrl.engine.files.rollout_file import read_file
from soundrl.engine.files.run_reader import RunReader
from soundrl.engine.samplers.sampler import Draw
from soundrl.fapo.records import Rollout, Verdict
from soundrl.genrm.evaluate import command
from soundrl.genrm.pool import scorer

HERE = {"model": "starts/policy", "engine": "torch", "data": ("arith",), "rows": 6, "samples": 3, "max_new_tokens": 60, "judge": "oracle"}
FILE = "rollouts/step-000000/rank-0.eval-arith-test.arrows"


def run(**arguments):
    return main(Arguments(**arguments))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "eval-a"
    return out, run(**HERE, out=out)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(scorer, "FIRST_PAUSE", 0.01)
    servers: list[Server] = []

    def start(script):
        servers.append(Server(script))
        return servers[-1]

    yield start
    for one in servers:
        one.stop()


def test_a_run_reader_reads_what_was_scored(evaluated):
    out, found = evaluated
    reader = RunReader(out)
    assert reader.steps("eval") == [0] and reader.steps() == []
    rows = reader.rollouts(0, "eval", "arith-test")
    assert [(row["prompt_id"], row["sample"]) for row in rows] == [(f"arith-test:0:{i}", k) for i in range(6) for k in range(3)]
    right = [row for row in rows if row["outcome"] == "correct"]
    scores = found["sets"]["arith-test"]
    assert 0 < len(right) < 18 and scores["figures"]["accuracy"]["value"] == pytest.approx(len(right) / 18)
    assert {row["verdict"]["kind"] for row in right} == {"sound", "flawed"} and scores["n"] == 3 and scores["problems"] == 6
    assert reader.metrics()[0]["eval/arith-test/accuracy"] == scores["figures"]["accuracy"]["value"]
    assert found["made_from"]["model"]["sha256"] and json.loads((out / "scores.json").read_text()) == found


def test_the_same_bits_again_and_what_is_there_is_not_sampled(evaluated, tmp_path, monkeypatch):
    out, found = evaluated
    assert run(**HERE, out=tmp_path / "eval-b") == found
    whole = (tmp_path / "eval-b" / FILE).read_bytes()
    assert whole == (out / FILE).read_bytes()
    asked = []
    monkeypatch.setattr(Local, "_started", lambda *_: asked.append(1))
    assert run(**HERE, out=tmp_path / "eval-b") == found and asked == []  # nothing starts
    assert (tmp_path / "eval-b" / FILE).read_bytes() == whole
    for change, named in {
        "samples": "sets.arith-test.samples 3 (now 4)",
        "seed": "sampling.seed 0 (now 4)",
        "rows": "sets.arith-test.rows 6 (now 4)",
    }.items():
        with pytest.raises(ValueError, match="is an evaluation with") as refused:
            run(**HERE | {change: 4}, out=tmp_path / "eval-b")
        assert named in str(refused.value)
    assert run(compare=(out, tmp_path / "eval-b"))["arith-test"]["accuracy"]["value"] == 0.0


def test_requests_that_are_sampled_together_are_lacking_together():
    draw = Draw(run_seed=0, phase="eval", step=0, temperature=1.0, max_new_tokens=4)
    requests = draw.requests([(id_, np.array([1])) for id_ in "pq"], 2)
    known: dict[tuple[str, int], Any] = dict.fromkeys([("p", 1), ("q", 0), ("q", 1)])
    alone, together = known.copy(), known.copy()
    assert [(r.prompt_id, r.sample) for r in lacking(requests, alone, 1)] == [("p", 0)] and len(alone) == 3
    assert [(r.prompt_id, r.sample) for r in lacking(requests, together, 2)] == [("p", 0), ("p", 1)] and len(together) == 2


def test_another_judge_judges_again_and_is_asked_for_what_it_has_not_said(evaluated, server, capsys):
    out, _ = evaluated
    rows = [row for name in ("arith-test", "arith-test-p2") for row in RunReader(out).rollouts(0, "eval", name) if row["verdict"]]
    truth = Counter(row["verdict"]["kind"] for row in rows)
    down = server(
        lambda handler, number: find_flaw(handler, number) if "1+1=" in str(handler.body) and number < 1 else handler.send(500, {})
    )
    again = {"judge_again": out, "judge_model": MODEL, "judge_name": "scripted", "deadline": 5.0}
    unfinished = run(**again, judge_urls=(down.url,))["unfinished"]
    assert sum(unfinished.values()) == len(rows) and "asks for them again" in capsys.readouterr().err
    up = server(find_flaw)
    found = run(**again, judge_urls=(up.url,))
    assert found["unfinished"] == {} and found["sets"]["arith-test"]["figures"]["flawed_ratio"]["value"] == 0.0
    table = found["agreement"]["the run's own"]
    assert table["table"] == [truth["sound"], 0, truth["flawed"], 0] and table["n"] == len(rows) and table["kappa"] == 0.0
    asked = len(up.bodies)
    assert run(**again, judge_urls=(up.url,))["agreement"] == found["agreement"] and len(up.bodies) == asked + 1  # the trial alone
    oracle = run(judge_again=out, judge="oracle")
    assert oracle["agreement"]["the run's own"]["share"] == 1.0 and oracle["agreement"]["scripted"]["n"] == len(rows)
    assert sum(part["n"] for part in oracle["agreement"]["scripted"]["sets"].values()) == len(rows)
    assert {p.parent.name for p in (out / "judged").glob("*/step-000000-eval")} == {"scripted", "oracle"}


def test_a_flawed_share_is_corrected_for_the_judge_s_errors(evaluated, server, tmp_path):
    """By those that its own evaluation has counted; where the environment knows the truth, by those on these very rollouts."""
    out, _ = evaluated
    judge, errors = server(find_flaw), {"found": 18, "flawed": 20, "alarms": 1, "sound": 20}
    (tmp_path / "scores.json").write_text(json.dumps({"scores": {"all": {"errors": errors}}}))
    asks = {"judge_urls": (judge.url,), "judge_model": MODEL}
    again = run(judge_again=out, judge_name="corrected", judge_errors=tmp_path, **asks)["sets"]["arith-test"]["figures"]
    assert again["flawed_ratio"]["value"] == again["flawed_corrected"]["value"] == 0.0 and again["flawed_corrected"]["high"] > 0.05
    with pytest.raises(ValueError, match="holds no scores of a judge"):
        run(judge_again=out, judge_errors=tmp_path / "nowhere", **asks)
    here = HERE | {"judge": "endpoint", "rows": 4, "samples": 2}
    told = run(**here, **asks, out=tmp_path / "b")["sets"]["arith-test"]["judge"]
    rows = [row for row in RunReader(out).rollouts(0, "eval", "arith-test") if row["verdict"]]  # the same, by their seeds; the oracle's
    truth = Counter(row["verdict"]["kind"] for row in rows if row["sample"] < 2 and row["prompt_id"] < "arith-test:0:4")
    assert told["errors"] == {"found": 0, "flawed": truth["flawed"], "alarms": 0, "sound": truth["sound"]} and truth.total() == told["told"]


def test_a_step_of_a_training_run_is_judged_again(evaluated, tmp_path):
    """Its rollouts stand in a file of another name, and its configuration says whose they are."""
    out, _ = evaluated
    step = tmp_path / "run" / "rollouts" / "step-000003"
    step.mkdir(parents=True)
    shutil.copy(out / FILE, step / "rank-0.arrows")
    config = json.loads((out / "config.json").read_text())
    del config["evaluation"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    found = run(judge_again=tmp_path / "run", judge="oracle")
    right = [row for row in RunReader(tmp_path / "run").rollouts(3) if row["outcome"] == "correct"]
    assert found["made_from"]["step"] == 3 and found["made_from"]["kind"] == "train"
    assert found["agreement"]["the run's own"]["n"] == len(right) and found["agreement"]["the run's own"]["share"] == 1.0
    with pytest.raises(ValueError, match=r"has no rollouts of step 7 \(train\); steps that it has: 3"):
        run(judge_again=tmp_path / "run", judge="oracle", step=7)


def test_agreement_is_of_those_with_two_verdicts():
    one = {"s/a/0": Verdict.sound(), "s/a/1": Verdict.flawed(1), "s/b/0": Verdict.unknown("no_box"), "s/b/1": Verdict.flawed(0)}
    found = agreement(one, {name: Verdict.flawed(1) for name in one})
    assert (found["n"], found["unknown"], found["table"]) == (3, 1, [0, 1, 0, 2])
    assert found["share"] == pytest.approx(2 / 3) and found["low"] <= 2 / 3 <= found["high"] and found["same_step"] == 0.5
    assert agreement({}, {})["n"] == 0
    with pytest.raises(ValueError, match="nothing is no run's folder"):
        run(judge_again=Path("nothing"), judge="oracle")


PROBLEMS = {"2+2": "4", "3+3": "6", "5+5": "10"}


def problems(path: Path) -> str:
    path.write_text("".join(json.dumps({"problem": f"What is {q}?", "answer": a}) + "\n" for q, a in PROBLEMS.items()))
    return str(path)


class Odd:
    """Answers in order of the questions, as one is asked after the other; `mended`: nothing fails any more."""

    def __init__(self) -> None:
        self.seeds: dict[str, list[int]] = {q: [] for q in PROBLEMS}
        self.mended = False

    def __call__(self, handler, number) -> None:
        body = handler.body
        asked = body["messages"][-1]["content"]
        q = next((q for q in PROBLEMS if q in asked), "")
        if not q:
            handler.send(200, said("2", "length"))  # the trial
            return
        if body["seed"] not in self.seeds[q]:
            self.seeds[q].append(body["seed"])
        place = self.seeds[q].index(body["seed"])
        if (q, place) == ("3+3", 1) and not self.mended:
            handler.send(500, {})
            return
        right = f"So {q}={PROBLEMS[q]}.\n\n\\boxed{{{PROBLEMS[q]}}}"
        odd = {0: said(None), 1: said("5+", "length"), 2: said("\ud800 é 𝄞 <|im_end|> \x00\n\n" + right)}
        answer = odd[place] if q == "5+5" else said(right)
        handler.send(200, answer | {"usage": {"completion_tokens": 7}})


def test_an_endpoint_s_odd_replies_are_counted_apart_and_errors_asked_again(server, tmp_path, capsys):
    script = Odd()
    up, judge = server(script), server(find_flaw)
    asks = {"model": MODEL, "urls": (up.url,), "data": (problems(tmp_path / "sums.jsonl"),), "samples": 3, "concurrency": 1}
    asks |= {"temperature": 0.7, "max_new_tokens": 64, "out": tmp_path / "served", "judge_urls": (judge.url,), "judge_model": MODEL}
    scores = run(**asks)["sets"]["sums"]
    assert scores["errors"] == {"error http_5xx": 1} and scores["empty"] == 1 and scores["rollouts"] == 9
    figures = scores["figures"]
    assert figures["accuracy"]["value"] == pytest.approx((3 + 2 + 1) / 9)  # what was lost counts as wrong
    assert figures["cut"]["value"] == pytest.approx(1 / 9) and figures["tokens"]["value"] == pytest.approx(8 * 7 / 9)
    assert figures["sound"]["value"] == figures["accuracy"]["value"] and "asks for them again" in capsys.readouterr().err
    rows = RunReader(tmp_path / "served").rollouts(0, "eval", "sums")
    assert [row["finish_reason"] for row in rows] == ["stop", "stop", "stop", "stop", "error http_5xx", "stop", "stop", "length", "stop"]
    assert rows[8]["text"].startswith("? é 𝄞") and rows[0]["tokens"] == [-1] * 7
    assert (up.bodies[-1]["temperature"], up.bodies[-1]["max_tokens"]) == (0.7, 64) and len({tuple(s) for s in script.seeds.values()}) == 3
    script.mended, asked = True, len(up.bodies)
    scores = run(**asks)["sets"]["sums"]
    assert scores["errors"] == {} and scores["figures"]["accuracy"]["value"] == pytest.approx(7 / 9)
    assert [body["seed"] for body in up.bodies[asked:] if "seed" in body] == [script.seeds["3+3"][1]]
    assert "return_token_ids" not in up.bodies[-1]  # this server gives none


@pytest.mark.parametrize(("number", "concurrency"), [(signal.SIGTERM, 1), (signal.SIGINT, 4)])
def test_a_stop_is_said_and_what_has_come_is_kept(number, concurrency, server, tmp_path):
    """SIGTERM is how a scheduler takes a machine back."""

    def answers_five(handler, number) -> None:
        if sum("seed" in body for body in up.bodies) > 5:
            hang(handler, number)
        else:
            handler.send(200, said("\\boxed{4}"))

    up, log, out = server(answers_five), tmp_path / "log", tmp_path / "out"
    words = ["--model", MODEL, "--urls", up.url, "--data", problems(tmp_path / "sums.jsonl"), "--samples", "3"]
    words += ["--concurrency", str(concurrency), "--out", str(out)]
    process = fork(ROOT / "engine" / "evaluate.py", words, apart(), log)
    while sum("seed" in body for body in up.bodies) < 5 + concurrency:  # none of those that hang is sent before an earlier one has come
        assert process.is_alive(), log.read_text()
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 130 and "stopped; what has come is kept, and the same command goes on" in log.read_text()
    assert "Traceback" not in log.read_text()
    (kept,) = out.glob("underway/sums/step-000000/*.arrows")
    assert len(read_file(kept)[0]) == 5


class Slow:
    """A policy of whom nothing is taken before a stop: its replies have come, and Ctrl-C is pressed while the first is written."""

    remote = True

    def __init__(self, rollouts: list[Rollout]) -> None:
        self.rollouts, self.come = rollouts, list[Rollout]()

    def sample(self, *_: object):
        try:
            yield self.rollouts[0]
        finally:
            self.come = self.rollouts


def test_a_stop_in_the_middle_of_a_write_comes_behind_it():
    written: list[tuple[str, int]] = []

    class Interrupted:
        def add(self, rollout: Rollout) -> None:
            if not written:
                signal.raise_signal(signal.SIGINT)  # between bytes
            written.append((rollout.prompt_id, rollout.sample))

        def flush(self) -> None:
            written.append(("flushed", len(written)))

    made = {"prompt_tokens": (), "tokens": (1,), "logprobs": (0.0,), "text": "4", "finish_reason": "stop", "policy_version": 0}
    rollouts = [Rollout(prompt_id="a", sample=n, **made) for n in range(3)]  # type: ignore[arg-type]
    evaluation = Evaluation.__new__(Evaluation)
    evaluation.policy, evaluation.judge = Slow(rollouts), None  # type: ignore[assignment]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        next(evaluation.sampled(None, None, [], Interrupted()))  # type: ignore[arg-type]
    assert written == [("a", 0), ("flushed", 1), ("a", 1), ("flushed", 3), ("a", 2), ("flushed", 5)]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_base_model_is_asked_without_chat_and_gives_its_token_ids(server, tmp_path):
    def completes(handler, number):
        assert "messages" not in handler.body and handler.path == "/v1/completions"
        choice = {"text": "58+7=65\n#5\n", "finish_reason": "stop", "token_ids": [1, 2, 3]}
        handler.send(200, {"model": MODEL, "choices": [choice], "usage": {"completion_tokens": 3}})

    up = server(completes)
    run(model=MODEL, urls=(up.url,), data=("arith",), rows=2, max_new_tokens=60, out=tmp_path / "plain")
    rows = RunReader(tmp_path / "plain").rollouts(0, "eval", "arith-test")
    assert up.bodies[-1]["return_token_ids"] and all(row["tokens"] == [1, 2, 3] and row["text"] for row in rows)


def test_servers_that_only_fail_end_it_and_nothing_is_lost(server, tmp_path, monkeypatch):
    from soundrl.engine.evaluation import served

    monkeypatch.setattr(served, "HOPELESS", 3)
    script = Odd()

    def fails(handler, number):
        script(handler, number) if number < 6 else handler.send(503, {})

    asks = {"model": MODEL, "data": (problems(tmp_path / "sums.jsonl"),), "samples": 3, "concurrency": 1, "out": tmp_path / "x"}
    with pytest.raises(ValueError, match=r"no server of --urls answers any more \({'error http_5xx': 3}\)"):
        run(**asks, urls=(server(fails).url,))
    script.mended, up = True, server(script)
    run(**asks, urls=(up.url,))
    assert 0 < sum("seed" in body for body in up.bodies) < 9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"samples": 0}, "--samples 0"),
        ({"temperature": 0.0}, "--temperature 0 gives one response"),
        ({"max_new_tokens": 500}, "leaves no room for a prompt in the context of starts/policy, 128 tokens"),
        ({"data": ("nowhere.jsonl",), "judge": "none"}, "nowhere.jsonl: no such file"),
        ({"data": ("arith", "arith")}, "--data names one set twice"),
        ({"data": ("aime24",), "data_dir": "/nonexistent", "judge": "none"}, "hf download --repo-type dataset HuggingFaceH4/aime_2024"),
        ({"data": ("EMPTY",), "judge": "none"}, "empty.jsonl: empty file"),
        ({"data": ("GONE",), "judge": "none"}, "gone.jsonl:1: prompt: 78 tokens, but the model's context − --max-new-tokens leaves 68"),
        ({"data": ("gsm8k.jsonl",)}, "--judge is oracle, which knows the embedded world only"),
        ({"model": "BARE"}, "has no tokenizer"),
        ({"model": "nothing"}, "--model nothing is no folder"),
        ({"judge": "endpoint"}, "--judge-urls is empty"),
        ({"verifier": "math"}, "--verifier math is for problem files"),
        ({"out": None}, "--out is missing"),
        ({"out": Path("setup.py/x")}, "Not a directory"),
        ({"judge_again": Path("nothing")}, "--data changes nothing for --judge-again"),
        ({"judge_votes": 3}, "--judge-votes changes nothing for a model folder, judge oracle"),
        ({"judge": "none", "judge_model": "m"}, "--judge-model m needs --judge-urls"),
        ({"urls": ("http://127.0.0.1:9/v1",)}, "--engine changes nothing for an endpoint"),
        ({"urls": ("http://127.0.0.1:9/v1",), "engine": "vllm", "data": ("arith-tools",), "judge": "none"}, "answers between the turns"),
        ({"urls": ("ftp://x",), "engine": "vllm", "judge": "none"}, "--urls: 'ftp://x' is not an http"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:20],
)
def test_what_cannot_be_evaluated_is_said_in_one_line(arguments, words, tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "reads_the_hub", lambda: False)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "gone.jsonl").write_text(json.dumps({"problem": "1+1?", "answer": "{{"}) + "\n")
    shutil.copytree("starts/policy", tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    places = {"EMPTY": str(tmp_path / "empty.jsonl"), "GONE": str(tmp_path / "gone.jsonl"), "BARE": str(tmp_path / "bare")}
    given = HERE | {"out": tmp_path / "out"} | arguments
    given |= {"model": places.get(given["model"], given["model"]), "data": tuple(places.get(name, name) for name in given["data"])}
    with pytest.raises(ValueError) as refused:
        run(**given)
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_the_command_line_and_a_set_s_name(tmp_path, capsys, server):
    (tmp_path / "data").mkdir()
    problems(tmp_path / "data" / "aime24.jsonl")
    script = Odd()
    script.mended = True
    words = ["--model", MODEL, "--urls", server(script).url, "--data", "aime24", "--data-dir", str(tmp_path / "data"), "--preset", "paper"]
    command(main, Arguments, [*words, "--samples", "2", "--max-new-tokens", "64", "--out", str(tmp_path / "named")])
    said_ = capsys.readouterr()
    assert (
        "3 problems, but it is published with 30" in said_.err and "temperature 1, top-p 0.7" in said_.err and f"| {MODEL} |" in said_.out
    )
    rows = RunReader(tmp_path / "named").rollouts(0, "eval", "aime24")
    assert [row["prompt_id"] for row in rows[::2]] == ["aime24:1", "aime24:2", "aime24:3"]  # wherever the file lies
    with pytest.raises(SystemExit):
        command(main, Arguments, ["--data", "aime24"])
    assert (
        capsys.readouterr().err
        == "error: --model is missing; an evaluation needs --model, --data and --out (or --judge-again, or --compare)\n"
    )


def test_presets_are_the_published_protocols():
    paper = settled("paper", None, None, None, None)
    assert (paper.samples, paper.temperature, paper.top_p, paper.max_new_tokens) == (32, 1.0, 0.7, 8192)
    assert paper.samples_of("gpqa-diamond") == 4 and settled("paper-32b", None, None, None, 100).max_new_tokens == 100
    assert settled("greedy", None, None, None, None).temperature == 0.0 and settled("", None, None, None, None).samples == 1
