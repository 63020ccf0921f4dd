"""Chaos: four workers on real sockets that die, hang, lie and come back. Every sample is scored once or is unknown by a name, never sound.

Each fault has a witness that it happened, and an inverse that fails where the protection is off. Wall-clock figures are for
`bench/judge_chaos.py`; here nothing is timed.
"""

from __future__ import annotations

import http.client
import json
import re
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from fake_judge import BAD_BODIES, MODEL, Handler, Script, Server, find_flaw, hang, said

from soundrl.fapo.measures import JudgeGoneError, UnknownWatch
from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Verdict
from soundrl.fapo.rewards import RewardSettings, assign_advantages
from soundrl.genrm.pool import scorer as scorer_module
from soundrl.genrm.pool.endpoint import Endpoint
from soundrl.genrm.pool.judge import EndpointJudge
from soundrl.genrm.pool.scorer import ScorerPool
from soundrl.genrm.verdict import BAD_REPLY, CLOSED, HTTP_5XX, NO_BOX, SPLIT, TIMEOUT, UNREACHABLE, majority

N = 512
PATIENCE = 60.0
"""Seconds until a test gives up: much, as the machine may be loaded; nothing is timed by it."""
SETTINGS = RewardSettings(lam=1.0, normalize_std=True, max_new_tokens=9, overlong_buffer=0, overlong_factor=1.0, drop_unknown=True)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer_module, "FIRST_PAUSE", 0.05)
    # Above what a loaded machine adds to a reply of milliseconds: only a worker that is slow by its script is hedged.
    monkeypatch.setattr(scorer_module, "LEAST_PATIENCE", 0.3)


