"""Figures of an evaluation: against independent ones, from memory and from a file, and whether their intervals hold the truth."""

import itertools
import json
import math
import random
import statistics
import sys
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT

from soundrl.engine.evaluation.table import compare, leaderboard, ordered, scores_of, show_scores, write_scores
from soundrl.engine.files.rollout_file import RolloutWriter, read_file
from soundrl.fapo import resampled
from soundrl.fapo.at_k import maj_at_k, pass_at_k, powers
from soundrl.fapo.corrected import Errors, corrected
from soundrl.fapo.figures import figures, paired
from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Verdict
from soundrl.fapo.resampled import below, exact_low, flipped, intervals
from soundrl.fapo.samples import Samples, joined

sys.path.insert(0, str(ROOT / "bench"))
import coverage

VERDICTS = {"s": Verdict.sound(), "f": Verdict.flawed(1), "?": Verdict.unknown("timeout"), "-": None}


def rollout(problem: str, sample: int, tokens: int, finish: str = "stop", own: int | None = None) -> Rollout:
    mask = np.ones(tokens, np.uint8)
    mask[own if own is not None else tokens :] = 0
    numbers = {"prompt_tokens": (1,), "tokens": (3,) * tokens, "logprobs": (-0.1,) * tokens, "mask": mask}
    return Rollout(prompt_id=problem, sample=sample, text="text", finish_reason=finish, policy_version=0, **numbers)


def made_up(rng: random.Random, problems: int = 0, most: int = 0, judged: bool = True) -> list[Group]:
    """An evaluation with everything in it that there is; n differs over problems."""
    groups = []
    for i in range(problems or rng.randint(1, 8)):
        name, chance, n = f"set:{i}", rng.random(), most or rng.randint(1, 8)
        outcomes = [Outcome.CORRECT if rng.random() < chance else rng.choice([*Outcome][1:]) for _ in range(n)]
        known = {Outcome.CORRECT: ["7", "7.0"], Outcome.WRONG: ["1", "2", "3"], Outcome.UNPARSEABLE: [None, "1", "x"]}
        groups.append(
            Group(
                prompt=Prompt(id=name, text=f"problem {i} \u20ac", answer="7"),
                rollouts=[rollout(name, s, rng.randint(1, 30), rng.choice(["stop", "length"])) for s in range(n)],
                outcomes=outcomes,
                extracted=[rng.choice(known.get(outcome, [None])) for outcome in outcomes],
                verdicts=[VERDICTS[rng.choice("ssf?")] if judged and o is Outcome.CORRECT else None for o in outcomes],
            )
        )
    return groups


def votes(group: Group) -> list[str | None]:
    """Of the scored samples: `right`, a wrong answer, or None."""
    said = zip(group.outcomes, group.extracted, strict=True)
    return [
        "right" if outcome is Outcome.CORRECT else None if outcome is Outcome.NO_ANSWER else f"wrong {answer}" if answer else None
        for outcome, answer in said
        if not outcome.leaves
    ]


def won(drawn: tuple[str | None, ...]) -> Fraction:
    counted = Counter(vote for vote in drawn if vote)
    first = [vote for vote, times in counted.items() if times == max(counted.values())]
    return Fraction("right" in first, max(len(first), 1))


def mean(values: list) -> Fraction:
    return sum(values, Fraction(0)) / len(values)


def independent(groups: list[Group], k: int) -> dict[str, list[Fraction]]:
    """By problem, every subset of k samples by itself, in fractions."""
    out: dict[str, list[Fraction]] = {
        name: [] for name in ("accuracy", "sound", "cut", "tokens", f"pass@{k}", f"maj@{k}", f"process_pass@{k}")
    }
    for group in groups:
        rows = [r for r in zip(group.rollouts, group.outcomes, group.verdicts, strict=True) if not r[1].leaves]
        if not rows:
            continue
        right = [outcome is Outcome.CORRECT for _, outcome, _ in rows]
        sound = [verdict is not None and verdict.kind == "sound" for _, _, verdict in rows]
        subsets = [*itertools.combinations(range(len(rows)), k)]
        out["accuracy"].append(mean(right))
        out["sound"].append(mean(sound))
        out["cut"].append(mean([r.finish_reason == "length" for r in group.rollouts]))
        out["tokens"].append(mean([int(r.mask.sum()) for r in group.rollouts]))
        out[f"pass@{k}"].append(mean([any(right[i] for i in s) for s in subsets]))
        out[f"process_pass@{k}"].append(mean([any(sound[i] for i in s) for s in subsets]))
        out[f"maj@{k}"].append(mean([won(drawn) for drawn in itertools.combinations(votes(group), k)]))
    return out


