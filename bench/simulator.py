"""The supervisor's core in virtual time: real decisions on a modelled machine.

``Simulation`` drives the very ``Scheduler`` that the daemon runs, with workers that are modelled: a call computes first
and waits then; the calls that compute on one worker share its interpreter lock, and all workers share the processors.
Nothing reads a clock, and the same seed gives the same run. Benchmarks (``policies.py``) and tests (``tests/sim``) feed
it with traces, whose requests come whether or not earlier ones were answered (open loops), and with crowds, whose members ask
again when they have their answer (closed loops).
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from bench.simulated import Arrival, Call, Crowd, Ending, Machine, Member
from penstock.daemon.core.backlog import Watermarks
from penstock.daemon.core.comebacks import Hold
from penstock.daemon.core.dispatch import Balance
from penstock.daemon.core.model import Agent, Request, State, Worker
from penstock.daemon.core.refusals import Refusal
from penstock.daemon.core.scheduler import Scheduler, Step
from penstock.daemon.core.throttle import Policy

POOL: Final = "default"
LOOK: Final = 0.02
"""Virtual seconds between two looks at the workers' CPU clocks."""
GAP: Final = 0.0003
"""Seconds from an answer's sending to the next request of a client that asks again at once."""
OTHERS_WEIGHT: Final = 0.2
"""Of the newest look, in what the supervisor takes of the processors on average; as in daemon/engine/pressure.py."""


