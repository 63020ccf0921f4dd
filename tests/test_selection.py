"""The earliest checkpoint within a set distance of the best, from evaluations that are already there."""

import json

import pytest

from soundrl.engine.recipes import ARITH_SOLUTIONS
from soundrl.genrm import evaluate
from soundrl.genrm.selection import Arguments, Checkpoint, choose, main


def checkpoint(step: int, f1: float, tokens: float = 100.0) -> Checkpoint:
    return Checkpoint(step=step, f1=f1, flawed_f1=f1, coverage=1.0, tokens=tokens, seconds=1.0)


RUN = [checkpoint(30, 0.82, 300), checkpoint(10, 0.70, 100), checkpoint(20, 0.815, 200), checkpoint(40, 0.80, 900)]


@pytest.mark.parametrize(("distance", "step"), [(0.0, 30), (0.01, 20), (0.2, 10)])
def test_the_earliest_within_the_distance(distance, step):
    assert choose(RUN, distance).step == step


def test_what_cannot_be_chosen_from():
    with pytest.raises(ValueError, match="no checkpoint"):
        choose([], 0.1)
    with pytest.raises(ValueError, match="would exclude the best"):
        choose(RUN, -0.1)


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
