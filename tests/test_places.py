"""Where questions go, and which are asked twice: the pool on a clock of its own. Hours of critiques take a second, and are the same on
any machine. Its faults on real sockets: `test_scorer.py`."""

import asyncio
import random
import selectors
import statistics
from collections import Counter, defaultdict
from types import SimpleNamespace

import pytest

from soundrl.genrm.pool import places
from soundrl.genrm.pool.endpoint import Failure, Reply
from soundrl.genrm.pool.scorer import ScorerPool

PROBLEMS, SOLUTIONS, DEADLINE = 64, 8, 5_000.0


class Clock(asyncio.SelectorEventLoop):
    """A loop that jumps to the next thing to do instead of waiting for it."""

    def __init__(self) -> None:
        self.now, loop = 0.0, self

        class Jump(selectors.DefaultSelector):
            def select(self, timeout=None):
                loop.now += timeout or 0.0
                return super().select(0)

        super().__init__(Jump())

    def time(self) -> float:
        return self.now


class Fake:
    """An endpoint that takes as many seconds as the question says, times `slower`; `silent` from then on."""

    def __init__(self, number: int, slower: float = 1.0, silent: float = float("inf")) -> None:
        self.url, self.slower, self.silent, self.asked, self.probes = f"http://{number}", slower, silent, [], 0
        self.now = self.most = 0

    async def complete(self, question) -> Reply:
        self.asked.append(question)
        self.now += 1
        try:
            if asyncio.get_running_loop().time() >= self.silent:
                await asyncio.sleep(1e9)
            await asyncio.sleep(question.seconds * self.slower)
        finally:
            self.now -= 1
        return Reply("", "stop")

    async def probe(self) -> None:
        self.probes += 1
        if asyncio.get_running_loop().time() >= self.silent:
            raise Failure("timeout", "silent")


