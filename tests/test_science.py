"""The experiments' own logic: the altered world, what rollouts say, statistics over seeds, the rule that decides, the order of runs."""

from __future__ import annotations

import itertools
import json
import math
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from soundrl.engine.config import Config
from soundrl.engine.environments.arithmetic import chains
from soundrl.engine.environments.arithmetic.knobs import Knobs
from soundrl.engine.environments.environment import build_environment, environment_of
from soundrl.engine.files.rollout_file import RolloutWriter
from soundrl.engine.files.run_reader import RunReader
from soundrl.engine.recipes import arith
from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Verdict
from soundrl.fapo.rewards import RewardSettings, assign_advantages
from soundrl.fapo.samples import Samples
from soundrl.fapo.task import OracleJudge, ReasoningTask

BENCH = Path(__file__).resolve().parent.parent / "bench"


@pytest.fixture(scope="module")
def science():
    """The folder's modules, by name."""
    import importlib

    sys.path[:0] = [str(BENCH / "science"), str(BENCH)]
    try:
        names = ("analysis", "claim", "critics", "deciding", "experiments", "lab", "measures", "over_seeds", "science")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        del sys.path[:2]


def rollout(text: str, prompt: Prompt, sample: int = 0) -> Rollout:
    return Rollout(
        prompt_id=prompt.id,
        sample=sample,
        prompt_tokens=(1,),
        tokens=(2,) * len(text),
        logprobs=(-1.0,) * len(text),
        text=text,
        finish_reason="stop",
        policy_version=0,
    )


PROBLEM = chains.parse("58+7-2+3?1\n")
SOUND, FLAWED, SKIPPED, GUESSED = (
    "58+7=65\n65-2=63\n63+3=66\n#6\n",
    "58+7=55\n55-2=53\n53+3=56\n#6\n",
    "58+7=65\n65+3=68\n#6\n",
    "58+7=65\n#6\n",
)


def prompt(number: int = 0) -> Prompt:
    return Prompt(id=f"p{number}", text=PROBLEM.text, answer="6")


# The altered world


def test_random_errors_come_at_their_rate_and_follow_from_prompt_and_sample():
    knobs = Knobs.of("arith?false_alarms=0.4&misses=false:0.25")
    said = {text: [knobs.verdict(prompt(i), rollout(text, prompt(i))) for i in range(2000)] for text in (SOUND, FLAWED, SKIPPED)}
    alarms, missed = said[SOUND], [v for v in said[FLAWED] if v.kind == "sound" or v.reason == "alarm"]
    assert abs(sum(v.kind == "flawed" for v in alarms) / 2000 - 0.4) < 0.03 and abs(len(missed) / 2000 - 0.25) < 0.03
    assert all(v == Verdict.flawed(1, "skip") for v in said[SKIPPED])  # inverse: another kind is not missed
    assert {v.step for v in alarms if v.kind == "flawed"} == {0, 1, 2, 3}
    again = [knobs.verdict(prompt(i), rollout(SOUND, prompt(i))) for i in range(2000)]
    assert again == alarms and Knobs().verdict(prompt(), rollout(SOUND, prompt())) == Verdict.sound()


@pytest.mark.parametrize(
    ("knobs", "text", "verdict"),
    [
        ("blind=skip,guess", SKIPPED, Verdict.sound()),
        ("blind=skip,guess", GUESSED, Verdict.sound()),
        ("blind=skip,guess", FLAWED, Verdict.flawed(0, "false")),
        ("misses=1", GUESSED, Verdict.sound()),
        ("flawed=leave", FLAWED, Verdict.unknown("left")),
        ("flawed=leave", SOUND, Verdict.sound()),
        ("harsh=4", SOUND, Verdict.sound()),
    ],
)
def test_systematic_errors(knobs, text, verdict):
    assert Knobs.of(f"arith?{knobs}").verdict(prompt(), rollout(text, prompt())) == verdict


