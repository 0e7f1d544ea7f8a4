"""Whether a request may wait, asked once for each request that finds no free worker.

The checks are in the order in which a refusal helps the client most: the deadline cannot be met; the queue is full; the
wait would be too long (``throttle``). The ``Retry-After`` of a refusal at a mark comes from the throttle too, which
knows the rate at which work is done.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from .backlog import Backlog
from .model import Agent, Request, Worker
from .refusals import Comeback, Problem, Refusal
from .throttle import Throttle


def beyond_marks(
    agent: Agent, name: str, size: int, backlog: Backlog[Any], throttle: Throttle, back: Comeback | None, now: float
) -> Refusal | None:
    """The refusal of one more request of the client ``name`` with a body of ``size`` bytes, if the marks do not allow
    it to wait. ``back``: what it was told before, if it is early.
    """
    if backlog.fits(size):
        return None
    marks = backlog.marks
    full = backlog.requests >= marks.low_water
    detail = (
        f"{backlog.requests} requests wait, {backlog.bytes} bytes of bodies wait or arrive (the marks are"
        f" {marks.high_water} requests and {marks.max_bytes} bytes); new ones are accepted again at the low-water mark"
    )
    wait = throttle.wait(backlog.queue(agent.pool), agent.priority, agent)
    comeback = throttle.turn_away(agent, name, agent.priority, wait, back, now)
    again = comeback.left(now)
    return Refusal(Problem.OVERLOADED, detail, again, "requests" if full else "bytes", comeback)


def admit(request: Request, backlog: Backlog[Any], throttle: Throttle, now: float) -> Refusal | None:
    """None: the request may wait. Otherwise the reason why not."""
    if request.deadline <= now:
        detail = "the deadline expired before the request could be queued"
        return Refusal(Problem.DEADLINE_EXCEEDED, detail, reason="deadline")
    return beyond_marks(request.agent, request.client, request.size, backlog, throttle, None, now)


def admit_child(request: Request, workers: Iterable[Worker], now: float) -> Refusal | None:
    """None: a request that another's call asks for may wait. It was let in with that one, so marks and predictions do
    not count. ``workers``: of its pool.
    """
    if request.deadline <= now:
        detail = "the deadline was over before the call could be queued"
        return Refusal(Problem.DEADLINE_EXCEEDED, detail, reason="deadline")
    if request.agent.connection and _is_starved(request, workers):
        detail = "the calls that wait for this one hold all database connections that it could get"
        return Refusal(Problem.DATABASE_UNAVAILABLE, detail)
    return None


def _is_starved(request: Request, workers: Iterable[Worker]) -> bool:
    """Whether all connections that it could get are held by those who wait for it."""
    kind = request.agent.database
    held: Counter[Worker] = Counter()
    ancestor = request.parent
    while ancestor is not None:
        if ancestor.worker is not None and ancestor.agent.connection and ancestor.agent.database == kind:
            held[ancestor.worker] += 1
        ancestor = ancestor.parent
    able = [each for each in workers if each.serving and request.agent.name in each.agents]
    return bool(held) and bool(able) and all(each.connections.get(kind, math.inf) <= held[each] for each in able)
