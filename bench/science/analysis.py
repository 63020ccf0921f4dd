"""What the rows say: each claim of `protocol.md` with its contrasts, decided by the rule that stands there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from claim import Claim, Contrast, Row
from deciding import FEWEST, Asked, Measure, Rows, Test, after, contrast, early, half_past, less, more, no_worse, rising
from experiments import BLIND, EARLY, KINDS_SEEN, KINDS_UNSEEN, LAMBDAS, RATIOS
from over_seeds import holm
from words import measure

POLICY: dict[str, Measure] = {
    "right": after("right"),
    "sound": after("sound"),
    "flawed ÷ right": after("flawed"),
    "tokens": after("tokens"),
}
TENS = {"right, tens digit": after("p2/right"), "sound, tens digit": after("p2/sound")}
LAMS = {f"λ = {lam}": f"lam={lam}" for lam in LAMBDAS}


def asked(r: Rows) -> list[Asked]:
    """All of them, in the order of the protocol."""
    return [*of_lambda(r), *of_stages(r), *of_shift(r), *of_hacking(r), *of_noise(r), *of_critics(r), *of_timing(r)]


def of_lambda(r: Rows) -> list[Asked]:
    def against(start: str, lam: str, base: str, name: str, primary: bool = True) -> Contrast:
        return r.contrast(f"{name} at the end, λ = {lam} − λ = {base}", start, (f"lam={lam}", f"lam={base}"), after(name), primary)

    others = [against("default", lam, "0", "sound", False) for lam in ("2/3", "4/3", "2")]
    others += [against("default", "1", "0", name, False) for name in ("flawed", "p2/right", "p2/sound")]
    tests = [more(against("default", "1", "0", "sound")), no_worse(against("default", "1", "0", "right"), 0.02)]
    tuned = [no_worse(against("default", "1", lam, "sound"), 0.02) for lam in ("2/3", "4/3", "2")]
    scale = [more(against("large", "1", "0", "sound"))]
    more_of = [against("large", "1", "0", name, False) for name in ("right", "flawed")]
    table = r.arms("default", LAMS, POLICY | TENS)
    return [
        Asked("E1", "FAPO with λ = 1 makes the policy sound, at no cost in right answers.", "§4.3, Fig. 1", tests, others, table),
        Asked(
            "E1a",
            "λ = 1 is right without tuning.",
            "§3.2; against it Tab. 5",
            tuned,
            [against("default", "1", lam, "right", False) for lam in ("2/3", "4/3", "2")],
            table,
            ["A margin of 0.02 below every other λ; the paper's own best run has λ = 4/3."],
        ),
        Asked(
            "E1b",
            "The same holds at a second scale: 4 × the parameters, problems of 4 and 5 operations.",
            "the seed's check 2",
            scale,
            more_of,
            r.arms("large", {"λ = 0": "lam=0", "λ = 1": "lam=1"}, POLICY | TENS),
        ),
    ]


def of_stages(r: Rows) -> list[Asked]:
    def over(name: str, pair: tuple[str, str], measure: Measure, primary: bool = True) -> Contrast:
        said = {"leave": "leaving them out"}
        first, second = (said.get(arm, arm.replace("lam=", "λ = ")) for arm in pair)
        return r.contrast(f"{name}, {first} − {second}", "scarce", pair, measure, primary)

    start = f"right in rollouts, steps 1–{EARLY}"
    arms = r.arms("scarce", LAMS | {"leaving flawed ones out": "leave"}, {start: early("right")} | POLICY)
    slower = [more(over(start, ("lam=1", arm), early("right"))) for arm in ("lam=2", "leave")]
    end = "sound at the end"
    note = "The scarce start: four times the flaws in the demonstrations of the warm start, so that no group is past the shift at first."
    rest = [over(start, ("lam=1", "lam=0"), early("right"), False), over("right at the end", ("lam=1", "lam=2"), after("right"), False)]
    late = [over(end, ("lam=1", arm), after("sound"), False) for arm in ("lam=2", "lam=4/3", "leave")]
    late.append(over("right at the end", ("lam=1", "lam=0"), after("right"), False))
    return [
        Asked(
            "E2a",
            "Early, flawed positives help: punishing them harder, or leaving them out, learns slower.",
            "App. A, Fig. 2d",
            slower,
            rest,
            arms,
            [note],
        ),
        Asked(
            "E2b",
            "Late, flawed positives hurt: rewarding them in full ends less sound.",
            "App. A",
            [more(over(end, ("lam=1", "lam=0"), after("sound")))],
            late,
            arms,
            [note],
        ),
    ]


def of_shift(r: Rows) -> list[Asked]:
    tests, others = [], []
    for start in ("default", "scarce"):
        values = r.values(start, "lam=1", rising)
        tests.append(more(contrast(f"Kendall's τ of ρ against the step, λ = 1, {start} start", list(values.values()))))
        past = r.values(start, "lam=1", half_past)
        others.append(contrast(f"step at which half of the groups are past the shift, {start} start", list(past.values()), False, "steps"))
    signs = [row["sign"] for row in r.rows if row.get("sign")]
    groups, exceptions, ties = (sum(sign.get(name, 0) for sign in signs) for name in ("groups", "exceptions", "ties"))
    # An identity needs no statistics: one exception contradicts it.
    what = f"exceptions in {groups:,} groups of {len(signs)} runs, {ties:,} of them ties"
    number = float(exceptions)
    held = Contrast(
        what=what, values=[float(sign.get("exceptions", 0)) for sign in signs], mean=number, low=number, high=number, p=1.0, unit="runs"
    )
    identity = Test(held, 0.0, bound=0.5, at_least=False, margin=True)
    return [
        Asked("E3a", "ρ = α/β rises as training goes on, so that the shift comes by itself.", "App. A", tests, others),
        Asked("E3b", "The advantage of a flawed rollout is below 0 if and only if ρ > 2/λ − 1.", "App. A", [identity]),
    ]


def of_hacking(r: Rows) -> list[Asked]:
    lenient, exact = ("step-ratio+lenient", "lam=1+lenient"), ("step-ratio", "lam=1")

    def over(name: str, pair: tuple[str, str], judge: str, primary: bool = True) -> Contrast:
        return r.contrast(f"{name} at the end, step-ratio − λ = 1, {judge} judge", "default", pair, after(name), primary)

    named = {
        "λ = 1, exact": "lam=1",
        "step-ratio, exact": "step-ratio",
        "λ = 1, lenient": "lam=1+lenient",
        "step-ratio, lenient": "step-ratio+lenient",
    }
    arms = r.arms("default", named, POLICY | {name: after(name) for name in ("lines", "skip", "guess")})
    note = "The lenient judge sees neither skipped steps nor guesses. The formula of the reward is ours: the paper gives none."
    seen = [over(name, lenient, "lenient", False) for name in ("skip", "guess", "right")] + [over("lines", exact, "exact", False)]
    return [
        Asked(
            "E4a",
            "A step-ratio reward is hacked: solutions get shorter under a lenient judge.",
            "Fig. 7",
            [less(over("lines", lenient, "lenient"))],
            seen,
            arms,
            [note],
        ),
        Asked(
            "E4b",
            "They are less sound than with FAPO under the same judge.",
            "Fig. 7",
            [less(over("sound", lenient, "lenient"))],
            [over("sound", exact, "exact", False)],
            arms,
            [note],
        ),
    ]


def of_noise(r: Rows) -> list[Asked]:
    def over(name: str, arm: str, primary: bool = True, base: str = "lam=1") -> Contrast:
        said, what = {"lam=1": "the exact judge", "lam=0": "GRPO"}[base], measure(name) if name in BLIND else name
        return r.contrast(f"{what} at the end, {arm} − {said}", "default", (arm, base), after(name), primary)

    random, named = ("false_alarms=0.4", "false_alarms=0.8", "misses=0.5", "misses=0.9"), [f"blind={kind}" for kind in BLIND]
    arms = r.arms(
        "default",
        {"GRPO": "lam=0", "exact": "lam=1"} | {arm: arm for arm in (*random, *named, "harsh")},
        POLICY | {kind: after(kind) for kind in BLIND},
    )
    little = [no_worse(over("sound", arm), 0.05) for arm in ("false_alarms=0.4", "misses=0.5")]
    worst = [over(name, arm, False) for arm in ("false_alarms=0.8", "misses=0.9") for name in ("sound", "right")]
    worst += [over("right", arm, False, "lam=0") for arm in ("false_alarms=0.4", "false_alarms=0.8")]
    rates = (("lam=1", 0.0), ("false_alarms=0.4", 0.4), ("false_alarms=0.8", 0.8))
    lost = {rate: r.contrast("", "default", (arm, "lam=0"), after("right")).values for arm, rate in rates}
    if len({len(values) for values in lost.values()}) == 1:
        even = [crossing(list(zip(lost, values, strict=True))) for values in zip(*lost.values(), strict=True)]
        what = "break-even: false alarms at which FAPO's right answers are down to GRPO's (0.8 where they never are)"
        worst.append(contrast(what, even, primary=False, unit="rate"))
    stays = [more(over(kind, f"blind={kind}")) for kind in BLIND]
    rest = [over("sound", arm, False) for arm in (*named, "harsh")]
    return [
        Asked("E5a", "Random errors of a judge do little: the mean over a group takes them out.", "ours", little, worst, arms),
        Asked(
            "E5b",
            "What a judge never sees is not removed.",
            "ours",
            stays,
            rest,
            arms,
            ["`harsh`: every solution of a problem with four operations is called flawed."],
        ),
    ]


def crossing(gains: Sequence[tuple[float, float]]) -> float:
    """Where a gain, linear between (rate, gain), first comes to 0; the last rate where it never does.

    >>> crossing([(0.0, 0.2), (0.4, 0.1), (0.8, -0.1)]), crossing([(0.0, 0.2), (0.8, 0.1)]), crossing([(0.0, -0.1), (0.8, 0.1)])
    (0.6, 0.8, 0.0)
    """
    before, gain = gains[0]
    if gain <= 0:
        return before
    for rate, now in gains[1:]:
        if now <= 0:
            return round(before + (rate - before) * gain / (gain - now), 9)
        before, gain = rate, now
    return before


def of_critics(r: Rows) -> list[Asked]:
    def over(what: str, name: str, pair: tuple[str, str] = ("process", "outcome"), primary: bool = True) -> Contrast:
        return r.contrast(f"{what}, {pair[0]} − {pair[1]}", "critic", pair, after(name), primary)

    kinds = (*KINDS_SEEN, *KINDS_UNSEEN)
    measures = {f"exact, {kind}": after(f"exact/{kind}") for kind in kinds} | {
        name: after(name) for name in ("precision", "recall", "f1", "unseen/f1")
    }
    arms = r.arms("critic", {"warm start": "warm", "outcome alone": "outcome", "outcome + process": "process"}, measures)
    by_kind = [over(f"exact location, {kind}", f"exact/{kind}", primary=False) for kind in KINDS_UNSEEN]
    scores = [over(name, name, primary=False) for name in ("precision", "recall", "f1", "unseen/f1")]

    def policy(pair: tuple[str, str], primary: bool = True, name: str = "sound") -> Contrast:
        said = {f"judge={judge}": f"judged by {judge}" for judge in ("warm", "outcome", "process")} | {"lam=1": "by the oracle"}
        return r.contrast(f"{name} at the end, {said[pair[0]]} − {said[pair[1]]}", "default", pair, after(name), primary)

    judged = {"GRPO": "lam=0", "warm start": "judge=warm", "outcome": "judge=outcome", "process": "judge=process", "oracle": "lam=1"}
    order = [more(policy(pair)) for pair in (("judge=process", "judge=outcome"), ("judge=outcome", "judge=warm"))]
    rest = [policy(("lam=1", "judge=process"), False), policy(("judge=process", "judge=outcome"), False, "right")]
    return [
        Asked(
            "E6a",
            "R_process makes a critic find the very step.",
            "§3.1, Fig. 4",
            [more(over("exact location of a student's flaws", "exact/student"))],
            scores,
            arms,
        ),
        Asked(
            "E6b",
            "It does so for kinds of flaw that it was never trained on.",
            "the seed's check 1",
            [more(over("exact location of unseen kinds", "exact/unseen"))],
            by_kind,
            arms,
        ),
        Asked("E7", "A better critic makes a better policy.", "Fig. 4, 5", order, rest, r.arms("default", judged, POLICY)),
    ]


def of_timing(r: Rows) -> list[Asked]:
    named = {f"{mode}, judging ÷ training {ratio:g}": f"{mode}/{ratio:g}" for ratio in RATIOS for mode in ("overlap", "serial")}
    decides = "overlap, judging ÷ training 0.5"

    def times(label: str) -> Contrast:
        values = r.values("timing", named[label], after("x_known")).values()
        return contrast(f"step ÷ step with verdicts known, {label}", list(values), label == decides, "×")

    test = Test(times(decides), 0.0, bound=1.2, at_least=False, margin=True)
    others = [times(label) for label in named if label != decides]
    arms = r.arms("timing", named, {"× known": after("x_known"), "hidden": after("hidden")})
    return [
        Asked(
            "E8",
            "Judging beside training costs less than 20 % of a step, and changes no bit.",
            "§4.5",
            [test],
            others,
            arms,
            ["Of one machine; a repeat is no seed."],
        )
    ]


def claims(rows: Iterable[Row]) -> list[Claim]:
    """With their verdicts; primaries that a p decides are adjusted together."""
    found = asked(Rows(rows))
    tested = [test for one in found for test in one.tests if not test.margin and test.contrast.n >= FEWEST]
    adjusted = dict(zip(map(id, tested), holm([test.p for test in tested]), strict=True))

    def settled(test: Test) -> Test:
        return (
            dataclasses.replace(test, contrast=dataclasses.replace(test.contrast, holm=adjusted[id(test)]))
            if id(test) in adjusted
            else test
        )

    return [dataclasses.replace(one, tests=[settled(test) for test in one.tests]).decided() for one in found]
