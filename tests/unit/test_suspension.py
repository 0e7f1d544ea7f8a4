"""What a call that waits for others gives back, and who may have it."""

from __future__ import annotations

import pytest

from penstock.daemon.core.model import Agent, Request, Worker
from penstock.daemon.core.suspension import WAITING, is_open, places, resume, suspend, suspendable


@pytest.fixture
def worker() -> Worker:
    return Worker("p:0", 1, "p", 2, 1, frozenset({"a", "sync"}))


def taken(worker: Worker, agent: Agent, call: int) -> Request:
    request = Request(agent, 0.0, 10.0)
    worker.take(request, call, 1.0)
    return request


def test_its_thread_and_its_slot_are_free_meanwhile(worker: Worker) -> None:
    agent = Agent("sync", "p", sync=True)
    request = taken(worker, agent, 1)
    assert not worker.may_take(agent)
    suspend(worker, request)
    assert worker.may_take(agent)
    assert (worker.sync_calls, worker.processors.calls, worker.host.calls, worker.load) == (0, 0, 0, 0.0)
    resume(worker, request)
    assert not worker.may_take(agent)
    assert (worker.sync_calls, worker.processors.calls, worker.host.calls) == (1, 1, 1)


def test_its_place_under_a_limit_is_not_free(worker: Worker) -> None:
    agent = Agent("a", "p", max_concurrency=1)
    suspend(worker, taken(worker, agent, 1))
    assert not worker.may_take(agent)


def test_it_goes_on_whether_there_is_a_slot_or_not(worker: Worker) -> None:
    agent = Agent("a", "p")
    first = taken(worker, agent, 1)
    suspend(worker, first)
    others = [taken(worker, agent, call) for call in (2, 3)]
    resume(worker, first)
    assert not worker.may_take(agent)
    worker.release(others[0])
    assert not worker.may_take(agent), "two of two slots are taken"
    worker.release(others[1])
    assert worker.may_take(agent)


def test_too_much_that_waits_keeps_out_what_comes_from_outside(worker: Worker) -> None:
    agent = Agent("a", "p")
    outside, child = Request(agent, 0.0, 10.0), Request(agent, 0.0, 10.0)
    child.depth = 2
    for call in range(WAITING * worker.slots):
        assert is_open(worker, outside)
        suspend(worker, taken(worker, agent, call))
    assert not is_open(worker, outside)
    assert is_open(worker, child)


def test_beyond_the_limit_a_call_keeps_its_slot(worker: Worker) -> None:
    agent = Agent("a", "p")
    for call in range(suspendable(worker.slots)):
        suspend(worker, taken(worker, agent, call))
    last = [taken(worker, agent, 100 + call) for call in range(worker.slots)]
    suspend(worker, last[0])
    assert not last[0].suspended
    assert not worker.may_take(agent)
    assert len(worker.calls) == places(worker.slots)
