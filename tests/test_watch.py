"""What the steps of a run say of its judge, and what an alarm does: shares against an oracle or a second opinion, the signs by which FAPO
fails, the second opinion itself, and its place in a run."""

import json
import random
from concurrent.futures import Future
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
from conftest import Alone
from fake_judge import MODEL, Server, find_flaw, said
from test_probe import ROWS

from soundrl.engine.files.run_folder import RunFolder
from soundrl.engine.judging.judge_watch import JudgeWatch, fresh, second_judge
from soundrl.engine.recipes import RECIPES
from soundrl.fapo.corrected import Errors
from soundrl.fapo.pending import done
from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Verdict
from soundrl.fapo.rewards import RewardSettings
from soundrl.fapo.task import OracleJudge, ReasoningTask
from soundrl.genrm.pool.judge import EndpointJudge
from soundrl.genrm.watch.alarms import Alarms, JudgeUnfitError
from soundrl.genrm.watch.probe import Probe
from soundrl.genrm.watch.second import Second, chosen, counts, figures

SOUND, FLAWED = Verdict.sound(), Verdict.flawed(1)


def rollout(prompt: str, sample: int, text: str = "So 2+2=4.\n\nSo 4.") -> Rollout:
    numbers = {"prompt_tokens": (1,), "tokens": (2,), "logprobs": (0.0,), "policy_version": 0}
    return Rollout(prompt_id=prompt, sample=sample, text=text, finish_reason="stop", **numbers)  # type: ignore[arg-type]


