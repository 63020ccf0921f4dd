"""Metrics of a step, the watch on unknown verdicts, phases, and what the console says."""

import pytest

from soundrl.engine.run import due
from soundrl.engine.telemetry.console import between, clock, plain_words, shown
from soundrl.engine.telemetry.timeline import Timeline
from soundrl.engine.warm_start import learning_rate
from soundrl.fapo.data.prompt_stream import distinct
from soundrl.fapo.measures import TooManyUnknownError, Truth, UnknownWatch, count, rates
from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Verdict
from soundrl.fapo.rewards import RewardSettings, assign_advantages

STATES = {"s": (Outcome.CORRECT, Verdict.sound()), "f": (Outcome.CORRECT, Verdict.flawed(1)), "w": (Outcome.WRONG, None)} | {
    "u": (Outcome.CORRECT, Verdict.unknown("timeout")),
    "t": (Outcome.UNKNOWN, None),
    "c": (Outcome.CORRECT, None),
}


def group(states: str, name: str = "p") -> Group:
    rollouts = [
        Rollout(
            prompt_id=name,
            sample=i,
            prompt_tokens=(1, 2),
            tokens=(3,) * (i + 1),
            logprobs=(-0.1,) * (i + 1),
            text="",
            finish_reason="length" if s == "w" else "stop",
            policy_version=0,
        )
        for i, s in enumerate(states)
    ]
    made = Group(
        prompt=Prompt(id=name, text="?", answer="1"),
        rollouts=rollouts,
        outcomes=[STATES[s][0] for s in states],
        verdicts=[STATES[s][1] for s in states],
    )
    settings = RewardSettings(lam=1.0, normalize_std=True, max_new_tokens=9, overlong_buffer=0, overlong_factor=1.0, drop_unknown=True)
    assign_advantages([made], settings)
    return made


def test_metrics_of_a_small_batch_by_hand():
    metrics = rates(count([group("ssfw"), group("ffww"), group("uwtw"), group("ssss")], lam=1.0))
    assert metrics["reward/correct"] == 10 / 15  # of the outcomes that are known
    assert metrics["fapo/flawed_ratio"] == 3 / 9  # of the ten right ones one has no verdict
    assert metrics["genrm/unknown"] == 1 / 10
    assert metrics["fapo/rho"] == 6 / 5  # sound ÷ not correct
    assert metrics["fapo/past_shift"] == 2 / 4  # ssfw (ρ = 2) and ssss
    assert metrics["verify/unknown"] == 1 / 16
    assert metrics["tokens/response"] == 2.5
    assert metrics["tokens/cut"] == 5 / 16
    assert metrics["reward/mean"] == pytest.approx((2 + 0 - 1 + 0 - 2 - 2 + 4) / 14)  # of the kept: two have left
    assert metrics["reward/groups_with_signal"] == 2 / 4


def test_a_judge_that_fails_or_is_not_there_lowers_no_flawed_share():
    assert rates(count([group("ffssuuuuuu")], 1.0))["fapo/flawed_ratio"] == 0.5
    assert rates(count([group("ffsswu")], 1.0))["fapo/rho"] == 2.0
    for nobody in ("cccw", "uuw"):  # no judge at all, or no verdict
        metrics = rates(count([group(nobody)], 1.0))
        assert metrics["reward/correct"] > 0 and "fapo/flawed_ratio" not in metrics and "fapo/rho" not in metrics


def test_the_judge_is_measured_where_the_truth_is_known():
    """Of 6 correct rollouts the oracle calls three flawed; the judge says so of two, one of them rightly, and does not know the third."""
    groups = [group("fsfs"), group("usw")]
    truth = Truth(lambda prompt, rollout: Verdict.flawed(0) if rollout.sample in (0, 3) else Verdict.sound())
    sums = count(groups, 1.0, truth)
    metrics = rates(sums, truth=True)
    assert metrics["fapo/true_flawed_ratio"] == 3 / 6 and metrics["fapo/flawed_ratio"] == 2 / 5
    assert (metrics["genrm/precision"], metrics["genrm/recall"], metrics["genrm/over_critic"]) == (1 / 2, 1 / 3, 1 / 3)
    assert "genrm/precision" not in rates(sums)


def test_the_run_stops_when_the_judge_stays_silent():
    watch = UnknownWatch(0.5)
    for step, unknown in enumerate([0.9, 0.9, 0.4, 0.6, 0.6], 1):
        watch(step, {"genrm/unknown": unknown, "verify/unknown": 0.0})
    with pytest.raises(TooManyUnknownError, match="step 6: the judge gave no verdict for 70%"):
        watch(6, {"genrm/unknown": 0.7, "verify/unknown": 0.0})


def test_the_run_stops_when_the_verifier_fails_without_a_judge_too():
    watch = UnknownWatch(0.5)
    watch(1, rates(count([group("tttw")], lam=0.0)))
    watch(2, rates(count([group("ttsw")], lam=0.0)))
    for step in (3, 4):
        watch(step, rates(count([group("tttt")], lam=0.0)))
    with pytest.raises(TooManyUnknownError, match="step 5: the verifier failed for 100% of the rollouts, more"):
        watch(5, rates(count([group("tttt")], lam=0.0)))


def test_a_prompt_twice_in_a_batch_gets_an_id_of_its_own():
    a, b = Prompt(id="a", text="?", answer="1"), Prompt(id="b", text="?", answer="1")
    assert [p.id for p in distinct([a, b, a, a])] == ["a", "b", "a#2", "a#3"]
    assert [p.id for p in distinct([a, b, a], distinct([a, a]))] == ["a#3", "b", "a#4"]


def test_schedules():
    assert [due(step, 10, 25) for step in (5, 10, 20, 24, 25)] == [False, True, True, False, True]
    assert [due(step, 0, 3) for step in (1, 2, 3)] == [False, False, True]
    rates_ = [learning_rate(step, 100, 1.0) for step in range(100)]
    assert rates_[:2] == [0.5, 1.0] and rates_[-1] == pytest.approx(0.1) and rates_[2] == pytest.approx(1.0, abs=0.02)
    assert all(a >= b for a, b in zip(rates_[1:], rates_[2:], strict=False))


def test_phases_and_words():
    phases = Timeline()
    with phases("step"), phases("train"):
        pass
    taken = phases.take()
    assert taken.keys() == {"time/step", "time/train"} and 0 <= taken["time/train"] <= taken["time/step"]
    assert phases.take() == {} and phases.spent().keys() == {"train"}
    assert clock(75) == "1:15"
    assert plain_words("eval/arith-test-p2/accuracy") == "arith-test-p2: right final answers"
    figures = {"a": 0.5, "a_low": 0.4, "a_high": 0.6, "tokens": 31.26}
    figures |= {"flawed_corrected": 0.449, "flawed_corrected_low": 0.381, "flawed_corrected_high": 0.52}
    assert [shown(name, figures) for name in ("a", "tokens", "x", "flawed_corrected")] == ["50.0 %", "31.3", "–", "44.9 [38.1, 52.0] %"]
    assert between("a", figures) == " [0.40, 0.60]" and between("tokens", figures) == ""
