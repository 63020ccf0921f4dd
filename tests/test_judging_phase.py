"""The serial phase on CPU: served judges that sleep, held-back questions, and a whole run through the main job."""

import itertools
import json
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
from conftest import run_worker
from fake_judge import MODEL, SERVED
from tiny import write_tiny

from soundrl.engine.judging.judging_phase import JudgingPhase
from soundrl.engine.telemetry.timeline import TIMELINE
from soundrl.fapo.pending import done
from soundrl.fapo.records import Outcome, Prompt, Rollout, Verdict
from soundrl.fapo.rewards import RewardSettings
from soundrl.fapo.task import ReasoningTask
from soundrl.genrm.pool.judge import EndpointJudge
from soundrl.genrm.serve.servers import TOKEN_ENV, JudgeServers, Serving, Worker

REWARDS = RewardSettings(lam=1.0, normalize_std=True, max_new_tokens=40, overlong_buffer=0, overlong_factor=1.0, drop_unknown=True)


class Alone:
    """A world of one."""

    device = torch.device("cpu")

    def sum(self, values: list[float]) -> list[float]:
        return values

    def barrier(self) -> None: ...


@pytest.fixture
def servers(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(Worker, "command", lambda self: [sys.executable, "-c", SERVED, str(Path(__file__).parent), str(self.port)])
    monkeypatch.setenv(TOKEN_ENV, "canary-81")
    with JudgeServers(Serving(model=tmp_path, name=MODEL), logs=tmp_path, sleeps=True) as servers:
        servers.wait(120)
        yield servers


def seen(servers: JudgeServers) -> list[str]:
    """What the server has seen since it was first asked, repetitions left out."""
    with urllib.request.urlopen(f"{servers.workers[0].root}/witness", timeout=1200) as reply:
        return [kind for kind, _ in itertools.groupby(json.load(reply))]


def collected(judge: EndpointJudge, sleeps: bool):
    task = ReasoningTask(
        lambda prompt, rollout: done(Outcome.CORRECT if rollout.sample % 2 else Outcome.WRONG),
        judge,
        REWARDS,
        deadline=20.0,
        judge_sleeps=sleeps,
    )
    prompts = [Prompt(id=name, text=f"What is {name}?", answer="4") for name in "ab"]
    rollouts = [
        Rollout(
            prompt_id=prompt.id,
            sample=i,
            prompt_tokens=(1,),
            tokens=(2,),
            logprobs=(-1.0,),
            text=f"Sum {i}.\n\n{'2+2=5' if i == 1 else '2+2=4'}",
            finish_reason="stop",
            policy_version=0,
        )
        for prompt in prompts
        for i in range(4)
    ]
    return task.collect(prompts, rollouts)


def test_judges_wake_are_asked_and_sleep(servers):
    with EndpointJudge(servers.urls, MODEL, deadline=20.0) as judge:
        phase = JudgingPhase(judge, servers, Alone())
        TIMELINE.begin(0)
        with TIMELINE("step"):
            with TIMELINE("generate"):
                pending = collected(judge, sleeps=True)
            assert seen(servers) == ["asked", "sleep?level=1"] and phase.needed(pending) and pending.questions == 4
            with pytest.raises(AssertionError, match="questions are held back"):
                pending.groups()
            assert phase(pending, lambda: {"probe": float(len(seen(servers)))}) == {"probe": 4.0}  # asked before it sleeps again
            groups = pending.groups()
            assert not phase.needed(pending)
            with TIMELINE("train"):
                pass
        assert [[v and v.kind for v in group.verdicts] for group in groups] == [[None, "flawed", None, "sound"]] * 2
        assert seen(servers) == ["asked", "sleep?level=1", "wake_up", "asked", "sleep?level=1"]
        assert len(pending.calls()) == 4 and TIMELINE.judged(pending.calls(), Alone()) == {"genrm/overlap": 0.0}
    phases = [event["name"] for event in TIMELINE.drain() if event["cat"] == "phase"]
    assert phases == ["generate", "judge_wake", "judge_wait", "judge_sleep", "train", "step"]


def test_who_holds_nothing_back_asks_a_sleeping_judge(servers):
    """Inverse of the above: the same rollouts, asked for at once."""
    with EndpointJudge(servers.urls, MODEL, deadline=1.0, attempts=1) as judge:
        JudgingPhase(judge, servers, Alone())
        (group, _) = collected(judge, sleeps=False).groups()
        assert seen(servers) == ["asked", "sleep?level=1", "asked in its sleep"]
        assert group.verdicts[1] == Verdict.unknown("http_5xx")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("runs")
    tests, judge = str(Path(__file__).parent), str(write_tiny(folder / "judge"))
    return run_worker(folder, "serial_run", 2, folder=str(folder), tests=tests, judge=judge)


def test_a_run_with_a_serial_phase_computes_the_same(runs):
    """Both runs through the main job on two ranks, with a server that answers 503 in its sleep, probes and evaluations judged by it."""
    serial, overlapped = runs["serial"], runs["overlapped"]
    assert serial["parameters"] == overlapped["parameters"]
    names = ("loss/policy", "optim/grad_norm", "reward/mean", "fapo/flawed_ratio", "genrm/unknown", "genrm/probe_f1", "genrm/alarm")
    names += ("genrm/second_count", "genrm/second_agreement", "genrm/second_unknown")
    for ours, theirs in zip(serial["steps"], overlapped["steps"], strict=True):
        assert [ours[name] for name in names] == [theirs[name] for name in names] and ours["genrm/unknown"] == 0.0
        assert ours["genrm/second_count"] > 0.0 == ours["genrm/second_unknown"] and ours["genrm/second_agreement"] == 1.0  # one judge
        assert ours["genrm/overlap"] == 0.0 < theirs["genrm/overlap"] <= 1.0
        assert min(ours["time/judge_wake"], ours["time/judge_sleep"]) > 0.0 and "time/judge_wake" not in theirs
    measures = [[{k: v for k, v in row.items() if k.startswith("eval/")} for row in run["evaluations"]] for run in (serial, overlapped)]
    assert measures[0] == measures[1] and "eval/arith-test-p2/flawed_ratio" in serial["evaluations"][0]


def test_its_judge_is_asked_awake_alone_and_the_run_says_so(runs):
    turn = ["wake_up", "asked", "sleep?level=1"]
    # An evaluation before and after, and two steps between them.
    assert runs["serial"]["witness"] == ["asked", "sleep?level=1", *turn * 4]
    assert runs["overlapped"]["witness"] == ["asked"]
    assert runs["serial"]["said"].count("judge: serial phase (small GPU)") == 1 and "serial" not in runs["overlapped"]["said"]