@pytest.fixture
def unhedged(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that count requests and ejections."""
    monkeypatch.setattr(ScorerPool, "_patience", lambda *_: None)


@pytest.fixture
def pool() -> Iterator[Callable[..., tuple[list[Server], EndpointJudge]]]:
    """`pool(script, script, …, **settings)` → servers and a judge over them; at the end every sample must be accounted for."""
    servers: list[Server] = []
    judges: list[EndpointJudge] = []

    def make(*scripts: Script, **settings: Any) -> tuple[list[Server], EndpointJudge]:
        own = [Server(script) for script in scripts]
        servers.extend(own)
        settings = {"deadline": PATIENCE, "concurrency": 8} | settings
        judges.append(EndpointJudge([server.url for server in own], MODEL, **settings))
        return own, judges[-1]

    yield make
    for judge in judges:
        judge.close()
        stats = judge.stats()
        assert stats["submitted"] == stats["scored"] + stats["unscored"] and stats["pending"] == 0
        assert [outstanding for _, outstanding in stats["workers"]] == [0] * len(judge.endpoints), "a place was never given back"
    for server in servers:
        server.stop()


def rollout(i: int) -> Rollout:
    text = f"Sum {i}.\n\n{'So 2+2=5.' if i % 3 else 'Fine.'}"
    return Rollout(prompt_id="p", sample=i, prompt_tokens=(), tokens=(), logprobs=(), text=text, finish_reason="stop", policy_version=0)


def truth(i: int) -> Verdict:
    return Verdict.flawed(1) if i % 3 else Verdict.sound()


def submit(judge: EndpointJudge, samples: range = range(N)) -> list[Future[Verdict]]:
    return [judge.submit(Prompt(id="p", text="What is 2+2?", answer="4"), rollout(i)) for i in samples]


def results(futures: list[Future[Verdict]]) -> list[Verdict]:
    return [future.result(PATIENCE) for future in futures]


def right(verdicts: list[Verdict], start: int = 0) -> bool:
    return verdicts == [truth(start + i) for i in range(len(verdicts))]


def working(seconds: float = 0.01, gate: threading.Event | None = None) -> Script:
    """A judge that takes so long; behind a `gate` it answers 8 and holds the next until the gate is open, so that a fault meets them."""

    def script(handler: Handler, number: int) -> None:
        time.sleep(seconds)
        if gate is not None and number >= 8:
            gate.wait(PATIENCE)
        find_flaw(handler, number)

    return script


def held(servers: list[Server]) -> bool:
    return all(len(server.bodies) >= 16 for server in servers)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "the fault did not happen"
        time.sleep(0.005)


# Workers that die (G1–G4, G12, G13)


@pytest.mark.parametrize("dead", [1, 3])
def test_killed_workers_lose_nothing_and_get_nothing_more(pool, unhedged, dead):
    gate = threading.Event()
    servers, judge = pool(*[working(0.002, gate)] * 4)
    futures = submit(judge)
    wait_for(lambda: held(servers))
    for server in servers[:dead]:
        server.kill()
    gate.set()
    assert right(results(futures))
    stats = judge.stats()
    assert stats["retries"][UNREACHABLE] >= dead and stats["ejections"] == dead and stats["alive"] == 4 - dead  # witness
    asked = stats["workers"][:dead]
    assert right(results(submit(judge, range(N, N + 64))), N) and judge.stats()["workers"][:dead] == asked


def test_without_retries_a_killed_worker_does_lose_samples(pool, unhedged):
    gate = threading.Event()
    servers, judge = pool(*[working(0.002, gate)] * 4, attempts=1)
    futures = submit(judge)
    wait_for(lambda: held(servers))
    servers[0].kill()
    gate.set()
    lost = [verdict.reason for i, verdict in enumerate(results(futures)) if verdict != truth(i)]
    # Those that were under way; a connection reset in the middle of a reply leaves half a reply.
    assert len(lost) >= 8 and UNREACHABLE in lost and set(lost) <= {UNREACHABLE, BAD_REPLY}


def test_a_worker_that_refuses_costs_no_attempt(pool):
    """With one attempt a question, none is lost to workers that could not be asked at all."""
    servers, judge = pool(*[working()] * 4, attempts=1)
    for server in servers[:3]:
        server.kill()
    assert right(results(submit(judge, range(64))))
    assert judge.stats()["ejections"] == 3 and judge.stats()["retries"][UNREACHABLE] >= 3  # witness


def test_all_killed_and_restored(pool, unhedged):
    gate = threading.Event()
    servers, judge = pool(*[working(0.002, gate)] * 4)
    futures = submit(judge)
    wait_for(lambda: held(servers))
    for server in servers:
        server.kill()
    gate.set()
    wait_for(lambda: judge.stats()["alive"] == 0)
    revived = [server.revive() for server in servers]
    try:
        assert right(results(futures))
        # A worker returns by its own probe, each when it is its turn.
        wait_for(lambda: judge.stats()["alive"] == 4)
        assert sum(len(server.bodies) for server in revived) > 0
    finally:
        for server in revived:
            server.stop()


def test_all_killed_and_restored_too_late_is_unknown(pool):
    servers, judge = pool(*[working(0.0)] * 4, deadline=0.5, step_deadline=0.5)
    for server in servers:
        server.kill()
    reasons = {verdict.reason for verdict in results(submit(judge))}
    # Who could only wait past its deadline is told so at once.
    assert TIMEOUT in reasons and reasons <= {TIMEOUT, UNREACHABLE} and judge.stats()["alive"] == 0
    revived = [server.revive() for server in servers]
    wait_for(lambda: judge.stats()["alive"] > 0)
    assert sum(judge.stats()["unknown"].values()) == N  # no late verdict
    for server in revived:
        server.stop()


def test_all_killed_for_good_ends_the_run(pool, unhedged, monkeypatch):
    """A whole run that ends like this: test_train.py."""
    monkeypatch.setattr(scorer_module, "GONE_SECONDS", 0.3)
    gate = threading.Event()
    servers, judge = pool(*[working(0.002, gate)] * 4)
    futures = submit(judge)
    wait_for(lambda: held(servers))
    for server in servers:
        server.kill()
    gate.set()
    verdicts = results(futures)
    unscored = [verdict for i, verdict in enumerate(verdicts) if verdict != truth(i)]
    assert unscored and set(unscored) == {Verdict.unknown(UNREACHABLE)}
    assert set(results(submit(judge, range(N, N + 8)))) == {Verdict.unknown(UNREACHABLE)}  # at once: nobody waits a deadline for each
    assert judge.metrics()["genrm/alive"] == 0
    with pytest.raises(JudgeGoneError, match="step 3: no judge answers"):
        UnknownWatch(0.9)(3, judge.metrics() | {"genrm/unknown": 0.1})


def test_a_flapping_worker_is_left_out_for_longer_each_time(pool, unhedged):
    servers, judge = pool(*[working()] * 4)
    flapping = servers[0]
    judge.check()
    for flap in range(3):
        flapping.kill()
        futures = submit(judge, range(flap * 64, flap * 64 + 64))
        assert right(results(futures), flap * 64)
        assert judge.pool.workers[0].ejected and judge.pool.workers[0].ejections == flap + 1
        flapping = flapping.revive()
        wait_for(lambda: judge.stats()["alive"] == 4)
    flapping.stop()
    assert judge.stats()["ejections"] == judge.stats()["returns"] == 3
    # Half a pause of each doubling is certain: 0.05/2, 0.1/2, 0.2/2.
    assert [judge.pool._pause(attempt) >= 0.025 * 2 ** (attempt - 1) for attempt in (1, 2, 3)] == [True] * 3


def test_a_killed_router_is_bypassed(pool):
    def router(target: Callable[[], Server]) -> Script:
        def script(handler: Handler, number: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", target().port, timeout=PATIENCE)
            connection.request("POST", "/v1/chat/completions", json.dumps(handler.body), {"Content-Type": "application/json"})
            handler.send(200, connection.getresponse().read())
            connection.close()

        return script

    gate = threading.Event()
    workers, _ = pool(working(0.002, gate), working(0.002, gate))
    routers, judge = pool(router(lambda: workers[0]), router(lambda: workers[1]))
    futures = submit(judge, range(160))
    wait_for(lambda: held(routers))
    routers[0].kill()
    gate.set()
    assert right(results(futures)) and judge.stats()["alive"] == 1


# Workers that are slow or hang (G5, G6)


def test_a_slow_worker_gets_little_work_and_holds_nobody_up(pool):
    """Ten times slower by the others' answers, not by a clock: while it gives 8 answers, the others give 10 × 8 each."""
    given: list[int] = []

    def quick(handler: Handler, number: int) -> None:
        find_flaw(handler, number)
        given.append(number)

    def slow(handler: Handler, number: int) -> None:
        until = len(given) + 10 * 8 * 3
        while len(given) < min(until, N - 8):  # the last ones are hedged
            time.sleep(0.02)
        find_flaw(handler, number)

    servers, judge = pool(slow, quick, quick, quick)
    assert right(results(submit(judge)))
    assert 0 < len(servers[0].bodies) <= N / 8  # round robin would send a quarter
    assert judge.stats()["hedges"] > 0


def test_a_worker_that_never_answers_is_hedged_and_left_out(pool):
    servers, judge = pool(hang, *[working()] * 3)
    assert right(results(submit(judge)))
    assert servers[0].bodies and servers[0].broken_off.wait(PATIENCE), "its connections must be closed"
    assert judge.stats()["hedges"] >= 3 and judge.pool.workers[0].ejected
    assert len(servers[0].bodies) < N / 8


def test_without_hedges_a_hanging_worker_costs_deadlines(pool, unhedged):
    _, judge = pool(hang, *[working(0.0)] * 3, deadline=3.0, concurrency=4)
    verdicts = results(submit(judge, range(64)))
    lost = Counter(verdict.reason for i, verdict in enumerate(verdicts) if verdict != truth(i))
    assert lost.keys() == {TIMEOUT} and lost[TIMEOUT] >= 4


def test_a_hedge_that_fails_is_followed_by_another(pool, monkeypatch):
    """A worker that hangs and one that fails: the question waits for neither's deadline."""
    monkeypatch.setattr(ScorerPool, "_patience", lambda *_: 0.05)
    turns = iter((hang, lambda handler, number: handler.send(500, {}), working()))
    servers, judge = pool(*[lambda handler, number: next(turns)(handler, number)] * 3, attempts=1)
    assert right(results(submit(judge, range(1))))
    assert judge.stats()["hedges"] == 2 and [len(server.bodies) for server in servers] == [1, 1, 1]


def test_a_hedge_that_finds_no_place_holds_no_failed_question(pool, monkeypatch):
    monkeypatch.setattr(ScorerPool, "_patience", lambda *_: 0.05)
    fails, free = threading.Event(), threading.Event()

    def failing(handler: Handler, number: int) -> None:
        fails.wait(PATIENCE)
        find_flaw(handler, number) if number else handler.send(500, {})

    def busy(handler: Handler, number: int) -> None:
        free.wait(PATIENCE)
        find_flaw(handler, number)

    _, judge = pool(failing, busy, concurrency=1)
    futures = submit(judge, range(2))
    wait_for(lambda: waiting(judge) == 2)  # both are late, and each waits for the other's place
    fails.set()
    wait_for(lambda: judge.stats()["retries"] == {HTTP_5XX: 1})  # while the other worker is still busy
    free.set()
    assert right(results(futures))


def test_never_more_than_half_of_the_pool_is_out_for_being_slow_or_faulty(pool):
    servers, judge = pool(*[lambda handler, number: handler.send(500, {})] * 4, attempts=6)
    assert set(results(submit(judge, range(64)))) == {Verdict.unknown(HTTP_5XX)}
    assert judge.stats()["alive"] == 2 and judge.stats()["ejections"] >= 2 and all(server.bodies for server in servers)


# Workers that lie (G7, G8, G10, G11)


def test_three_in_ten_requests_fail_on_every_worker(pool, unhedged):
    def flaky(handler: Handler, number: int) -> None:
        faults = [
            lambda: handler.send(500, {}),
            lambda: handler.send(503, {}, Retry_After="0"),
            lambda: handler.send(429, {}, Retry_After="0"),
            handler.reset,
            lambda: handler.send(200, b"<html>"),
        ]
        faults[number % 5]() if number * 7 % 10 < 3 else find_flaw(handler, number)

    servers, judge = pool(*[flaky] * 4, attempts=16)  # 0.3¹⁶: not one of 512 by chance
    assert right(results(submit(judge)))
    requests = sum(len(server.bodies) for server in servers)
    assert N < requests <= 1.5 * N + sum(judge.pool.workers[i].ejections for i in range(4)) * 3  # probes are requests too


def test_retry_after_closes_one_worker_and_not_the_others(pool):
    servers, judge = pool(lambda handler, number: handler.send(429, {}, Retry_After="3600"), working())
    assert right(results(submit(judge, range(64))))
    assert 1 <= len(servers[0].bodies) <= 8  # those already under way when it spoke


def test_a_worker_that_talks_nonsense_is_not_believed(pool):
    bodies = [*BAD_BODIES.values(), said("\\boxed{-1}", model=f"{MODEL}@7")]  # the last: other weights than those asked for
    servers, judge = pool(lambda handler, number: handler.send(200, bodies[number % len(bodies)]), *[working()] * 3)
    assert right(results(submit(judge, range(160))))
    assert servers[0].bodies and judge.stats()["retries"][BAD_REPLY] > 0


def test_late_and_doubled_replies_change_nothing(pool):
    def script(handler: Handler, number: int) -> None:
        late = "Sum 7." in handler.body["messages"][0]["content"]
        time.sleep(3.5 if late else 0.0)
        find_flaw(handler, number)
        if number % 3 == 0:
            handler.send(200, said("\\boxed{0}"))  # a second reply on the same connection

    servers, judge = pool(*[script] * 4, deadline=3.0, concurrency=2)
    verdicts = results(submit(judge, range(64)))
    late = [i for i, verdict in enumerate(verdicts) if verdict == Verdict.unknown(TIMEOUT)]
    assert late == [7] and all(verdicts[i] == truth(i) for i in range(64) if i != 7)
    counted = judge.stats()
    time.sleep(1.0)  # the late replies arrive now
    after = judge.stats()
    assert (after["scored"], after["unscored"]) == (counted["scored"], counted["unscored"]) == (63, 1)


# Bounds, balance, sameness (G14, G15, G17)


def test_what_waits_takes_little_memory(pool):
    """A fifth of the table's 10,000 samples and of its 256 MiB; all of them: bench/judge_chaos.py."""
    gate = threading.Event()
    _, judge = pool(*[working(0.0, gate)] * 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    futures = submit(judge, range(2_000))
    wait_for(lambda: sum(outstanding for _, outstanding in judge.stats()["workers"]) == 32 and judge.stats()["scored"] == 32)
    assert judge.stats()["pending"] == 2_000 - 32
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 <= 256 / 5
    gate.set()
    judge.close()
    verdicts = results(futures)
    assert all(verdict in (truth(i), Verdict.unknown(CLOSED)) for i, verdict in enumerate(verdicts))  # none is dropped, none is doubled


def test_equal_workers_get_equal_work_and_no_pause(pool, unhedged, monkeypatch):
    """Far below what the workers can take, so that the choice is the pool's: 32 at a time, answered when all 32 are under way."""

    def refuse(*_: object) -> float:
        raise AssertionError("a healthy pool waits for nothing")

    monkeypatch.setattr(ScorerPool, "_pause", refuse)
    together = threading.Barrier(32)

    def script(handler: Handler, number: int) -> None:
        together.wait(PATIENCE)
        find_flaw(handler, number)

    servers, judge = pool(*[script] * 4, concurrency=32)
    for start in range(0, N, 32):
        before = [len(server.bodies) for server in servers]
        assert right(results(submit(judge, range(start, start + 32))), start)
        assert (
            max(len(server.bodies) - asked for server, asked in zip(servers, before, strict=True)) <= 1.15 * 8
        )  # busiest ÷ mean in flight
    assert judge.stats()["requests"] == N and judge.stats()["retries"] == {}


def test_one_worker_or_four_give_the_same_advantages(pool):
    advantages = []
    for workers in (1, 4):
        _, judge = pool(*[working(0.002)] * workers, temperature=1.0)
        verdicts = results(submit(judge, range(32)))
        groups = [
            Group(
                prompt=Prompt(id=f"p{g}", text="?", answer="4"),
                rollouts=[rollout(i) for i in range(g, g + 8)],
                outcomes=[Outcome.WRONG if i % 5 == 0 else Outcome.CORRECT for i in range(g, g + 8)],
                verdicts=[None if i % 5 == 0 else verdicts[i] for i in range(g, g + 8)],
            )
            for g in range(0, 32, 8)
        ]
        assign_advantages(groups, SETTINGS)
        advantages.append([group.advantages for group in groups])
    assert advantages[0] == advantages[1] and any(a != 0 for group in advantages[0] for a in group)


# Order and rest


def waiting(judge: EndpointJudge) -> int:
    return len(judge.pool.places.waiting)


def in_order_of_arrival(server: Server) -> list[int]:
    """The questions that the server saw, by their number."""
    return [int(re.findall(r"Sum (\d+)\.", body["messages"][0]["content"])[-1]) for body in server.bodies]


@pytest.mark.parametrize("priorities", [[5, 3, 8, 1, 7, 2, 6, 4], [1] * 8])
def test_a_saturated_worker_is_asked_by_priority_then_age(pool, priorities):
    gate = threading.Event()

    def script(handler: Handler, number: int) -> None:
        gate.wait(120)
        find_flaw(handler, number)

    (server,), judge = pool(script, concurrency=1)
    futures = submit(judge, range(1))
    wait_for(lambda: len(server.bodies) == 1)  # the only place is taken
    futures += [judge.submit(Prompt(id="p", text="?", answer="4"), rollout(i + 1), p) for i, p in enumerate(priorities)]
    wait_for(lambda: waiting(judge) == len(priorities))
    gate.set()
    assert right(results(futures))  # the order changes no verdict
    expected = sorted(range(8), key=lambda i: priorities[i])  # of equal ones (the inverse) the oldest first: as they were submitted
    assert in_order_of_arrival(server) == [0, *(i + 1 for i in expected)]


def test_a_retry_keeps_its_priority(pool):
    def script(handler: Handler, number: int) -> None:
        time.sleep(0.02)
        if number == 0:
            handler.send(500, {})
        else:
            find_flaw(handler, number)

    (server,), judge = pool(script, concurrency=1)
    futures = [judge.submit(Prompt(id="p", text="?", answer="4"), rollout(i), i) for i in range(40)]
    assert right(results(futures))
    order = in_order_of_arrival(server)
    assert order[0] == 0 and judge.stats()["retries"] == {HTTP_5XX: 1}  # witness
    assert order.count(0) == 2 and order.index(0, 1) < 30  # after its pause it went before those that had waited all along


@pytest.mark.parametrize("rests", [True, False])
def test_at_rest_nobody_is_asked(pool, rests):
    servers, judge = pool(working(), working())
    servers[0].kill()
    assert right(results(submit(judge, range(16))))
    assert judge.stats()["alive"] == 1  # witness: worker 0 is left out, and probed until it answers
    if rests:
        judge.rest()
        assert judge.stats()["alive"] == 2  # taken in again, so that nothing probes it
    revived = servers[0].revive()
    servers.append(revived)
    if rests:
        time.sleep(0.4)
        assert revived.witness == []
        assert right(results(submit(judge, range(16, 32))), 16) and revived.witness  # it is asked like any other afterwards
    else:
        wait_for(lambda: revived.witness != [])  # inverse


# Votes


def test_votes_are_seeded_apart_and_the_majority_counts(pool):
    def script(handler: Handler, number: int) -> None:
        handler.send(200, said("\\boxed{1}" if handler.body["seed"] % 2 else "\\boxed{-1}") | {"usage": {"completion_tokens": 5}})

    (server,), judge = pool(script, votes=3, temperature=0.7)
    critique = judge.critique("1+1?", ["It is 2.", "So 2."], "2").result(PATIENCE)
    seeds = [body["seed"] for body in server.bodies]
    assert len(set(seeds)) == 3 and critique.tokens == 15
    flawed = sum(seed % 2 for seed in seeds)
    assert critique == (Verdict.flawed(1) if flawed >= 2 else Verdict.sound())


@pytest.mark.parametrize(
    ("votes", "verdict"),
    [
        ([Verdict.flawed(2), Verdict.flawed(1), Verdict.flawed(2)], Verdict.flawed(2)),
        ([Verdict.flawed(3), Verdict.flawed(1), Verdict.sound()], Verdict.flawed(1)),
        ([Verdict.sound(), Verdict.flawed(0)], Verdict.unknown(SPLIT)),
        ([Verdict.sound(), Verdict.unknown(NO_BOX), Verdict.unknown(NO_BOX)], Verdict.unknown(NO_BOX)),
        ([Verdict.sound(), Verdict.sound(), Verdict.unknown(TIMEOUT)], Verdict.sound()),
        # What did not come might have decided, and may come another time.
        ([Verdict.sound(), Verdict.unknown(NO_BOX), Verdict.unknown(TIMEOUT)], Verdict.unknown(TIMEOUT)),
        ([Verdict.sound(), Verdict.flawed(0), Verdict.unknown(TIMEOUT)], Verdict.unknown(TIMEOUT)),
        ([Verdict.unknown(NO_BOX)], Verdict.unknown(NO_BOX)),
    ],
)
def test_majority(votes, verdict):
    assert majority(votes) == verdict


def test_votes_without_temperature_are_refused():
    with pytest.raises(ValueError, match="3 votes at temperature 0"):
        EndpointJudge("http://127.0.0.1:1/v1", MODEL, votes=3)


@pytest.mark.parametrize("urls", [(), ("http://127.0.0.1:1", "http://127.0.0.1:1/v1")])
def test_urls_that_make_no_pool(urls):
    with pytest.raises(ValueError, match="each only once"):
        ScorerPool([Endpoint(url, MODEL) for url in urls], concurrency=1, attempts=1)