@dataclass(slots=True)
class Simulation:
    """One run."""

    machine: Machine = field(default_factory=Machine)
    policy: Policy = field(default_factory=Policy)
    marks: Watermarks = field(default_factory=Watermarks)
    sync: bool = False
    seed: int = 1
    slowness: Callable[[float], float] = lambda now: 1.0
    """By how much everything takes longer at a time."""
    others: Callable[[float], float] = lambda now: 0.0
    """Processors that other programs take at a time."""
    now: float = 100.0
    endings: list[Ending] = field(default_factory=list)
    scheduler: Scheduler[Request] = field(init=False)
    agents: dict[str, Agent] = field(default_factory=dict)
    workers: list[Worker] = field(default_factory=list)
    most_in_flight: int = 0
    _events: list[tuple[float, int, Callable[[], object]]] = field(default_factory=list)
    _count: Iterator[int] = field(default_factory=itertools.count)
    _computing: dict[Worker, list[Call]] = field(default_factory=dict)
    _moved_at: float = 0.0
    _step: int = 0
    _armed: float = math.inf
    _used: dict[Worker, float] = field(default_factory=dict)
    _pressed_at: dict[Worker, float] = field(default_factory=dict)
    _generation: int = 0
    _tasks: deque[Callable[[], float]] = field(default_factory=deque)
    _at_work: bool = False
    _worked: float = 0.0
    """CPU seconds of the supervisor since the last look."""
    refusing: float = 0.0
    """CPU seconds that it has spent on looks at requests that it refused."""
    _front_load: float = 0.0
    _taken: float = 0.0
    _others: float = 0.0
    held: int = 0
    """Refusals that are held back now ..."""
    paced: int = 0
    """... and in all."""

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.marks, 1.0, self.policy, self.machine.processors, random.Random(self.seed))
        self.scheduler.configure({POOL: Balance.LEAST_LOADED}, self.marks, 1.0, self.policy)
        self._moved_at = self.now
        for index in range(self.machine.workers):
            self.add_worker(index)

    # The cast

    def agent(self, name: str) -> Agent:
        """The agent of that name, made when it is first asked for."""
        found = self.agents.get(name)
        if found is None:
            found = self.agents[name] = Agent(name, POOL, sync=self.sync, idempotent=True)
            for worker in self.workers:
                worker.agents = frozenset(self.agents)
        return found

    def add_worker(self, index: int) -> Worker:
        """A worker comes up."""
        self._generation += 1
        machine = self.machine
        worker = Worker(f"{POOL}:{index}", self._generation, POOL, machine.slots, machine.threads)
        worker.agents = frozenset(self.agents)
        self.workers.append(worker)
        self._computing[worker] = []
        self._used[worker] = 0.0
        self.scheduler.join(worker)
        self.pump()
        return worker

    def kill_worker(self, worker: Worker) -> None:
        """A worker dies; what it had begun is tried again."""
        self._move()
        for computing in self._computing.pop(worker):
            computing.finished = True
        self.workers.remove(worker)
        begun = list(worker.calls)
        for call in list(worker.calls.values()):
            assert isinstance(call, Call)
            call.finished = True
        for requeue in self.scheduler.leave(worker, begun, True, self.now):
            assert isinstance(requeue.request, Call)
            requeue.request.finished = False
            if requeue.end is not None:
                self._end(requeue.request, requeue.end.problem.value)
        self._reschedule()
        self.pump()

    # The play

    def at(self, when: float, action: Callable[[], object]) -> None:
        """Do something at a time."""
        heapq.heappush(self._events, (when, next(self._count), action))

    def run(self, trace: Iterable[Arrival], until: float = math.inf) -> list[Ending]:
        """Play a trace, whose times are absolute, to its end; what became of each request."""
        arrivals = iter(trace)
        self._next_arrival(arrivals)
        self.at(self.now + LOOK, self._look)
        while self._events and self._events[0][0] <= until:
            when, _, action = heapq.heappop(self._events)
            self.now = max(self.now, when)
            action()
            if not self._alive:
                break
        return self.endings

    _pending: int = 0
    _exhausted: bool = False

    @property
    def _alive(self) -> bool:
        return not self._exhausted or self._pending > 0

    def _next_arrival(self, arrivals: Iterator[Arrival]) -> None:
        arrival = next(arrivals, None)
        if arrival is None:
            self._exhausted = True
            return

        def arrive() -> None:
            self._next_arrival(arrivals)
            self._submit(arrival, 0)

        self._pending += 1
        self.at(arrival.at, arrive)

    def join(self, crowd: Crowd) -> None:
        """Let the members of a crowd come; ``run`` plays until they have gone."""
        rng = random.Random(f"{self.seed} {crowd.begin} {crowd.count}")
        for number in range(crowd.count):
            member = Member(f"c{number % crowd.names}", number)
            self._pending += 1
            self.at(crowd.begin + rng.random() * 0.01, partial(self._ask, crowd, member, rng))

    def _ask(self, crowd: Crowd, member: Member, rng: random.Random) -> None:
        """A member wants something."""
        if self.now >= crowd.end or (crowd.leaves and member.refused >= crowd.leaves):
            self._disconnect(member)
            self._pending -= 1
            return
        agent, cpu, waiting = crowd.ask(rng)

        def ended(ending: Ending) -> None:
            if crowd.reconnects:
                self._disconnect(member)
            if crowd.once and not ending.problem:
                self._pending -= 1
                return
            pause = GAP + (rng.expovariate(1.0 / crowd.pause) if crowd.pause else 0.0)
            if ending.problem and crowd.obeys:
                pause = ending.retry_after
            member.refused = member.refused + 1 if ending.problem else 0
            self.at(self.now + pause, lambda: self._ask(crowd, member, rng))

        self._submit(Arrival(self.now, agent, cpu, waiting, member.name), member.refused, ended, member)

    def _disconnect(self, member: Member) -> None:
        if member.back is not None:
            self.scheduler.stray(member.back)
        member.back = None
        member.fresh = True

    # The supervisor

    def _work(self, task: Callable[[], float]) -> None:
        """The supervisor does one thing after another; a task returns the CPU seconds that it takes."""
        if not self.machine.refusing:
            task()
            return
        self._tasks.append(task)
        if not self._at_work:
            self._at_work = True
            self._next_task()

    def _next_task(self) -> None:
        if not self._tasks:
            self._at_work = False
            return
        took = self._tasks.popleft()()
        self._worked += took
        self.at(self.now + took, self._next_task)

    def _submit(
        self,
        arrival: Arrival,
        attempt: int,
        ended: Callable[[Ending], None] | None = None,
        member: Member | None = None,
    ) -> None:
        call = Call(self.agent(arrival.agent), self.now, arrival, attempt)
        call.ended = ended
        # Without a crowd each request comes on a connection of its own, which stays open.
        call.member = member or Member(arrival.client, 0)
        self._work(lambda: self._look_at(call))

    def _look_at(self, call: Call) -> float:
        member = call.member
        assert member is not None
        verdict = self.scheduler.screen(
            call.agent,
            call.client,
            call.priority,
            left=call.deadline - self.now,
            own_deadline=call.own_deadline,
            now=self.now,
            back=member.back,
            fresh=member.fresh,
        )
        member.fresh = False
        return self._decided(call, verdict)

    def _look_again(self, call: Call, hold: Hold) -> float:
        self.held -= 1
        return self._decided(call, self.scheduler.again(hold, self.now))

    def _decided(self, call: Call, verdict: int | Refusal | Hold) -> float:
        assert call.member is not None
        call.member.back = verdict.comeback if isinstance(verdict, Refusal) else None
        if isinstance(verdict, Hold):
            self.held += 1
            self.paced += 1
            self.at(verdict.until, lambda: self._work(lambda: self._look_again(call, verdict)))
            self.refusing += self.machine.refusing
            return self.machine.refusing
        if isinstance(verdict, Refusal):
            self._refused(call, verdict)
            self.refusing += self.machine.refusing
            return self.machine.refusing
        call.rank = verdict
        worker = self.scheduler.submit(call, self.now)
        if isinstance(worker, Refusal):
            self._refused(call, worker)
            return self.machine.refusing
        if worker is not None:
            self._start(call, worker)
        self._watch()
        return self.machine.serving

    def _refused(self, call: Call, refusal: Refusal) -> None:
        arrival = call.arrival
        ending = Ending(arrival, refusal.problem.value, self.now - call.arrived_at, call.attempt, refusal.retry_after)
        self.endings.append(ending)
        if call.ended is not None:
            call.ended(ending)
        elif call.attempt < arrival.retries and refusal.problem.value in ("overloaded", "throttled"):
            attempt = call.attempt + 1
            self.at(self.now + refusal.retry_after, lambda: self._submit(arrival, attempt))
        else:
            self._pending -= 1

    def _end(self, call: Call, problem: str) -> None:
        ending = Ending(call.arrival, problem, self.now - call.arrived_at, call.attempt)
        self.endings.append(ending)
        if call.ended is not None:
            call.ended(ending)
        else:
            self._pending -= 1

    def _watch(self) -> None:
        at = self.scheduler.wheel.next_at()
        if at is not None and at < self._armed:
            self._armed = at
            self.at(at, self._expire)

    def _expire(self) -> None:
        self._armed = math.inf
        for due in self.scheduler.expire(self.now):
            assert isinstance(due.request, Call)
            if due.step is Step.SHED and due.refusal is not None:
                self._refused(due.request, due.refusal)
            elif due.step in (Step.ANSWER, Step.CANCEL):
                self._end(due.request, "deadline-exceeded")
        self._watch()

    def pump(self) -> None:
        """Send what can run."""
        while (pair := self.scheduler.next(POOL, self.now)) is not None:
            request, worker = pair
            assert isinstance(request, Call)
            self._start(request, worker)
        self.most_in_flight = max(self.most_in_flight, self.scheduler.in_flight)

    # The machine

    def _start(self, call: Call, worker: Worker) -> None:
        self._move()
        call.cpu_left = max(call.arrival.cpu * self.slowness(self.now), 1e-9)
        call.finished = False
        self._computing[worker].append(call)
        self.most_in_flight = max(self.most_in_flight, self.scheduler.in_flight)
        self._reschedule()

    def _rate(self, worker: Worker) -> float:
        busy = sum(1 for calls in self._computing.values() if calls)
        return min(1.0, self._left / busy) if busy else 0.0

    @property
    def _left(self) -> float:
        """Processors that the supervisor, which goes first, leaves to the workers."""
        return max(0.1, self.machine.processors - self._front_load - self._taken)

    def _move(self) -> None:
        """Let everything compute up to now."""
        elapsed, self._moved_at = self.now - self._moved_at, self.now
        if elapsed <= 0.0:
            return
        rate = min(1.0, self._left / max(1, sum(1 for calls in self._computing.values() if calls)))
        for worker, calls in self._computing.items():
            if calls:
                self._used[worker] += rate * elapsed
                share = rate * elapsed / len(calls)
                for call in calls:
                    call.cpu_left -= share

    def _reschedule(self) -> None:
        """Set the event for the next call that has computed enough."""
        self._step += 1
        step = self._step
        soonest = math.inf
        for worker, calls in self._computing.items():
            if calls:
                least = min(call.cpu_left for call in calls)
                soonest = min(soonest, max(0.0, least) * len(calls) / self._rate(worker))
        if soonest < math.inf:
            self.at(self.now + soonest + 1e-9, lambda: self._computed(step))

    def _computed(self, step: int) -> None:
        if step != self._step:
            return
        self._move()
        for worker, calls in self._computing.items():
            for call in [each for each in calls if each.cpu_left <= 1e-9]:
                calls.remove(call)
                pause = call.arrival.waiting * self.slowness(self.now)
                number = call.call_id
                self.at(
                    self.now + pause + self.machine.gap,
                    partial(self._answered, call, worker, number),
                )
        self._reschedule()

    def _answered(self, call: Call, worker: Worker, number: int) -> None:
        if call.call_id != number or worker not in self._computing:
            return
        wall = self.now - self.machine.gap - call.dispatched_at
        cpu = call.arrival.cpu * self.slowness(self.now)
        pressed = self._pressed_at.get(worker, -math.inf) >= call.dispatched_at - LOOK
        crowd = self.scheduler.crowd(worker)
        found = self.scheduler.finish(worker, number)
        if found is None:
            return
        call.agent.cost.observe(wall, cpu, 0.0, pressed, crowd)
        if call.state is State.RUNNING:
            call.state = State.ENDED
            self._end(call, "")
        self.pump()

    def _look(self) -> None:
        """As the daemon does: which workers are short of processors, and what unknown calls take."""
        self._move()
        rates = {worker: self._used[worker] / LOOK for worker in self.workers}
        pressed = sum(rates.values()) + self._front_load + self._taken > 0.95 * self.machine.processors
        self._front_load, self._worked = min(1.0, self._worked / LOOK), 0.0
        self._taken = self.others(self.now)
        self._others += (self._front_load + self._taken - self._others) * OTHERS_WEIGHT
        if self._others:
            self.scheduler.leave_processors(max(0.25 * self.machine.processors, self.machine.processors - self._others))
            self._reschedule()
        for worker, rate in rates.items():
            self._used[worker] = 0.0
            if pressed or rate > 0.95:
                self._pressed_at[worker] = self.now
            if self.scheduler.backlog.requests and worker.has_unmeasured:
                worker.reestimate_unmeasured(1.0 if pressed else rate, self.now)
        self.pump()
        if self._alive:
            self.at(self.now + LOOK, self._look)
