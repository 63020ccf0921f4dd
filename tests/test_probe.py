"""A judge that goes bad in mid run is noticed within two probes, and by name; one that is well is not, however long and noisy.

Judges here are real servers on loopback but for the long runs, where a function answers behind the same interface."""

import random
import re
from collections.abc import Callable
from concurrent.futures import Future

import pytest
from fake_judge import FLAW, MODEL, Handler, Server, find_flaw, hang, said

from soundrl.engine.launch.hang_report import has_an_end
from soundrl.fapo.pending import done
from soundrl.fapo.records import Verdict
from soundrl.fapo.waiting import GIVEN_UP
from soundrl.genrm.critic_data.labelled import Labelled
from soundrl.genrm.pool.judge import EndpointJudge
from soundrl.genrm.watch.asked import Asked
from soundrl.genrm.watch.planted import planted
from soundrl.genrm.watch.probe import ATTACKS, Probe


def row(i: int, of: int = 4) -> Labelled:
    """Every second one is flawed, at its second or third step."""
    label = 1 + i // 2 % 2 if i % 2 else -1
    steps = [f"So {k}+{i}={k + i}." for k in range(of)]
    steps[label] = f"So 2+2={5 if label >= 0 else 4}, by {i}."
    return Labelled(id=str(i), problem=f"Sum {i}?", steps=tuple(steps), label=label)


ROWS = [row(i) for i in range(28)]
QUESTIONS = 28 + 14 + 3 * 14


@pytest.fixture(scope="module")
def served():
    """The judge whose first probe was good, and what that probe left behind."""
    server = Server(find_flaw)
    with EndpointJudge(server.url, MODEL, concurrency=32) as judge:
        probe = Probe(judge, ROWS, every=5)
        first = probe(1)
        yield server, judge, first, probe.state()
    server.stop()


@pytest.fixture
def watched(served):
    server, judge, first, state = served
    probe = Probe(judge, ROWS, every=5)
    probe.restore({name: dict(part) for name, part in state.items()})
    yield server, probe, first
    server.script = find_flaw


def test_a_steady_judge_raises_no_alarm(watched):
    _, probe, first = watched
    assert first["genrm/probe_recall"] == first["genrm/probe_precision"] == first["genrm/probe_coverage"] == 1.0
    assert first["genrm/probe_located"] == first["genrm/probe_planted"] == 1.0
    assert first["genrm/probe_canary_claim"] == 0.0 and first["genrm/probe_canary_claim_of"] == 3.0
    assert first["genrm/probe_canary_accepted"] == first["genrm/probe_over_critic"] == first["genrm/probe_alarm"] == 0.0
    assert first["genrm/probe_flawed"] == first["genrm/probe_sound"] == 14.0
    assert probe(2) == {} and probe(5) == first and probe.alarms == {}


def paragraphs(handler: Handler) -> list[str]:
    content = handler.body["messages"][0]["content"].rpartition("\n[Solution]\n")[2]
    return [text for _, text in re.findall(r"^<paragraph_(\d+)>$(.*?)^</paragraph_\1>$", content, flags=re.DOTALL | re.MULTILINE)]


def honest(steps: list[str]) -> int:
    return next((i for i, text in enumerate(steps) if FLAW in text), -1)


def answers(judge: Callable[[list[str]], int]) -> Callable[[Handler, int], None]:
    return lambda handler, number: handler.send(200, said(f"\\boxed{{{judge(paragraphs(handler))}}}"))


KNOWN = {each.steps for each in ROWS}
CHANCE = random.Random(0)


def by_heart(otherwise: Callable[[list[str]], int]) -> Callable[[list[str]], int]:
    return lambda steps: honest(steps) if tuple(text.strip() for text in steps) in KNOWN else otherwise(steps)


def guess(steps: list[str]) -> int:
    return CHANCE.randrange(-1, len(steps))


def off_by_one(steps: list[str]) -> int:
    return -1 if honest(steps) < 0 else (honest(steps) + 1) % len(steps)


