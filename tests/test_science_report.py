"""The report of the science: from synthetic rows of every experiment to a page in which no claim stands without its n."""

import copy
import dataclasses
import json
import math
import random
import re
import statistics
import sys
from fractions import Fraction
from html.parser import HTMLParser

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "bench" / "science"))
import figures
import page
import panels
import readme_table
import report
import words
from claim import Arm, Claim, Contrast

KINDS = ("student", "repair", "operand", "swap", "extra")
STAMP = {"device": "a CPU, 1 thread", "torch": "2.13.0", "python": "3.11.2", "commit": "abc1234", "date": "2026-11-30T01:00:00+00:00"}
STEPS = 24


def policy_row(start: str, arm: str, seed: int, steps: int = STEPS) -> dict:
    """A run as it might be: flawed falls with λ, a lenient judge lets skips grow, a noisy one does little until it is very noisy."""
    rng = random.Random(f"{start} {arm} {seed}")
    from_seed = random.Random(f"{start} {seed}").gauss(0, 0.03)
    lam = float(Fraction(arm[4:].partition("+")[0])) if arm.startswith("lam=") else 1.0
    error = (
        float(arm.partition("=")[2])
        if arm.startswith(("false_alarms", "misses"))
        else 0.5
        if arm.startswith(("blind", "judge", "harsh"))
        else 0.0
    )
    first = {"default": (0.6, 0.4), "scarce": (0.2, 0.9), "large": (0.5, 0.45)}[start]
    hacked = ("lenient" in arm) * 0.2 + ("step-ratio" in arm) * 0.15
    last = 0.9 + from_seed / 3, max(0.05, 0.33 - 0.2 * lam * (1 - error) + hacked) * (2 if start == "scarce" else 1)
    series = {name: [] for name in ("right", "sound", "wrong", "flawed", "past", "rho", "lines", "skip", "guess", "tokens")}
    for step in range(steps):
        way = 1 - math.exp(-3.2 * step / steps)
        right = min(0.99, max(0.01, first[0] + (last[0] - first[0]) * way + from_seed + rng.gauss(0, 0.02)))
        share = min(0.98, max(0.02, first[1] + (last[1] - first[1]) * way + rng.gauss(0, 0.02)))
        sound, flawed, wrong = right * (1 - share), right * share, 1 - right
        rho = None if seed == 3 and step == steps - 1 else sound / wrong
        past = 0.0 if lam == 0 else min(1.0, max(0.0, 0.5 + 0.4 * math.log2((rho or 9) / max(2 / lam - 1, 0.05))))
        for name, value in zip(
            series, (right, sound, wrong, flawed, past, rho, 4 - 2 * hacked * way, hacked * way, hacked * way / 2, 60), strict=True
        ):
            series[name].append(value)

    def measures(at: int) -> dict:
        right, sound = series["right"][at], series["sound"][at]
        told = {"right": right, "sound": sound, "flawed": 1 - sound / right, "tokens": 60.0, "lines": series["lines"][at]}
        return told | {"skip": series["skip"][at], "guess": series["guess"][at], "p2/right": right / 2, "p2/sound": sound / 2}

    sign = {"groups": 40 * steps, "exceptions": 0, "ties": 3}
    return {"before": measures(0), "after": measures(-1), "series": series, "sign": sign}


def row(start: str, arm: str, seed: int, steps: int = STEPS) -> dict:
    rng = random.Random(f"{start} {arm} {seed}")
    base = {
        "run": f"{start}/{arm}/{seed}",
        "start": start,
        "arm": arm,
        "seed": seed,
        "quick": False,
        "settings": {"environment": f"arith?{arm}"},
    }
    if start == "critic":
        gain = {"warm": 0.0, "outcome": 0.1, "process": 0.35}[arm]
        told = {f"exact/{kind}": 0.3 + gain - 0.04 * index + rng.gauss(0, 0.05) for index, kind in enumerate(KINDS)}
        told |= {"precision": 0.8 + gain / 3, "recall": 0.75 + gain / 3, "f1": 0.78 + gain / 3, "unseen/f1": 0.6 + gain / 2}
        return base | {"before": told, "after": told, "series": {}, "sign": None, "stamp": STAMP}
    if start == "timing":
        kind, _, ratio = arm.partition("/")
        x = 1.05 + rng.gauss(0, 0.01) + (float(ratio) if kind == "serial" else max(0, float(ratio) - 0.9))
        after = {"seconds": 2.0 * x, "x_known": x, "hidden": 0.93 if kind == "overlap" else 0.1}
        return base | {"before": {}, "after": after, "series": {}, "sign": None, "stamp": STAMP}
    return base | policy_row(start, arm, seed, steps) | {"stamp": STAMP}