def test_who_is_harsh_on_a_form_is_so_on_all_of_it():
    four = Prompt(id="q", text="58+7-2+3+2?1\n", answer="8")
    text = "58+7=65\n65-2=63\n63+3=66\n66+2=68\n#8\n"
    assert Knobs().verdict(four, rollout(text, four)) == Verdict.sound()
    assert Knobs.of("arith?harsh=4").verdict(four, rollout(text, four)).reason == "alarm"


@pytest.mark.parametrize(
    "name",
    "blond=skip blind=skips misses=0.5,0.6 misses=skip:2 false_alarms=-0.1 false_alarms=nan lengths=3,9 lengths= scale=0 flaws=inf "
    "reward=both harsh=x blind=skip&blind=guess &".split(),
)
def test_a_knob_that_there_is_not_is_named(name):
    with pytest.raises(ValueError, match=r"^environment arith\?"):
        environment_of(f"arith?{name}")


def with_world(name: str, **fapo: float) -> Config:
    import dataclasses

    base = arith()
    data = dataclasses.replace(base.data, train=(name,))
    return dataclasses.replace(base, data=data, fapo=dataclasses.replace(base.fapo, **fapo))


def test_the_judge_is_altered_and_the_measure_is_exact():
    environment = build_environment(name := "arith?blind=false", with_world(name), None)
    judge = OracleJudge(type(environment).oracle)
    settings = RewardSettings(lam=1.0, normalize_std=True, max_new_tokens=60, overlong_buffer=0, overlong_factor=1.0, drop_unknown=True)
    task = ReasoningTask(environment.check, judge, settings, truth=environment.truth, split=environment.split)
    rollouts = [rollout(text, prompt(), i) for i, text in enumerate((SOUND, FLAWED, FLAWED, "58+7=65\n#5\n"))]
    (group,) = task.collect([prompt()], rollouts).groups()
    assert [v and v.kind for v in group.verdicts] == ["sound", "sound", "sound", None]
    measured = task.evaluation(task.count([group]), Samples.of([group]))
    assert (measured["sound"], measured["true_sound"], measured["true_flawed_ratio"]) == (0.75, 0.25, 2 / 3)
    # Inverse: where the very truth judges, it is not said twice.
    exact = ReasoningTask(environment.check, OracleJudge(chains.oracle), settings, truth=environment.truth)
    assert "true_sound" not in exact.evaluation(exact.count([group]), Samples.of([group]))


def test_the_step_ratio_pays_what_stands_before_the_first_wrong_step():
    environment = build_environment(name := "arith?reward=step-ratio", with_world(name, lam=0.0), None)
    texts = (SOUND, FLAWED, SKIPPED, GUESSED, "58+7=65\n#5\n")
    said = [environment.check(prompt(), rollout(text, prompt())) for text in texts]
    assert [check.reward for check in said] == [1.0, 0.0, 1 / 3, 1 / 2, -1.0]
    lenient = build_environment(name := "arith?reward=step-ratio&blind=skip,guess", with_world(name, lam=0.0), None)
    assert [lenient.check(prompt(), rollout(text, prompt())).reward for text in texts] == [1.0, 0.0, 1.0, 1.0, -1.0]
    with pytest.raises(ValueError, match="set --fapo.lam 0"):
        build_environment(name, with_world(name, lam=1.0), None)


def test_scarce_and_long_problems_leave_the_world_as_it_is():
    scarce, plain = (build_environment(name, with_world(name), None).problems(None) for name in ("arith?flaws=4", "arith"))
    assert [scarce.prompt(i) for i in range(50)] == [plain.prompt(i) for i in range(50)]  # the very problems
    flawed = [
        sum(chains.first_flaw(chains.parse(p.text), text) is not None for p, text in (source.demonstration(i, True) for i in range(400)))
        for source in (plain, scarce)
    ]
    assert flawed[1] > 1.5 * flawed[0] > 0
    long = build_environment(name := "arith?lengths=5,6", with_world(name), None).problems(None)
    assert {len(chains.parse(long.prompt(i).text).operations) for i in range(30)} == {5, 6} and long.name != plain.name


# What rollouts say


