"""Who gets a request, among workers that may all take it."""

from __future__ import annotations

import ast
import random
from collections import Counter

import pytest

from penstock.daemon.core.backlog import Watermarks
from penstock.daemon.core.dispatch import WAKING, Balance, Pool
from penstock.daemon.core.model import Agent, Block, Request, Worker
from penstock.daemon.core.processing import QUANTUM
from penstock.daemon.core.scheduler import Scheduler
from penstock.daemon.core.throttle import Policy
from tests.sources import parsed

COUNT = 4
KEYS = 200


def agent(wall: float, cpu: float, name: str = "a") -> Agent:
    """One that has been called often, and takes so much each time."""
    found = Agent(name, "p")
    found.cost.observe(wall, cpu, 0.0)
    return found


def pool(balance: Balance = Balance.LEAST_LOADED) -> Pool:
    found = Pool("p", balance)
    for number in range(COUNT):
        found.join(Worker(f"p:{number}", 1, "p", slots=64, threads=64, agents=frozenset({"a", "b"})))
    return found


class Sender:
    """Sends calls and remembers where to."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.calls = 0

    def send(self, agent: Agent, now: float = 1.0, affinity: str = "") -> Worker:
        request = Request(agent, now, now + 30.0, affinity=affinity)
        worker = self.pool.choose(request, now)
        assert worker is not None
        self.calls += 1
        worker.take(request, self.calls, now)
        return worker


def test_calls_that_compute_are_spread_over_all_workers() -> None:
    sender = Sender(pool())
    computing = agent(0.002, 0.002)
    assert Counter(sender.send(computing).name for _ in range(2 * COUNT)) == {f"p:{n}": 2 for n in range(COUNT)}


def test_calls_that_wait_are_spread_over_all_workers() -> None:
    sender = Sender(pool())
    waiting = agent(0.05, 0.00002)
    assert Counter(sender.send(waiting).name for _ in range(8 * COUNT)) == {f"p:{n}": 8 for n in range(COUNT)}


def test_a_short_call_is_not_put_behind_a_long_one() -> None:
    sender = Sender(pool())
    long = agent(0.2, 0.2, "b")
    busy = {sender.send(long).name for _ in range(COUNT - 1)}
    quick = agent(0.001, 0.001)
    for _ in range(3):
        assert sender.send(quick).name not in busy


def test_tiny_calls_wake_no_further_worker_as_long_as_waking_it_would_take_longer() -> None:
    sender = Sender(pool())
    tiny = agent(WAKING / 4, WAKING / 4)
    first = [sender.send(tiny).name for _ in range(4)]
    assert len(set(first)) == 1
    assert sender.send(tiny).name != first[0]


def test_tiny_calls_are_not_put_behind_one_that_has_not_ended_in_its_time() -> None:
    sender = Sender(pool())
    tiny = agent(WAKING / 10, WAKING / 10)
    first = sender.send(tiny)
    assert sender.send(tiny) is first
    assert sender.send(tiny, 1.0 + 2 * QUANTUM) is not first


def test_a_worker_that_is_gone_gets_nothing() -> None:
    workers = pool()
    sender = Sender(workers)
    tiny = agent(WAKING / 10, WAKING / 10)
    first = sender.send(tiny)
    workers.remove(first)
    assert sender.send(tiny) is not first


def test_workers_that_are_idle_take_turns() -> None:
    workers = pool()
    tiny = agent(WAKING / 10, WAKING / 10)
    found = []
    for number in range(COUNT):
        request = Request(tiny, 1.0, 31.0)
        worker = workers.choose(request, 1.0)
        assert worker is not None
        worker.take(request, number, 1.0)
        worker.release(request)
        found.append(worker.name)
    assert len(set(found)) == COUNT


def test_round_robin_takes_turns_and_skips_who_may_not() -> None:
    workers = pool(Balance.ROUND_ROBIN)
    sender = Sender(workers)
    workers.workers[2].block(Block.DRAINING)
    names = [sender.send(agent(0.2, 0.2)).name for _ in range(6)]
    assert names == ["p:0", "p:1", "p:3", "p:0", "p:1", "p:3"]


def test_a_worker_serves_when_nothing_blocks_it() -> None:
    worker = Worker("p:0", 1, "p", slots=1, threads=1, agents=frozenset({"a"}))
    worker.block(Block.STALLED)
    worker.block(Block.WITHDRAWN)
    worker.unblock(Block.STALLED)
    assert not worker.serving
    assert not worker.may_take(agent(0.2, 0.2))
    worker.unblock(Block.DRAINING)
    assert worker.blocks is Block.WITHDRAWN
    worker.unblock(Block.WITHDRAWN)
    assert worker.serving
    assert worker.may_take(agent(0.2, 0.2))


def test_only_block_and_unblock_write_whether_a_worker_serves() -> None:
    found = [
        (path.name, function.name)
        for path, tree in parsed()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr in ("serving", "blocks")
    ]
    assert set(found) == {("model.py", "block"), ("model.py", "unblock")}


def test_a_worker_that_goes_moves_only_its_own_keys() -> None:
    def placed(workers: Pool) -> dict[str, str]:
        found = {}
        for number in range(KEYS):
            request = Request(waiting, 1.0, 31.0, affinity=f"key {number}")
            worker = workers.choose(request, 1.0)
            assert worker is not None
            found[request.affinity] = worker.name
        return found

    waiting = agent(0.1, 0.0001)
    workers = pool(Balance.HASH)
    before = placed(workers)
    assert min(Counter(before.values()).values()) > KEYS / COUNT / 2
    gone = workers.workers[1]
    workers.remove(gone)
    after = placed(workers)
    assert {key for key in before if before[key] != after[key]} == {k for k in before if before[k] == gone.name}


def test_the_calls_of_one_key_stay_with_one_worker_while_it_has_credits() -> None:
    for few in (agent(0.1, 0.0001), Agent("a", "p")):
        sender = Sender(pool(Balance.HASH))
        assert len({sender.send(few, affinity="hot").name for _ in range(6)}) == 1


def test_what_the_worker_of_a_key_cannot_take_goes_to_the_next_and_comes_back() -> None:
    workers = pool(Balance.HASH)
    sender = Sender(workers)
    waiting = agent(0.1, 0.0001)
    home = sender.send(waiting, affinity="hot")
    while len(home.calls) < home.slots:
        assert sender.send(waiting, affinity="hot") is home
    second = sender.send(waiting, affinity="hot")
    assert {sender.send(waiting, affinity="hot") for _ in range(5)} == {second}
    assert second is not home
    home.release(next(iter(home.calls.values())))
    assert sender.send(waiting, affinity="hot") is home


def test_every_credit_counts_for_a_key() -> None:
    for kind in ("thread", "connection", "processor"):
        workers = pool(Balance.HASH)
        sender = Sender(workers)
        asks = agent(0.5, 0.5 if kind == "processor" else 0.0001)
        asks.sync = kind == "thread"
        asks.connection, asks.database = kind == "connection", "async" * (kind == "connection")
        for worker in workers.workers:
            worker.threads = 2
            worker.connections["async"] = 2
            worker.processors.limit = 1.95
        homes = [sender.send(asks, affinity="hot").name for _ in range(6)]
        assert [len(set(homes[at : at + 2])) for at in (0, 2, 4)] == [1, 1, 1], kind
        assert len(set(homes)) == 3, kind


def test_any_bytes_are_a_key() -> None:
    sender = Sender(pool(Balance.HASH))
    waiting = agent(0.1, 0.0001)
    for key in (b"caf\xe9".decode(errors="surrogateescape"), "caf\xe9", "\ud800"):
        assert len({sender.send(waiting, affinity=key).name for _ in range(3)}) == 1


@pytest.mark.parametrize(("processors", "at_once"), [(0.25, 1), (0.5, 1), (1.0, 1), (2.0, 2), (3.5, 3)])
def test_of_calls_that_compute_for_long_no_more_run_than_there_are_processors(processors: float, at_once: int) -> None:
    """Of a part of a processor one has the use, at least."""
    scheduler: Scheduler[Request] = Scheduler(Watermarks(), 1.0, Policy(), processors, random.Random(1))
    scheduler.configure({"p": Balance.LEAST_LOADED}, Watermarks(), 1.0, Policy())
    for worker in pool().workers:
        scheduler.join(worker)
    long, waiting = agent(0.3, 0.3), agent(0.2, 0.0001, "b")
    placed = [scheduler.submit(Request(long, 1.0, 31.0), 1.0) for _ in range(8)]
    assert sum(isinstance(each, Worker) for each in placed) == at_once
    assert isinstance(scheduler.submit(Request(waiting, 1.0, 31.0), 1.0), Worker), "those that wait go on top"
