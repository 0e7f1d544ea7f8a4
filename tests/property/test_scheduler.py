"""The invariants of the core, over every order of events that hypothesis thinks of."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.daemon.core.backlog import LOW_BYTES, Watermarks
from penstock.daemon.core.comebacks import LONGEST, Hold
from penstock.daemon.core.dispatch import Balance, Pool
from penstock.daemon.core.model import Agent, Block, Request, State, Worker
from penstock.daemon.core.processing import QUANTUM, TOLERANCE
from penstock.daemon.core.refusals import Comeback, Problem, Refusal
from penstock.daemon.core.scheduler import Scheduler, Step
from penstock.daemon.core.throttle import Policy

POOL = "p"
MARKS = Watermarks(6, 3, 1000)
GRACE = 1.0
AGENTS = (
    Agent("waits", POOL),
    Agent("computes", POOL, sync=True, idempotent=True),
    Agent("alone", POOL, max_concurrency=1, idempotent=True),
    Agent("asks", POOL, database="async", connection=True),
)
"""What they cost is learnt from what ``finish`` says of them."""
COSTS = {"waits": (0.2, 0.0), "computes": (0.05, 0.05), "alone": (0.1, 0.001), "asks": (0.02, 0.001)}


class Core(RuleBasedStateMachine):
    """Drives a scheduler as the engine does: after every event, what can run is sent."""

    @initialize(
        enabled=st.booleans(),
        balance=st.sampled_from(Balance),
        seed=st.integers(0, 9),
        processors=st.sampled_from([0.5, 2.0]),
    )
    def begin(self, enabled: bool, balance: Balance, seed: int, processors: float) -> None:
        self.now = 100.0
        self.agents = [Agent(a.name, a.pool, a.sync, a.idempotent, max_concurrency=a.max_concurrency,
                             database=a.database, connection=a.connection) for a in AGENTS]  # fmt: skip
        policy = Policy(enabled=enabled)
        self.core: Scheduler[Request] = Scheduler(MARKS, GRACE, policy, processors, random.Random(seed))
        self.core.configure({POOL: balance}, MARKS, GRACE, policy)
        self.workers: list[Worker] = []
        self.generation = 0
        self.requests: list[Request] = []
        self.ended: dict[int, int] = {}
        self.returned = 0
        self.away: list[Comeback] = []
        self.held: list[Hold] = []
        self.arriving: list[int] = []

    def end(self, request: Request) -> None:
        self.ended[id(request)] = self.ended.get(id(request), 0) + 1

    def pump(self) -> None:
        while (pair := self.core.next(POOL, self.now)) is not None:
            request, worker = pair
            assert worker.serving
            assert request.deadline > self.now or request.tick >= 0

    # Events

    @rule(seconds=st.floats(0.001, 0.4))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds
        for due in self.core.expire(self.now):
            if due.step in (Step.ANSWER, Step.SHED, Step.CANCEL):
                assert due.step is Step.SHED or due.request.deadline <= self.now
                self.end(due.request)
            else:
                assert self.now >= due.request.deadline + GRACE - 0.01 or id(due.request) in self.ended
        self.pump()

    @precondition(lambda self: len(self.workers) < 3)
    @rule(slots=st.integers(1, 3), connections=st.integers(1, 2))
    def a_worker_comes(self, slots: int, connections: int) -> None:
        self.generation += 1
        worker = Worker(f"p:{self.generation % 3}", self.generation, POOL, slots, max(1, slots - 1))
        worker.agents = frozenset(agent.name for agent in AGENTS)
        worker.connections["async"] = connections
        self.workers.append(worker)
        self.core.join(worker)
        self.pump()

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), blame=st.booleans())
    def a_worker_dies(self, data: st.DataObject, blame: bool) -> None:
        worker = self.workers.pop(data.draw(st.integers(0, len(self.workers) - 1)))
        begun = {call for call in worker.calls if data.draw(st.booleans())}
        waiting = self.core.backlog.requests
        for requeue in self.core.leave(worker, begun, blame, self.now):
            if requeue.end is not None:
                self.end(requeue.request)
        self.returned = max(self.returned, self.core.backlog.requests - waiting)
        self.pump()

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def a_worker_drains(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.workers)).block(Block.DRAINING)

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), reason=st.sampled_from(list(Block)), comes=st.booleans())
    def a_reason_not_to_serve_comes_or_goes(self, data: st.DataObject, reason: Block, comes: bool) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        before = worker.blocks
        (worker.block if comes else worker.unblock)(reason)
        assert worker.blocks == (before | reason if comes else before & ~reason)
        assert worker.serving == (not worker.blocks)
        self.pump()

    @rule()
    def the_same_settings_are_taken_again(self) -> None:
        refusing = self.core.backlog.refusing
        self.core.configure({POOL: self.core.pools[POOL].balance}, MARKS, GRACE, self.core.policy)
        assert self.core.backlog.refusing or not refusing, "only the low-water marks end the refusing"

    @rule(size=st.integers(0, 700))
    def a_part_of_a_body_comes(self, size: int) -> None:
        before = self.core.backlog.bytes
        refusal = self.core.reserve(self.agents[0], "a", size, self.now)
        assert (refusal is None) == (before + size <= MARKS.max_bytes)
        if refusal is None:
            self.arriving.append(size)
        else:
            assert refusal.problem is Problem.OVERLOADED
            assert refusal.comeback is not None, "the throttle says when to come back"
            assert refusal.retry_after == refusal.comeback.left(self.now) >= 1
            self.away.append(refusal.comeback)

    @precondition(lambda self: self.arriving)
    @rule(data=st.data())
    def a_body_is_complete_or_given_up(self, data: st.DataObject) -> None:
        self.core.backlog.release(self.arriving.pop(data.draw(st.integers(0, len(self.arriving) - 1))))
        self.pump()

    @rule(
        number=st.integers(0, len(AGENTS) - 1),
        client=st.sampled_from("abc"),
        urgency=st.integers(0, 7),
        timeout=st.none() | st.floats(0.01, 3.0),
        size=st.integers(0, 400),
        affinity=st.sampled_from(["", "k", "l"]),
        turned_away=st.integers(-1, 5),
    )
    def a_request_comes(
        self, number: int, client: str, urgency: int, timeout: float | None, size: int, affinity: str, turned_away: int
    ) -> None:
        agent = self.agents[number]
        left = 30.0 if timeout is None else timeout
        own = timeout is not None
        full = self.core.backlog.refusing
        back = None
        if 0 <= turned_away < len(self.away):
            back = self.away.pop(turned_away)
            client = back.client
        rank = self.core.screen(
            agent, client, urgency, left=left, own_deadline=own, now=self.now, back=back, fresh=turned_away < 0
        )
        if isinstance(rank, Hold):
            assert full or self.core.backlog.requests, "nothing is held while nothing waits"
            assert self.now <= rank.until <= self.now + min(left, LONGEST) + 1e-9
            self.held.append(rank)
            return
        if isinstance(rank, Refusal):
            assert full or self.core.backlog.requests, "nothing is refused while nothing waits"
            assert rank.comeback is not None
            assert rank.problem is Problem.DEADLINE_EXCEEDED or 1 <= rank.retry_after <= 60
            self.away.append(rank.comeback)
            return
        request = Request(agent, self.now, self.now + left, priority=urgency, size=size, client=client,
                          affinity=affinity, own_deadline=own)  # fmt: skip
        request.rank = rank
        if not isinstance(self.core.submit(request, self.now), Refusal):
            self.requests.append(request)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), leaves=st.booleans())
    def a_hold_ends(self, data: st.DataObject, leaves: bool) -> None:
        """It is its turn, or the client leaves before."""
        hold = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        if leaves:
            self.core.release(hold)
            self.core.stray(hold.comeback)
            return
        self.now = max(self.now, hold.until)
        rank = self.core.again(hold, self.now)
        if isinstance(rank, Refusal):
            assert rank.comeback is hold.comeback or not hold.comeback.is_early(self.now)
            self.away.append(rank.comeback or hold.comeback)

    @precondition(lambda self: self.away)
    @rule(data=st.data())
    def a_connection_closes(self, data: st.DataObject) -> None:
        self.core.stray(self.away.pop(data.draw(st.integers(0, len(self.away) - 1))))

    @precondition(lambda self: any(worker.calls for worker in self.workers))
    @rule(data=st.data(), pressed=st.booleans())
    def a_call_ends(self, data: st.DataObject, pressed: bool) -> None:
        worker = data.draw(st.sampled_from([each for each in self.workers if each.calls]))
        call = data.draw(st.sampled_from(sorted(worker.calls)))
        request = self.core.finish(worker, call)
        assert request is not None
        wall, cpu = COSTS[request.agent.name]
        request.agent.cost.observe(wall, cpu, 0.0, pressed)
        if request.state is State.RUNNING:
            request.state = State.ENDED
            self.end(request)
        assert self.core.finish(worker, call) is None, "a call ends once"
        self.pump()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def a_client_goes(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.requests))
        if request.state in (State.WAITING, State.RUNNING):
            self.core.withdraw(request)
            self.end(request)
            assert request.state.value == State.ENDED.value
        else:
            assert self.core.withdraw(request) is None
        self.pump()

    # Invariants

    @invariant()
    def every_request_ends_once(self) -> None:
        assert all(count == 1 for count in self.ended.values())
        for request in self.requests:
            assert (request.state is State.ENDED) == (id(request) in self.ended)

    @invariant()
    def credits_are_kept_and_add_up(self) -> None:
        for worker in self.workers:
            calls = list(worker.calls.values())
            assert len(calls) <= worker.slots
            assert worker.sync_calls == sum(call.agent.sync for call in calls) <= worker.threads
            assert sum(call.agent.name == "alone" for call in calls) <= 1
            asking = sum(call.agent.connection for call in calls)
            assert worker.connected.get("async", 0) == asking <= worker.connections["async"]
            assert worker.processors.share == pytest.approx(sum(call.share for call in calls), abs=1e-6)
            short = [call.cpu for call in calls if call.cpu <= QUANTUM]
            assert worker.processors.short == pytest.approx(sum(short), abs=1e-6)
            if worker.processors.limit < 1.0:
                long = sum(call.share for call in calls if call.cpu > QUANTUM)
                assert long < worker.processors.limit + 1.0
        running = [call for worker in self.workers for call in worker.calls.values()]
        host = self.core.host
        long_ones = [call.share for call in running if call.long]
        assert host.share == pytest.approx(sum(call.share for call in running), abs=1e-6)
        assert host.long == pytest.approx(sum(long_ones), abs=1e-6)
        assert len(long_ones) <= 1 or sum(long_ones) <= host.long_limit + TOLERANCE + 1e-6
        for agent in self.agents:
            assert agent.running == sum(call.agent is agent for call in running)

    @invariant()
    def a_key_stays_with_its_worker(self) -> None:
        if self.core.pools[POOL].balance is not Balance.HASH:
            return
        for agent in self.agents:
            for key in ("k", "l"):
                request = Request(agent, self.now, self.now + 1.0, affinity=key)
                home = self.homes(key, agent)
                chosen = self.core.pools[POOL].choose(request, self.now)
                if home is not None and home.may_take(agent) and self.core.host.has_room(agent):
                    assert chosen is home, "its worker has a credit for it"

    def homes(self, key: str, agent: Agent) -> Worker | None:
        """Where a key goes while nothing runs, of the workers that serve."""
        idle = Pool(POOL, Balance.HASH)
        for each in self.workers:
            if each.serving:
                twin = Worker(each.name, each.generation, POOL, 1, 1, agents=each.agents)
                idle.join(twin)
        home = idle.choose(Request(agent, self.now, self.now + 1.0, affinity=key), self.now)
        found = [each for each in self.workers if home is not None and each.generation == home.generation]
        return found[0] if found else None

    @invariant()
    def the_backlog_adds_up(self) -> None:
        backlog = self.core.backlog
        waiting = [request for request in self.requests if request.state is State.WAITING]
        assert backlog.requests == len(waiting)
        assert backlog.bytes == sum(request.size for request in waiting) + sum(self.arriving)
        if backlog.refusing:
            assert backlog.requests > MARKS.low_water or backlog.bytes > MARKS.max_bytes * LOW_BYTES
        assert backlog.requests <= MARKS.high_water + self.returned
        for queue in backlog.queues.values():
            for band in queue.busy:
                inside = [request for lane in band.lanes.values() for request in lane]
                counted = [request for request in inside if not request.agent.max_concurrency]
                assert band.requests == len(inside)
                for work, long in ((band.brief, False), (band.long, True)):
                    part = [request for request in counted if request.long is long]
                    assert work.wall == pytest.approx(sum(request.wall for request in part), abs=1e-6)
                    assert work.cpu == pytest.approx(sum(request.cpu for request in part), abs=1e-6)

    @invariant()
    def who_is_outside_adds_up(self) -> None:
        comebacks = self.core.throttle(POOL).comebacks
        assert comebacks.holding == len(self.held)
        least = sum(hold.comeback.work for hold in self.held)
        assert comebacks.outside(15) >= least - 1e-9
        sums = [comebacks.outside(rank) for rank in range(16)]
        assert sums == sorted(sums), "no rank has less than nothing outside"

    @invariant()
    def nothing_waits_that_could_run(self) -> None:
        assert not self.core.is_forgotten(POOL, self.now)
        if self.core.backlog.queue(POOL).kept_for is not None:
            assert self.core.in_flight, "kept back for good"

    @invariant()
    def the_wheel_holds_what_may_still_happen(self) -> None:
        held = {request for request in self.requests if request.tick >= 0}
        alive = {request for request in self.requests if request.state in (State.WAITING, State.RUNNING)}
        assert alive <= held
        assert len(self.core.wheel) == len(held)

    @invariant()
    def the_wait_rises_with_the_rank(self) -> None:
        queue = self.core.backlog.queue(POOL)
        throttle = self.core.throttle(POOL)
        for agent in self.agents:
            waits = [throttle.wait(queue, rank, agent) for rank in range(16)]
            assert waits[0] >= 0.0
            assert waits == sorted(waits)


TestCore = Core.TestCase
TestCore.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_the_same_trace_gives_the_same_decisions() -> None:
    def play() -> list[Any]:
        core: Scheduler[Request] = Scheduler(MARKS, GRACE, Policy(), 2, random.Random(3))
        core.configure({POOL: Balance.LEAST_LOADED}, MARKS, GRACE, Policy())
        agent = Agent("a", POOL)
        agent.cost.observe(0.05, 0.05, 0.0)
        worker = Worker("p:0", 1, POOL, 2, 2, frozenset({"a"}))
        core.join(worker)
        said: list[Any] = []
        for number in range(60):
            now = 10.0 + number * 0.01
            rank = core.screen(agent, f"c{number % 3}", number % 8, left=1.0, own_deadline=True, now=now)
            if not isinstance(rank, int):
                assert isinstance(rank, Refusal)
                said.append((rank.problem, rank.retry_after))
                continue
            request = Request(agent, now, now + 1.0, priority=number % 8, client=f"c{number % 3}")
            request.rank = rank
            verdict = core.submit(request, now)
            said.append(verdict.name if isinstance(verdict, Worker) else repr(verdict))
            if number % 5 == 4 and worker.calls:
                core.finish(worker, min(worker.calls))
                while (pair := core.next(POOL, now)) is not None:
                    said.append(pair[0].order)
        return said

    assert play() == play()
