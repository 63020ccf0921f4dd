"""Do an evaluation's intervals hold the truth 95 times in 100? By simulation: a policy whose chance on each problem is drawn from a Beta
distribution, asked some thousand times anew, problems and samples.

    python bench/coverage.py            # 200 evaluations each, some minutes
    python bench/coverage.py --full     # 2,000 each

Beside it stand two intervals that do not: rows pooled as if all were independent, and the bootstrap that draws samples with replacement
within problems drawn with replacement. Of paired differences also the size: how often p is below .05 where both are the same policy.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import exp, hypot, lgamma

import numpy as np
import tyro

from soundrl.fapo.at_k import maj_at_k, pass_at_k
from soundrl.fapo.corrected import Errors, Z, corrected
from soundrl.fapo.resampled import DRAWS, Floats, Interval, flipped, intervals

SETS = {"30 × 32": (30, 32), "500 × 4": (500, 4), "100 × 1": (100, 1), "8 × 8": (8, 8)}
POLICIES = {
    "mixed": (0.5, 0.5),
    "even": (2.0, 2.0),
    "alike": (500.0, 500.0),
    "hard": (0.3, 1.2),
    "very hard": (0.1, 2.0),
    "easy": (3.0, 0.3),
}
"""Beta's a and b."""


@dataclass(frozen=True)
class Arguments:
    full: bool = False


def beta(a: float, b: float) -> float:
    return exp(lgamma(a) + lgamma(b) - lgamma(a + b))


def passes(policy: tuple[float, float], k: int) -> float:
    """E[1 − (1 − p)^k] over the policy's problems."""
    a, b = policy
    return 1 - beta(a, b + k) / beta(a, b)


def one(part_P: Floats, trial: int, signed: bool = False) -> Interval:
    return intervals(part_P[:, None], np.ones((len(part_P), 1)), [str(trial)], signed)[0]


def pooled(right_P: Floats, n: int) -> tuple[float, float]:
    """As if all rows were independent."""
    share, rows = right_P.mean() / n, n * len(right_P)
    half = Z * np.sqrt(share * (1 - share) / rows)
    return share - half, share + half


def twice(right_P: Floats, n: int, rng: np.random.Generator) -> tuple[float, float]:
    """Samples with replacement within problems with replacement: what is not done."""
    chosen = rng.integers(len(right_P), size=(DRAWS, len(right_P)))
    low, high = np.quantile(rng.binomial(n, right_P[chosen] / n).mean(1) / n, (0.025, 0.975)).tolist()
    return low, high