def test_a_run_is_measured_by_the_oracle_whatever_its_judge_has_said(science, tmp_path):
    """Two groups of a step on disk: figures by the oracle, the shift and the signs by what the judge has said."""
    settings = RewardSettings(lam=1.0, normalize_std=True, max_new_tokens=60, overlong_buffer=0, overlong_factor=1.0, drop_unknown=True)
    groups = []
    for number, kinds in enumerate(("fsuw", "sfww")):
        texts = {"s": FLAWED, "f": SOUND, "u": GUESSED, "w": ""}  # a judge that is always wrong
        verdicts = [{"s": Verdict.sound(), "f": Verdict.flawed(0), "u": Verdict.unknown("timeout"), "w": None}[kind] for kind in kinds]
        group = Group(prompt=prompt(number), rollouts=[rollout(texts[kind], prompt(number), i) for i, kind in enumerate(kinds)])
        group.outcomes, group.verdicts = [Outcome.WRONG if kind == "w" else Outcome.CORRECT for kind in kinds], verdicts
        assign_advantages([group], settings)
        groups.append(group)
    folder = tmp_path / "rollouts" / "step-000001"
    folder.mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps({"format": 2}))
    with RolloutWriter(folder / "rank-0.arrows") as file:
        file.add(groups)
        file.end([8])
    series, signs = science.measures.series_of(RunReader(tmp_path), 1.0)
    found = {name: value for name, (value,) in series.items()}
    tokens = sum(len(r.tokens) for group in groups for r in group.rollouts) / 8
    assert found == {
        **{"right": 5 / 8, "sound": 2 / 8, "wrong": 3 / 8, "flawed": 3 / 8, "rho": 2 / 3, "past": 0.0},
        **{"lines": 13 / 5, "skip": 0.0, "guess": 1 / 5, "tokens": tokens},
    }
    assert signs == {"groups": 2, "exceptions": 0, "ties": 1}
    assert science.measures.series_of(RunReader(tmp_path), 0.0)[1] == {"groups": 0, "exceptions": 0, "ties": 0}


def test_a_critic_is_measured_by_kind_of_flaw(science, monkeypatch):
    """The committed judge, which has learnt a student's flaws from a warm start: real verdicts, counted here once more."""
    critics, said = science.critics, list[tuple]()
    monkeypatch.setattr(critics, "ROWS", 32)
    told = critics.verdicts
    monkeypatch.setattr(critics, "verdicts", lambda folder, rows: said.append((rows, told(folder, rows))) or said[-1][1])
    found = critics.of_critic(BENCH.parent / "starts" / "judge")
    (seen, seen_says), (unseen, unseen_says) = said
    assert {row.kind for row in seen if row.label >= 0} == {*science.experiments.KINDS_SEEN}
    assert {row.kind for row in unseen if row.label >= 0} == {*science.experiments.KINDS_UNSEEN}
    for name, rows, says in (("exact/student", seen, seen_says), ("exact/unseen", unseen, unseen_says)):
        hits = [verdict == Verdict.flawed(row.label) for row, verdict in zip(rows, says, strict=True) if row.label >= 0]
        assert found[name] == sum(hits) / len(hits) and len(hits) >= 10
    assert found["exact/student"] >= 0.3  # a critic that knows nothing names the very step of hardly any
    assert {f"exact/{kind}" for kind in (*science.experiments.KINDS_SEEN, *science.experiments.KINDS_UNSEEN)} < found.keys()


# Over seeds


def test_intervals_and_tests_over_seeds(science):
    rng, o = np.random.default_rng(0), science.over_seeds
    covered = sum((m := o.mean(rng.normal(0.3, 1, 8).tolist())).low < 0.3 < m.high for _ in range(2000)) / 2000
    assert 0.93 < covered < 0.97
    values = rng.normal(0.5, 1, 7).tolist()
    sums = [abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in itertools.product((1, -1), repeat=7)]
    assert o.sign_flip(values) == np.mean([s >= abs(sum(values)) - 1e-12 for s in sums])
    assert (
        o.sign_flip([1.0] * 8) == 2 / 256
        and o.mean([3.0]).high == math.inf
        and o.sign_flip([]) == o.t_test([2.0]) == o.t_test([0.0, 0.0]) == 1.0
    )
    assert o.rises([1, 3, 2]) == pytest.approx(1 / 3) and o.rises([None, None]) == 0.0
    with pytest.raises(ValueError, match="at most 20"):
        o.sign_flip([1.0] * 21)