PLAN = {
    "default": [
        *figures.LAMBDAS,
        "step-ratio",
        "lam=1+lenient",
        "step-ratio+lenient",
        "false_alarms=0.4",
        "false_alarms=0.8",
        "misses=0.5",
        "misses=0.9",
    ]
    + ["blind=false", "blind=skip", "blind=guess", "harsh", "judge=warm", "judge=outcome", "judge=process"],
    "scarce": [*figures.LAMBDAS, "leave"],
    "large": ["lam=0", "lam=1"],
    "critic": ["warm", "outcome", "process"],
    "timing": [f"{kind}/{ratio}" for ratio in ("0.25", "0.5", "1", "2") for kind in ("overlap", "serial")],
}


def all_rows(seeds: int = 8, steps: int = STEPS) -> list[dict]:
    return [row(start, arm, seed, steps) for start, arms in PLAN.items() for arm in arms for seed in range(seeds)]


SENTENCES = {
    "E1": ("default", "λ = 1 is right without tuning", "Tab. 5", "sound", "lam=1", "lam=0"),
    "E1b": ("large", "The same holds at a second scale", "", "sound", "lam=1", "lam=0"),
    "E2": ("scarce", "Flawed positives help early and hurt late", "§3.2", "sound", "lam=1", "lam=2"),
    "E3": ("default", "The shift comes by itself as ρ rises", "Eq. 9", "right", "lam=1", "lam=0"),
    "E4": ("default", "A step-ratio reward is hacked, FAPO is not", "Fig. 6", "sound", "step-ratio+lenient", "lam=1+lenient"),
    "E5": ("default", "FAPO needs a good judge", "§5", "sound", "false_alarms=0.8", "lam=0"),
    "E6": ("critic", "R_process teaches where the flaw is", "Fig. 4", "exact/student", "process", "outcome"),
    "E7": ("default", "A better judge makes a better policy", "Fig. 5", "sound", "judge=process", "judge=warm"),
    "E8": ("timing", "Judging costs less than a fifth of a step", "§4.5", "x_known", "overlap/0.5", "serial/0.5"),
}


def claims(rows: list[dict]) -> list[Claim]:
    """A stand-in for the analysis: one primary contrast a claim, its two arms, and of E5 a break-even."""
    found = []
    for name, (start, sentence, source, measure, ours, theirs) in SENTENCES.items():
        both = [figures.measured(rows, start, arm, measure) for arm in (ours, theirs)]
        seeds = sorted(set(both[0]) & set(both[1]))
        gains = [both[0][seed] - both[1][seed] for seed in seeds]
        contrasts = []
        if gains:
            mean, low, high = panels.spread(gains)
            p = 2 / 2 ** len(gains) if len(gains) > 1 else 1.0
            contrasts = [
                Contrast(
                    what=f"{measure}: {ours} − {theirs}", values=gains, mean=mean, low=low, high=high, p=p, primary=True, holm=min(1, 9 * p)
                )
            ]
            points = [100 * gain for gain in gains]
            contrasts.append(Contrast(what="the same", values=points, mean=100 * mean, low=100 * low, high=100 * high, p=p, unit="points"))
        if name == "E5" and gains:
            contrasts.append(Contrast(what="break-even false alarms", values=[0.7, 0.8], mean=0.75, low=0.6, high=0.9, p=1.0))
        table = []
        for arm in (ours, theirs):
            told = {m: panels.spread(list(v.values())) for m in ("sound", "right", measure) if (v := figures.measured(rows, start, arm, m))}
            if told:
                table.append(Arm(label=words.arm(arm), figures=told, n=len(figures.runs(rows, start, arm))))
        verdict = (
            "not run"
            if not gains
            else "no power"
            if len(gains) < 3
            else "supported"
            if low > 0
            else "contradicted"
            if high < 0
            else "no power"
        )
        because = (
            f"{measure} {words.interval(mean, low, high, signed=True)} (n = {len(gains)} seeds)." if gains else "No pair of runs (n = 0)."
        )
        found.append(
            Claim(
                id=name,
                claim=sentence,
                source=source,
                verdict=verdict,
                because=because,
                contrasts=contrasts,
                arms=table,
                notes=["One world, of arithmetic."],
            )
        )
    return found


if __name__ == "__main__":
    rows = all_rows(steps=60)
    print(report.write(rows, claims(rows), report.Path(sys.argv[1])))
