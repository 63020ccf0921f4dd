"""The earliest checkpoint within a set distance of the best: by rule, from evaluations that are there, and one that is really served."""

import json
import shutil

import pytest
from conftest import ROOT

from soundrl.engine.recipes import ARITH_SOLUTIONS
from soundrl.genrm import evaluate
from soundrl.genrm.selection import Arguments, Checkpoint, choose, main


def checkpoint(step: int, f1: float, tokens: float = 100.0) -> Checkpoint:
    return Checkpoint(step=step, f1=f1, flawed_f1=f1, coverage=1.0, tokens=tokens, seconds=1.0)


RUN = [checkpoint(30, 0.82, 300), checkpoint(10, 0.70, 100), checkpoint(20, 0.815, 200), checkpoint(40, 0.80, 900)]


@pytest.mark.parametrize(("distance", "step"), [(0.0, 30), (0.01, 20), (0.2, 10)])
def test_the_earliest_within_the_distance(distance, step):
    assert choose(RUN, distance).step == step


@pytest.mark.parametrize(("tokens", "step"), [(0, 20), (250, 20), (200, 20), (199, 10)])
def test_of_those_whose_critiques_are_short_enough(tokens, step):
    """The best is looked for among them: at 199 tokens only step 10 is left."""
    assert choose(RUN, 0.01, tokens).step == step


def test_what_cannot_be_chosen_from():
    with pytest.raises(ValueError, match="no checkpoint"):
        choose([], 0.1)
    with pytest.raises(ValueError, match="would exclude the best"):
        choose(RUN, -0.1)
    with pytest.raises(ValueError, match=r"--mean-tokens 99 excludes every checkpoint; .* step 10's with 100 tokens: raise it, or train"):
        choose(RUN, 0.01, 99)


def test_a_run_that_is_evaluated_already_is_only_read(tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    for step, f1 in ((10, 0.5), (20, 0.9)):
        (run / "policy" / f"step-{step:06d}").mkdir(parents=True)
        (out / f"step-{step:06d}").mkdir(parents=True)
        measure = {"value": f1, "low": 0.0, "high": 1.0}
        scores = {"all": {"average_f1": f1, "flawed_f1": measure, "coverage": measure, "tokens": 9.0, "seconds": 0.1}}
        asked = evaluate.Arguments(data=(ARITH_SOLUTIONS,), urls=(), model=f"run-step-{step:06d}", out=out, rows=9)
        made_from = evaluate.stamp(asked, evaluate.read_data(asked))
        (out / f"step-{step:06d}" / "scores.json").write_text(json.dumps({"made_from": made_from, "scores": scores}))
    assert main(Arguments(run=run, data=(ARITH_SOLUTIONS,), out=out, rows=9)).step == 20
    assert json.loads((out / "selection.json").read_text())["chosen"] == 20
    assert "chosen" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is no model folder"):  # other rows: served anew, were these real checkpoints
        main(Arguments(run=run, data=(ARITH_SOLUTIONS,), out=out, rows=8))
    for file in out.glob("*/scores.json"):  # and so is one that a server's fault left unfinished
        file.write_text(json.dumps(json.loads(file.read_text()) | {"unfinished": {"http_5xx": 3}}))
    with pytest.raises(ValueError, match="is no model folder"):
        main(Arguments(run=run, data=(ARITH_SOLUTIONS,), out=out, rows=9))
    with pytest.raises(ValueError, match="holds no policy"):
        main(Arguments(run=tmp_path, data=(ARITH_SOLUTIONS,), out=out))


def test_a_checkpoint_is_really_served(tmp_path, capsys):
    """Of two steps one is known, and only read; the other is the committed judge, served by vLLM."""
    run, out = tmp_path / "run", tmp_path / "out"
    for step in (1, 2):
        shutil.copytree(ROOT / "starts" / "judge", run / "policy" / f"step-{step:06d}")
    arguments = Arguments(
        run=run, data=(ARITH_SOLUTIONS,), out=out, rows=20, max_tokens=64, dtype="float32", eager=True, concurrency=16, mean_tokens=64
    )
    (out / "step-000001").mkdir(parents=True)
    asked = evaluate.Arguments(data=arguments.data, urls=(), model="run-step-000001", out=out, rows=20, max_tokens=64)
    measure = {"value": 0.5, "low": 0.0, "high": 1.0}
    scores = {"all": {"average_f1": 0.5, "flawed_f1": measure, "coverage": measure, "tokens": 9.0, "seconds": 0.1}}
    known = {"made_from": evaluate.stamp(asked, evaluate.read_data(asked)), "scores": scores}
    (out / "step-000001" / "scores.json").write_text(json.dumps(known))
    chosen = main(arguments)
    assert chosen.step == 2 and chosen.f1 > 0.7 and chosen.coverage == 1 and 15 < chosen.tokens < 60
    verdicts = [json.loads(line) for line in (out / "step-000002" / "verdicts.jsonl").read_text().splitlines()[1:]]
    assert len(verdicts) == 20 and all("\\boxed{" in verdict["critique"] for verdict in verdicts)  # witness: it was asked
    assert not (out / "step-000001" / "verdicts.jsonl").exists()