def quantile(values: list[float], share: float) -> float:
    """Between the two values next to it, in proportion."""
    place = share * (len(values) - 1)
    below, above = sorted(values)[math.floor(place)], sorted(values)[math.ceil(place)]
    return below + (above - below) * (place - math.floor(place))


def ends_of(values: list[float], ids: tuple[str, ...], draws: int) -> tuple[float, float]:
    """Before they are cut: the studentised bootstrap, a draw at a time."""
    n, rng = len(values), np.random.default_rng(resampled.seed_of(ids))
    middle, se = math.fsum(values) / n, statistics.stdev(values) / math.sqrt(n)
    ts = []
    for chosen in rng.integers(n, size=(draws, n)).tolist():
        drawn = [values[i] for i in chosen]
        spread, away = statistics.stdev(drawn) / math.sqrt(n), math.fsum(drawn) / n - middle
        if spread > 1e-9:
            ts.append(away / spread)
        elif abs(away) > 1e-12:
            ts.append(math.copysign(1e9, away))
    return middle - se * quantile(ts, 0.975), middle - se * quantile(ts, 0.025)


def test_a_thousand_random_sets_equal_every_subset_counted(monkeypatch):
    monkeypatch.setattr(resampled, "DRAWS", 25)
    rng, compared, uncut = random.Random(1), Counter(), 0
    for _ in range(1000):
        groups = made_up(rng, most=rng.choice((0, 0, 3, 5, 8)))
        scored = [sum(not outcome.leaves for outcome in group.outcomes) for group in groups]
        if not (least := min((n for n in scored if n), default=0)):
            with pytest.raises(ValueError, match="has an outcome"):
                figures(Samples.of(groups))
            continue
        k, samples = rng.randint(1, least), Samples.of(groups)
        found = figures(samples, [k], judged=True)
        counted = independent(groups, k)
        for name, values in counted.items():
            figure = found[name]
            assert abs(figure.value - float(mean(values))) <= 1e-12, (name, k)
            assert figure.low <= figure.value <= figure.high
            compared[name.partition("@")[0]] += 1
        ids, own = tuple(id_ for id_, n in zip(samples.ids, samples.scored, strict=True) if n), counted["accuracy"]
        if len({*own}) > 1:
            low, high = ends_of([float(v) for v in own], ids, 25)
            span = found["accuracy"]
            n = len(own)
            assert span.low == pytest.approx(min(span.value, max(low, exact_low(span.value, n))), abs=1e-12, rel=0)
            assert span.high == pytest.approx(max(span.value, min(high, 1 - exact_low(1 - span.value, n))), abs=1e-12, rel=0)
            uncut += span.low == pytest.approx(low, abs=1e-12) or span.high == pytest.approx(high, abs=1e-12)
    assert min(compared.values()) > 900 and len(compared) == 7 and uncut > 300, (compared, uncut)  # witness