def coverage(size: tuple[int, int], policy: tuple[float, float], trials: int, seed: int = 0) -> dict[str, float]:
    """Shares of evaluations whose interval holds the truth, and mean widths: avg@n, pass@k of k = n/2 and n, pooled rows, samples twice."""
    (problems, n), rng = size, np.random.default_rng(seed)
    ks = sorted({max(1, n // 2), n})
    truth, held, width = passes(policy, 1), dict[str, float](), dict[str, float]()

    def count(name: str, low: float, high: float, true: float) -> None:
        held[name] = held.get(name, 0.0) + (low - 1e-12 <= true <= high + 1e-12) / trials
        width[name] = width.get(name, 0.0) + (high - low) / trials

    for trial in range(trials):
        right_P = rng.binomial(n, rng.beta(*policy, problems)).astype(np.float64)
        parts = np.stack([right_P / n, *(pass_at_k(n, right_P, k) for k in ks)], 1)
        spans = intervals(parts, np.ones_like(parts), [str(trial)])
        count("avg", spans[0].low, spans[0].high, truth)
        for k, span in zip(ks, spans[1:], strict=True):
            count(f"pass@{k}", span.low, span.high, passes(policy, k))
        count("pooled rows", *pooled(right_P, n), truth)
        count("samples twice", *twice(right_P, n, rng), truth)
    return {name: round(float(share), 4) for name, share in held.items()} | {
        f"{name} width": round(float(w), 4) for name, w in width.items()
    }


def wrong_shares(problems: int, rng: np.random.Generator) -> Floats:
    """[P, 4] chances of the right answer and of three wrong ones."""
    p = rng.beta(1.0, 1.0, problems)[:, None]
    return np.concatenate([p, (1 - p) * rng.dirichlet((0.7, 0.7, 0.7), problems)], 1)


def majority(size: tuple[int, int], k: int, trials: int, seed: int = 0) -> float:
    """Coverage of maj@k's interval; the truth is that of 200,000 problems asked k times."""
    (problems, n), rng = size, np.random.default_rng(seed)

    def values(samples: int, count: int) -> Floats:
        votes = rng.multinomial(samples, wrong_shares(count, rng))
        return np.array([maj_at_k(int(v[0]), tuple(sorted(int(w) for w in v[1:] if w)), 0, k) for v in votes])

    truth = float(values(k, 200_000).mean())
    spans = [one(values(n, problems), trial) for trial in range(trials)]
    return float(np.mean([span.low <= truth <= span.high for span in spans]))


def paired(size: tuple[int, int], policy: tuple[float, float], gain: float, trials: int, seed: int = 0) -> dict[str, float]:
    """Two policies on the same problems, the second better by `gain` of what the first lacks: coverage of the paired interval, its width ÷
    that of two independent evaluations, and how often p < .05."""
    (problems, n), rng = size, np.random.default_rng(seed)
    truth, held, small, narrower, width = gain * (1 - passes(policy, 1)), 0.0, 0.0, 0.0, 0.0
    for trial in range(trials):
        p = rng.beta(*policy, problems)
        a, b = rng.binomial(n, p) / n, rng.binomial(n, p + gain * (1 - p)) / n
        span, apart = one(b - a, trial, signed=True), [one(x, trial) for x in (a, b)]
        held += (span.low - 1e-12 <= truth <= span.high + 1e-12) / trials
        small += (flipped((b - a)[:, None], [str(trial)])[0] < 0.05) / trials
        width += (span.high - span.low) / trials
        narrower += (span.high - span.low) / hypot(*(x.high - x.low for x in apart)) / trials
    found = {"held": held, "p < .05": small, "width": width, "width ÷ unpaired": float(narrower)}
    return {name: round(value, 4) for name, value in found.items()}


def flaws(size: tuple[int, int], trials: int, seed: int = 0) -> dict[str, float]:
    """Coverage of the flawed share of right rollouts, as an oracle would say it of all problems, by the raw interval and the corrected, of
    judges with recall .6 … .95 and false alarms .02 … .2 that are known from 200 labelled solutions; hard problems have more flaws."""
    (problems, n), rng = size, np.random.default_rng(seed)

    def world(count: int) -> tuple[np.ndarray, np.ndarray]:
        p = rng.beta(1.5, 1.0, count)
        right = rng.binomial(n, p)
        return right, rng.binomial(right, 0.6 * (1 - p) + 0.05)

    right, flawed = world(1_000_000)
    truth, held = flawed.sum() / right.sum(), {"raw": 0.0, "corrected": 0.0}
    for trial in range(trials):
        recall, alarms = rng.uniform(0.6, 0.95), rng.uniform(0.02, 0.2)
        right, flawed = world(problems)
        said = rng.binomial(flawed, recall) + rng.binomial(right - flawed, alarms)
        span = intervals(said[:, None].astype(float), right[:, None].astype(float), [str(trial)])[0]
        raw = said.sum() / right.sum()
        errors = Errors(rng.binomial(100, recall), 100, rng.binomial(100, alarms), 100)
        mended = corrected(said.sum(), right.sum(), errors, max(raw - span.low, span.high - raw) / Z)
        assert mended is not None
        held["raw"] += (span.low <= truth <= span.high) / trials
        held["corrected"] += (mended.low <= truth <= mended.high) / trials
    return {name: round(float(share), 4) for name, share in held.items()}


def main(arguments: Arguments) -> None:
    trials, sets = (2000 if arguments.full else 200), ("30 × 32", "500 × 4", "100 × 1", "8 × 8")

    def say(what: str, found: dict[str, float], **of: str) -> None:
        print(json.dumps({"what": what, **of, **found, "trials": trials}, ensure_ascii=False), flush=True)

    for name in sets:
        for policy, ab in POLICIES.items():
            say("one", coverage(SETS[name], ab, trials), set=name, policy=policy)
        for gain in (0.0, 0.1):
            say("paired", paired(SETS[name], POLICIES["mixed"], gain, trials), set=name, policy="mixed", gain=str(gain))
        say("flawed share", flaws(SETS[name], trials), set=name)
        say("maj@n", {"held": majority(SETS[name], SETS[name][1], trials)}, set=name)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
