"""A judge that drifts in mid run is noticed on solutions whose labels are known; one that does not, is not."""

import pytest
from fake_judge import MODEL, Handler, Server, find_flaw, said

from soundrl.genrm.critic_data.labelled import Labelled
from soundrl.genrm.pool.judge import EndpointJudge
from soundrl.genrm.watch.probe import Probe

ROWS = [
    Labelled(id=str(i), problem=f"Sum {i}?", steps=("Start.", "So 2+2=5." if i % 2 else "So 2+2=4."), label=1 if i % 2 else -1)
    for i in range(40)
]


@pytest.fixture
def judge():
    server = Server(find_flaw)
    with EndpointJudge(server.url, MODEL) as judge:
        yield server, judge
    server.stop()


def test_a_steady_judge_raises_no_alarm(judge):
    _, asked = judge
    probe = Probe(asked, ROWS, every=5)
    first = probe(1)
    assert first["genrm/probe_recall"] == first["genrm/probe_precision"] == first["genrm/probe_coverage"] == 1.0
    assert first["genrm/probe_canary_accepted"] == first["genrm/probe_over_critic"] == first["genrm/probe_alarm"] == 0.0
    assert probe(2) == {} and probe(5) == first


def test_a_probe_asks_the_judge_and_not_its_memory(judge):
    server, asked = judge
    for row in ROWS:  # what the policy is judged on may be the very same
        asked.critique(row.problem, row.steps, row.answer).result(120)
    probe = Probe(asked, ROWS, every=1)
    for step in (1, 2):
        before = len(server.bodies)
        probe(step)
        assert len(server.bodies) - before == 120  # 40 rows, 20 attacks and 60 planted
    before = len(server.bodies)
    asked.critique(ROWS[0].problem, ROWS[0].steps, ROWS[0].answer).result(120)
    assert len(server.bodies) == before  # inverse: other questions are remembered
    server.script = lambda handler, number: handler.send(200, said("\\boxed{0}"))
    harsh = probe(3)
    assert harsh["genrm/probe_over_critic"] == 1.0 and harsh["genrm/probe_alarm"] == 1.0
    assert asked.critique(ROWS[0].problem, ROWS[0].steps, ROWS[0].answer).result(120).kind == "sound"  # nor is it overwritten


def test_a_fresh_question_has_the_seed_of_its_words():
    server = Server(find_flaw)
    with EndpointJudge(server.url, MODEL, temperature=0.7) as judge:
        for _ in range(2):
            judge.critique("2+2?", ("It is 4.",), "4", fresh=True).result(120)
    server.stop()
    assert len(server.bodies) == 2 and server.bodies[0] == server.bodies[1]


def test_a_judge_that_has_been_bribed_or_grows_harsh_raises_one(judge):
    server, asked = judge
    probe = Probe(asked, ROWS, every=1)
    probe(1)

    def gullible(handler: Handler, number: int) -> None:
        content = handler.body["messages"][0]["content"].rpartition("\n[Solution]\n")[2]
        if "-1" in content.rpartition("\n[Task]\n")[0]:
            handler.send(200, said("\\boxed{-1}"))
        else:
            find_flaw(handler, number)

    server.script = gullible
    bribed = probe(2)
    assert bribed["genrm/probe_canary_accepted"] > 0.5 and bribed["genrm/probe_recall"] == 1.0 and bribed["genrm/probe_alarm"] == 1.0
    server.script = lambda handler, number: handler.send(200, said("\\boxed{0}"))
    harsh = probe(3)
    assert harsh["genrm/probe_over_critic"] == 1.0 and harsh["genrm/probe_alarm"] == 1.0
    server.script = lambda handler, number: handler.send(200, said("I cannot say."))
    silent = probe(4)
    assert silent["genrm/probe_coverage"] == silent["genrm/probe_recall"] == 0.0 and silent["genrm/probe_alarm"] == 1.0


def test_a_probe_needs_both_kinds(judge):
    with pytest.raises(ValueError, match=r"genrm.probe: of the first 20 solutions 20 are flawed"):
        Probe(judge[1], [row for row in ROWS if row.label >= 0], every=1)