def test_large_n_equals_another_formula():
    """pass@k: the product 1 − Π (1 − k ÷ i). maj@k of two answers: a hypergeometric tail, ties by half; of n: the plurality."""
    rng = random.Random(2)
    for _ in range(200):
        n = rng.randint(9, 300)
        c, k = rng.randint(0, n), rng.randint(1, n)
        product = 1 - math.prod(1 - k / i for i in range(n - c + 1, n + 1)) if n - c >= k else 1.0
        assert abs(pass_at_k(n, [c], k)[0] - product) <= 1e-12
        tail = sum(Fraction(math.comb(c, t) * math.comb(n - c, k - t) * (2 if 2 * t > k else 1), 2) for t in range((k + 1) // 2, k + 1))
        assert abs(maj_at_k(c, (n - c,) if c < n else (), 0, k) - float(tail / math.comb(n, k))) <= 1e-12
        counts = [rng.randint(0, 9) for _ in range(5)]
        right, *wrong = counts
        if sum(counts):
            share = (right == max(counts)) / counts.count(max(counts)) if right else 0.0
            assert maj_at_k(right, tuple(sorted(w for w in wrong if w)), 3, sum(counts) + 3) == pytest.approx(share, abs=1e-12)
    assert pass_at_k(32, [1], 8)[0] == 0.25  # the plug-in 1 − (1 − 1/32)^8 says 0.224


def test_k_above_n_is_refused_by_name():
    groups = made_up(random.Random(3), problems=3, most=4)
    groups[1].outcomes = [Outcome.CORRECT, Outcome.UNKNOWN, Outcome.UNSCORED, Outcome.WRONG]
    groups[1].verdicts = [Verdict.sound(), None, None, None]
    groups[1].extracted = ["7", None, None, "1"]
    for g in (groups[0], groups[2]):
        g.outcomes = [Outcome.CORRECT] * 4
    samples = Samples.of(groups)
    with pytest.raises(ValueError, match="k = 3, but set:1 has 2 samples"):
        figures(samples, [1, 3])
    with pytest.raises(ValueError, match="k = 0"):
        figures(samples, [0])
    with pytest.raises(ValueError, match="k = 5"):
        pass_at_k([4, 5], [1, 1], 5)
    found = figures(samples)
    assert {name for name in found if name.startswith("pass@")} == {"pass@1", "pass@2"}  # up to the fewest
    assert found["accuracy"].value == (1 + 0.5 + 1) / 3  # a problem counts once, however many of its samples are scored
    assert dict(samples.reasons)["verify/unknown"] == 1 and dict(samples.reasons)["verify/unscored"] == 1
    groups[1].outcomes = [Outcome.UNKNOWN] * 4
    assert figures(Samples.of(groups), [4])["accuracy"] == figures(Samples.of([groups[0], groups[2]]), [4])["accuracy"]


def test_an_answer_that_nobody_tells_forbids_maj_alone():
    (group,) = made_up(random.Random(4), problems=1, most=4)
    group.outcomes, group.verdicts = [Outcome.CORRECT, Outcome.WRONG, Outcome.WRONG, Outcome.WRONG], [None] * 4
    group.extracted = ["7", "1", "1", "2"]
    assert figures(Samples.of([group]))["maj@4"].value == 0.0
    group.extracted = ["7", None, None, None]  # three that agree, or none that do: not known
    assert not any(name.startswith("maj") for name in figures(Samples.of([group])))
    group.outcomes[1:] = [Outcome.NO_ANSWER] * 3
    assert figures(Samples.of([group]))["maj@4"].value == 1.0


def same(one: Samples, other: Samples) -> bool:
    return (
        one.ids == other.ids
        and one.reasons == other.reasons
        and all(
            np.array_equal(getattr(one, name), getattr(other, name))
            for name in ("contents", "problem", "sample", "outcome", "answer", "verdict", "cut", "tokens")
        )
    )


def test_memory_a_file_and_ranks_give_the_same(tmp_path: Path):
    rng = random.Random(5)
    groups = made_up(rng, problems=9, most=6)
    several = groups[0].rollouts[0] = rollout("set:0", 0, 9, own=4)  # of several turns: four tokens are the policy's
    whole = Samples.of(groups)
    assert whole.tokens[0] == 4 and len(several.tokens) == 9
    with RolloutWriter(tmp_path / "rank-0.eval-set.arrows", "eval", "set") as file:
        file.add(groups[:4])
        file.add(groups[4:])
    table = read_file(tmp_path / "rank-0.eval-set.arrows")[0]
    assert same(Samples.read(table), whole) and same(Samples.read(table.take([*range(table.num_rows)][::-1])), whole)

    def part(group: Group, chosen: list[int]) -> Group:
        lists = {name: [getattr(group, name)[i] for i in chosen] for name in ("rollouts", "outcomes", "extracted", "verdicts")}
        return Group(prompt=group.prompt, **lists)

    ranks: list[list[Group]] = [[], [], []]
    for group in groups:  # samples of a problem lie on different ranks
        dealt = [rng.randrange(3) for _ in group.rollouts]
        for rank in range(3):
            if chosen := [i for i, its in enumerate(dealt) if its == rank]:
                ranks[rank].append(part(group, chosen))
    assert same(joined([Samples.of(part) for part in [*ranks, []]]), whole)
    assert figures(whole) == figures(Samples.read(table)) or str(figures(whole)) == str(figures(Samples.read(table)))
    with pytest.raises(ValueError, match="set:0: sample 0 comes twice"):
        joined([whole, whole])
    with pytest.raises(ValueError, match="set:0.*another problem"):
        joined([whole, Samples.of([replace(groups[0], prompt=Prompt(id="set:0", text="else", answer="7"))])])
    rows = table.to_pylist()
    rows[3]["outcome"] = None
    with pytest.raises(ValueError, match=f"{rows[3]['prompt_id']}, sample {rows[3]['sample']}: outcome None"):
        Samples.read(pa.Table.from_pylist(rows, schema=table.schema))


def test_an_unknown_verdict_is_neither_sound_nor_flawed():
    (group,) = made_up(random.Random(6), problems=1, most=4)
    group.outcomes = [Outcome.CORRECT] * 4
    group.verdicts = [VERDICTS[v] for v in "sf??"]
    group.extracted = ["7"] * 4
    scores = scores_of(Samples.of([group]), errors=Errors(45, 50, 2, 50))
    value = {name: figure["value"] for name, figure in scores["figures"].items()}
    assert (value["accuracy"], value["sound"], value["flawed_ratio"], value["process_pass@1"]) == (1.0, 0.25, 0.5, 0.25)
    assert scores["judge"] == {"right": 4, "told": 2, "unasked": 0, "coverage": 0.5} and scores["unknown"] == {"judge/timeout": 2}
    raw, mended = scores["figures"]["flawed_ratio"], scores["figures"]["flawed_corrected"]
    assert mended["low"] <= corrected(1, 2, Errors(45, 50, 2, 50)).low and mended["high"] >= raw["value"]
    group.verdicts[3] = None  # it was not asked, though it was of others
    scores = scores_of(Samples.of([group]))
    assert scores["judge"]["unasked"] == 1 and scores["figures"]["sound"]["value"] == 0.25
    group.verdicts = [None] * 4
    assert "sound" not in scores_of(Samples.of([group]))["figures"]
    assert scores_of(Samples.of([group]), judged=True)["figures"]["sound"]["value"] == 0.0


def test_exact_intervals_of_a_share():
    for n, x, p in ((30, 29, 0.3), (500, 3, 0.01), (2, 1, 0.5), (1, 0, 0.9)):
        tail = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(x + 1))
        assert 1 - below(p, x + 1, n - x) == pytest.approx(tail, abs=1e-12)
    assert exact_low(1.0, 30) == pytest.approx(0.025 ** (1 / 30), abs=1e-6) and exact_low(0.0, 30) == 0.0
    all_right = intervals(np.ones((30, 1)), np.ones((30, 1)), ["a"])[0]
    assert all_right.low == pytest.approx(0.8843, abs=1e-4) and all_right.high == 1.0  # a resampled mean knows 1 alone
    alone = intervals(np.array([[0.5]]), np.ones((1, 1)), ["a"])[0]
    assert alone.low < 0.01 and alone.high > 0.99 and math.isnan(alone.se)  # one problem says nothing of others


@pytest.mark.parametrize(("size", "policy", "trials"), [("30 × 32", "mixed", 200), ("30 × 32", "very hard", 200), ("500 × 4", "even", 40)])
def test_the_interval_over_problems_holds_the_truth(size, policy, trials):
    """Few evaluations leave 3 points more or less: `python bench/coverage.py --full` has many. Inverse: rows pooled as if independent, and
    samples drawn a second time."""
    found = coverage.coverage(coverage.SETS[size], coverage.POLICIES[policy], trials)
    assert 0.92 <= found["avg"] <= 0.99, found
    assert all(found[name] >= 0.93 for name in found if name.startswith("pass@") and "width" not in name), found
    assert found["pooled rows"] < 0.9, found
    if size == "500 × 4":
        assert found["samples twice width"] > 1.1 * found["avg width"]


def test_maj_at_k_and_flawed_shares_hold_the_truth():
    assert 0.92 <= coverage.majority((30, 8), 8, 150) <= 0.99
    found = coverage.flaws((60, 8), 250, seed=1)
    assert found["corrected"] >= 0.93 > found["raw"]  # the raw share is that of what the judge says


def test_paired_is_narrower_and_its_p_has_its_size():
    found = coverage.paired((60, 8), (0.5, 0.5), 0.0, 200)
    assert found["width ÷ unpaired"] < 0.6 and 0.92 <= found["held"] <= 0.98 and 0.02 <= found["p < .05"] <= 0.08, found
    assert coverage.paired((60, 8), (0.5, 0.5), 0.25, 40)["p < .05"] > 0.9  # and it finds what is there
    assert flipped(np.full((3, 1), 0.5), ["a"]) == [0.25] and flipped(np.zeros((40, 2)), ["a"]) == [1.0, 1.0]


def test_pairs_are_of_the_same_problems():
    ours, theirs = (made_up(random.Random(seed), problems=12, most=4) for seed in (7, 8))
    a, b = Samples.of(ours), Samples.of(theirs)
    found, back = paired(a, b), paired(b, a)
    both = figures(a.only(b.scored > 0)), figures(b.only(a.scored > 0))
    assert found["accuracy"].value == pytest.approx(both[0]["accuracy"].value - both[1]["accuracy"].value, abs=1e-12)
    assert found["sound"].value == -back["sound"].value and found["sound"].p == back["sound"].p
    assert all(d.low <= d.value <= d.high and 0 < d.p <= 1 for d in found.values())
    nothing = paired(a, a)["accuracy"]
    assert nothing.value == 0.0 and nothing.p == 1.0 and nothing.low < 0 < nothing.high
    with pytest.raises(ValueError, match=r"11 problems in common; in one alone: 1 \(set:11\) of the first, 0 of the second"):
        paired(a, Samples.of(theirs[:11]))
    theirs[2].prompt = Prompt(id="set:2", text="another version", answer="7")
    with pytest.raises(ValueError, match=r"1 \(set:2\) read differently"):
        paired(a, Samples.of(theirs))


def test_scores_are_written_shown_and_compared(tmp_path: Path, capsys):
    sets = {"a[red]|b": Samples.of(made_up(random.Random(9), 6, 4)), "plain": Samples.of(made_up(random.Random(10), 5, 1, judged=False))}
    scores = {name: scores_of(samples) for name, samples in sets.items()}
    made_from = {"model": "m", "prompt": "p", "sampling": {"temperature": 1.0}, "versions": {"vllm": "0"}}
    write_scores(tmp_path / "out" / "scores.json", made_from, scores)
    written = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert written == {"format": 1, "made_from": made_from, "sets": scores} and not [*(tmp_path / "out").glob("*.part")]
    figure = written["sets"]["plain"]["figures"]["accuracy"]
    assert figure.keys() == {"value", "low", "high", "se", "se_sampling", "problems"} and figure["se_sampling"] is None  # of one sample
    with pytest.raises(ValueError, match="versions is missing"):
        write_scores(tmp_path / "scores.json", made_from | {"versions": {}}, scores)
    show_scores("model \x1b[2J[bold]", scores)
    shown = capsys.readouterr().out
    assert "a[red]|b (6 × " in shown and "\x1b" not in shown and "avg@n" in shown and "[bold]" in shown
    *_, line = leaderboard("x|y", scores)
    assert line.startswith("| x\\|y | ") and line.count(" | ") == 2 and "\n" not in line
    other = {"plain": Samples.of(made_up(random.Random(11), 5, 1, judged=False)), "third": sets["plain"]}
    assert compare(sets, other)["plain"]["accuracy"].problems <= 5
    assert "third: in one of the two alone" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no set in common: plain and third"):
        compare({"plain": sets["plain"]}, {"third": sets["plain"]})
    assert ordered(["sound", "maj@4", "pass@1", "pass@16", "pass@2"]) == ["pass@2", "pass@16", "maj@4", "sound"]
    assert powers(32) == [1, 2, 4, 8, 16, 32]