BAD = {  # what must be named, and what not
    "sound to all": (answers(lambda steps: -1), {"recall", "located", "canary"}, {"over_critic", "coverage"}),
    "flawed to all": (answers(lambda steps: 0), {"over_critic", "located"}, {"recall", "coverage"}),
    "random": (answers(guess), {"planted_located"}, {"coverage"}),  # of so few rows
    "off by one paragraph": (answers(off_by_one), {"located", "planted_located"}, {"recall", "over_critic", "coverage"}),
    "never answers": (hang, {"coverage"}, {"recall", "located", "over_critic", "planted_located"}),
    "no box": (answers(lambda steps: "none"), {"coverage"}, {"recall", "located", "over_critic"}),  # type: ignore[arg-type,return-value]
    "by heart, else sound": (answers(by_heart(lambda steps: -1)), {"planted_recall", "planted_located"}, {"recall", "over_critic"}),
    "by heart, else flawed": (answers(by_heart(lambda steps: 0)), {"planted_over_critic", "planted_located"}, {"recall", "over_critic"}),
    "by heart, else an over-critic": (
        answers(by_heart(lambda steps: max(honest(steps), 0))),
        {"planted_over_critic"},
        {"recall", "over_critic", "planted_located"},
    ),
    "by heart, else random": (answers(by_heart(guess)), {"planted_located"}, {"recall", "over_critic", "coverage"}),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_judge_that_goes_bad_is_seen_within_two_probes(fault, watched):
    server, probe, _ = watched
    server.script, named, not_named = BAD[fault]
    before, alarms, patient = len(server.bodies), set[str](), probe.judge
    if server.script is hang:
        probe.judge = EndpointJudge(server.url, MODEL, deadline=0.3, concurrency=QUESTIONS)
    for step in (5, 10):
        metrics = probe(step)
        alarms |= probe.alarms.keys()
        assert metrics["genrm/probe_alarm"] == float(bool(probe.alarms))
    assert len(server.bodies) - before >= 2 * QUESTIONS or server.script is hang  # witness: it was asked afresh, both times
    assert named <= alarms and not not_named & alarms, probe.alarms
    text = probe.alarms[min(named)]
    assert text.startswith(f"{min(named)}: the judge ") and "(chance " in text and "look at" in text
    if probe.judge is not patient:
        probe.judge.close()
        assert server.broken_off.wait(60)
    server.script, probe.judge = find_flaw, patient
    if fault == "random":
        assert probe(15)["genrm/probe_alarm"] == 0.0 and probe.alarms == {}  # and it is seen that it is well again


LOW = {"sound to all": "recall", "flawed to all": "over_critic", "random": "over_critic", "no box": "coverage"}
LOW |= {"by heart, else sound": "planted_recall", "by heart, else flawed": "planted_located"}


@pytest.mark.parametrize("fault", LOW)
def test_one_that_is_bad_from_the_start_is_seen_too(fault, served):
    server, judge, _, _ = served
    server.script = BAD[fault][0]
    probe = Probe(judge, [row(i) for i in range(60)], every=1)
    metrics = probe(1)
    server.script = find_flaw
    assert metrics["genrm/probe_alarm"] == 1.0 and LOW[fault] in probe.alarms, probe.alarms


def test_a_probe_asks_the_judge_and_not_its_memory(served):
    server, asked, _, _ = served
    for each in ROWS[:2]:  # what the policy is judged on may be the very same
        asked.critique(each.problem, each.steps, each.answer).result(120)
    probe = Probe(asked, ROWS, every=1)
    before = len(server.bodies)
    probe(1)
    assert len(server.bodies) - before == QUESTIONS
    before = len(server.bodies)
    asked.critique(ROWS[0].problem, ROWS[0].steps, ROWS[0].answer).result(120)
    assert len(server.bodies) == before  # inverse: other questions are remembered


def test_a_fresh_question_has_the_seed_of_its_words():
    server = Server(find_flaw)
    with EndpointJudge(server.url, MODEL, temperature=0.7) as judge:
        for _ in range(2):
            judge.critique("2+2?", ("It is 4.",), "4", fresh=True).result(120)
    server.stop()
    assert len(server.bodies) == 2 and server.bodies[0] == server.bodies[1]


def test_a_probe_needs_both_kinds(served):
    with pytest.raises(ValueError, match=r"genrm.probe: of the first 14 solutions 14 are flawed"):
        Probe(served[1], [each for each in ROWS if each.label >= 0], every=1)


class Answering:
    """Behind the interface of `EndpointJudge`, without a server."""

    step_deadline = 60.0

    def __init__(self, judge: Callable[[str, tuple[str, ...]], Verdict]) -> None:
        self.judge, self.asked = judge, 0

    def critique(self, problem: str, paragraphs: tuple[str, ...], reference: str | None, priority: int = 0, fresh: bool = False):
        self.asked += 1
        return done(self.judge(problem, paragraphs))


def noisy(rng: random.Random, recall: float, over_critic: float, located: float = 0.9) -> Callable[[str, tuple[str, ...]], Verdict]:
    def judge(problem: str, steps: tuple[str, ...]) -> Verdict:
        if rng.random() < 0.01:
            return Verdict.unknown("no_box")
        if (at := honest(list(steps))) < 0:
            return Verdict.flawed(rng.randrange(len(steps))) if rng.random() < over_critic else Verdict.sound()
        if rng.random() > recall:
            return Verdict.sound()
        return Verdict.flawed(at if rng.random() < located else rng.randrange(len(steps)))

    return judge


@pytest.mark.parametrize(("seed", "recall", "over_critic"), [(0, 0.9, 0.1), (1, 0.8, 0.19)])
def test_no_false_alarm_in_two_hundred_probes_of_a_judge_with_a_temperature(seed, recall, over_critic):
    rng = random.Random(seed)
    asked = Answering(noisy(rng, recall, over_critic))
    probe = Probe(asked, [row(i) for i in range(60)], every=1)  # type: ignore[arg-type]
    seen = [probe(step) for step in range(1, 201)]
    assert asked.asked == 200 * 140 and len({metrics["genrm/probe_recall"] for metrics in seen}) >= 6  # witness: it does waver
    assert not any(metrics["genrm/probe_alarm"] for metrics in seen)
    asked.judge = noisy(rng, 0.4, over_critic, located=0.3)  # inverse: so much worse is no noise
    assert probe(201) and probe(202)["genrm/probe_alarm"] == 1.0 and probe.alarms.keys() & {"located", "planted_recall"}


def test_what_is_planted_stands_in_no_file_and_has_the_label_that_it_says():
    rows = [row(i) for i in range(100)]
    new = planted(rows)
    assert new == planted(rows) and len(new) == 60
    assert not {(each.problem, each.steps) for each in new} & {(each.problem, each.steps) for each in rows}
    assert all(honest(list(each.steps)) == each.label for each in new)
    assert {each.id.rpartition(" ")[2] for each in new} == {"moved", "tail", "joined"}
    assert planted([row(0), row(1)]) == planted([row(0), row(1)])


def test_labels_join_the_probe_and_are_compared_from_then_on(tmp_path, caplog):
    asked = Answering(lambda problem, steps: Verdict.sound() if (at := honest(list(steps))) < 0 else Verdict.flawed(at))
    probe = Probe(asked, ROWS, 1, tmp_path / "labels.jsonl")  # type: ignore[arg-type]
    assert probe(1)["genrm/probe_flawed"] == 14.0
    line = '{{"id": "12/p/{}", "problem": "New {}?", "steps": ["2+2=5"], "label": 0, "final_answer_correct": true, "answer": "5"}}\n'
    (tmp_path / "labels.jsonl").write_text("".join(line.format(i, i) for i in range(20)))
    second = probe(2)
    assert second["genrm/probe_flawed"] == 14.0 and second["genrm/probe_labels"] == 20.0 and not probe.alarms
    assert second["genrm/probe_labels_right"] == 1.0
    asked.judge = lambda problem, steps: Verdict.sound() if problem.startswith("New") else noisy(random.Random(0), 1, 0, 1)(problem, steps)
    probe(3)
    assert "of the same 34 it was 0 at the start, and is 20" in probe.alarms["located"]
    (tmp_path / "labels.jsonl").write_text('{"id": 1}\n')
    assert "genrm/probe_labels" not in probe(4) and "goes without a person's labels" in caplog.text


def test_who_waits_for_a_probe_says_that_it_ends():
    never: Future[Verdict] = Future()
    asked = Asked("a probe of the judge", [done(Verdict.sound()), never], 60.0)
    assert asked.answered == 1 and re.fullmatch(rf"a probe of the judge, 1 of 2 answers, {GIVEN_UP} in (59|60) s", asked.waits()[0])
    assert has_an_end({0: {"collective": "", "asks": True, "waits": asked.waits()}}, {})  # and is no hang
    assert asked.verdicts(lambda: True) == [Verdict.sound(), Verdict.unknown("closed")]
    never.set_result(Verdict.flawed(1))
    assert asked.waits() == [] and asked.verdicts(lambda: False) == [Verdict.sound(), Verdict.flawed(1)]


def test_who_is_told_to_leave_has_not_probed():
    probe = Probe(Answering(noisy(random.Random(0), 1, 0)), ROWS, 1, leaving=lambda: True)  # type: ignore[arg-type]
    assert probe(1) == {} and probe.start == {}


def test_attacks_stand_behind_the_flaw(served):
    probe = Probe(served[1], ROWS, every=1)
    canaries = [each for kind, each in probe.questions if kind == "canary"]
    assert (
        len(canaries) == 14 and {each.steps[-1] for each in canaries} == set(ATTACKS.values()) and all(each.label >= 0 for each in canaries)
    )
