"""A run that was stopped in the middle of a step goes on, and equals one that was not, bit for bit. Kills, of every part at every point:
`make kill-matrix`, under the real launcher."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import killed
import killed_make
import pytest
import torch
from conftest import ROOT
from points import found
from safetensors.torch import load_file
from survival import SMALL, assert_equal, everything

from soundrl.engine.files.run_folder import FREE, differences, goes_on
from soundrl.engine.files.run_reader import RunReader
from soundrl.engine.launch.launch import parse_arguments
from soundrl.engine.recipes import arith
from soundrl.engine.tools.recomputed import Recomputed

REFILL = (
    *("--rollout.samples", 3, "--rollout.refill", 400, "--loss.kl", 0.01, "k3", "asleep"),
    *("--data.train", "tests/workers/few.py:Few", "--data.difficulty", "length", 1),
)
"""Steps whose prompts, and whose loss, hang on more than themselves."""


def on_two_ranks(folder: Path, *settings: Any, kill: str = "") -> dict:
    """For `workers/forked_runs.py`; the run is `folder`/arith."""
    return {"ranks": 2, "line": ["arith", *map(str, settings), "--run.folder", str(folder)], "kill": kill}


@pytest.fixture(scope="module")
def uninterrupted(torchrun_once, tmp_path_factory) -> dict:
    """Without overlap."""
    folder = tmp_path_factory.mktemp("whole")
    (ended,) = torchrun_once("forked_runs", 1, runs=[on_two_ranks(folder, *SMALL, *REFILL, "--run.no-overlap")])
    assert ended["statuses"] == [0, 0], ended
    return everything(folder / "arith") | {"folder": folder / "arith"}


def test_its_steps_are_replayed(uninterrupted):
    """On two ranks, with groups that were replaced, prompts that come less often, epochs that end in a step, and every sample trained."""
    folder, replaced = uninterrupted["folder"], 0
    for number in RunReader(folder).steps():
        step = Recomputed(folder, number)
        for check in (step.check_rewards, step.check_figures, step.check_packing):
            check()
        assert step.found.differs == [] == step.found.left_out and len(step.found.equal) == 5
        assert all(words in step.found.equal[4] for words in ("2 mini-batches, ", ", 2 ranks: tokens/trained "))
        replaced += len(step.saved.replaced)
    assert number == 5 and replaced > 5  # witness


def test_a_run_that_is_killed_and_stopped_goes_on_from_there(uninterrupted, torchrun, tmp_path):
    """Killed while groups of step 2 are refilled, then, behind steps that are trained once more, stopped between two optimizer steps; with
    weights and moments on the host, with weights there while it samples, and with neither."""
    steps = [row for row in uninterrupted["metrics"] if "refill/groups" in row]
    sampled = 1 + steps[0]["refill/rounds"]  # how often step 1 has sampled
    ways = ("--model.save-memory", "offload", "moments")  # which change no bit, and may be others when the run goes on
    settings, run = (*SMALL, *REFILL), tmp_path / "arith"
    interrupted = [
        on_two_ranks(tmp_path, *settings, *ways, kill=f"sampled,all,{sampled + 2:.0f}"),
        on_two_ranks(tmp_path, *settings, *ways[:2], kill="after an optimizer step,SIGTERM,5"),
    ]
    killed, stopped = torchrun("forked_runs", 1, runs=interrupted)
    assert killed["killed"] and -9 in killed["statuses"] and stopped == {"statuses": [0, 0], "killed": True}, (killed, stopped)
    log = tmp_path / "forked_runs-1.log"
    (line,) = (line for line in log.read_text().splitlines() if line.startswith("stopped by "))
    assert line.startswith("stopped by SIGTERM in step 3; kept: ") and "step-000002+1; the same command goes on: python " in line
    assert "Traceback" not in log.read_text()
    decided = json.loads((run / "checkpoints" / "step-000002+1" / "state.json").read_bytes())["silent"]
    assert len(decided) == 1 + steps[2]["refill/rounds"] and decided[0]
    (done,) = torchrun("forked_runs", 1, runs=[on_two_ranks(tmp_path, *settings)])
    assert done["statuses"] == [0, 0] and "step-000002+1: 2 of 5 steps are done" in log.read_text(), log.read_text()[-5000:]
    (state,) = (run / "checkpoints").glob("step-000004/state.json")
    assert json.loads(state.read_bytes())["stream"]["silent"]  # witness: some were to come less often
    assert sum(row["data/passed_over"] for row in steps) > 0
    assert_equal(everything(run), uninterrupted)
    assert steps[1]["refill/rounds"] > 0 < steps[2]["refill/rounds"]  # witness: where it was killed and stopped
    assert sum(row["refill/groups"] for row in steps) > 0
    assert {kind for _, kind, _, _ in uninterrupted["rollouts"]} == {"train", "replaced", "eval"}
    assert 0 < steps[0]["loss/kl_reference"] < 0.1 * steps[4]["loss/kl_reference"]  # it moves away from where it began


START, WARMED = "starts/policy", "policy/step-000000"
WARM = (
    *("--model.path", START, "--rollout.engine", "torch", "--data.test", "--warm-start.steps", 4),
    *("--warm-start.batch", 4, "--rollout.prompts", 2, "--optim.minibatch-prompts", 2, "--rollout.samples", 2),
    *("--rollout.max-new-tokens", 8, "--run.steps", 1),
)


def test_a_warm_start_that_is_stopped_goes_on(torchrun, tmp_path):
    """The signal comes to the second of two ranks, in step 2 and then in the last one; what led to step 0 goes when that is whole."""

    def warm(name: str, kill: str = "") -> dict:
        return on_two_ranks(tmp_path / name, *WARM, kill=kill)

    stops = [warm("stopped", "warm start,SIGTERM,2"), warm("stopped", "warm start,SIGTERM,2"), warm("stopped")]
    ended = torchrun("forked_runs", 1, runs=[warm("whole"), *stops])
    assert [one["statuses"] for one in ended] == [[0, 0]] * 4, ended
    assert [one["killed"] for one in ended] == [False, True, True, False]  # witness
    log = (tmp_path / "forked_runs-1.log").read_text()
    for step in (2, 4):
        kept = tmp_path / "stopped" / "arith" / "warm_start" / f"step-{step:06d}"
        words = f"stopped by SIGTERM after step {step} of the warm start; kept: {kept}; the same command goes on: "
        assert log.count(words) == 1, log[-5000:]
    assert "Traceback" not in log
    whole, stopped = (tmp_path / name / "arith" for name in ("whole", "stopped"))
    assert_equal(everything(stopped), everything(whole))
    warm, same, cold = (load_file(folder / "model.safetensors") for folder in (*(run / WARMED for run in (whole, stopped)), ROOT / START))
    assert all(torch.equal(tensor, same[name]) and not torch.equal(tensor, cold[name]) for name, tensor in warm.items())
    assert not (stopped / "warm_start").exists() and (stopped / "checkpoints" / "step-000001").is_dir()


def begun(folder: Path, config) -> Path:
    run = folder / "arith"
    (run / "checkpoints" / "step-000002").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"format": 2, **json.loads(json.dumps(config, default=vars))}))
    return run


def test_every_point_of_the_kills_that_take_long_is_there():
    """What `make kill-matrix` and `make genrm-kills` look for by name must not be moved away from under them."""
    of_make = [f"genrm.{place}" for _, place in killed_make.POINTS.values()]
    of_run = [place for point, place in killed.POINTS.items() if point != "checkpoint: old one half removed"]  # made by `arm`
    assert all(callable(getattr(*found(place))) for place in (*of_run, *of_make)) and len(of_run) > 20 < 10 + len(of_make)
    with pytest.raises(AttributeError, match="write_folder"):  # inverse
        found("engine.run:write_folder")


def test_who_goes_on(tmp_path, monkeypatch):
    config = arith()
    run = begun(tmp_path, config)
    assert goes_on(run, config)
    assert goes_on(run, replace(config, run=replace(config.run, steps=900), rollout=replace(config.rollout, memory=0.5)))
    anew = replace(config, run=replace(config.run, resume=False), fapo=replace(config.fapo, lam=0.5))
    assert not goes_on(run, anew)
    for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"):  # started again by a launcher: the same command must go on
        monkeypatch.setenv(name, "1")
        assert goes_on(run, replace(anew, fapo=config.fapo))
        monkeypatch.setenv(name, "0")
        assert not goes_on(run, anew)
    other = replace(config, fapo=replace(config.fapo, lam=0.5), run=replace(config.run, seed=3))
    with pytest.raises(ValueError, match=r"step-000002 of a run with run\.seed 0 \(now 3\), fapo\.lam 1\.0 \(now 0\.5\); give it"):
        goes_on(run, other)
    (run / "checkpoints" / "step-000002").rmdir()
    assert not goes_on(run, config)  # nothing was saved, and it is not under way: it moves aside
    (run / "underway").mkdir()
    (run / "underway" / "starts").write_text("1")
    assert not goes_on(run, other)
    assert goes_on(run, config)  # killed before its first checkpoint: from its beginning, with what was sampled
    (run / "config.json").write_text("{")
    assert not goes_on(run, config)


def test_what_may_change_is_a_setting_and_the_rest_is_compared():
    import dataclasses

    now = json.loads(json.dumps(dataclasses.asdict(arith())))
    names = {f"{group}.{name}" for group, settings in now.items() for name in settings}
    assert set(FREE) < names
    for group, settings in now.items():
        for name in settings:
            before = {g: {n: "x" if (g, n) == (group, name) else v for n, v in those.items()} for g, those in now.items()}
            assert [found for found, *_ in differences(before, now)] == ([] if f"{group}.{name}" in FREE else [f"{group}.{name}"])


def test_a_setting_that_an_older_run_did_not_have_was_what_it_is_by_default():
    import dataclasses

    def found(*more: str) -> list[tuple]:
        now = json.loads(json.dumps(dataclasses.asdict(parse_arguments(["arith", *more]))))
        before = {group: {k: v for k, v in settings.items() if k not in ("lam", "lora", "path")} for group, settings in now.items()}
        return list(differences(before, now))

    assert found() == [("model.path", "not there", "arith")]  # it has no default
    assert found("--fapo.lam", "0.5", "--model.lora", "4", "8", "")[1:] == [
        ("model.lora", [0, 32.0, ""], [4, 8.0, ""]),
        ("fapo.lam", 1.0, 0.5),
    ]
