"""Requests of batched agents: how they wait for each other, and who goes with whom.

A layer of ``scheduler``, whose header tells how they fit together. ``batching`` says when a batch goes and how many it
has; here they are taken from the lanes of the queue, in their order.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from .backlog import Queue
from .batching import PART, Batch
from .books import R
from .model import Agent, Request, State, Worker
from .screening import Screening
from .throttle import Policy

if TYPE_CHECKING:
    from random import Random

    from .backlog import Watermarks


class Gathering(Screening[R]):
    """Gathers batches."""

    __slots__ = ("gathering",)

    def __init__(self, marks: Watermarks, grace: float, policy: Policy, processors: float, rng: Random) -> None:
        """The arguments are those of ``Books``."""
        super().__init__(marks, grace, policy, processors, rng)
        self.gathering: dict[str, float] = {}
        """Until when something waits for others to go with, by pool. ``Scheduler.next`` writes it."""

    def waits_for_others(self, agent: Agent, now: float) -> bool:
        """Count a request in for this agent. Whether it waits for others to go with it."""
        batching = agent.batching
        if batching is None:
            return False
        batching.arrives(now)
        return batching.wait > 0.0

    def gathered(self, now: float) -> list[str]:
        """The pools where something has waited for others for long enough. Call ``next`` for them afterwards."""
        due = [pool for pool, until in self.gathering.items() if until <= now]
        for pool in due:
            del self.gathering[pool]
        return due

    def place_batch(self, request: R, queue: Queue[R], now: float) -> Worker | None:
        """The worker for a batch with this request for its first; None: it waits for one, or for others."""
        pool = request.agent.pool
        if self.is_gathering(request, queue, now):
            return None
        worker = self.pools[pool].choose(request, now)
        if worker is None:
            self.throttles[pool].waits_for_worker(now)
        return worker

    def is_gathering(self, request: R, queue: Queue[R], now: float) -> bool:
        """Whether the first that waits for a batched agent waits for others to go with it."""
        agent = request.agent
        assert agent.batching is not None
        until = now if request.alone else agent.batching.goes_at(queue.count(agent), now)
        if until <= now:
            return False
        self.gathering[agent.pool] = min(until, self.gathering.get(agent.pool, math.inf))
        return True

    def gather(self, first: R, worker: Worker, queue: Queue[R], now: float) -> Batch[R]:
        """The batch that goes with the first of those that wait, taken out of the queue, which it has left."""
        members = [first]
        if not first.alone and first.agent.name in worker.batches:
            try:
                self._add_members(members, worker, queue, now)
            except Exception:
                for each in members[1:]:
                    self.push(each)
                raise
        return Batch(first.agent, members, PART * (min(each.deadline for each in members) - now))

    def _add_members(self, members: list[R], worker: Worker, queue: Queue[R], now: float) -> None:
        """Take those that go with the first out of the queue."""
        agent, soonest = members[0].agent, members[0].deadline
        batching, is_meant = agent.batching, self.pools[worker.pool].is_meant
        assert batching is not None
        limit = min(batching.limit, worker.batches[agent.name])
        for each in queue.waiting_for(agent) if limit > 1 else ():
            if each.alone or not is_meant(worker, each):
                continue
            if batching.seconds(len(members) + 1) > PART * (min(soonest, each.deadline) - now):
                break
            soonest = min(soonest, each.deadline)
            self.backlog.leave(each, State.RUNNING)
            members.append(each)
            if len(members) >= limit:
                break
        if 0 < queue.count(agent) < batching.limit:
            for at, each in enumerate(queue.waiting_for(agent)):
                batching.waits(each.arrived_at, each.deadline, first=not at)

    def set_apart(self, request: R) -> None:
        """Its worker died, whoever of its batch it was that cost its life: alone, it costs no other's."""
        request.alone = request.batch is not None and len(request.batch.members) > 1

    def push(self, request: R) -> None:
        """Let a request wait, in its place."""
        request.batch = None
        batching = request.agent.batching
        if batching is not None:
            first = not self.backlog.queue(request.agent.pool).has(request.agent)
            batching.waits(request.arrived_at, request.deadline, first=first)
        self.backlog.push(request)

    def spared_until(self, request: R, now: float) -> float:
        """Until when nothing happens to a worker for the sake of this one: others of its batch have more time, or
        another of them is the one that is acted for. ``now``, or before: its time has come.
        """
        batch = request.batch
        if batch is None:
            return now
        last: float = max(each.deadline for each in batch.members) + self.grace / 2
        if now < last:
            return last
        batch.late = batch.late or request
        return now if batch.late is request else now + self.grace


def together(request: R) -> Sequence[R]:
    """This request and all that are in one batch with it."""
    return [request] if request.batch is None else request.batch.members


def had_begun(request: Request, call: int, begun: Collection[int]) -> bool:
    """Whether the function was entered. Of a batch its first call says so; where one has its answer, all had ended."""
    batch = request.batch
    return call in begun if batch is None else batch.ended or batch.call in begun