def rows_of(science, effect: float, seeds: int = 8, seed: int = 0) -> list[dict]:
    """Every arm, whose measures are a seed's own level, λ's effect and noise."""
    rng, names = random.Random(seed), ("right", "sound", "flawed", "tokens", "lines", "skip", "guess", "false", "p2/right", "p2/sound")
    names += tuple(f"exact/{kind}" for kind in ("student", "repair", "operand", "swap", "extra", "unseen"))
    names += ("precision", "recall", "f1", "unseen/f1", "located")
    rows = []
    for arm in itertools.chain(*science.experiments.ARMS.values()):
        for number in range(seeds):
            level = random.Random(f"{arm.start}/{number}/{seed}").gauss(0.5, 0.1)
            after = {name: level + effect * min(float(arm.lam), 1) + rng.gauss(0, 0.01) for name in names}
            series = {name: [level + rng.gauss(0, 0.01) for _ in range(40)] for name in ("right", "rho", "past")}
            own = {"run": f"{arm.key}/{number}", "start": arm.start, "arm": arm.name, "seed": number, "after": after, "series": series}
            rows.append(own | {"sign": {"groups": 10, "exceptions": 0, "ties": 1}})
    return rows


def test_the_rule_decides_by_pairs_and_never_without_them(science):
    found = {claim.id: claim for claim in science.analysis.claims(rows_of(science, 0.1))}
    assert len(found) == 15 and (found["E1"].verdict, found["E2b"].verdict, found["E3b"].verdict) == ("supported", "supported", "supported")
    first = found["E1"].contrasts[0]
    assert first.n == 8 and abs(first.mean - 0.1) < 0.02 and first.high - first.low < 0.04  # pairing: a seed's level spreads by 0.1
    assert first.p == 2 / 256 and first.holm is not None and first.holm < 0.05
    against = {claim.id: claim.verdict for claim in science.analysis.claims(rows_of(science, -0.1))}
    assert (against["E1"], against["E2b"]) == ("contradicted", "contradicted")
    few = science.analysis.claims(rows_of(science, 0.1, seeds=2))
    assert {claim.verdict for claim in few if claim.id != "E3b"} == {"not run"}
    assert {claim.verdict for claim in science.analysis.claims([])} == {"not run"}
    exception = rows_of(science, 0.1)
    exception[3]["sign"]["exceptions"] = 1
    assert next(c for c in science.analysis.claims(exception) if c.id == "E3b").verdict == "contradicted"
    assert all(f"n = {c.contrasts[0].n}" in c.because for c in found.values())


def test_where_nothing_differs_hardly_anything_is_supported(science):
    """Family-wise: of runs without any effect, one in twenty may support or contradict a claim of a difference."""
    margins, wrong = {"E1a", "E3b", "E5a", "E8", "E1"}, 0
    for seed in range(20):
        claims = science.analysis.claims(rows_of(science, 0.0, seed=seed))
        wrong += any(c.verdict in ("supported", "contradicted") for c in claims if c.id not in margins)
    assert wrong <= 4  # 20 × 0.05 = 1; above 4 in 1 of 400


# The lab


class Stub:
    """Jobs that end at once, as they are asked to."""

    def __init__(self, science, folder: Path, failing: str = "") -> None:
        self.lab = science.lab.Lab(folder, science.experiments.QUICK, True, 2)
        self.order: list[str] = []
        self.failing = failing
        self.lab._done = self.done

    def done(self, job):
        assert all((self.lab.folder / name / "done").exists() for name in job.needs)
        self.order.append(job.folder)
        if self.failing and self.failing in job.folder:
            return None
        folder = self.lab.folder / job.folder
        (folder / "policy" / "step-000000").mkdir(parents=True, exist_ok=True)
        (folder / "done").touch()
        return {"run": job.folder} if job.arm else {}


