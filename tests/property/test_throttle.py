"""Shares are max-min fair, comebacks are spread, clients are bounded."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.daemon.core.backlog import Queue, Watermarks
from penstock.daemon.core.dispatch import Balance
from penstock.daemon.core.model import PRIORITIES, Agent, Capacity, Request, State, Worker
from penstock.daemon.core.scheduler import Scheduler
from penstock.daemon.core.shares import MOST_CLIENTS
from penstock.daemon.core.throttle import TICK, Policy, Throttle

FOUR = Capacity(4, 64, 32)


def queue_of(count: int, seconds: float = 1.0) -> Queue[Request]:
    """So many requests that wait, of so many seconds of computing each."""
    queue, agent = Queue[Request](), Agent("waiting", "p")
    for order in range(count):
        request = Request(agent, 100.0, 130.0)
        request.order = order
        request.wall = request.cpu = seconds
        queue.push(request)
    return queue


def made(wall: float = 0.05, cpu: float = 0.0) -> tuple[Throttle, Agent]:
    throttle = Throttle(Policy(), 2, random.Random(1))
    throttle.tick(FOUR, queue_of(0), 100.0)
    agent = Agent("a", "p")
    agent.cost.observe(wall, cpu, 0.0)
    return throttle, agent


def fair(asked: list[float], capacity: float) -> float:
    """The level of max-min fairness, by filling up."""
    if sum(asked) <= capacity:
        return float("inf")
    low, high = 0.0, max(asked)
    for _ in range(100):
        level = (low + high) / 2
        low, high = (level, high) if sum(min(each, level) for each in asked) < capacity else (low, level)
    return low


@given(st.lists(st.integers(0, 300), min_size=2, max_size=8))
def test_shares_are_max_min_fair(counts: list[int]) -> None:
    throttle, agent = made(wall=0.64)
    for number, count in enumerate(counts):
        for _ in range(count):
            throttle.arrive(f"c{number}", 3, agent, 100.0)
    throttle.tick(FOUR, queue_of(1), 100.0 + TICK)
    asked = [client.total for client in throttle.shares._clients.values()]
    assert throttle.shares.asked == pytest.approx(sum(asked))
    if len(asked) > 1:
        assert throttle.shares.share == pytest.approx(fair(asked, throttle.pace), rel=1e-6)


@given(st.integers(1, 2000), st.integers(0, 7))
def test_a_lone_client_is_never_over_its_share(count: int, urgency: int) -> None:
    throttle, agent = made()
    for _ in range(count):
        assert throttle.arrive("only", urgency, agent, 100.0) == urgency
    throttle.tick(FOUR, queue_of(5), 100.2)
    assert throttle.arrive("only", urgency, agent, 100.3) == urgency


def test_a_greedy_client_ranks_behind_the_polite_ones_and_is_told_so() -> None:
    throttle, agent = made(wall=0.64)
    for step in range(5):
        now = 100.0 + step * TICK
        for _ in range(200):
            throttle.arrive("greedy", 0, agent, now)
        for number in range(3):
            throttle.arrive(f"c{number}", 7, agent, now)
        throttle.tick(FOUR, queue_of(5), now + TICK)
    assert throttle.arrive("greedy", 0, agent, 101.0) == PRIORITIES
    assert throttle.arrive("c1", 7, agent, 101.0) == 7
    assert throttle.shares.is_greedy("greedy")
    assert not throttle.shares.is_greedy("c1")


def test_a_greedy_client_is_not_put_behind_others_while_all_fit() -> None:
    throttle, agent = made(wall=0.64)
    for _ in range(200):
        throttle.arrive("more", 3, agent, 100.0)
    throttle.arrive("less", 3, agent, 100.0)
    throttle.tick(FOUR, queue_of(5, 0.01), 100.0 + TICK)
    assert throttle.arrive("more", 3, agent, 100.2) == 3


def test_who_asks_for_one_thing_at_a_time_pays_for_nothing_while_there_is_enough() -> None:
    throttle, agent = made()
    throttle.arrive("one", 3, agent, 100.0)
    throttle.arrive("other", 3, agent, 100.0)
    for _ in range(5):
        assert throttle.tag("one", agent, alone=True) == throttle.tag("other", agent, alone=True)
    assert throttle.tag("one", agent, alone=False) > throttle.tag("other", agent, alone=True)


def test_clients_are_bounded_and_forgotten() -> None:
    throttle, agent = made()
    for number in range(MOST_CLIENTS + 50):
        throttle.arrive(f"c{number}", 3, agent, 100.0)
    assert len(throttle.shares) <= MOST_CLIENTS + 1
    throttle.tick(FOUR, queue_of(0), 200.0)
    assert not len(throttle.shares)


def test_clients_take_turns_by_the_work_that_they_bring() -> None:
    throttle, agent = made()
    tags = {name: [] for name in "ab"}  # type: dict[str, list[float]]
    for _ in range(10):
        throttle.arrive("a", 3, agent, 100.0)
        tags["a"].append(throttle.tag("a", agent, alone=False))
    for _ in range(10):
        throttle.arrive("b", 3, agent, 100.0)
        tags["b"].append(throttle.tag("b", agent, alone=False))
    order = sorted([(tag, name) for name, each in tags.items() for tag in each])
    for length in range(2, 21, 2):
        served = Counter(name for _, name in order[:length])
        assert abs(served["a"] - served["b"]) <= 2, "whoever came later is not behind"


def test_an_agent_is_slow_by_what_its_calls_take_by_themselves() -> None:
    _, crowded = made(wall=0.05, cpu=0.03)
    for _ in range(50):
        crowded.cost.observe(0.4, 0.03, 0.0, pressed=True)
    assert crowded.cost.wall > 0.2
    assert crowded.own_time(200.0) == pytest.approx(0.05)
    crowded.running, crowded.sent_at = 2, 2 * 199.6
    assert crowded.own_time(200.0) < 0.2, "those that run are crowded as well"
    _, waiting = made(wall=0.05)
    waiting.running, waiting.sent_at = 2, 2 * 199.1
    assert waiting.own_time(200.0) == pytest.approx(0.9), "the backend has become slow, though no call has ended yet"


def test_what_others_leave_limits_what_computes() -> None:
    core: Scheduler[Request] = Scheduler(Watermarks(), 1.0, Policy(), 2, random.Random(1))
    core.configure({"p": Balance.LEAST_LOADED}, Watermarks(), 1.0, Policy())
    agent = Agent("a", "p")
    for _ in range(100):
        agent.cost.observe(0.03, 0.03, 0.0)
    for number in range(8):
        core.join(Worker(f"p:{number}", 1, "p", 4, 4, frozenset(["a"])))

    def run() -> int:
        requests = [Request(agent, 100.0, 130.0) for _ in range(8)]
        sent = [each for each in requests if isinstance(core.submit(each, 100.0), Worker)]
        for each in core.end_waiting():
            assert each not in sent
        for each in sent:
            assert each.worker is not None
            core.finish(each.worker, each.call_id)
        return len(sent)

    assert run() == 3, "half as many again as there are processors"
    core.leave_processors(1.0)
    assert run() == 2
    core.leave_processors(0.1)
    assert run() == 1, "never none"


def test_the_next_processor_is_kept_for_who_waits_for_one_once_much_waits() -> None:
    core: Scheduler[Request] = Scheduler(Watermarks(), 1.0, Policy(), 2, random.Random(1))
    core.configure({"p": Balance.LEAST_LOADED}, Watermarks(), 1.0, Policy())
    costs = {"longer": (0.02, 0.02), "quick": (0.001, 0.001), "waits": (0.05, 0.0002)}
    agents = {name: Agent(name, "p") for name in costs}
    for name, (wall, cpu) in costs.items():
        for _ in range(100):
            agents[name].cost.observe(wall, cpu, 0.0)
    for number in range(4):
        core.join(Worker(f"p:{number}", 1, "p", 16, 16, frozenset(agents)))

    def submit(name: str, priority: int = 3) -> Request:
        request = Request(agents[name], 100.0, 130.0, priority=priority)
        core.submit(request, 100.0)
        return request

    running = [submit("longer") for _ in range(3)]
    waiting = [submit("longer") for _ in range(10)]
    assert core.next("p", 100.0) is None
    assert submit("quick").state is State.RUNNING, "little waits: short calls go past"
    waiting += [submit("longer") for _ in range(10)]
    assert core.next("p", 100.0) is None
    quick = submit("quick")
    assert quick.state is State.WAITING, "much waits: it stays behind those that wait for a processor"
    assert submit("waits").state is State.RUNNING, "it hardly wants one"
    assert submit("quick", priority=1).state is State.RUNNING, "urgent ones go first"
    worker = running[0].worker
    assert worker is not None
    core.finish(worker, running[0].call_id)
    assert core.next("p", 100.0) == (waiting[0], waiting[0].worker)
    for each in waiting[1:]:
        core.withdraw(each)
    assert core.next("p", 100.0) == (quick, quick.worker)
