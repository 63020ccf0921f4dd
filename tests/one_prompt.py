"""One prompt, the whole bar: 1,000 rows of every wording, and an outcome judge trained end to end (make one-prompt)."""

import json

import pytest
from test_one_prompt import endpoint, same_tokens

from soundrl.engine.files.run_reader import RunReader

__all__ = ["endpoint"]


@pytest.mark.parametrize("name", ["own", "paper", "outcome", "order"])
def test_a_thousand_rows(endpoint, tmp_path, name):  # noqa: F811 — pytest's way to ask for it
    same_tokens(endpoint, tmp_path, name, 1000)


def test_an_outcome_judge_is_trained_exported_and_told_by_its_folder(train, tmp_path):
    small = ("--warm-start.steps", 2, "--run.steps", 1, "--data.test-rows", 4, "--rollout.prompts", 4, "--rollout.samples", 2)
    arguments = ("genrm-arith", *small, "--optim.minibatch-prompts", 4, "--rollout.engine", "torch", "--run.folder", tmp_path)
    done = train(*arguments, "--run.task", "critic-outcome", "--genrm.prompt", "outcome", NPROC="1")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    run = RunReader(tmp_path / "genrm-arith")
    rollouts = run.rollouts(1)
    assert len(rollouts) == 8 and all(r["prompt"].endswith("(i.e., True or False) in \\boxed{}.") for r in rollouts)
    for folder in ("policy/step-000000", "policy/step-000001", "checkpoints/step-000001/model"):
        assert json.loads((run.path / folder / "card.json").read_text()) == {"prompt": "outcome"}