def healthy(rng: random.Random, step: int) -> tuple[dict[str, tuple[int, int]], dict[str, float]]:
    """Counts and figures of a step: a judge with recall .9 and over-critic .05, a policy whose flaws grow fewer and better hidden."""
    missed, flawed = 0.1 + 0.4 * min(step, 100) / 100, max(3, 25 - step // 4)

    def drawn(share: float, of: int) -> tuple[int, int]:
        return sum(rng.random() < share for _ in range(of)), of

    out = {"fresh_over_critic": drawn(0.05, 28), "fresh_missed": drawn(missed, flawed)}
    out |= {"second_disagrees": drawn(0.12, 12), "second_over_critic": drawn(0.1, 9), "second_missed": drawn(missed, 3)}
    figures = {"reward/correct": 0.6 + 0.3 * step / 200 + rng.gauss(0, 0.03), "fapo/steps": 4.2 + rng.gauss(0, 0.2)}
    figures |= {
        "fapo/kind_skip": max(0.0, 0.06 - step / 4000 + rng.gauss(0, 0.02)),
        "genrm/critique_tokens": 800 * rng.lognormvariate(0, 0.15),
    }
    return out, figures | {"genrm/latency_p50": 1.0, "genrm/latency_p99": 3.0 * rng.lognormvariate(0, 0.2)}


@pytest.mark.parametrize("seed", range(2))
def test_no_false_alarm_in_two_hundred_healthy_steps(seed):
    rng, alarms = random.Random(seed), Alarms()
    for step in range(1, 201):
        alarms(*healthy(rng, step))
        assert not alarms.standing, (step, alarms.standing)


SIGNS = {  # what changes at step 21, which alarm, after how many steps at most
    "over-critic, by the oracle": ({"fresh_over_critic": (15, 28)}, {}, "fresh_over_critic", 3),
    "over-critic, by a second opinion": ({"second_over_critic": (8, 9), "second_disagrees": (8, 12)}, {}, "second_over_critic", 3),
    "sound to all, by the oracle": ({"fresh_missed": (20, 20), "fresh_over_critic": (0, 28)}, {}, "fresh_missed", 3),
    "random, by a second opinion": ({"second_disagrees": (6, 12)}, {}, "second_disagrees", 10),
    "jump in reasoning, by steps": ({}, {"fapo/steps": 2.6}, "steps", 5),
    "jump in reasoning, by kinds of flaw": ({}, {"fapo/kind_skip": 0.3}, "jumped", 5),
    "long tail, by tokens": ({}, {"genrm/critique_tokens": 2500.0}, "critique_tokens", 5),
    "long tail, by the clock": ({}, {"genrm/latency_p99": 15.0}, "latency", 5),
}


@pytest.mark.parametrize("sign", SIGNS)
def test_each_sign_of_failure_raises_its_alarm(sign):
    shares, levels, name, within = SIGNS[sign]
    rng, alarms = random.Random(7), Alarms()
    for step in range(1, 21):
        alarms(*healthy(rng, step))
    again = Alarms()
    again.restore(json.loads(json.dumps(alarms.state())))  # a run that goes on sees the same
    for step in range(21, 21 + within):
        usual = healthy(rng, step)
        for each in (alarms, again):
            each(usual[0] | shares, usual[1] | levels)
    assert alarms.standing.keys() >= {name} and alarms.standing == again.standing and alarms.state() == again.state()
    assert alarms.standing[name].startswith(f"{name}: ")
    alarms.forgive()
    alarms(*healthy(rng, 40))
    assert not alarms.standing


def test_shorter_solutions_of_a_policy_that_falls_apart_are_no_jump():
    rng, alarms = random.Random(7), Alarms()
    for step in range(1, 41):
        usual, levels = healthy(rng, step)
        alarms(usual, levels | ({"fapo/steps": 2.0, "reward/correct": 0.2} if step > 20 else {}))
        assert not alarms.standing


def test_a_share_of_rollouts_follows_from_their_names_and_step_alone():
    those = [rollout(f"p{i}", sample) for i in range(500) for sample in range(8)]

    def picked(seed: int, share: float, step: int = 0) -> set[tuple[str, int]]:
        return {(r.prompt_id, r.sample) for r in reversed(those) if chosen(seed, step, r, share)}

    few = picked(0, 0.05)
    assert 140 <= len(few) <= 260 and few == {(r.prompt_id, r.sample) for r in those if chosen(0, 0, r, 0.05)}
    assert few != picked(1, 0.05) and len(picked(0, 1.0)) == 4000 and few < picked(0, 0.1)
    assert len(few & picked(0, 0.05, step=1)) < 30  # of the same problems after other steps, others


def test_agreement_and_kappa():
    assert figures([8, 1, 1, 10, 2]) == {
        "genrm/second_count": 20.0,
        "genrm/second_unknown": 2.0,
        "genrm/second_agreement": 0.9,
        "genrm/second_kappa": pytest.approx((0.9 - (9 * 9 + 11 * 11) / 400) / (1 - (9 * 9 + 11 * 11) / 400)),
    }
    assert figures([5, 0, 0, 0, 0]) == {"genrm/second_count": 5.0, "genrm/second_unknown": 0.0, "genrm/second_agreement": 1.0}
    assert figures([0, 0, 0, 0, 3]) == {"genrm/second_count": 0.0, "genrm/second_unknown": 3.0}
    assert counts([8, 1, 2, 10, 9]) == {"second_disagrees": (3, 21), "second_over_critic": (2, 10), "second_missed": (1, 11)}


class Saying:
    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts, self.asked = verdicts, []

    def submit(self, prompt: Prompt, rollout: Rollout, priority: int = 0) -> Future[Verdict]:
        self.asked.append((rollout.prompt_id, rollout.sample))
        return done(self.verdicts[rollout.sample])


REWARDS = RewardSettings(lam=1.0, normalize_std=True, max_new_tokens=40, overlong_buffer=0, overlong_factor=1.0, drop_unknown=True)


def test_a_second_opinion_is_asked_beside_training_and_changes_nothing():
    first = Saying(SOUND, FLAWED, FLAWED, Verdict.unknown("no_box"), SOUND)
    other = Saying(FLAWED, FLAWED, Verdict.flawed(0), SOUND, SOUND)
    second = Second(other, 1.0, 0, str.split, 60.0, lambda: False)  # type: ignore[arg-type]
    prompt = Prompt(id="p", text="2+2?", answer="4")

    def groups(beside) -> list[Group]:
        task = ReasoningTask(lambda prompt, rollout: Outcome.CORRECT, first, REWARDS)  # type: ignore[arg-type]
        return task.collect([prompt], [rollout("p", sample) for sample in range(5)], beside=beside).groups()

    (alone,), (watched,) = groups(None), groups(second.asks(3))
    assert alone.rewards == watched.rewards and alone.advantages == watched.advantages and len(other.asked) == 5
    tables, rows = second.collect(lambda prompt: f"set of {prompt.id}")
    assert tables == {"set of p": [1, 1, 0, 2, 1]} and {row["set"] for row in rows} == {"set of p"}
    assert [(row["sample"], row["first"]["kind"], row["first"]["step"], row["second"]["kind"], row["second"]["step"]) for row in rows] == [
        (0, "sound", None, "flawed", 1),
        (2, "flawed", 1, "flawed", 0),
    ]
    assert rows[0]["problem"] == "2+2?" and rows[0]["reference"] == "4" and rows[0]["paragraphs"] == ["So", "2+2=4.", "So", "4."]
    assert second.collect() == ({}, [])


def test_errors_of_each_set_are_those_on_its_own_fresh_rollouts():
    """A judge that finds half of the flaws of one set and all of another's: no error of one is taken for the other's."""

    def watch(who: str) -> JudgeWatch:
        made = JudgeWatch(config(second=(who, 1.0)), Alone(), print, None)  # type: ignore[arg-type]
        made.second = Second(other, 1.0, 0, str.split, 60.0, lambda: False)  # type: ignore[arg-type]
        return made

    prompts = {name: [Prompt(id=f"{name} {i}", text="2+2?", answer="4") for i in range(8)] for name in ("hard", "easy")}
    other = Saying(SOUND, FLAWED)

    def evaluate(made: JudgeWatch, missed: int) -> None:
        assert made.second is not None
        for name, own in prompts.items():
            for i, prompt in enumerate(own):
                for sample in (0, 1):
                    finds = sample == 1 and (name == "easy" or i >= missed)
                    made.second.asks(0)(prompt, rollout(prompt.id, sample), done(FLAWED if finds else SOUND))
        made.evaluated(prompts)

    made = watch("oracle")
    assert made.errors("hard") is None
    evaluate(made, missed=4)
    evaluate(made, missed=2)
    assert made.errors("hard") == Errors(found=10, flawed=16, alarms=0, sound=16) and made.errors("easy") == Errors(16, 16, 0, 16)
    assert made.errors("") is None and made.table == [0] * 5  # nothing of training
    assert len(made.disagreements) == 2 and {row["set"] for row in made.disagreements} == {"hard"}
    again = watch("oracle")
    again.restore(json.loads(json.dumps(made.state())))
    assert again.errors("hard") == made.errors("hard")
    # The same judge asked in another way is no truth to measure it by.
    same = watch("votes")
    evaluate(same, missed=4)
    assert same.errors("hard") is None and len(same.disagreements) == 4


def test_who_leaves_goes_without():
    second = Second(SimpleNamespace(submit=lambda *_: Future()), 1.0, 0, str.split, 60.0, lambda: True)  # type: ignore[arg-type]
    second.asks(0)(Prompt(id="p", text="", answer=""), rollout("p", 0), done(SOUND))
    assert second.collect() == ({"": [0, 0, 0, 0, 1]}, [])


def config(**genrm):
    base = RECIPES["arith-genrm"]()
    return replace(base, genrm=replace(base.genrm, **genrm))


ASKED = {"votes": (3, 1.0, MODEL, 2), "order": (1, 0.0, MODEL, 2), f"other@org@{'http://127.0.0.1:9/v1'}": (1, 0.0, "other@org", 2)}


@pytest.mark.parametrize("who", ASKED)
def test_who_gives_the_second_opinion(who):
    if "prompt" not in {field.name for field in fields(EndpointJudge)} and who != "votes":
        pytest.skip("no named prompts")
    environment = SimpleNamespace()
    with EndpointJudge("http://127.0.0.1:8/v1", MODEL, concurrency=32) as judge:
        other = second_judge(config(second=(who, 0.05)), environment, judge)  # type: ignore[arg-type]
        assert isinstance(other, EndpointJudge) and other is not judge
        assert (other.votes, other.temperature, other.model, other.concurrency) == ASKED[who]
        assert other.endpoints[0].url == "http://127.0.0.1:" + ("8/v1" if "@" not in who else "9/v1")
        assert other.token_env == ("SOUNDRL_SECOND_TOKEN" if "@" in who else "SOUNDRL_GENRM_TOKEN")
        other.close()
        warm = replace(judge, temperature=0.6, votes=3)
        more = second_judge(config(second=("votes", 0.05)), environment, warm)  # type: ignore[arg-type]
        assert isinstance(more, EndpointJudge) and (more.votes, more.temperature) == (5, 0.6)
        more.close()
        warm.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"second": ("nobody", 0.05)}, "genrm.second is nobody 0.05; use oracle, votes, order or model@url"),
        ({"second": ("@http://127.0.0.1:8/v1", 0.05)}, "genrm.second is @http"),
        ({"second": ("votes", 0.0)}, "a share above 0 up to 1"),
        (
            {"second": ("votes", 0.05), "judge": "oracle", "probe": ("", 10, 0.0)},
            "genrm.judge is oracle; both need judge endpoint or serve",
        ),
        ({"alarm": "stop", "judge": "oracle", "probe": ("", 10, 0.0)}, "both need judge endpoint or serve"),
        (
            {"alarm": "pause", "probe": ("", 10, 0.0)},
            "genrm.probe names no file, but its F1 is 0.0 and genrm.alarm pause, which need one; name it",
        ),
        ({"probe": ("", 10, 0.8)}, "genrm.probe names no file, but its F1 is 0.8"),
        ({"probe": ("a.json", 10, 1.5)}, "genrm.probe's F1 1.5; use 0 … 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        config(**settings)


def test_an_oracle_is_a_second_opinion_where_there_is_one():
    environment = type("Exact", (), {"oracle": staticmethod(lambda prompt, rollout: SOUND)})()
    with EndpointJudge("http://127.0.0.1:8/v1", MODEL) as judge:
        assert isinstance(second_judge(config(second=("oracle", 0.5)), environment, judge), OracleJudge)
        assert second_judge(config(second=("", 0.05)), environment, judge) is None


def test_fresh_rollouts_are_counted_one_of_a_kind_a_group():
    def truth(prompt: Prompt, rollout: Rollout) -> Verdict:
        return [SOUND, SOUND, FLAWED, Verdict.flawed(0, "skip"), Verdict.flawed(0, "guess")][rollout.sample]

    rollouts = [rollout("p", sample) for sample in range(5)]
    group = Group(prompt=Prompt(id="p", text="", answer=""), rollouts=rollouts, outcomes=[Outcome.CORRECT] * 5)
    group.verdicts = [Verdict.unknown("timeout"), FLAWED, SOUND, FLAWED, None]
    assert fresh([group, group], truth) == [2, 2, 2, 2]
    group.outcomes = [Outcome.WRONG] * 5
    assert fresh([group], truth) == [0] * 4


class Ranks(Alone):
    def sum(self, values: list[float]) -> list[float]:
        return values

    def max(self, value: float) -> float:
        return value


class Probing:
    """A probe whose judge is as it is told."""

    def __init__(self) -> None:
        self.alarms: dict[str, str] = {}
        self.bad = False

    def __call__(self, step: int = 0) -> dict[str, float]:
        self.alarms = {"recall": "recall: the judge calls flawed solutions sound"} if self.bad else {}
        return {"genrm/probe_alarm": float(self.bad)}

    read = __call__

    def state(self) -> dict:
        return {"alarms": self.alarms}

    def restore(self, state: dict) -> None:
        self.alarms = state["alarms"]


def watch(**genrm) -> tuple[JudgeWatch, Probing, list[str]]:
    said: list[str] = []
    out = JudgeWatch(config(**genrm), Ranks(), said.append, None)  # type: ignore[arg-type]
    out.probe = probe = Probing()  # type: ignore[assignment]
    return out, probe, said


@pytest.mark.parametrize("does", ["tell", "pause", "stop"])
def test_what_an_alarm_of_a_probe_does(does):
    those, probe, said = watch(alarm=does)
    assert those.step(1, [], those.asked(1))["genrm/alarm"] == 0.0 and not those.pauses and said == []
    those.check(1)
    probe.bad = True
    assert those.step(2, [], those.asked(2))["genrm/alarm"] == 1.0 and those.step(3, [], {})["genrm/alarm"] == 1.0
    assert said == ["step 2: alarm: recall: the judge calls flawed solutions sound"]  # once
    assert those.pauses == (does == "pause")
    if does == "stop":
        with pytest.raises(JudgeUnfitError, match=r"step 3: the judge is under an alarm \(genrm.alarm stop\): recall: .*; mend it, or set"):
            those.check(3)
    else:
        those.check(3)
    later, probe, said = watch(alarm=does)  # who goes on is still under it
    later.restore(json.loads(json.dumps(those.state())))
    assert later.pauses == (does == "pause") and later.probed
    probe.bad = True
    assert not later.again(3) and said == []
    probe.bad = False
    assert later.again(3) and not later.pauses and said == ["step 3: no alarm any more: recall"]
    later.check(3)


def test_an_alarm_that_no_probe_can_end_stops_a_run_that_would_pause():
    for does in ("tell", "pause", "stop"):
        those, _, said = watch(alarm=does)
        for step in range(1, 11):
            metrics = those.step(step, [], {"reward/correct": 0.5, "fapo/steps": 4.0 if step <= 5 else 1.0})
        assert metrics["genrm/alarm"] == 1.0 and said[0].startswith("step 10: alarm: steps: steps a judged rollout: 1 (was 4 at the start)")
        if does == "tell":
            those.check(10)
            continue
        with pytest.raises(JudgeUnfitError, match="which no wait for a probe can end" if does == "pause" else "genrm.alarm stop"):
            those.check(10)


def test_both_at_once_are_waited_for():
    """The probe explains the other one."""
    those, probe, said = watch(alarm="pause")
    for step in range(1, 11):
        probe.bad = step == 10
        those.step(step, [], those.asked(step) | {"reward/correct": 0.5, "fapo/steps": 4.0 if step <= 5 else 1.0})
    assert len(said) == 2 and those.pauses
    those.check(10)
    probe.bad = False
    assert those.again(10)
    those.forgive(10)
    assert not those.standing and said[2:] == ["step 10: no alarm any more: recall", "step 10: no alarm any more: steps"]
    assert those.step(11, [], {"reward/correct": 0.5, "fapo/steps": 1.0})["genrm/alarm"] == 0.0
    those.check(11)


def test_an_alarm_by_the_clock_only_tells():
    those, _, said = watch(alarm="stop")
    for step in range(1, 11):
        metrics = those.step(step, [], {"genrm/latency_p50": 1.0, "genrm/latency_p99": 2.0 if step <= 5 else 9.0})
    assert metrics["genrm/latency_alarm"] == 1.0 and metrics["genrm/alarm"] == 0.0 and len(said) == 1
    those.check(10)


def test_another_second_opinion_begins_anew():
    those, _, _ = watch(second=("votes", 0.05))
    those.alarms({"second_disagrees": (1, 9), "fresh_missed": (1, 9)}, {})
    later, _, _ = watch(second=("order", 0.05))
    later.restore(those.state())
    assert later.alarms.shares["second_disagrees"].start == [0, 0, 0] and later.alarms.shares["fresh_missed"].start == [1, 9, 1]
    later.restore({"genrm/probe_f1": 0.5})  # of an older version
    assert later.alarms.shares["fresh_missed"].start == [1, 9, 1]


def test_a_judge_below_the_least_f1_is_refused_with_its_table():
    server = Server(find_flaw)
    with EndpointJudge(server.url, MODEL) as judge:
        those, _, told = watch(probe=("a.json", 10, 0.85))
        those.probe = Probe(judge, ROWS[:8], 5)
        those.admit()
        assert told == [] and those.probe.start == {}
        server.script = lambda handler, number: handler.send(200, said("\\boxed{-1}"))
        with pytest.raises(
            ValueError, match=r"genrm.probe asks for an F1 of 0.85, but the judge's F1 of flawed is 0.000 on the probe's 4 flawed and 4"
        ):
            those.admit()
        assert len([line for line in told if line.split()[0] in ("precision", "recall", "f1", "coverage")]) == 4
        those.min_f1 = 0.0
        those.admit()
    server.stop()


def test_disagreements_behind_a_runs_state_are_written_again(tmp_path):
    base = config()
    base = replace(base, run=replace(base.run, folder=str(tmp_path), name="x"))
    first = RunFolder(base, Alone())  # type: ignore[arg-type]
    with first.claimed():
        pass
    first.disagree(1, [{"prompt_id": "p", "sample": 0}])
    marks = first.mark(1)
    first.disagree(2, [{"prompt_id": "é", "sample": 1}])
    first.close()
    (tmp_path / "x" / "underway").mkdir()
    (tmp_path / "x" / "underway" / "starts").write_text("1\n")
    again = RunFolder(base, Alone())  # type: ignore[arg-type]
    with again.claimed():
        assert again.goes_on and len((tmp_path / "x" / "disagreements.jsonl").read_text().splitlines()) == 2  # witness
        again.marks = marks
    assert (tmp_path / "x" / "disagreements.jsonl").read_text() == '{"step": 1, "prompt_id": "p", "sample": 0}\n'
    again.disagree(2, [])
    assert again.mark(2)["disagreements"] == marks["disagreements"] > 0
    again.close()
