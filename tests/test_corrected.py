"""Flawed shares corrected for the judge's errors: the formula, the interval's coverage, and what a run says of it."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from test_measures import group

from soundrl.fapo.corrected import Errors, Share, corrected
from soundrl.fapo.measures import Truth, count, rates
from soundrl.fapo.records import Outcome, Verdict
from soundrl.fapo.rewards import RewardSettings
from soundrl.fapo.samples import Samples
from soundrl.fapo.task import OracleJudge, ReasoningTask
from soundrl.genrm.critic_data.labelled import Labelled
from soundrl.genrm.watch.probe import PROBED, SOUND, UNKNOWN, Question, measured


def judged(rng: np.random.Generator, probe: tuple[int, int], drift: float = 0.0) -> tuple[Share, float, float]:
    """A judge of some precision and recall, its probe of so many rows, and a batch: the corrected share, the truth, the raw share."""
    recall, precision = rng.uniform(0.5, 0.99, 2)
    alarms = recall * (1 - precision) / precision  # of a probe set half of which is flawed
    rows, batch = int(rng.integers(*probe)), int(rng.integers(50, 601))
    flawed = int(rng.binomial(batch, rng.uniform(0.0, 0.6)))
    said = rng.binomial(flawed, max(recall - drift, 0.0)) + rng.binomial(batch - flawed, alarms)
    half = rows // 2
    found = corrected(said, batch, Errors(rng.binomial(half, recall), half, rng.binomial(half, alarms), half))
    assert found is not None and 0 <= found.low <= found.value <= found.high <= 1
    return found, flawed / batch, said / batch


def coverage(judges: list[tuple[Share, float, float]]) -> float:
    return float(np.mean([found.low <= truth <= found.high for found, truth, _ in judges]))


@pytest.mark.parametrize("probe", [(50, 501), (50, 60), (480, 501)])
def test_the_interval_holds_the_oracles_truth_for_95_of_100_judges(probe):
    rng = np.random.default_rng(20251129)
    judges = [judged(rng, probe) for _ in range(1000)]
    assert 0.93 <= coverage(judges) <= 0.97
    raw = [abs(share - truth) for _, truth, share in judges]
    ours = [abs(found.value - truth) for found, truth, _ in judges]
    assert np.mean(ours) < np.mean(raw)  # and it is nearer than the raw share


def test_a_judge_worse_than_its_probe_says_is_not_covered():
    """Inverse: the interval is that of the judge that was probed."""
    rng = np.random.default_rng(0)
    assert coverage([judged(rng, (200, 501), drift=0.3) for _ in range(300)]) < 0.8


def test_by_hand():
    perfect = corrected(30, 100, Errors(500, 500, 0, 500))
    assert perfect is not None and perfect.value == pytest.approx(0.3, abs=0.002) and perfect.low < 0.3 < perfect.high
    assert perfect.high - perfect.low < 0.02  # a judge without errors: nothing is left open of these rollouts
    # Half of the flaws found, no false alarm: twice as many.
    half = corrected(20, 100, Errors(250, 500, 0, 500))
    assert half is not None and half.value == pytest.approx(0.4, abs=0.003) and half.low > 0.25 and half.high < 0.56
    # No better than a coin: nothing is known.
    assert corrected(50, 100, Errors(25, 50, 25, 50)) == Share(0.0, 0.0, 1.0)
    # All called flawed by a judge that finds a third, or none by one that cries often: no share explains it, and it says nothing.
    assert corrected(6, 6, Errors(18, 50, 1, 50)) == Share(1.0, 0.0, 1.0)
    assert corrected(0, 200, Errors(180, 200, 60, 200)) == Share(0.0, 0.0, 1.0)
    fits = corrected(2, 6, Errors(18, 50, 1, 50))  # inverse
    assert fits is not None and 0 < fits.low < fits.value < fits.high == 1.0
    for nothing in (Errors(0, 0, 0, 50), Errors(25, 50, 0, 0)):
        assert corrected(30, 100, nothing) is None
    assert corrected(0, 0, Errors(45, 50, 2, 50)) is None


def test_errors_of_a_probe_are_of_right_answers_with_a_verdict():
    rows = [
        (1, True, 1),
        (1, True, 0),
        (1, True, SOUND),
        (1, True, UNKNOWN),
        (-1, True, SOUND),
        (-1, True, 0),
        (-1, True, UNKNOWN),
        (0, False, SOUND),
    ]
    labelled = [Labelled(id=str(i), problem="", steps=("a", "b"), label=label, right=right) for i, (label, right, _) in enumerate(rows)]
    asked = [*(Question("own", row) for row in labelled), Question("canary", labelled[0])]
    found = measured(asked, {str(i): said for i, (*_, said) in enumerate(rows)})
    assert Errors(*(int(found[name]) for name in PROBED)) == Errors(found=2, flawed=3, alarms=1, sound=2)


def test_a_step_and_an_evaluation_say_raw_corrected_and_true():
    errors = Errors(45, 50, 2, 50)
    truth = Truth(lambda prompt, rollout: Verdict.flawed(0, "skip") if rollout.sample < 2 else Verdict.sound(), ("skip", "guess"))
    sums = count([group("fsssuw")], 1.0, truth, split=lambda text: ("one", "two"))
    metrics = rates(sums, truth=True, errors=errors)
    expected = corrected(1, 4, errors)
    assert expected is not None
    names = ("fapo/flawed_corrected", "fapo/flawed_corrected_low", "fapo/flawed_corrected_high")
    assert tuple(metrics[name] for name in names) == expected
    assert metrics["fapo/flawed_ratio"] == 1 / 4 and metrics["fapo/true_flawed_ratio"] == 2 / 5
    assert (metrics["fapo/kind_skip"], metrics["fapo/kind_guess"], metrics["fapo/steps"]) == (2 / 5, 0.0, 2.0)
    assert not any(name in rates(sums, truth=True) for name in names)  # nobody has probed the judge

    settings = RewardSettings(lam=1.0, normalize_std=True, max_new_tokens=9, overlong_buffer=0, overlong_factor=1.0, drop_unknown=True)
    task = ReasoningTask(lambda *_: Outcome.CORRECT, SimpleNamespace(), settings, truth=truth)  # type: ignore[arg-type]
    samples = Samples.of([group("fsssuw")])
    found = task.evaluation(sums, samples, errors)
    assert found["flawed_corrected"] == expected.value and found["flawed_ratio"] == 1 / 4 and found["true_flawed_ratio"] == 2 / 5
    assert (found["sound"], found["true_sound"]) == (3 / 6, 3 / 6)
    assert (found["pass@6"], found["process_pass@6"]) == (1.0, 1.0) and "maj@6" not in found  # nobody says what the wrong answer was
    assert found["accuracy_low"] < found["accuracy"] == 5 / 6 < found["accuracy_high"]
    exact = dataclasses.replace(task, judge=OracleJudge(truth.oracle)).evaluation(sums, samples)
    assert "sound" in exact and not any(name.startswith("true_") for name in exact)  # it would say all twice
    alone = dataclasses.replace(task, judge=None)
    assert alone.evaluation(sums, samples, errors).keys() == {"accuracy", "accuracy_low", "accuracy_high", "tokens", "pass@6"}


@pytest.mark.parametrize("states", ["uuw", "cccw", "ss", "ww"])
def test_what_cannot_be_said_is_absent_and_no_sentinel_stands_for_it(states):
    metrics = rates(count([group(states)], 1.0), errors=Errors(45, 50, 2, 50))
    told, wrong = states.count("s"), states.count("w")
    assert ("fapo/flawed_ratio" in metrics) == ("fapo/flawed_corrected" in metrics) == bool(told)
    assert ("fapo/rho" in metrics) == bool(told and wrong) and all(abs(value) <= 10 for value in metrics.values())
