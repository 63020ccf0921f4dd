"""The rule that a group's page computes rewards by is the run's own: at any λ, for whole steps, to the last place that is kept."""

import random
from dataclasses import replace

import numpy as np
import pytest
from view_runs import SAID, SETTINGS, group_of, write_config, write_step

from soundrl.fapo.flips import Mix, sign
from soundrl.fapo.rewards import assign_advantages
from soundrl.view.cells import Rule, Scored, signs
from soundrl.view.step import Step

LAMS = (0.0, 2 / 3, 1.0, 4 / 3, 2.0)


def by_contract(rule, lam):
    """The words of the contract, number by number: reward = base − λ·flawed; who is not kept leaves; (r − mean) ÷ (sample sd + 1e-6)."""
    kept = rule["kept"] if lam > 0 else rule["kept_zero"]
    reward = [float(base - lam * flawed) for base, flawed in zip(rule["base"], rule["flawed"], strict=True)]
    own = [r for r, stays in zip(reward, kept, strict=True) if stays]
    if len(own) < 2 or min(own) == max(own):
        return reward, [0.0] * len(reward)
    mean = sum(own) / len(own)
    spread = (sum((r - mean) ** 2 for r in own) / (len(own) - 1)) ** 0.5 + 1e-6 if rule["normalize_std"] else 1.0
    return reward, [(r - mean) / spread if stays else 0.0 for r, stays in zip(reward, kept, strict=True)]


@pytest.mark.parametrize("seed", range(12))
def test_rewards_and_advantages_at_any_lambda(tmp_path, seed):
    rng = random.Random(seed)
    lam, drop, normalize = rng.choice(LAMS), rng.random() < 0.7, rng.random() < 0.7
    settings = replace(SETTINGS, drop_unknown=drop, normalize_std=normalize)
    groups = [group_of(f"p:{g}", "".join(rng.choices([*SAID], k=rng.randint(1, 9)))) for g in range(12)]
    for group in groups:  # a verifier's own rewards, and a length penalty, are in what is written
        if rng.random() < 0.3:
            group.scores = [rng.random() if outcome.value == "correct" else None for outcome in group.outcomes]
    settings = replace(settings, overlong_buffer=30)
    assign_advantages(groups, replace(settings, lam=lam))
    run = tmp_path / "run"
    run.mkdir()
    write_config(run)
    write_step(run, 1, [groups])
    step = Step(run, 1, "train")
    scored = Scored(step, Rule(lam, normalize, drop))
    checked = 0
    for other in LAMS:
        assign_advantages(groups, replace(settings, lam=other))
        for g, group in enumerate(groups):
            found = scored.of(g, step.rows(g))
            assert found is not None
            rewards, own = by_contract(found, other)
            kept = np.array(group.kept)
            assert np.abs(np.array(rewards) - group.rewards)[kept].max(initial=0) < 1e-12
            # The run computes in double precision, and keeps single: half of its last place is what they may differ by.
            room = np.abs(group.advantages) * 2.0**-24 + 1e-12
            assert (np.abs(np.array(own) - group.advantages) <= room).all()
            checked += len(own)
    assert checked > 100


@pytest.mark.parametrize("lam", LAMS)
def test_flips_and_the_shift(tmp_path, lam):
    """ρ above 2/λ − 1 is where flawed rollouts are pushed down, as `fapo.flips` has it."""
    rng = random.Random(1)
    groups = [group_of(f"p:{g}", "".join(rng.choices([*SAID], k=8)), lam) for g in range(60)]
    run = tmp_path / "run"
    run.mkdir()
    write_step(run, 1, [groups])
    step, past = Step(run, 1, "train"), 0
    scored = Scored(step, Rule(lam, True, True))
    zero = [group_of(group.prompt.id, "".join(kinds_of(group)), 0.0) for group in groups]
    for g, (group, before) in enumerate(zip(groups, zero, strict=True)):
        own, found = scored.mix(g), Mix.of(group)
        assert (own["alpha"], own["beta"], own["gamma"]) == (found.sound, found.wrong, found.flawed)
        assert own["threshold"] == (None if lam == 0 else 2 / lam - 1) and own["rho"] == (
            found.sound / found.wrong if found.wrong else None
        )
        if found.flawed and lam > 0:
            assert own["past"] == (found.expected(lam) < 0)
            past += own["past"]
        made, rows = scored.of(g, step.rows(g)), step.rows(g)
        turned = [sign(a) != sign(b) for a, b in zip(group.advantages, before.advantages, strict=True)]
        assert scored.flipped[rows].tolist() == turned and scored.signal[g] == group.signal
        assert made is not None and signs(np.array(by_contract(made, 0.0)[1])).tolist() == [sign(a) for a in before.advantages]
    assert (past > 0) == (lam > 0)


def kinds_of(group):
    for rollout, outcome, verdict in zip(group.rollouts, group.outcomes, group.verdicts, strict=True):
        yield next(kind for kind, said in SAID.items() if said[:2] == (rollout.text, outcome) and said[2] == verdict)
