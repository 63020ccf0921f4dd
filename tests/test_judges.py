"""The judge of a run: its places over ranks, its metrics over ranks, and what is refused before anything is loaded."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from soundrl.engine.judging import judges
from soundrl.engine.ranks import Ranks
from soundrl.engine.recipes import RECIPES
from soundrl.fapo.rewards import RewardSettings
from soundrl.fapo.task import ReasoningTask


def ranks(rank: int, size: int) -> Ranks:
    return Ranks(rank, size, torch.device("cpu"), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("concurrency", "size"), [(64, 1), (64, 32), (128, 6), (3, 2), (2, 8), (1, 1)])
def test_places_are_divided_over_ranks_and_none_is_lost(concurrency, size):
    places = [judges.places(concurrency, rank, size) for rank in range(size)]
    assert sum(places) == max(concurrency, size) and max(places) - min(places) <= 1 and min(places) >= 1


def test_metrics_of_all_ranks_are_one():
    names = ("genrm/requests", "genrm/alive", "genrm/latency_p99", "genrm/replies", "genrm/critique_tokens")
    first = dict(zip(names, (3.0, 0.0, 1.0, 3.0, 10.0), strict=True)) | {"genrm/probe_f1": 0.5}
    second = dict(zip(names, (4.0, 2.0, 2.0, 1.0, 30.0), strict=True)) | {"genrm/unknown_empty": 1.0}
    both = dict(zip(names, (7.0, 2.0, 2.0, 4.0, 15.0), strict=True))  # of four replies, not of two ranks
    assert judges.over_ranks([first, second]) == both | {"genrm/probe_f1": 0.5, "genrm/unknown_empty": 1.0}
    assert judges.over_ranks([{}, {}]) == {}


def served(tmp_path, **genrm):
    config = RECIPES["arith-genrm"]()
    return dataclasses.replace(config, genrm=dataclasses.replace(config.genrm, model=str(tmp_path), **genrm))


URLS = {  # which several machines can ask
    "http://127.0.0.1:8000/v1": False,
    "http://0.0.0.0:8000": False,
    "http://localhost:8000": False,
    "https://judges.localhost": False,
    "http://[::1]:8000/v1": False,
    "http://127.1:8000": False,
    "http://10.0.0.5:8000/v1": True,
    "https://judges.example": True,
}


@pytest.mark.parametrize("url", URLS)
def test_a_judge_on_loopback_is_for_one_machine_alone(url):
    for hosts in (["a"], ["a", "a"], ["a", "b"]):
        rank = SimpleNamespace(gather=lambda host, hosts=hosts: hosts)
        if len(set(hosts)) == 1 or URLS[url]:
            judges.check_reached_by_all([url], rank)
            continue
        with pytest.raises(ValueError, match="is each machine's own loopback, but the run has ranks on 2; give an address") as caught:
            judges.check_reached_by_all(["http://10.0.0.5/v1", url], rank)
        assert url in str(caught.value)


def test_a_judge_too_short_for_question_and_critique_is_not_started(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 143}))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="genrm.model takes 143 tokens, .* lower genrm.max_tokens to 63,"):
        judges.serve(served(tmp_path), ranks(0, 1), sleeps=False)


def test_a_rank_that_waits_for_another_ranks_verdicts_outlives_every_deadline(tmp_path):
    """A step's verdicts, then those of a probe, each up to the second deadline; the ranks without one stand in a collective meanwhile."""
    config = served(tmp_path, deadline=(300.0, 7200.0))
    assert config.longest_wait > 2 * 7200.0 and RECIPES["fapo-7b"]().longest_wait > 2 * 3600.0
    assert RECIPES["arith"]().longest_wait == RECIPES["grpo-7b"]().longest_wait == 1800.0  # nobody to wait for
    for deadline in ((300.0, float("inf")), (float("nan"), 300.0), (300.0, 200.0)):
        with pytest.raises(ValueError, match="genrm.deadline is"):
            served(tmp_path, deadline=deadline)


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_a_dead_judge_ends_no_run_in_which_verdicts_change_nothing(lam):
    settings = RewardSettings(lam=lam, normalize_std=True, max_new_tokens=9, overlong_buffer=0, overlong_factor=1.0, drop_unknown=True)
    task = ReasoningTask(None, None, settings, max_unknown=0.2)  # type: ignore[arg-type]
    stopped = False
    try:
        for step in range(1, 5):
            task.watch(step, {"genrm/unknown": 1.0, "genrm/alive": 0.0})
    except RuntimeError:
        stopped = True
    assert stopped is (lam > 0)
