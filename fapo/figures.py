"""The figures of an evaluation: avg@k, pass@k, maj@k, soundness, tokens, with intervals; and the difference of two on the same problems.

All are means over problems of what each problem's samples say, unbiased, so that problems count alike however many samples they have; but
the flawed share of right answers, which is of rollouts. `docs/evaluation.md` says what they mean.

Shapes: P problems, N rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from soundrl.fapo.at_k import check_k, maj_at_k, pass_at_k, powers
from soundrl.fapo.corrected import Errors, Z, corrected
from soundrl.fapo.resampled import Floats, flipped, intervals
from soundrl.fapo.samples import FLAWED, LEFT, RIGHT, SILENT, SOUND, UNTOLD, Ints, Samples


class Figure(NamedTuple):
    value: float
    low: float
    high: float
    """95 %, for other problems of the same kind, each sampled as often."""
    se: float
    """Standard error over problems: it holds that of sampling. NaN of one problem."""
    se_sampling: float
    """Standard error of these problems sampled again; NaN where it is not known: one sample a problem, maj@k, what is corrected."""
    problems: int


class Difference(NamedTuple):
    """An evaluation's figure less another's on the same problems."""

    value: float
    low: float
    high: float
    p: float
    """Two-sided, by flipped signs."""
    se: float
    problems: int


class Measure(NamedTuple):
    """Σ part ÷ Σ whole over problems; whole is 1 of a mean over problems."""

    value: float
    part: Floats
    whole: Floats
    noise: Floats
    """[P] variance of `part` when the problem is sampled again."""


def exact_mean(sums: Ints, counts: Ints) -> float:
    """Mean over problems of sums ÷ counts, rounded once: where counts are alike it is to the last bit all sums ÷ all counts."""
    alike = (Fraction(int(sums[counts == n].sum()), int(n)) for n in np.unique(counts))
    return float(sum(alike, Fraction(0)) / len(counts))


def measures(samples: Samples, ks: Sequence[int], judged: bool) -> dict[str, Measure]:
    """By name, of problems which all have a scored sample; `ks` as `figures` has them."""
    scored, right = samples.outcome != LEFT, samples.outcome == RIGHT
    n_P, all_P = samples.scored, samples.sums(np.ones(len(samples.outcome), bool))

    def mean(values: Ints, counts: Ints) -> Measure:
        """Of values [N] ≥ 0, 0 of rollouts that do not count."""
        sums, squares = (np.bincount(samples.problem, v, len(n_P)) for v in (values, values**2))
        with np.errstate(divide="ignore", invalid="ignore"):
            noise = (squares - sums**2 / counts) / (counts - 1) / counts
        return Measure(exact_mean(sums.astype(np.int64), counts), sums / counts, np.ones(len(n_P)), noise)

    def passed(c_P: Ints, k: int) -> Measure:
        part = pass_at_k(n_P, c_P, k)
        return Measure(math.fsum(part) / len(part), part, np.ones(len(part)), pass_noise(n_P, c_P, k))

    out = {"accuracy": mean(right.astype(np.int64), n_P)}
    out |= {f"pass@{k}": passed(samples.right, k) for k in ks}
    if not (samples.answer[scored] == UNTOLD).any():
        votes = [votes_of(samples.answer[scored & (samples.problem == i)]) for i in range(len(n_P))]
        for k in ks:
            part = np.array([maj_at_k(*vote, k) for vote in votes])
            out[f"maj@{k}"] = Measure(math.fsum(part) / len(part), part, np.ones(len(part)), np.full(len(part), np.nan))
    if judged:
        out["sound"] = mean((right & (samples.verdict == SOUND)).astype(np.int64), n_P)
        out |= {f"process_pass@{k}": passed(samples.sound, k) for k in ks}
        told, flawed = right & samples.told, right & (samples.verdict == FLAWED)
        if told.any():
            out["flawed_ratio"] = share(samples, flawed, told)
    return out | {"cut": mean(samples.cut, all_P), "tokens": mean(samples.tokens, all_P)}


def votes_of(answers: Ints) -> tuple[int, tuple[int, ...], int]:
    """Of a problem's samples: how many are right, how many agree on each wrong answer, how many say none.

    >>> votes_of(np.array([1, 7, 0, 9, 1, 7]))
    (2, (1, 2), 1)
    """
    found, times = np.unique(answers, return_counts=True)
    count = dict(zip(found.tolist(), times.tolist(), strict=True))
    right, silent = count.pop(1, 0), count.pop(SILENT, 0)
    return right, tuple(sorted(count.values())), silent


def share(samples: Samples, part: np.ndarray, whole: np.ndarray) -> Measure:
    """Of rollouts [N]: `part` of `whole`, pooled. Its noise is that of part − share · whole (a ratio's linear part)."""
    a, w, n = samples.sums(part), samples.sums(whole), samples.scored
    value = int(a.sum()) / int(w.sum())
    rest = part - value * whole
    sums, squares = (np.bincount(samples.problem, v, len(n)) for v in (rest, rest**2))
    with np.errstate(divide="ignore", invalid="ignore"):
        noise = (squares - sums**2 / n) / (n - 1) * n
    return Measure(value, a.astype(np.float64), w.astype(np.float64), noise)


def pass_noise(n_P: Ints, c_P: Ints, k: int) -> Floats:
    """[P]: variance of pass@k when as many samples are drawn again, each right with probability (c + ½) ÷ (n + 1): a problem of which all
    samples agree is not one without noise."""
    out = np.empty(len(n_P))
    for n in np.unique(n_P).tolist():
        of, counts = n_P == n, np.arange(n + 1)
        log_ways = np.array([math.lgamma(n + 1) - math.lgamma(c + 1) - math.lgamma(n - c + 1) for c in counts])
        p = ((c_P[of] + 0.5) / (n + 1))[:, None]
        chance = np.exp(log_ways + counts * np.log(p) + (n - counts) * np.log1p(-p))
        found = pass_at_k(n, counts, k)
        mean = chance @ found
        out[of] = np.maximum(chance @ found**2 - mean**2, 0.0)
    return out


def taken(samples: Samples, ks: Sequence[int] | None) -> tuple[Samples, list[int]]:
    """The problems with a scored sample, and the k: those asked for, else 1, 2, 4, … and n, the least number that a problem has. ValueError
    where nothing is scored, and for a k above that n, which names the problem."""
    scored = samples.only(samples.scored > 0)
    if not scored.ids:
        raise ValueError(f"none of {len(samples.outcome)} rollouts has an outcome; score them first")
    least = int(np.argmin(scored.scored))
    n = int(scored.scored[least])
    for k in ks or ():
        check_k(k, n, scored.ids[least])
    return scored, powers(n) if ks is None else sorted(set(ks))


def figures(
    samples: Samples, ks: Sequence[int] | None = None, errors: Errors | None = None, judged: bool | None = None
) -> dict[str, Figure]:
    """By name:

    * `accuracy` (avg@n), `pass@k`, `maj@k` (where every wrong answer is told), `cut` (share of rollouts at the limit of tokens), `tokens`;
    * with a judge `sound` (right and called so; one without verdict is not), `process_pass@k` (pass@k of these), `flawed_ratio` (of right
      rollouts with a verdict), and with its `errors` `flawed_corrected`.

    `ks`: see `taken`, which raises ValueError. `judged`: a judge was asked; None = some rollout has a verdict. A problem of which no sample
    is scored leaves.
    """
    scored, ks = taken(samples, ks)
    found = measures(scored, ks, scored.judged if judged is None else judged)
    spans = intervals(np.stack([m.part for m in found.values()], 1), np.stack([m.whole for m in found.values()], 1), scored.ids)
    out = {
        name: Figure(m.value, min(span.low, m.value), max(span.high, m.value), span.se, _noise(m), len(scored.ids))
        for (name, m), span in zip(found.items(), spans, strict=True)
    }
    if errors is not None and "flawed_ratio" in out:
        raw, ratio = out["flawed_ratio"], found["flawed_ratio"]
        spread = max(raw.value - raw.low, raw.high - raw.value) / Z
        if (mended := corrected(float(ratio.part.sum()), float(ratio.whole.sum()), errors, spread)) is not None:
            out["flawed_corrected"] = Figure(*mended, math.nan, math.nan, len(scored.ids))
    return out


def _noise(measure: Measure) -> float:
    return math.sqrt(measure.noise.sum()) / float(measure.whole.sum())


def paired(ours: Samples, theirs: Samples, ks: Sequence[int] | None = None) -> dict[str, Difference]:
    """Ours − theirs on the same problems, of every figure that both have but the corrected share. ValueError, which counts and names them,
    where one has problems that the other lacks, or that read differently, and as `taken`. A problem of which either has no scored sample
    leaves both."""
    same_problems(ours, theirs)
    both = (ours.scored > 0) & (theirs.scored > 0)
    ours, theirs = ours.only(both), theirs.only(both)
    (ours, of_ours), (theirs, of_theirs) = taken(ours, ks), taken(theirs, ks)
    common = [k for k in of_ours if k in of_theirs]
    judged = ours.judged and theirs.judged
    found, other = measures(ours, common, judged), measures(theirs, common, judged)
    names = [name for name in found if name in other]
    # Of a ratio: what a problem brings to it beyond its share (its linear part), so that the difference is a mean over problems.
    parts_PM = np.stack([linear(found[name]) - linear(other[name]) for name in names], 1)
    out, spans = {}, intervals(parts_PM, np.ones_like(parts_PM), ours.ids, signed=True)
    for name, span, p in zip(names, spans, flipped(parts_PM, ours.ids), strict=True):
        value = found[name].value - other[name].value
        out[name] = Difference(value, min(span.low, value), max(span.high, value), p, span.se, len(ours.ids))
    return out


def linear(measure: Measure) -> Floats:
    """[P] whose mean is the measure's value."""
    value, mean = measure.part.sum() / measure.whole.sum(), measure.whole.mean()
    return value + (measure.part - value * measure.whole) / mean


def same_problems(ours: Samples, theirs: Samples) -> None:
    one, other = set(ours.ids), set(theirs.ids)
    if one != other:
        raise ValueError(
            f"the two evaluations have {len(one & other)} problems in common; in one alone: {_named(one - other)} of the first, "
            f"{_named(other - one)} of the second; compare evaluations of the same set"
        )
    changed = [id_ for id_, a, b in zip(ours.ids, ours.contents, theirs.contents, strict=True) if a != b]
    if changed:
        raise ValueError(
            f"{_named(set(changed))} read differently in the two evaluations; compare evaluations of the same version of the set"
        )


def _named(ids: set[str]) -> str:
    """`3 (a, b, …)`."""
    first = sorted(ids)[:2]
    return str(len(ids)) + (f" ({', '.join(first)}{', …' if len(ids) > 2 else ''})" if ids else "")
