"""The invariants of batches in the core, over every order of events that hypothesis thinks of, in virtual time."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.daemon.core.backlog import Watermarks
from penstock.daemon.core.batching import Batch
from penstock.daemon.core.dispatch import Balance
from penstock.daemon.core.model import Agent, Request, State, Worker
from penstock.daemon.core.refusals import Problem, Refusal
from penstock.daemon.core.scheduler import Scheduler, Step
from penstock.daemon.core.throttle import Policy

POOL = "p"
MARKS = Watermarks(200, 100, 10_000)
GRACE = 1.0
AGENTS: dict[str, dict[str, Any]] = {
    "waits": {"most": 4, "wait": 0.5},
    "at once": {"most": 3, "wait": 0.0, "sync": True, "idempotent": True},
    "one by one": {"most": 5, "wait": 0.2, "max_concurrency": 1, "idempotent": True},
    "asks": {"most": 2, "wait": 0.1, "database": "async", "connection": True},
    "plain": {"most": 0, "wait": 0.0},
}
START, EACH = 0.02, 0.01
"""Seconds that a batch takes, and each of its members."""


class Batches(RuleBasedStateMachine):
    """Drives a scheduler as the engine does."""

    @initialize(balance=st.sampled_from(Balance), seed=st.integers(0, 9), enabled=st.booleans())
    def begin(self, balance: Balance, seed: int, enabled: bool) -> None:
        self.now = 100.0
        policy = Policy(enabled=enabled)
        self.core: Scheduler[Request] = Scheduler(MARKS, GRACE, policy, 2.0, random.Random(seed))
        self.core.configure({POOL: balance}, MARKS, GRACE, policy)
        self.agents: dict[str, Agent] = {}
        for name, more in AGENTS.items():
            own = {key: value for key, value in more.items() if key not in ("most", "wait")}
            self.agents[name] = Agent(name, POOL, **own)
            self.agents[name].batch(more["most"], more["wait"])
        self.workers: list[Worker] = []
        self.generation = 0
        self.requests: list[Request] = []
        self.ended: dict[int, int] = {}

    def end(self, request: Request) -> None:
        self.ended[id(request)] = self.ended.get(id(request), 0) + 1

    def pump(self) -> None:
        while (pair := self.core.next(POOL, self.now)) is not None:
            self.look_at(*pair)

    def look_at(self, first: Request, worker: Worker) -> None:
        """A batch that goes: its size, its order, its calls."""
        batch = first.batch
        if batch is None:
            assert first.agent.batching is None
            return
        batching = first.agent.batching
        assert batching is not None
        members = batch.members
        assert members[0] is first
        assert 1 <= len(members) <= min(batching.limit, worker.batches.get(first.agent.name, 1))
        assert [each.call_id for each in members] == list(range(batch.call, batch.call + len(members)))
        assert all(worker.calls[each.call_id] is each and each.state is State.RUNNING for each in members)
        assert not (len(members) > 1 and any(each.alone for each in members))
        places = [(each.rank, each.tag, each.order) for each in members[1:]]
        assert places == sorted(places), "in the order of the lane"
        if len(members) > 1:
            soonest = min(each.deadline for each in members)
            assert batching.seconds(len(members)) <= (soonest - self.now) / 2 + 1e-9

    # Events

    @rule(seconds=st.floats(0.001, 0.4))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds
        for due in self.core.expire(self.now):
            if due.step in (Step.ANSWER, Step.SHED, Step.CANCEL):
                self.end(due.request)
                continue
            assert id(due.request) in self.ended
            batch = due.request.batch
            if batch is not None:
                last = max(each.deadline for each in batch.members)
                assert self.now >= last + GRACE / 2 - 0.01, "others are in time"
                assert batch.late is due.request, "its worker is looked at for one of them"
        self.core.gathered(self.now)
        self.pump()

    @precondition(lambda self: len(self.workers) < 3)
    @rule(slots=st.integers(1, 3), most=st.integers(1, 5))
    def a_worker_comes(self, slots: int, most: int) -> None:
        self.generation += 1
        worker = Worker(f"p:{self.generation % 3}", self.generation, POOL, slots, max(1, slots - 1))
        worker.agents = frozenset(AGENTS)
        worker.batches = {name: most for name, more in AGENTS.items() if more["most"]}
        worker.connections["async"] = 1
        self.workers.append(worker)
        self.core.join(worker)
        self.pump()

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), blame=st.booleans())
    def a_worker_dies(self, data: st.DataObject, blame: bool) -> None:
        worker = self.workers.pop(data.draw(st.integers(0, len(self.workers) - 1)))
        calls = dict(worker.calls)
        batches = {call: each.batch for call, each in calls.items()}
        starts = {call if batches[call] is None else batches[call].call for call in calls}  # type: ignore[union-attr]
        begun = {call for call in sorted(starts) if data.draw(st.booleans())}
        running = {call for call, each in calls.items() if each.state is State.RUNNING}
        for requeue in self.core.leave(worker, begun, blame, self.now):
            request = requeue.request
            call = next(call for call, each in calls.items() if each is request)
            batch = batches[call]
            had_begun = call in begun if batch is None else batch.ended or batch.call in begun
            assert had_begun or requeue.end is None, "what had not begun waits again"
            if requeue.end is not None:
                assert requeue.end.problem in (Problem.WORKER_DIED, Problem.POISON_REQUEST)
                self.end(request)
            else:
                assert request.alone or not (had_begun and batch is not None and len(batch.members) > 1)
            running.discard(call)
        assert not running, "each of those that ran is spoken of"
        self.pump()

    @rule(
        name=st.sampled_from(sorted(AGENTS)),
        count=st.integers(1, 6),
        urgency=st.integers(0, 7),
        timeout=st.none() | st.floats(0.05, 3.0),
        affinity=st.sampled_from(["", "k", "l"]),
    )
    def requests_come(self, name: str, count: int, urgency: int, timeout: float | None, affinity: str) -> None:
        for _ in range(count):
            self.now += 0.001
            left = 30.0 if timeout is None else timeout
            request = Request(self.agents[name], self.now, self.now + left, priority=urgency, client="c",
                              affinity=affinity, own_deadline=timeout is not None)  # fmt: skip
            verdict = self.core.submit(request, self.now)
            if isinstance(verdict, Refusal):
                continue
            self.requests.append(request)
            if verdict is not None:
                self.look_at(request, verdict)
            self.pump()

    @precondition(lambda self: any(worker.calls for worker in self.workers))
    @rule(data=st.data())
    def a_batch_ends(self, data: st.DataObject) -> None:
        """Each of its calls is answered, the first answer says what it took."""
        worker = data.draw(st.sampled_from([each for each in self.workers if each.calls]))
        first = worker.calls[data.draw(st.sampled_from(sorted(worker.calls)))]
        batch: Batch[Request] | None = first.batch
        members = [first] if batch is None else batch.members
        before = worker.processors.calls
        for at, each in enumerate(members):
            assert worker.processors.calls == before, "the slot is free with the last"
            assert self.core.finish(worker, each.call_id) is each
            if each.state is State.RUNNING:
                each.state = State.ENDED
                self.end(each)
            if not at:
                self.learn(first.agent, len(members), math.inf if batch is None else batch.budget)
        assert worker.processors.calls == before - 1
        self.pump()

    def learn(self, agent: Agent, count: int, budget: float) -> None:
        wall = START + EACH * count
        agent.cost.observe(wall / count, 0.001, 0.0)
        if agent.batching is not None:
            agent.run_cost.observe(wall, 0.001 * count, 0.0)
            agent.batching.learn(count, wall, budget)

    @precondition(lambda self: any(worker.calls for worker in self.workers))
    @rule(data=st.data())
    def a_channel_takes_nothing(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([each for each in self.workers if each.calls]))
        for call, request in list(worker.calls.items()):
            if request.state is State.RUNNING:
                self.core.unsend(request)
            else:
                self.core.finish(worker, call)
        assert not worker.processors.calls
        self.pump()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def a_client_goes(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.requests))
        if request.state in (State.WAITING, State.RUNNING):
            self.core.withdraw(request)
            self.end(request)
        self.pump()

    # Invariants

    @invariant()
    def every_request_ends_once(self) -> None:
        assert all(count == 1 for count in self.ended.values())
        for request in self.requests:
            assert (request.state is State.ENDED) == (id(request) in self.ended)

    @invariant()
    def a_batch_is_one_slot_one_thread_one_connection(self) -> None:
        for worker in self.workers:
            booked = {id(each.batch or each): each for each in worker.calls.values()}.values()
            assert worker.processors.calls == len(booked) <= worker.slots
            assert worker.sync_calls == sum(each.agent.sync for each in booked) <= worker.threads
            assert worker.connected.get("async", 0) == sum(each.agent.connection for each in booked) <= 1
            assert sum(each.agent.name == "one by one" for each in booked) <= 1
            shares = sum((each.batch or each).share for each in booked)
            assert worker.processors.share == pytest.approx(shares, abs=1e-6)
            assert worker.load == pytest.approx(sum((each.batch or each).work for each in booked), abs=1e-6)
        for agent in self.agents.values():
            if not any(each.state is State.RUNNING for each in self.requests if each.agent is agent):
                continue
            assert agent.running > 0

    @invariant()
    def nothing_waits_that_could_go(self) -> None:
        """What waits while a worker is free waits for others, and not for longer than it may."""
        queue = self.core.backlog.queues.get(POOL)
        if queue is None:
            return
        for band in queue.busy:
            for head in band.heads():
                if queue.holds_back(head) or self.core.pools[POOL].choose(head, self.now) is None:
                    continue
                batching = head.agent.batching
                assert batching is not None, "it could go"
                assert batching.wait
                assert not head.alone
                assert queue.count(head.agent) < batching.limit
                oldest = min(each.arrived_at for each in queue if each.agent is head.agent)
                until = self.core.gathering[POOL]
                assert self.now < until
                assert until <= max(self.now, oldest + batching.wait) + 1e-6

    @invariant()
    def the_wheel_holds_what_may_still_happen(self) -> None:
        for request in self.requests:
            running = request.worker is not None and request.call_id in request.worker.calls
            if request.state is State.WAITING or running:
                assert request.tick >= 0 or (request.stalled and running)


TestBatches = Batches.TestCase
TestBatches.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