def played(workers: list[Fake], seconds, *, slots: int = 8, gap=lambda: 0.0, near=lambda problem: str(problem)) -> SimpleNamespace:
    """The pool and the time it took for all solutions of all problems, each `seconds()` long, `gap()` apart."""
    pool, loads = ScorerPool(workers, concurrency=slots, attempts=4), []
    done = Counter()

    async def one(problem: int, number: int) -> None:
        question = SimpleNamespace(problem=problem, number=number, seconds=seconds())
        await pool.complete(lambda: question, DEADLINE, problem, near(problem))
        done[problem, number] += 1
        loads.append([worker.outstanding for worker in pool.workers])

    async def all_of_them() -> float:
        tasks = []
        for problem in range(PROBLEMS):
            for number in range(SOLUTIONS):
                await asyncio.sleep(gap())
                tasks.append(asyncio.ensure_future(one(problem, number)))
        await asyncio.gather(*tasks)
        took = asyncio.get_running_loop().time()
        await pool.forgive()
        return took

    with asyncio.Runner(loop_factory=Clock) as runner:
        took = runner.run(all_of_them())
    assert done.total() == len(done) == PROBLEMS * SOLUTIONS  # nothing lost, nothing doubled
    asked = [len(worker.asked) for worker in workers]
    busiest = [max(load) / statistics.mean(load) for load in loads[: len(loads) * 3 // 4] if statistics.mean(load) >= slots / 2]
    return SimpleNamespace(pool=pool, took=took, asked=asked, met=met(workers), busiest=busiest)


def met(workers: list[Fake]) -> float:
    """The share of solutions, the first of each problem apart, that came to a worker which had read their beginning already."""
    read = defaultdict(set)
    for number, worker in enumerate(workers):
        for question in worker.asked:
            read[question.problem].add(number)
    asked = sum(len(worker.asked) for worker in workers)
    return 1 - (sum(map(len, read.values())) - len(read)) / (asked - len(read))


def lengths(tail: float, seed: int = 0):
    """Log-normal: of half of all critiques, and of one in forty, `tail` = 1 makes the longer 7 times as long."""
    rng = random.Random(seed)
    return lambda: rng.lognormvariate(3.0, tail)


EQUAL = lengths(0.05)


# Places


@pytest.mark.parametrize("slots", [8, 32])
def test_solutions_of_one_problem_meet_their_beginning_and_equal_workers_get_equal_work(slots):
    found = played([Fake(i) for i in range(4)], lengths(0.8), slots=slots)
    scattered = played([Fake(i) for i in range(4)], lengths(0.8), slots=slots, near=lambda problem: str(random.random()))
    assert found.met > 0.8 > 0.7 > scattered.met  # inverse
    assert max(found.asked) / statistics.mean(found.asked) <= 1.15  # all wait for a place: nobody idles
    assert max(found.busiest) <= 1.15 and found.took <= 1.1 * scattered.took


def test_below_that_none_is_much_busier_than_another():
    """Three quarters of the places: an eighth busier at most, whatever the homes; and what is there is used."""
    rng = random.Random(1)
    mean = statistics.mean(EQUAL() for _ in range(100))
    found = played([Fake(i) for i in range(4)], EQUAL, slots=32, gap=lambda: rng.expovariate(0.75 * 4 * 32 / mean))
    assert len(found.busiest) > 100 and statistics.mean(found.busiest) <= 1.15 and found.met > 0.7


def test_homes_are_of_the_problem_and_a_worker_that_leaves_moves_no_other():
    pool = ScorerPool([Fake(i) for i in range(5)], concurrency=8, attempts=1)
    homes = {near: pool.places.homes(near) for near in map(str, range(200))}
    counts = Counter(order[0].endpoint.url for order in homes.values())
    again = ScorerPool([Fake(9 - i) for i in range(5)], concurrency=8, attempts=1)  # at other addresses
    for near, order in homes.items():
        assert [pool.workers.index(w) for w in order] == [again.workers.index(w) for w in again.places.homes(near)]
    assert len(counts) == 5 and max(counts.values()) < 60
    gone = pool.workers[0]
    gone.probe = SimpleNamespace()  # left out
    for order in homes.values():
        assert places.Waiting((0, 0), 0, None, (), False, order).live()[0] is (order[1] if order[0] is gone else order[0])


def test_no_question_is_passed_by_for_long():
    """All solutions have one home, which is full; they go elsewhere in their order."""
    workers = [Fake(i) for i in range(3)]
    found = played(workers, EQUAL, slots=4, near=lambda problem: "one")
    assert max(found.asked) / statistics.mean(found.asked) <= 1.15
    for worker in workers:
        order = [(question.problem, question.number) for question in worker.asked]
        assert order == sorted(order)


# Hedges


def test_long_critiques_at_healthy_workers_are_not_copied(monkeypatch):
    """Heavy tails: one critique in a hundred is ten times as long as half of them."""
    found = played([Fake(i) for i in range(4)], lengths(1.0), slots=8)
    assert found.pool.counts["hedges"] <= 0.01 * PROBLEMS * SOLUTIONS and found.pool.counts["ejections"] == 0
    # Inverse: by the length of the question they would be.
    monkeypatch.setattr(ScorerPool, "_patience", lambda self, *_: 4 * statistics.median(s for _, s in self._latencies or [(0, 1e9)]))
    copied = played([Fake(i) for i in range(4)], lengths(1.0), slots=8)
    assert copied.pool.counts["hedges"] > 0.05 * PROBLEMS * SOLUTIONS


def test_nor_are_they_where_each_worker_has_one_alone():
    """Nobody else's reply can tell that such a worker is alive."""
    rng = random.Random(2)
    found = played([Fake(i) for i in range(4)], lengths(1.0), slots=8, gap=lambda: rng.expovariate(2 / 33))
    assert found.pool.counts["hedges"] <= 0.02 * PROBLEMS * SOLUTIONS


@pytest.mark.parametrize("tail", [0.05, 1.0])
@pytest.mark.parametrize("fault", [{"slower": 10.0}, {"silent": 100.0}])
def test_a_slow_or_silent_worker_holds_nobody_up(monkeypatch, fault, tail):
    healthy = played([Fake(i) for i in range(3)], lengths(tail))
    longest = max(question.seconds for worker in healthy.pool.workers for question in worker.endpoint.asked)
    workers = [Fake(0, **fault), *(Fake(i) for i in range(1, 4))]
    found = played(workers, lengths(tail))
    assert found.pool.counts["hedges"] >= 3 and found.pool.counts["ejections"] >= 1  # witness
    assert found.took <= healthy.took + 1.5 * longest and len(workers[0].asked) < PROBLEMS * SOLUTIONS / 8
    monkeypatch.setattr(ScorerPool, "_patience", lambda *_: 1e9)  # inverse
    try:
        assert played([Fake(0, **fault), *(Fake(i) for i in range(1, 4))], lengths(tail)).took > 1.2 * found.took
    except TimeoutError:
        assert "silent" in fault


def test_one_lost_reply_of_a_healthy_worker_is_asked_for_again():
    workers = [Fake(i) for i in range(4)]
    seconds = iter([1e5])

    def once() -> float:
        return next(seconds, 0.0) or EQUAL()

    complete = workers[0].complete

    async def loses(question):
        if len(workers[0].asked) == 20:
            question = SimpleNamespace(**vars(question) | {"seconds": 1e5})
        return await complete(question)

    workers[0].complete = loses
    found = played(workers, EQUAL)
    assert found.pool.counts["hedges"] == 1 and found.took < 1e4


def test_alone_a_worker_is_neither_hedged_nor_left_out():
    worker = Fake(0)
    found = played([worker], lengths(1.0))
    assert found.pool.counts["hedges"] == found.pool.counts["ejections"] == 0 and worker.probes == 0
