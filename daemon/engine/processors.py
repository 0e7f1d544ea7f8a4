"""CPU accounting: what calls take of the processors, measured when they end, and estimated while they run for agents
whose cost is not known yet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from penstock.ipc.messages import Answer

from ..core.model import Request, Worker
from ..core.scheduler import Scheduler
from ..host.cgroups import processors
from .pressure import INTERVAL, Pressure


class Measuring:
    """Samples the workers and the host's processors, and tells the scheduler what it has seen."""

    def __init__(self, loop: asyncio.AbstractEventLoop, scheduler: Scheduler[Any], pump: Callable[[], object]) -> None:
        """``pump``: send what waits in any pool and can run now."""
        self._loop = loop
        self._scheduler = scheduler
        self._pump = pump
        self._pressure = Pressure()
        self.reestimating = False
        """``reestimate_unmeasured`` comes by itself in a while."""

    def learn(self, worker: Worker, request: Request, answer: Answer, now: float) -> None:
        """A call has ended: note what it has cost its agent."""
        pressure = self._pressure
        if pressure.is_due(now):
            self.sample_cpu(now)
        pressed = pressure.was_pressed(worker.pid, request.dispatched_at)
        agent, batch = request.agent, request.batch
        cost = agent.cost
        # Only the first call of an agent asks for the crowd, which reads all workers.
        crowd = 1.0 if cost.calls else self._scheduler.crowd(worker)
        wall = max(0.0, answer.wall - answer.stalled - answer.nested)
        if batch is None or agent.batching is None:
            cost.observe(wall, answer.cpu, answer.db, pressed, crowd)
            return
        count = len(batch.members)
        cost.observe(wall / count, answer.cpu / count, answer.db / count, pressed, crowd)
        agent.run_cost.observe(wall, answer.cpu, answer.db, pressed, crowd)
        agent.batching.learn(count, wall, batch.budget)

    def sample_cpu(self, now: float) -> None:
        """Read what the workers and others take of the processors. Pump all pools afterwards."""
        self._pressure.sample([worker.pid for worker in self._workers()], now)
        self._scheduler.leave_processors(self._pressure.left(processors()))

    def reestimate_unmeasured(self) -> None:
        """While something waits, see what the calls of unknown agents take of the processors, so that calls that only
        wait do not hold up others until the first of them ends.
        """
        self.reestimating = False
        now = time.monotonic()
        workers = self._workers()
        if not self._scheduler.backlog.requests or not any(each.has_unmeasured for each in workers):
            return
        if self._pressure.is_due(now):
            self.sample_cpu(now)
            for worker in workers:
                rate = 1.0 if self._pressure.host_pressed(now) else self._pressure.rate(worker.pid)
                worker.reestimate_unmeasured(rate, now)
            self._pump()
        self.reestimating = True
        self._loop.call_later(INTERVAL, self.reestimate_unmeasured)

    def _workers(self) -> list[Worker]:
        return [worker for pool in self._scheduler.pools.values() for worker in pool.workers]
