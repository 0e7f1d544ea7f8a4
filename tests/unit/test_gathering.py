"""Who goes together, by lane, key and worker; and what becomes of a batch whose worker ends."""

from __future__ import annotations

import random

from penstock.daemon.core.backlog import Watermarks
from penstock.daemon.core.dispatch import Balance
from penstock.daemon.core.model import Agent, Request, State, Worker
from penstock.daemon.core.refusals import Refusal
from penstock.daemon.core.scheduler import Scheduler, Step
from penstock.daemon.core.throttle import Policy

GRACE = 1.0


class Stand:
    """A scheduler with one batched agent."""

    def __init__(self, balance: Balance = Balance.LEAST_LOADED, most: int = 8, wait: float = 0.0) -> None:
        policy = Policy()
        self.core: Scheduler[Request] = Scheduler(Watermarks(), GRACE, policy, 8.0, random.Random(1))
        self.core.configure({"p": balance}, Watermarks(), GRACE, policy)
        self.agent = Agent("a", "p", idempotent=True)
        self.agent.batch(most, wait)
        self.agent.cost.observe(0.01, 0.0001, 0.0)
        self.agent.run_cost.observe(0.01, 0.0001, 0.0)

    def worker(self, name: str, most: int = 8, slots: int = 1) -> Worker:
        worker = Worker(name, 1, "p", slots, slots, frozenset({"a"}), {"a": most})
        self.core.join(worker)
        return worker

    def ask(self, now: float = 1.0, affinity: str = "", left: float = 30.0, rank: int = 3) -> Request:
        request = Request(self.agent, now, now + left, affinity=affinity, priority=rank)
        assert not isinstance(self.core.submit(request, now), Refusal)
        return request

    def next(self, now: float = 1.0) -> tuple[list[Request], Worker]:
        pair = self.core.next("p", now)
        assert pair is not None
        assert pair[0].batch is not None
        return pair[0].batch.members, pair[1]


def test_a_batch_never_mixes_keys_of_different_workers() -> None:
    """What is left out goes to its own worker."""
    stand = Stand(Balance.HASH)
    asked = [stand.ask(affinity=key) for key in "abcdefgh" for _ in range(2)]
    workers = [stand.worker("p:0"), stand.worker("p:1")]
    home = {each.affinity: stand.core.pools["p"].choose(each, 1.0) for each in asked}
    assert set(home.values()) == set(workers)
    for _ in workers:
        members, worker = stand.next()
        assert len(members) > 1
        assert {home[each.affinity] for each in members} == {worker}
        assert members == [each for each in asked if home[each.affinity] is worker][: len(members)]


def test_without_keys_all_go_together_in_a_hash_pool_too() -> None:
    stand = Stand(Balance.HASH)
    asked = [stand.ask() for _ in range(5)]
    stand.worker("p:0")
    assert stand.next()[0] == asked


def test_a_worker_of_older_code_gets_what_that_allows() -> None:
    """While a reload goes on, the workers of a pool may differ."""
    stand = Stand(most=8)
    asked = [stand.ask() for _ in range(6)]
    stand.worker("p:0", most=3)
    assert stand.next()[0] == asked[:3]
    older = Worker("p:1", 1, "p", 1, 1, frozenset({"a"}))
    stand.core.join(older)
    members, worker = stand.next()
    assert (members, worker) == (asked[3:4], older)


def test_the_ranks_go_in_their_order() -> None:
    stand = Stand()
    late, soon, other = stand.ask(rank=6), stand.ask(rank=1), stand.ask(rank=6)
    stand.worker("p:0")
    assert stand.next()[0] == [soon, late, other]


def test_a_batch_is_done_in_half_of_what_its_most_urgent_has_left() -> None:
    stand = Stand()
    batching = stand.agent.batching
    assert batching is not None
    for _ in range(50):
        batching.learn(4, 0.4, 10.0)
    asked = [stand.ask() for _ in range(3)] + [stand.ask(left=0.6) for _ in range(3)]
    stand.worker("p:0")
    assert stand.next()[0] == asked[:3]


def test_it_waits_for_others_only_while_they_are_to_be_expected() -> None:
    stand = Stand(most=4, wait=1.0)
    stand.worker("p:0", slots=2)
    for at in range(50):
        request = stand.ask(now=1.0 + at / 100)
        while (pair := stand.core.next("p", 1.0 + at / 100)) is not None:
            for each in pair[0].batch.members if pair[0].batch is not None else ():
                stand.core.finish(pair[1], each.call_id)
    request = stand.ask(now=1.5)
    assert stand.core.next("p", 1.5) is None
    assert not stand.core.is_forgotten("p", 1.5)
    until = stand.core.gathering["p"]
    assert 1.5 < until <= request.arrived_at + 1.0
    assert stand.core.gathered(until) == ["p"]
    assert request in stand.next(until)[0]


def test_whose_worker_died_goes_alone_the_next_time() -> None:
    stand = Stand()
    asked = [stand.ask() for _ in range(3)]
    worker = stand.worker("p:0")
    members = stand.next()[0]
    assert members == asked
    assert all(each.end is None for each in stand.core.leave(worker, {members[0].call_id}, True, 2.0))
    fresh = stand.worker("p:1", slots=4)
    assert [stand.next()[0] for _ in range(3)] == [[each] for each in asked]
    assert fresh.processors.calls == 3


def test_whose_worker_died_before_it_had_begun_goes_together_again() -> None:
    stand = Stand()
    asked = [stand.ask() for _ in range(3)]
    worker = stand.worker("p:0")
    assert stand.next()[0] == asked
    assert all(each.end is None for each in stand.core.leave(worker, set(), True, 2.0))
    stand.worker("p:1")
    assert stand.next()[0] == asked


def test_where_one_has_its_answer_the_others_had_begun() -> None:
    stand = Stand()
    asked = [stand.ask() for _ in range(3)]
    worker = stand.worker("p:0")
    stand.next()
    stand.core.finish(worker, asked[0].call_id)
    asked[0].state = State.ENDED
    stand.core.leave(worker, set(), True, 2.0)
    assert [each.retried for each in asked] == [False, True, True]


def test_a_worker_is_left_alone_while_a_member_is_in_time() -> None:
    stand = Stand()
    asked = [stand.ask(left=10.0), stand.ask(left=1.0), stand.ask(left=1.0)]
    worker = stand.worker("p:0")
    assert stand.next()[0] == asked
    seen: list[tuple[float, Step, int]] = []
    for step in range(1, 200):
        now = 1.0 + step / 10
        seen += [(now, due.step, asked.index(due.request)) for due in stand.core.expire(now)]
    assert [(step, at) for now, step, at in seen if now < 11.0] == [(Step.CANCEL, 1), (Step.CANCEL, 2)]
    after = [(now, step) for now, step, _ in seen if now >= 11.0]
    assert [step for _, step in after] == [Step.CANCEL, Step.STALLED, Step.KILL]
    assert after[-1][0] <= 11.0 + 2 * GRACE
    assert len(worker.calls) == 3


def test_a_batch_is_one_slot() -> None:
    stand = Stand()
    asked = [stand.ask() for _ in range(3)]
    worker = stand.worker("p:0")
    stand.next()
    other = stand.ask()
    for each in asked:
        assert stand.core.next("p", 1.0) is None
        stand.core.finish(worker, each.call_id)
    assert stand.next()[0] == [other]


def test_what_a_request_costs_is_its_part_of_a_batch() -> None:
    stand = Stand()
    agent = stand.agent
    assert agent.run_cost is not agent.cost
    agent.batch(0, 0.0)
    assert agent.batching is None
    assert agent.run_cost is agent.cost
