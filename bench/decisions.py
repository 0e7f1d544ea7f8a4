"""What the core's decisions cost: CPU time of admission, queue, dispatch and end of a request, without any I/O around.

Each path through the core is run many times in virtual time, a millisecond apart, so that the throttle's averages and
shares are dealt out anew as often as they are under such a load. What the loop itself takes (the request's object and
its client's name, the calls) is measured with a core that decides nothing, and subtracted.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections import deque
from typing import Any, Final, cast

from bench.measuring import Check, Result, command
from penstock.daemon.core.backlog import Watermarks
from penstock.daemon.core.dispatch import Balance
from penstock.daemon.core.model import Agent, Request, Worker
from penstock.daemon.core.scheduler import Scheduler
from penstock.daemon.core.throttle import Policy

POOL: Final = "default"
WORKERS: Final = 4
SLOTS: Final = 16
WAITING: Final = 30
"""Requests that stand in the queue, where there is one."""
GAP: Final = 0.001
CLIENTS: Final = 20


class Course:
    """A core with its workers, and what runs there."""

    def __init__(self) -> None:
        marks = Watermarks()
        self.core: Scheduler[Request] = Scheduler(marks, 1.0, Policy(), 2, random.Random(1))
        self.core.configure({POOL: Balance.LEAST_LOADED}, marks, 1.0, Policy())
        self.agent = Agent("wait", POOL, idempotent=True)
        for _ in range(50):
            self.agent.cost.observe(0.06, 0.0002, 0.0, False)
        for index in range(WORKERS):
            worker = Worker(f"{POOL}:{index}", 1, POOL, SLOTS, SLOTS, frozenset([self.agent.name]))
            self.core.join(worker)
        self.now = 100.0
        self.running: deque[tuple[Worker, int]] = deque()
        self.count = 0
        self.refused = 0

    def arrive(self) -> None:
        """A request comes and is sent, waits or is refused."""
        now = self.now
        self.count += 1
        client = f"10.0.0.{self.count % CLIENTS}"
        rank = self.core.screen(self.agent, client, 3, left=30.0, own_deadline=False, now=now)
        if not isinstance(rank, int):
            self.refused += 1
            return
        request = Request(self.agent, now, now + 30.0, size=100, client=client)
        request.rank = rank
        worker = self.core.submit(request, now)
        if isinstance(worker, Worker):
            self.running.append((worker, request.call_id))

    def answer(self) -> None:
        """The oldest call ends, and what may run now is sent."""
        worker, call = self.running.popleft()
        request = self.core.finish(worker, call)
        assert request is not None
        request.agent.cost.observe(0.06, 0.0002, 0.0, False)
        while (pair := self.core.next(POOL, self.now)) is not None:
            self.running.append((pair[1], pair[0].call_id))


class _Nothing:
    """Stands for the core, and decides nothing."""

    def __init__(self, course: Course) -> None:
        self._request = Request(course.agent, 100.0, 130.0)
        self._worker = Worker(f"{POOL}:0", 1, POOL, SLOTS, SLOTS)

    def screen(self, agent: Agent, name: str, priority: int, *, left: float, own_deadline: bool, now: float) -> int:
        return priority

    def submit(self, request: Request, now: float) -> Worker:
        return self._worker

    def finish(self, worker: Worker, call: int) -> Request:
        return self._request

    def next(self, pool: str, now: float) -> None:
        return None


def undecided() -> Course:
    """The loop without decisions."""
    course = Course()
    course.core = cast(Any, _Nothing(course))
    course.arrive()
    return course


def sent_at_once() -> Course:
    """Half of the slots are taken."""
    course = Course()
    for _ in range(WORKERS * SLOTS // 2):
        course.arrive()
    return course


def queued() -> Course:
    """All slots are taken, and some wait."""
    course = Course()
    for _ in range(WORKERS * SLOTS + WAITING):
        course.arrive()
    return course


def _turns(course: Course, count: int) -> float:
    """CPU seconds of a request that comes and one that ends."""
    begun = time.thread_time()
    for _ in range(count):
        course.now += GAP
        course.answer()
        course.arrive()
    return (time.thread_time() - begun) / count


def _refusals(course: Course, count: int) -> float:
    """CPU seconds of a request that is refused."""
    while not course.refused:
        course.arrive()
    before = course.refused
    begun = time.thread_time()
    for _ in range(count):
        course.now += GAP / 10
        course.arrive()
    return (time.thread_time() - begun) / max(1, course.refused - before)


def measure(scale: float) -> Result:
    """Medians of runs."""
    count = max(1000, round(20_000 * scale))
    rows: list[list[Any]] = [["path", "us of CPU time", "(min-max)"]]
    result = Result("decisions", {f"decisions about a request, {WORKERS} workers of {SLOTS} slots": rows})
    play = statistics.median(_turns(undecided(), count) for _ in range(5))
    for name, runs, beside in (
        ("sent at once: admit, place, end", [_turns(sent_at_once(), count) for _ in range(5)], play),
        (f"through a queue of {WAITING}: admit, queue, place, end", [_turns(queued(), count) for _ in range(5)], play),
        ("refused", [_refusals(queued(), count) for _ in range(5)], 0.0),
    ):
        taken = [(each - beside) * 1e6 for each in runs]
        middle = statistics.median(taken)
        rows.append([name, middle, f"{min(taken):.1f}-{max(taken):.1f}"])
        if name.startswith("through"):
            result.checks.append(Check("A16 the policy, admit and pop and reply, us", middle, 15.0))
    result.notes.append(f"{play * 1e6:.2f} us of the measuring loop itself are subtracted")
    return result


if __name__ == "__main__":
    sys.exit(command(measure, __doc__))