def test_starts_come_before_arms_and_judges_before_what_they_judge(science, tmp_path):
    stub = Stub(science, tmp_path)
    rows = list(stub.lab.rows(science.experiments.wanted((), 2)))
    arms = sum(map(len, science.experiments.ARMS.values()))
    assert len(rows) == 2 * arms and len(stub.order) == len({*stub.order}) == 2 * (arms + 4)
    place = stub.order.index
    assert place("critic/seed1/process") < place("default/seed1/judge=process") and place("scarce/seed0/start") < place(
        "scarce/seed0/leave"
    )
    job = stub.lab.job(next(arm for arm in science.experiments.ARMS["E7"] if arm.judge == "warm"), 0)
    assert str(tmp_path / "critic/seed0/start/policy/step-000000") in job.arguments
    for arm in itertools.chain(*science.experiments.ARMS.values()):  # what is asked is something that the main job takes
        if arm.name != "warm":
            science.lab.parsed(stub.lab.job(arm, 0))


def test_the_quick_version_has_what_takes_long_by_name_alone(science):
    experiments = science.experiments
    assert experiments.FULL.left_out == () and experiments.QUICK.left_out
    for name in experiments.QUICK.left_out:
        own = {id(arm) for arm in experiments.ARMS[name]}
        ran = {id(arm) for arm, _ in experiments.wanted((), 1, experiments.QUICK.left_out)}
        assert not own & ran and len(ran) > 20
        assert {id(arm) for arm, _ in experiments.wanted((name,), 1, experiments.QUICK.left_out)} == own


def test_what_needs_a_run_that_failed_is_left_out_and_named(science, tmp_path):
    stub = Stub(science, tmp_path, failing="critic/seed0/start")
    with pytest.raises(SystemExit, match="critic/seed0/start.*default/seed0/judge=process"):
        list(stub.lab.rows(science.experiments.wanted(("E6", "E7"), 1)))
    assert not any("judge=" in name for name in stub.order)
    stub = Stub(science, tmp_path / "other", failing="default/seed0/start")  # what another start goes on from
    with pytest.raises(SystemExit, match="scarce/seed0/leave"):
        list(stub.lab.rows(science.experiments.wanted(("E2",), 1)))
    assert stub.order == ["default/seed0/start"]


def test_runs_whose_rows_are_kept_are_not_repeated_unless_their_weights_are_needed(science, tmp_path):
    wanted = list(science.experiments.wanted(("E6", "E7"), 2))
    stub = Stub(science, tmp_path)
    jobs = {job.folder: job for job in (stub.lab.job(arm, seed) for arm, seed in wanted)}
    here = [name for name in jobs if "critic/" in name] + ["default/seed0/judge=process"]
    stub.lab.kept = {name: {"settings": stub.lab.settings(jobs[name])} for name in here}
    list(stub.lab.rows(wanted))
    arms = {"critic/seed1/outcome", "critic/seed0/outcome", "critic/seed1/process", *(name for name in jobs if "judge=" in name)}
    arms -= {"default/seed0/judge=process"}  # so its judge is not needed either, and neither is what "warm" has come to
    assert {*stub.order} == arms | {f"{start}/seed{seed}/start" for start in ("critic", "default") for seed in (0, 1)}
    stub.lab.kept["critic/seed0/warm"]["settings"].append("--run.seed")
    with pytest.raises(SystemExit, match=r"critic/seed0/warm is of other settings; take it out"):
        list(stub.lab.rows(wanted))


def test_rows_replace_those_of_the_same_run(science, tmp_path):
    file = tmp_path / "science.jsonl"
    science.science.keep(file, [{"run": "b", "x": 1}, {"run": "a", "x": 1}])
    science.science.keep(file, [{"run": "b", "x": 2}])
    assert [json.loads(line) for line in file.read_text().splitlines()] == [{"run": "a", "x": 1}, {"run": "b", "x": 2}]
